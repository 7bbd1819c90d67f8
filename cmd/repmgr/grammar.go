package main

import (
	"fmt"
	"strings"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/cli"
)

// grammar is the command line: every command, option and explanation. Tags
// beside kong's: oneof, min and noeffect, see [cli.Arrange].
type grammar struct {
	general       `embed:"" group:"General options"`
	configuration `embed:"" group:"Configuration options"`

	Primary    primaryGroup  `cmd:"" aliases:"master" help:"Primary server (\"master\" is the same word)"`
	Standby    standbyGroup  `cmd:"" help:"Standby server"`
	Witness    witnessGroup  `cmd:"" help:"Witness server"`
	Cluster    clusterGroup  `cmd:"" help:"Cluster"`
	Node       nodeGroup     `cmd:"" help:"This node"`
	Service    serviceGroup  `cmd:"" help:"The daemons of all nodes"`
	Daemon     daemonGroup   `cmd:"" help:"The daemon of this node"`
	Adopt      adoptCmd      `cmd:"" help:"take over a running cluster of repmgr 5, with its tables"`
	Doctor     doctorCmd     `cmd:"" help:"would a failover, a switchover, a rejoin, a restart work now?"`
	Completion completionCmd `cmd:"" help:"print a completion script for a shell"`
	Dump       dumpConfig    `cmd:"" name:"dump-config" default:"1" hidden:""`
}

type general struct {
	Help          bool   `short:"?" help:"show this help, then exit"`
	Version       bool   `short:"V" help:"output version information, then exit"`
	VersionNumber bool   `help:"output the version as a number, then exit"`
	DumpConfig    bool   `help:"output the settings in force, then exit (no command)"`
	Verbose       bool   `short:"v" help:"output verbose activity information"`
	Quiet         bool   `short:"q" help:"output nothing but errors"`
	Terse         bool   `short:"t" help:"leave out details and hints"`
	LogLevel      string `short:"L" placeholder:"LEVEL" help:"DEBUG, INFO, NOTICE, WARNING or ERROR (default: INFO)"`
	LogToFile     bool   `help:"log to log_file of the configuration"`
	JSON          bool   `name:"json" help:"output one JSON document, also for errors"`
	Cluster5      string `name:"cluster" hidden:"" placeholder:"NAME" noeffect:"the name of the cluster is in the configuration"`
	Format        string `oneof:"text,csv,json" placeholder:"FORMAT" help:"text, csv or json"`
}

type configuration struct {
	ConfigFile string `short:"f" placeholder:"PATH" help:"path to the configuration file (also --config_file)"`
	PgBindir   string `name:"pg_bindir" short:"b" placeholder:"DIR" help:"directory of PostgreSQL's programs"`

	RemoteConfigFile    string `short:"C" hidden:"" placeholder:"PATH" noeffect:"no other machine's configuration is read"`
	CheckUpstreamConfig bool   `hidden:"" noeffect:"the checks are always made; without the deed: --dry-run"`
}

// connection is embedded where a server other than that of repmgr.conf can be named.
type connection struct {
	Dbname   string `short:"d" placeholder:"DBNAME" help:"database to connect to, or a connection string or URI"`
	Host     string `short:"h" placeholder:"HOSTNAME" help:"database server host or socket directory"`
	Port     []int  `short:"p" sep:"none" min:"1" max:"65535" placeholder:"PORT" help:"database server port"`
	Username string `short:"U" placeholder:"USERNAME" help:"database user name to connect as"`
}

func (c connection) given() bool {
	return c.Dbname != "" || c.Host != "" || len(c.Port) > 0 || c.Username != ""
}

// isConninfo tells a connection string from a database name.
func isConninfo(s string) bool {
	return strings.Contains(s, "=") || strings.HasPrefix(s, "postgresql://") || strings.HasPrefix(s, "postgres://")
}

// ownAddress are the parameters of a node's conninfo that say where it is; the
// others, such as user and database, are good for its fellows too.
// A port is often the same on all of them, and repmgr 5 keeps it.
var ownAddress = []string{"host", "hostaddr", "application_name", "fallback_application_name"}

