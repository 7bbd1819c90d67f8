package compat

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgrepmgr/repmgr/internal/daemontest"
	"github.com/pgrepmgr/repmgr/internal/pgtest"
)

// rendered has the keys of a repmgr.conf that edb-ansible writes, and its form: tabs, a comment
// behind each value that goes on in lines of its own, and has quotes and equals signs of its own.
// It takes the port, the data directory, the log file, and the directory of the programs four times.
const rendered = `###################################################
# repmgr configuration, written by a playbook
###################################################


node_id=1			 # Greater than zero, and nobody else's
node_name='pgnode1'			 # Any string that is this node's only; the host's name
				 # will do. Don't name it after its role, as 'primary':
				 # that isn't true for ever.

conninfo='dbname=repmgr user=repmgr port=%d host=127.0.0.1 connect_timeout=2'			 # How to connect to this node.
				 #
				 # "connect_timeout" says how long that may take,
				 # connect_timeout=2 is two seconds.

data_directory='%s'		 # Where this node's data is, for when the server
				 # doesn't run and can't be asked.

#config_directory=''		 # Where postgresql.conf is, if it isn't there.

replication_user='repuser'	 # Who replicates: without it,
				 #  the user of "conninfo".

#replication_type='physical'	 # There is no other one.

use_replication_slots=yes	 # The primary's 'max_replication_slots' must
				 # do for all standbys.

#witness_sync_interval=15	 # seconds

log_level='INFO'		 # One of DEBUG, INFO, NOTICE,
				 # WARNING, ERROR, ALERT, CRIT or EMERG

log_facility='STDERR'		 # STDERR, LOCAL0, LOCAL1, ..., LOCAL7, USER

log_file='%s'			 # Instead of STDERR
#log_status_interval=300	 # seconds

#event_notification_command='/path/to/a/script %%n %%e %%s "%%t" "%%d"'

pg_bindir='%s'				# Where pg_ctl is, if it isn't in $PATH,
					# e.g. /usr/lib/postgresql/9.6/bin/

repmgr_bindir='%s'			# Where repmgr is.

#passfile=''				# Another .pgpass
ssh_options='-q -o ConnectTimeout=10 -p 22'	# For "ssh"

#recovery_min_apply_delay=		# milliseconds, or as in '5 min'
                                        # (these are spaces).

failover='automatic'			# 'automatic' or 'manual'.
					#
					# 'manual': repmgrd only watches

#priority=100				# 0 is never promoted

reconnect_attempts=3			# How often a primary that is gone is tried
reconnect_interval=5			# and how many seconds lie between
promote_command='%s/repmgr standby promote -f /etc/repmgr/15/repmgr.conf'			# What promotes:
					#
					#     repmgr standby promote -f /etc/repmgr.conf
					#
follow_command='%s/repmgr standby follow -f /etc/repmgr/15/repmgr.conf -W --upstream-node-id=%%n'			# What follows;
					#     --upstream-node-id=%%n
					#

monitoring_history=yes			# Whether the lag of standbys is written down
#monitor_interval_secs=2		# seconds

service_start_command = '/bin/sudo /usr/bin/systemctl start postgresql-15'
service_stop_command = '/bin/sudo /usr/bin/systemctl stop postgresql-15'
service_restart_command = '/bin/sudo /usr/bin/systemctl restart postgresql-15'
service_reload_command = '/bin/sudo /usr/bin/systemctl reload postgresql-15'
#service_promote_command = ''		# not "promote_command"

repmgrd_service_start_command = '/bin/sudo /usr/bin/systemctl start repmgr-15'
repmgrd_service_stop_command = '/bin/sudo /usr/bin/systemctl stop repmgr-15'
`

// A file that edb-ansible has rendered is read without a warning, by all that its role runs, and by the daemon.
func TestAnsible(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Name: "pgnode1"})
	s.Exec(t, `CREATE ROLE repmgr LOGIN SUPERUSER; CREATE ROLE repuser LOGIN REPLICATION`)
	s.Exec(t, `CREATE DATABASE repmgr OWNER repmgr`)
	h := daemontest.NewHost(t, 1, s)
	log := filepath.Join(h.Home, "repmgr.log")
	text := fmt.Sprintf(rendered, s.Port, s.Dir, log, s.BinDir, s.BinDir, s.BinDir, s.BinDir)
	require.NoError(t, os.WriteFile(h.Conf(), []byte(text), 0o600))
	silent := func(path string) {
		t.Helper()
		said, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NotContains(t, string(said), "WARNING")
	}

	_, code := h.Sh(t, `repmgr -f $C primary register -F &>> register.log`)
	silent(filepath.Join(h.Home, "register.log"))
	require.Zero(t, code)
	h.Watch(t)
	pgtest.WaitFor(t, "the daemon", func(context.Context) error {
		if out, _ := h.Sh(t, `repmgr -f $C service status --csv 2>errors | awk -F, '$5 == 1'`); out == "" {
			return errors.New("it does not run")
		}
		return nil
	})
	silent(filepath.Join(h.Home, "errors"))
	silent(log)
	for line, want := range map[string]string{
		`repmgr -f $C node status 2>errors`:  `Node "pgnode1":`,
		`repmgr -f $C node check 2>errors`:   "OK",
		`repmgr -f $C cluster show 2>errors`: "* running",
	} {
		out, code := h.Sh(t, line)
		require.Zero(t, code, out)
		require.Contains(t, out, want)
		silent(filepath.Join(h.Home, "errors"))
	}
}
