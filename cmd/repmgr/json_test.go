package main

import (
	"io"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/doctor"
)

// jsonDocuments is what each command prints with --json.
var jsonDocuments = map[string]any{
	"cluster show": repmgr.ClusterStatus{}, "cluster watch": repmgr.ClusterStatus{}, "cluster cleanup": repmgr.CleanupResult{}, "cluster explain": repmgr.Explanation{},
	"cluster event": nil, "cluster failovers": nil, // lists under one name: see the page
	"cluster failover": repmgr.FailoverResult{}, "cluster why": repmgr.Reasoning{}, "cluster why-not": repmgr.WhyNotAnswer{},
	"primary register": nodeDoc{}, "primary unregister": nodeDoc{}, "standby register": nodeDoc{}, "standby unregister": nodeDoc{},
	"witness register": nodeDoc{}, "witness unregister": nodeDoc{},
	"standby clone": repmgr.CloneResult{}, "standby promote": repmgr.PromoteResult{}, "standby follow": repmgr.FollowResult{}, "standby switchover": repmgr.SwitchoverResult{},
	"node status": repmgr.NodeReport{}, "node check": repmgr.NodeChecks{}, "node rejoin": repmgr.RejoinResult{}, "node screen": repmgr.ScreenResult{}, "node drain": repmgr.DrainResult{}, "node service": repmgr.ServiceResult{}, "node control": repmgr.ReceiverResult{},
	"cluster matrix": repmgr.Matrix{}, "cluster primary": repmgr.Record{}, "cluster restart": repmgr.RestartResult{},
	"service status": repmgr.ServiceStatus{}, "service pause": repmgr.PauseResult{}, "service unpause": repmgr.PauseResult{},
	"daemon start": repmgr.DaemonResult{}, "daemon stop": repmgr.DaemonResult{},
	"doctor":     doctor.Report{},
	"adopt":      repmgr.AdoptResult{},
	"completion": nil, // a script, no document
}

// topFields are the names at the top of a document.
func topFields(typ reflect.Type) (names []string) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			names = append(names, topFields(f.Type)...)
		case f.IsExported() && name != "" && name != "-":
			names = append(names, name)
		}
	}
	return names
}

// Every command has a document on the page docs/json.md, with each of its fields.
func TestJSONIsDocumented(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/json.md")
	require.NoError(t, err)
	a := newApp(strings.NewReader(""), io.Discard, io.Discard)
	parser, err := kong.New(&a.grammar, kong.Name("repmgr"), kong.NoDefaultHelp())
	require.NoError(t, err)
	for _, leaf := range parser.Model.Leaves(true) {
		command := strings.Join(commandWords(leaf), " ")
		doc, known := jsonDocuments[command]
		if !known && strings.HasPrefix(command, "daemon ") { // the same as service
			continue
		}
		require.True(t, known, "%q has no document", command)
		if doc == nil {
			continue
		}
		row := ""
		for line := range strings.Lines(string(page)) {
			if strings.HasPrefix(line, "| `"+command+"` |") {
				row = line
			}
		}
		require.NotEmpty(t, row, "%q is not on the page", command)
		for _, name := range topFields(reflect.TypeOf(doc)) {
			require.Contains(t, row, "`"+name+"`", "%s", command)
		}
	}
}