// conninfo is the server that the options name. What they leave open comes from
// ours, the conninfo of the configuration, and otherwise from the PG* variables.
func (c connection) conninfo(ours string) (string, error) {
	params := map[string]string{}
	if isConninfo(c.Dbname) {
		var err error
		if params, err = repmgr.ParseConninfo(c.Dbname); err != nil {
			return "", fmt.Errorf("option --dbname: %w", err)
		}
	} else {
		if ours != "" {
			p, err := repmgr.ParseConninfo(ours)
			if err != nil {
				return "", err
			}
			params = p
			for _, key := range ownAddress {
				delete(params, key)
			}
			if strings.Contains(params["port"], ",") { // of several hosts
				delete(params, "port")
			}
		}
		if c.Dbname != "" {
			params["dbname"] = c.Dbname
		}
	}
	if c.Host != "" {
		params["host"] = c.Host
		delete(params, "hostaddr")
	}
	if len(c.Port) > 0 {
		params["port"] = fmt.Sprint(c.Port[0])
	}
	if c.Username != "" {
		params["user"] = c.Username
	}
	return repmgr.FormatConninfo(params), nil
}

// superuser is known to repmgr 5, whose extension only a superuser can install.
type superuser struct {
	Superuser string `short:"S" hidden:"" noeffect:"repmgr needs no superuser for its metadata"`
}

type force struct {
	Force bool `short:"F" help:"override the safety checks that can be overridden"`
}

type dryRun struct {
	DryRun bool `help:"check everything, change nothing"`
}

type csv struct {
	CSV bool `name:"csv" help:"output comma-separated values, without a header"`
}

type primaryGroup struct {
	Register   primaryRegister   `cmd:"" help:"register this node as the primary of the cluster"`
	Unregister primaryUnregister `cmd:"" help:"remove the record of a former primary"`
	Status     nodeStatus        `cmd:"" hidden:"" help:"show the state of this node"`
	Check      nodeCheck         `cmd:"" hidden:"" help:"check this node"`
}

type standbyGroup struct {
	Register   standbyRegister   `cmd:"" help:"register this node as a standby"`
	Unregister standbyUnregister `cmd:"" help:"remove the record of a standby"`
	Clone      standbyClone      `cmd:"" help:"make a new standby from a running server"`
	Promote    standbyPromote    `cmd:"" help:"make this standby the new primary"`
	Follow     standbyFollow     `cmd:"" help:"re-point this standby to a new primary"`
	Switchover standbySwitchover `cmd:"" help:"make a standby the primary, and the primary its standby"`
	Status     nodeStatus        `cmd:"" hidden:"" help:"show the state of this node"`
	Check      nodeCheck         `cmd:"" hidden:"" help:"check this node"`
}

type witnessGroup struct {
	Register   witnessRegister   `cmd:"" help:"register this node as a witness"`
	Unregister witnessUnregister `cmd:"" help:"remove the record of a witness"`
}

type serviceGroup struct {
	Status  serviceStatus  `cmd:"" help:"show what the daemon of every node does, and why"`
	Pause   servicePause   `cmd:"" help:"keep all daemons from acting by themselves"`
	Unpause serviceUnpause `cmd:"" help:"let them act again"`
}

type daemonGroup struct {
	Start   daemonStart    `cmd:"" help:"start the daemon of this node"`
	Stop    daemonStop     `cmd:"" help:"stop the daemon of this node"`
	Status  serviceStatus  `cmd:"" hidden:"" help:"show what the daemon of every node does, and why"`
	Pause   servicePause   `cmd:"" hidden:"" help:"keep all daemons from acting by themselves"`
	Unpause serviceUnpause `cmd:"" hidden:"" help:"let them act again"`
}

