package repmgr

import (
	"context"
	"fmt"
	"os"
	"strings"
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
	values := map[byte]placeholder{
		'D': {"REPMGR_DIR", job.Dir},
		'h': {"REPMGR_HOST", params["host"]},
		'p': {"REPMGR_PORT", params["port"]},
		'U': {"REPMGR_USER", params["user"]},
		'd': {"REPMGR_DBNAME", params["dbname"]},
		's': {"REPMGR_SLOT", job.Slot},
	}
	var env []string
	for key, name := range map[string]string{"password": "PGPASSWORD", "passfile": "PGPASSFILE"} {
		if params[key] != "" {
			env = append(env, name+"="+params[key])
		}
	}
	out, err := runShell(ctx, c.command, values, env...)
	if err != nil {
		return fmt.Errorf("clone_command: %w%s", err, afterColon(lastLines(out, 5)))
	}
	if _, err := os.Stat(job.Dir + "/backup_label"); err != nil {
		job.Log("clone_command left no backup_label: the copy is taken as that of a stopped server")
	}
	return nil
}

// lastLines is the end of a program's output, where it says why it stopped.
func lastLines(out []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}

// afterColon puts a program's words behind ours, where it had any.
func afterColon(s string) string {
	if s == "" {
		return ""
	}
	return ": " + s
}
