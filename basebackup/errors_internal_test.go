package basebackup

import (
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

// The words of a server are of its lc_messages: what is made of its errors does not depend on them.
func TestExplainServer_InAnyLanguage(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		pg   pgconn.PgError
		want error
	}{
		{pgconn.PgError{Code: "55000", Routine: "sendDir", Message: "der Standby-Server wurde während der Online-Sicherung zum Primärserver befördert"}, ErrPromoted},
		{pgconn.PgError{Code: "55000", Routine: "do_pg_backup_start", Message: "WAL-Level nicht ausreichend, um Online-Sicherung durchzuführen", Hint: "»wal_level« muss beim Serverstart auf »replica« oder »logical« gesetzt werden."}, ErrWALLevel},
		{pgconn.PgError{Code: "55000", Routine: "do_pg_backup_stop", Message: "mit »full_page_writes=off« erzeugtes WAL wurde während der Online-Sicherung zurückgespielt"}, nil},
		{pgconn.PgError{Code: "58P01", Routine: "WalSndSegmentOpen", Message: "das angeforderte WAL-Segment wurde schon entfernt"}, ErrWALRemoved},
		{pgconn.PgError{Code: "58P01", Routine: "BasicOpenFile", Message: "could not open file"}, nil},
	} {
		require.Equal(t, tc.want, explainServer(&tc.pg), tc.pg.Message)
	}
}