type clusterGroup struct {
	Show    clusterShow    `cmd:"" help:"show every node and whether all is well"`
	Watch   clusterWatch   `cmd:"" help:"show the same, again and again, until q is pressed"`
	Event   clusterEvent   `cmd:"" aliases:"events" help:"show what happened, newest first"`
	Cleanup clusterCleanup `cmd:"" help:"delete old monitoring history"`
	Matrix  clusterMatrix  `cmd:"" aliases:"crosscheck" help:"show which nodes reach which, as their daemons see it"`
	Primary clusterPrimary `cmd:"" help:"print the primary, and again when it is another one"`
	Restart clusterRestart `cmd:"" help:"restart the servers of all nodes, one after the other"`

	Explain   clusterExplain   `cmd:"" help:"say what would happen if a node died now"`
	Why       clusterWhy       `cmd:"" help:"say what was decided last, and what each daemon does now"`
	WhyNot    clusterWhyNot    `cmd:"" help:"say why a node is not the primary, and would not be the next"`
	Failovers clusterFailovers `cmd:"" help:"show the failovers that took place, newest first"`
	Failover  clusterFailover  `cmd:"" help:"elect a new primary now, because the old one is lost"`
}

type nodeGroup struct {
	Status nodeStatus `cmd:"" help:"show the state of this node"`
	Check  nodeCheck  `cmd:"" help:"check this node, for Nagios and the like"`
	Rejoin nodeRejoin `cmd:"" help:"bring a former primary back as a standby"`
	Screen nodeScreen `cmd:"" help:"before its server is started: may it start as a primary?"`

	Drain   nodeDrain   `cmd:"" help:"before this node is stopped: hand over if it is the primary"`
	Service nodeService `cmd:"" help:"start, stop, restart or reload the server of this node"`
	Control nodeControl `cmd:"" help:"for tests: keep this standby from receiving, and let it again"`
}

type primaryRegister struct {
	force
	dryRun
	ReplicationUser string `placeholder:"USERNAME" help:"role of replication connections (default: replication_user, or\nthe user of conninfo)"`
	superuser
}

func (primaryRegister) Help() string {
	return `Makes the metadata in the database that conninfo names, and registers the node.
Registering again needs -F, and takes changed settings over.

Example:
  repmgr -f /etc/repmgr.conf primary register`
}

type unregister struct {
	NodeID   int    `placeholder:"N" min:"1" help:"node to remove, by its id"`
	NodeName string `placeholder:"NAME" help:"node to remove, by its name"`
	force
	dryRun
}

type primaryUnregister struct{ unregister }

func (primaryUnregister) Help() string {
	return `Stops nothing: it only removes the record. Without --node-id it means the primary.

Example, for a former primary that is gone for good:
  repmgr -f /etc/repmgr.conf primary unregister --node-id=1`
}

type standbyUnregister struct{ unregister }

func (standbyUnregister) Help() string {
	return `Stops nothing: it only removes the record. Without --node-id it means this node.

Example:
  repmgr -f /etc/repmgr.conf standby unregister --node-id=3`
}

type standbyRegister struct {
	force
	dryRun
	UpstreamNodeID int             `placeholder:"N" min:"1" help:"node that this standby streams from (default: looked up)"`
	WaitStart      int             `placeholder:"SECONDS" min:"0" default:"30" help:"how long to wait for the local server (default: 30)"`
	WaitSync       cli.OptionalInt `placeholder:"SECONDS" help:"wait until this standby has the record (default: for ever)"`
	connection     `embed:"" group:"Connection options"`
	superuser
}

func (standbyRegister) Help() string {
	return `The connection options name the primary; they are needed only with -F while the
local server is down.

Example:
  repmgr -f /etc/repmgr.conf standby register`
}

type standbyClone struct {
	Source string `arg:"" optional:"" name:"host" help:"server to copy"`

	force
	dryRun
	FastCheckpoint        bool   `short:"c" help:"begin with a fast checkpoint instead of waiting for one"`
	Method                string `oneof:"basebackup,rsync,command" placeholder:"METHOD" help:"basebackup (default), rsync or command"`
	UpstreamNodeID        int    `placeholder:"N" min:"1" help:"node to stream from (default: the primary)"`
	UpstreamConninfo      string `placeholder:"CONNINFO" help:"server to stream from, where it is not registered"`
	ReplicationUser       string `placeholder:"USERNAME" help:"role of replication connections"`
	RecoveryMinApplyDelay string `placeholder:"TIME" help:"apply WAL so much later (such as 30min)"`
	ReplicationConfOnly   bool   `aliases:"recovery-conf-only" help:"copy nothing, only write the replication settings"`
	connection            `embed:"" group:"Connection options"`
	copying               `embed:"" group:"Configuration options"`
	superuser
	WithoutBarman           bool `hidden:"" help:"copies never come from Barman"`
	VerifyBackup            bool `hidden:"" noeffect:"verification is not available yet"`
	NoUpstreamConnection    bool `hidden:"" noeffect:"there is no cloning from Barman, which it is for"`
	CopyExternalConfigFiles bool `hidden:"" default:"false" noeffect:"files outside the data directory are not copied yet"`
}

