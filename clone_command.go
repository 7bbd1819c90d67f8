package repmgr

import (
	"context"
	"fmt"
	"os"

	"github.com/pgrepmgr/repmgr/internal/shell"
)

// commandCloner lets a program of the user's fill the directory, such as a
// restore from a backup tool. The command is a shell command; its placeholders
// are %D the directory to fill, %h and %p the source's host and port, %U and %d
// user and database, %s the replication slot, %% a percent sign. The same are
// in its environment as REPMGR_DIR, REPMGR_HOST, ..., quoted by nobody, and a
// password or password file as PGPASSWORD and PGPASSFILE.
type commandCloner struct{ command string }

var _ Cloner = commandCloner{}

func (c commandCloner) Copy(ctx context.Context, job CopyJob) error {
	params, err := ParseConninfo(job.Source)
	if err != nil {
		return err
	}
	job.Progress(CopyProgress{Phase: "running clone_command"})
	values := map[byte]shell.Value{
		'D': {Env: "REPMGR_DIR", Text: job.Dir},
		'h': {Env: "REPMGR_HOST", Text: params["host"]},
		'p': {Env: "REPMGR_PORT", Text: params["port"]},
		'U': {Env: "REPMGR_USER", Text: params["user"]},
		'd': {Env: "REPMGR_DBNAME", Text: params["dbname"]},
		's': {Env: "REPMGR_SLOT", Text: job.Slot},
	}
	var env []string
	for key, name := range map[string]string{"password": "PGPASSWORD", "passfile": "PGPASSFILE"} {
		if params[key] != "" {
			env = append(env, name+"="+params[key])
		}
	}
	out, err := shell.Run(ctx, c.command, values, env...)
	if err != nil {
		return fmt.Errorf("clone_command: %w%s", err, shell.AfterColon(shell.LastLines(out, 5)))
	}
	if _, err := os.Stat(job.Dir + "/backup_label"); err != nil {
		job.Log("clone_command left no backup_label: the copy is taken as that of a stopped server")
	}
	return nil
}
