package etcd

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pgrepmgr/repmgr"
)

// A member without a majority that notices the end of our deadline first.
func TestExplain_ADeadlineThatTheMemberSees(t *testing.T) {
	t.Parallel()
	m := &member{address: "etcd1:2379"}
	err := explain(t.Context(), "look", answerErrors{{m, status.Error(codes.Unknown, "context deadline exceeded")}})
	require.ErrorIs(t, err, repmgr.ErrConnect)
	require.ErrorContains(t, err, "etcd1:2379: no answer in time")
	require.NotErrorIs(t, explain(t.Context(), "look", answerErrors{{m, status.Error(codes.Unknown, "permission denied")}}), repmgr.ErrConnect)
}