// copying is where the manual lists them: under configuration.
type copying struct {
	DataDir    string `short:"D" aliases:"pgdata" placeholder:"DIR" help:"local directory where the files will be copied to (also\n--pgdata; data_directory of the configuration wins)"`
	RemoteUser string `short:"R" placeholder:"USERNAME" help:"operating system user for rsync on the other machine"`
}

func (standbyClone) Help() string {
	return `HOST is the server to copy; -h says the same. A second -p is the port of the new
standby. Without -D and a configuration, the current directory becomes the data
directory. Nothing is started.

Example:
  repmgr -D /var/lib/postgresql/data standby clone node1`
}

type standbyPromote struct {
	force
	dryRun
	SiblingsFollow bool `help:"re-point the other standbys to this node"`
}

func (standbyPromote) Help() string {
	return `Refuses while another primary can be reached.

Example:
  repmgr -f /etc/repmgr.conf standby promote`
}

type standbySwitchover struct {
	force
	dryRun
	To                  string       `placeholder:"NODE" help:"id or name of the new primary (default: this standby)"`
	At                  string       `placeholder:"TIME" help:"begin then, and do not wait for it (2006-01-02 15:04:05, or 15:04)"`
	Cancel              bool         `help:"take back the one that was asked for, if it has not begun"`
	Timeout             int          `placeholder:"SECONDS" min:"1" max:"86400" help:"how long the shutdown of the primary may take (default:\nshutdown_check_timeout)"`
	RemoteUser          string       `short:"R" placeholder:"USERNAME" help:"operating system user for ssh, where no repmgrd runs"`
	AlwaysPromote       bool         `hidden:"" noeffect:"nobody is promoted beside a primary that may run"`
	SiblingsFollow      bool         `hidden:"" noeffect:"the other standbys always follow"`
	RepmgrdNoPause      bool         `hidden:"" noeffect:"no daemon is paused"`
	RepmgrdForceUnpause bool         `hidden:"" noeffect:"no daemon is paused"`
	ForceRewind         optionalPath `hidden:"" noeffect:"a primary that was shut down in order needs no rewind"`
	superuser
}

func (standbySwitchover) Help() string {
	return `The repmgrd of the primary carries it out, so it must run with failover=automatic. Where
none runs there, one is started over ssh on each node without one, until all is done.
All other standbys follow the new primary.

One that was asked for with --at is taken back by --cancel, on any node, until it begins.

Example, on the standby that is to be the primary:
  repmgr -f /etc/repmgr.conf standby switchover --dry-run`
}

type standbyFollow struct {
	Target string `arg:"" optional:"" name:"host" help:"new primary"`

	dryRun
	UpstreamNodeID int             `placeholder:"N" min:"1" help:"node to follow (default: the primary)"`
	Wait           cli.OptionalInt `short:"w" xor:"wait" placeholder:"SECONDS" help:"wait for a primary (default: primary_follow_timeout)"`
	NoWait         bool            `short:"W" xor:"wait" help:"do not wait for a primary (default)"`
	connection     `embed:"" group:"Connection options"`
}

func (standbyFollow) Help() string {
	return `Without HOST and --upstream-node-id, the primary is looked up. The server is not
restarted.

Example:
  repmgr -f /etc/repmgr.conf standby follow`
}

type witnessRegister struct {
	force
	dryRun
	connection `embed:"" group:"Connection options"`
	superuser
}

func (witnessRegister) Help() string {
	return `A witness is a PostgreSQL server of its own, made by initdb, that replicates nothing.
The connection options name the primary, or any other node that is registered.

Example:
  repmgr -f /etc/repmgr.conf witness register -h node1`
}

type witnessUnregister struct {
	unregister
	connection `embed:"" group:"Connection options"`
}

func (witnessUnregister) Help() string {
	return `Stops nothing: it removes the record, and the copy of the metadata in the witness.
Without --node-id it means this node. The connection options name another node;
they are needed only while the local server is down.

Example:
  repmgr -f /etc/repmgr.conf witness unregister --node-id=9`
}

type serviceStatus struct {
	csv
	Compact    bool `xor:"width" help:"narrower: shorter headings"`
	Detail     bool `xor:"width" help:"wider: location, priority, and why each daemon does what it does"`
	connection `embed:"" group:"Connection options"`
}

func (serviceStatus) Help() string {
	return `Every node is asked at once. What is wrong is told below the table; the exit code
is 25 unless exactly one primary runs, and stays 0 with any other issue.
CSV: node_id, name, role, PostgreSQL runs (1, 0), repmgrd runs (1, 0, -1 unknown), pid
(-1 unknown), paused (1, 0, -1 unknown), priority, upstream last seen (seconds ago, -1
unknown), location; with --detail also mode, phase, reason, lease (seconds), term.

Example:
  repmgr -f /etc/repmgr.conf service status --detail`
}

type pauseService struct {
	dryRun
	connection `embed:"" group:"Connection options"`
}

type servicePause struct{ pauseService }

func (servicePause) Help() string {
	return `For maintenance: no failover and no following until it is ended, also over restarts. The
daemons go on watching. The exit code is 26 where it failed on a node; the others stay
paused.

Example:
  repmgr -f /etc/repmgr.conf service pause`
}

type serviceUnpause struct{ pauseService }

func (serviceUnpause) Help() string {
	return `The exit code is 26 where it failed on a node; the others are unpaused.

Example:
  repmgr -f /etc/repmgr.conf service unpause`
}

type daemonControl struct {
	dryRun
	Wait   cli.OptionalInt `short:"w" xor:"wait" placeholder:"SECONDS" help:"wait for it (default: 15)"`
	NoWait bool            `short:"W" xor:"wait" help:"do not wait for it"`
}

type daemonStart struct{ daemonControl }

func (daemonStart) Help() string {
	return `Runs repmgrd_service_start_command, and waits until the daemon has announced itself in
the local server. The exit code is 27 where it does not, or where it ran already.

Example:
  repmgr -f /etc/repmgr.conf daemon start`
}

type daemonStop struct{ daemonControl }

func (daemonStop) Help() string {
	return `Runs repmgrd_service_stop_command, and waits until the daemon is gone. The exit code is
27 where it is not, or where none ran.

Example:
  repmgr -f /etc/repmgr.conf daemon stop`
}

type clusterShow struct {
	csv
	Compact    bool `xor:"width" help:"narrower: no connection strings"`
	Detail     bool `xor:"width" help:"wider: how each node answered"`
	SVG        bool `name:"svg" xor:"width" help:"a picture: which node receives from which"`
	connection `embed:"" group:"Connection options"`
}

func (clusterShow) Help() string {
	return `Every node is asked at once. The exit code is 25 where something is wrong. With
connection options it needs no configuration file.
CSV: node_id, availability (0 yes, -1 no), recovery (0 primary, 1 standby, -1 unknown).

Example:
  repmgr -f /etc/repmgr.conf cluster show`
}

type clusterWatch struct {
	Interval   int `default:"2" min:"1" max:"3600" placeholder:"SECONDS" help:"how long to wait after each look (default: 2)"`
	connection `embed:"" group:"Connection options"`
}

func (clusterWatch) Help() string {
	return `Every node is asked again at each look. q or Ctrl-C ends it. Where the input or the output
is no terminal, it is written once, as by cluster show --compact.

Example:
  repmgr -f /etc/repmgr.conf cluster watch`
}

type clusterEvent struct {
	csv
	All        bool   `help:"all events"`
	Limit      int    `placeholder:"N" min:"1" default:"20" help:"that many events (default: 20)"`
	Event      string `placeholder:"NAME" help:"only events of that name, such as standby_promote"`
	NodeID     int    `placeholder:"N" min:"1" help:"only events of that node, by its id"`
	NodeName   string `placeholder:"NAME" help:"only events of that node, by its name"`
	Compact    bool   `help:"narrower: no details"`
	connection `embed:"" group:"Connection options"`
}

func (clusterEvent) Help() string {
	return `Example:
  repmgr -f /etc/repmgr.conf cluster event --event=standby_promote --limit=5`
}

type clusterCleanup struct {
	KeepHistory int `short:"k" placeholder:"DAYS" min:"0" help:"keep the last so many days (default: 0, keep nothing)"`
	NodeID      int `placeholder:"N" min:"1" help:"only the history of that standby"`
	dryRun
}

func (clusterCleanup) Help() string {
	return `Example, for cron:
  repmgr -f /etc/repmgr.conf cluster cleanup -k 7`
}

type clusterMatrix struct {
	csv
	Detail     bool `help:"how many seconds ago each daemon said so"`
	connection `embed:"" group:"Connection options"`
}

func (clusterMatrix) Help() string {
	return `A row says which nodes its daemon reaches: * yes, x no, ? not known. Nothing is done over
SSH: every node is asked for what its repmgrd has announced, which asks all others all the
time with failover=automatic. The exit code is 25 unless every cell is yes. "crosscheck" is
the same.
CSV: from_id, to_id, status (0 yes, -1 no, -2 not known).

Example:
  repmgr -f /etc/repmgr.conf cluster matrix`
}

type clusterPrimary struct {
	Conninfo bool `xor:"form" help:"its connection string instead of its name"`
	Host     bool `xor:"form" help:"its host"`
	URI      bool `xor:"form" name:"uri" help:"a URI for psql and others"`
	Follow   bool `help:"go on: print a line each time when there is another primary"`
}

func (clusterPrimary) Help() string {
	return `All nodes are asked at once, also while the local server is down. No password is printed.
The exit code is 1 where there is no primary, or where there are two.

Example:
  psql "$(repmgr -f /etc/repmgr.conf cluster primary --uri)"`
}

type clusterExplain struct {
	NodeID     int `placeholder:"N" min:"1" help:"node that dies in the question, by its id (default: the\nprimary)"`
	connection `embed:"" group:"Connection options"`
}

func (clusterExplain) Help() string {
	return `Asks every node once, and changes nothing. It says who would win and why, what would be
lost, how long it would take, what stands in the way and what to do about that. With
failover=manual: whom to promote, and the command. The exit code is 25 where something
stands in the way.

Example:
  repmgr -f /etc/repmgr.conf cluster explain`
}

type clusterWhy struct {
	connection `embed:"" group:"Connection options"`
}

func (clusterWhy) Help() string {
	return `The last decision is the newest failover, with its steps, or what was refused, given up,
fenced or promoted by hand since.

Example:
  repmgr -f /etc/repmgr.conf cluster why`
}

type clusterWhyNot struct {
	NodeID     int `placeholder:"N" min:"1" help:"node that is not the primary, by its id"`
	connection `embed:"" group:"Connection options"`
}

func (clusterWhyNot) Help() string {
	return `Example:
  repmgr -f /etc/repmgr.conf cluster why-not --node-id=3`
}

type clusterFailovers struct {
	csv
	Limit      int   `placeholder:"N" min:"1" default:"20" help:"that many failovers (default: 20)"`
	Term       int64 `placeholder:"N" min:"1" help:"only the failover of that term, with its steps"`
	connection `embed:"" group:"Connection options"`
}

func (clusterFailovers) Help() string {
	return `With -v each failover comes with its steps: when, and what was known then.
CSV: term, when, from, to, coordinator, reason, outage (seconds, empty unknown).

Example:
  repmgr -f /etc/repmgr.conf cluster failovers --term=4`
}

type clusterRestart struct {
	force
	dryRun
	Node    []string `placeholder:"NODE" help:"only this node, by id or name; may be repeated"`
	Pending bool     `help:"only nodes where a setting waits for a restart"`
	Primary string   `placeholder:"HOW" enum:"shorter,in-place,switchover" default:"shorter" help:"how the primary is restarted: in-place, switchover, or\nwhat was measured to be shorter (default)"`
	Anew    bool     `help:"begin with the first node although an earlier command did not end"`
	Timeout int      `placeholder:"SECONDS" min:"1" max:"86400" help:"how long each shutdown may take (default:\nshutdown_check_timeout)"`
}

func (clusterRestart) Help() string {
	return `The repmgrd of each node restarts its server, so it must run with failover=automatic.
A setting that rises is put in force on the standbys first, one that falls on the primary
first. The next node waits until the last one streams again. Where one does not come back
the command ends; run again, it goes on there.

Example:
  repmgr -f /etc/repmgr.conf cluster restart --pending --dry-run`
}

type clusterFailover struct {
	force
	dryRun
	connection `embed:"" group:"Connection options"`
}

func (clusterFailover) Help() string {
	return `Does by hand what the daemons do with failover=automatic, on any machine that reaches the
nodes. It refuses, with exit code 11, while the primary lives, without a majority, and
where acknowledged commits could be missing. -F overrides what an operator has set: a
pause, failover=manual, failovers_per_hour. Exit code 8: the winner was not promoted.

Example:
  repmgr -f /etc/repmgr.conf cluster failover --dry-run`
}

type nodeStatus struct {
	csv
	IsShutdownCleanly bool `hidden:""`
}

func (nodeStatus) Help() string {
	return `The exit code is 25 where something is wrong.

Example:
  repmgr -f /etc/repmgr.conf node status`
}

type nodeCheck struct {
	csv
	Role                bool `xor:"check" help:"does it run as what it is registered as?"`
	ReplicationLag      bool `xor:"check" help:"how many seconds is this standby behind?"`
	ArchiveReady        bool `xor:"check" help:"how many WAL files wait for the archiver?"`
	Upstream            bool `xor:"check" help:"does it receive from its registered upstream?"`
	Downstream          bool `xor:"check" help:"do all registered downstream nodes receive from it?"`
	Slots               bool `xor:"check" help:"does a slot that nobody uses keep WAL?"`
	MissingSlots        bool `xor:"check" help:"is a slot of a downstream node missing?"`
	Repmgrd             bool `xor:"check" help:"does repmgrd run here?"`
	DataDirectoryConfig bool `xor:"check" help:"is data_directory that of the server?"`
	HasPassfile         bool `xor:"check" hidden:""`
	DBConnection        bool `xor:"check" hidden:"" name:"db-connection"`
	Nagios              bool `help:"output a line for Nagios (with one check)"`
	superuser
}

func (nodeCheck) Help() string {
	return `All checks, or one. All: the exit code is 25 where one is not OK. One: it is that of a
Nagios plugin, 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN. Where the server can not be
reached it is 6. Limits: replication_lag_warning, ..._critical, archive_ready_warning,
..._critical. CSV, of all checks: name, status, details.

Example:
  repmgr -f /etc/repmgr.conf node check --replication-lag --nagios`
}

type nodeRejoin struct {
	force
	dryRun
	ForceRewind      optionalPath `placeholder:"PATH" help:"take back what only this node has, after saving it (PATH of\npg_rewind, where it is not found)"`
	Reclone          bool         `help:"as --force-rewind; where that does not help, copy it all anew"`
	NoWait           bool         `short:"W" help:"do not wait until the node streams"`
	ConfigFiles      []string     `placeholder:"FILES" help:"files of the data directory to keep, beside *.conf and others at\nits top"`
	ConfigArchiveDir string       `hidden:"" noeffect:"the files are kept with the saved WAL (salvage_directory) meanwhile"`
	connection       `embed:"" group:"Connection options"`
}

func (nodeRejoin) Help() string {
	return `The connection options name any node that can be reached. The local server must be
down, or be a standby; data_directory must be set. Without --force-rewind only a node
that has nothing of its own is taken.

Example:
  repmgr -f /etc/repmgr.conf node rejoin -h node2 --force-rewind --dry-run`
}

type nodeScreen struct {
	dryRun
}

func (nodeScreen) Help() string {
	return `Run it each time before the server of this node is started. Where another node may have
become the primary since it went down, it is made a standby, which repmgrd brings back
as soon as a majority is there and nothing is paused; otherwise nothing is changed. The
exit code is 0 in both cases; another one means that nothing was decided, and that the
server should not be started. For systemd, in a drop-in of PostgreSQL's service:
  [Unit]
  After=network-online.target
  [Service]
  ExecStartPre=+runuser -u postgres -- repmgr -f /etc/repmgr.conf node screen

Example:
  repmgr -f /etc/repmgr.conf node screen --dry-run`
}

type nodeDrain struct {
	force
	dryRun
	Timeout int `placeholder:"SECONDS" min:"1" max:"86400" help:"how long the shutdown of the primary may take, and the wait\nafterwards (default: shutdown_check_timeout, and\nnode_rejoin_timeout)"`
}

func (nodeDrain) Help() string {
	return `For a reboot, for systemd's ExecStop, for a pod's preStop: a primary hands over as standby
switchover does, to the standby that an election would choose. Then it waits until commits
go on without this node. It stops nothing. A standby, a witness and a server that is down
are drained at once, where the others can do without them. The exit code is 18 where that
failed: this node is then what it was, or as the error says.

Example:
  repmgr -f /etc/repmgr.conf node drain && systemctl stop postgresql`
}

type nodeService struct {
	force
	dryRun
	Action      string `oneof:"start,stop,restart,reload,promote" placeholder:"ACTION" help:"start, stop, restart or reload"`
	ListActions bool   `help:"print the command for each action, or for that of --action"`
	Checkpoint  bool   `help:"write a checkpoint before a stop or a restart"`
	superuser
}

func (nodeService) Help() string {
	return `Runs service_start_command and its like of the configuration, or pg_ctl where none is set;
data_directory must be set. A server that may not start as a primary (node screen) is
started as a standby. A promotion is refused: standby promote makes the checks. So is,
without -F, a restart that puts a setting in force with which a standby would not replay
any more: cluster restart keeps to the right order. The exit code is 5 where the command
failed.

Example:
  repmgr -f /etc/repmgr.conf node service --action=restart --checkpoint`
}

type nodeControl struct {
	dryRun
	DisableWalReceiver bool `xor:"receiver" help:"end the WAL receiver, and let it not come back for an hour"`
	EnableWalReceiver  bool `xor:"receiver" help:"let it come back"`
	superuser
}

func (nodeControl) Help() string {
	return `Adds an hour to wal_retrieve_retry_interval, or takes it away. A repmgrd with
failover=automatic points the standby to its primary anew; pause it first.

Example:
  repmgr -f /etc/repmgr.conf node control --disable-wal-receiver`
}

// dumpConfig is what --dump-config without a command does.
type dumpConfig struct{}

type adoptCmd struct {
	force
	dryRun
}

func (adoptCmd) Help() string {
	return `On the node of the primary, with the repmgr.conf of repmgr 5. First stop its repmgrd on
every node; PostgreSQL goes on, and so do the programs of repmgr 5. Afterwards start repmgrd
on every node. --dry-run says what would be done, and what stands in the way. -F: although a
node does not answer, where a repmgrd of repmgr 5 may run.

Example:
  repmgr -f /etc/repmgr.conf adopt --dry-run`
}

type doctorCmd struct {
	Waive      []string `placeholder:"WAIVER" help:"accept a finding until a day, as slot_keeps_wal@node1:2026-12-31\n(without @node1: on every node); may be given several times"`
	Strict     bool     `help:"exit code 25 for warnings, too"`
	connection `embed:"" group:"Connection options"`
}

func (doctorCmd) Help() string {
	return `Asks every node once, for every node as the next primary, and changes nothing. Each
finding has an id that does not change, and what mends it; docs/doctor.md explains it. The
exit code is 25 where a critical one is not waived: for CI and cron.

Example:
  repmgr -f /etc/repmgr.conf doctor`
}

type completionCmd struct {
	Shell string `arg:"" oneof:"bash,zsh,fish" help:"shell"`
}

func (completionCmd) Help() string {
	return `Example, for this session and for good:
  source <(repmgr completion bash)
  repmgr completion bash > /etc/bash_completion.d/repmgr`
}
