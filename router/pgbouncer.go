package router

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/internal/settings"
	"github.com/pgrepmgr/repmgr/postgres"
)

// PgBouncer is one that reads its databases from a file of this machine, and whose console is told to read it again.
type PgBouncer struct {
	Console string // conninfo of one of its admin_users; the database is pgbouncer
	File    string // its databases, whose host and port are written here: pgbouncer.ini, or a file that it includes

	host, port string          // of the primary, as it was last told
	paused     map[string]bool // by Hold
}

func (p *PgBouncer) String() string {
	return "PgBouncer at " + settings.PgBouncer{Conninfo: p.Console}.At()
}

const (
	// loginRetry is how long PgBouncer shall wait, in seconds, after a connection to a server has failed: it would go on to do
	// so, by default for 15 s, when the server of the database is another one already.
	loginRetry = 0.1
	// pauseAtOnce is how many databases are paused at the same time, each over a connection of its own.
	pauseAtOnce = 20
)

// Point writes the file, makes PgBouncer read it, and lets clients go on that Hold has stopped. A connection to another node
// is closed when its transaction has ended.
func (p *PgBouncer) Point(ctx context.Context, d Destination) (err error) {
	if p.host, p.port, err = at(d.Primary); err != nil {
		return err
	}
	names, err := rewriteFile(ctx, p.File, p.host, p.port)
	if err != nil {
		return err
	}
	c, err := p.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	if _, err := run(ctx, c, "RELOAD"); err != nil {
		return err
	}
	settings, err := settingsOf(ctx, c)
	if err != nil {
		return err
	}
	if err := hurry(ctx, c, settings); err != nil {
		return err
	}
	databases, err := p.databases(ctx, c, names)
	if err != nil {
		return err
	}
	if err := p.leads(databases, names); err != nil {
		return err
	}
	if err := p.resume(ctx, c, databases); err != nil {
		return err
	}
	if err := p.oneProcess(settings); err != nil {
		return partial{err}
	}
	return nil
}

// oneProcess refuses a PgBouncer of which several processes may listen on one port, where its console is reached by that port: each
// connection is one to any of them, and the others do not hear what it says. A socket is that of one process.
func (p *PgBouncer) oneProcess(settings map[string]string) error {
	if params, err := conninfo.Parse(p.Console); settings["so_reuseport"] != "1" || err == nil && strings.HasPrefix(params["host"], "/") {
		return nil
	}
	return failure.WithHint(errors.New("it has so_reuseport = 1: other processes on its port are not told where the primary is, and no clients are held back"),
		"Name the unix_socket_dir of each process as a host in router_pgbouncer, or run one process, with so_reuseport = 0.")
}

// leads says which databases of the file PgBouncer has with another address, or not at all: it may have read another file,
// or none.
func (p *PgBouncer) leads(databases []database, names map[string]bool) error {
	hint := fmt.Sprintf("Does pgbouncer.ini include %s, may PgBouncer read it, and what does its log say?", p.File)
	for _, b := range databases {
		if names[b.name] && (b.host != p.host || b.port != p.port) {
			return failure.WithHint(fmt.Errorf("its database %q has the host %s and the port %s after RELOAD, and the primary is at %s and %s", b.name, b.host, b.port, p.host, p.port), "%s", hint)
		}
		delete(names, b.name)
	}
	delete(names, "*") // it makes databases when clients ask for them
	for name := range names {
		return failure.WithHint(fmt.Errorf("it has no database %q after RELOAD, and %s has", name, p.File), "%s", hint)
	}
	return nil
}

// Hold pauses the databases, and waits until no transaction is under way. What goes on longer than ctx goes on;
// new transactions wait all the same. Where Point could not end that nothing is paused.
func (p *PgBouncer) Hold(ctx context.Context) error {
	_, _, names, err := readFile(p.File)
	if err != nil {
		return err
	}
	c, err := p.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	settings, err := settingsOf(ctx, c)
	if err == nil {
		err = p.oneProcess(settings)
	}
	if err != nil {
		return err
	}
	databases, err := p.databases(ctx, c, names)
	if err != nil {
		return err
	}
	p.paused = map[string]bool{}
	var failed []error
	if len(databases) > pauseAtOnce {
		failed = append(failed, fmt.Errorf("%d of its %d databases are not held back: %d are the most", len(databases)-pauseAtOnce, len(databases), pauseAtOnce))
		databases = databases[:pauseAtOnce]
	}
	outcomes := make([]error, len(databases))
	var wg sync.WaitGroup
	for i, b := range databases {
		if b.paused { // by somebody else
			continue
		}
		p.paused[b.name] = true
		wg.Go(func() { // PgBouncer answers when all are idle
			c, err := p.connect(ctx)
			if err == nil {
				_, err = run(ctx, c, "PAUSE "+quoted(b.name))
				_ = c.Close(context.WithoutCancel(ctx))
			}
			outcomes[i] = err
		})
	}
	wg.Wait()
	return errors.Join(append(failed, outcomes...)...)
}

// Release lets the databases go on that Hold has paused.
func (p *PgBouncer) Release(ctx context.Context) error {
	c, err := p.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	databases, err := p.databases(ctx, c, p.paused)
	if err != nil {
		return err
	}
	return p.resume(ctx, c, databases)
}

func (p *PgBouncer) resume(ctx context.Context, c *pgconn.PgConn, databases []database) error {
	var failed []error
	for _, b := range databases {
		if b.paused {
			_, err := run(ctx, c, "RESUME "+quoted(b.name))
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// database is a row of SHOW DATABASES.
type database struct {
	name, host, port string
	paused           bool
}

// databases are those that are named, or that lead to the primary: made by a "*" of the file.
func (p *PgBouncer) databases(ctx context.Context, c *pgconn.PgConn, named map[string]bool) (all []database, err error) {
	rows, err := run(ctx, c, "SHOW DATABASES")
	for _, row := range rows {
		b := database{row["name"], row["host"], row["port"], row["paused"] == "1"}
		if named[b.name] || b.host != "" && b.host == p.host && b.port == p.port {
			all = append(all, b)
		}
	}
	return all, err
}

// settingsOf are those of PgBouncer.
func settingsOf(ctx context.Context, c *pgconn.PgConn) (map[string]string, error) {
	rows, err := run(ctx, c, "SHOW CONFIG")
	all := map[string]string{}
	for _, row := range rows {
		all[row["key"]] = row["value"]
	}
	return all, err
}

// hurry makes PgBouncer try a server again at once.
func hurry(ctx context.Context, c *pgconn.PgConn, settings map[string]string) (err error) {
	if now, bad := strconv.ParseFloat(settings["server_login_retry"], 64); bad != nil || now > loginRetry {
		_, err = run(ctx, c, fmt.Sprintf("SET server_login_retry = '%g'", loginRetry))
	}
	return err
}

func (p *PgBouncer) connect(ctx context.Context) (*pgconn.PgConn, error) {
	params, err := conninfo.Parse(p.Console)
	if err != nil {
		return nil, err
	}
	params["dbname"] = "pgbouncer" // the only one of the console, and the one of its line in a passfile
	text, err := conninfo.ForPGX(conninfo.Format(params))
	if err != nil {
		return nil, err
	}
	cfg, err := pgconn.ParseConfig(text)
	if err != nil {
		return nil, errors.New("router_pgbouncer can not be used as a conninfo") // the text of the error may contain the password
	}
	limited, cancel := context.WithTimeoutCause(ctx, dialLimit, fmt.Errorf("no answer within %s", dialLimit))
	defer cancel()
	c, err := pgconn.ConnectConfig(limited, cfg)
	switch _, refused := errors.AsType[*pgconn.PgError](err); {
	case refused:
		return nil, failure.WithHint(errors.New(postgres.Cause(err)), "Is %q one of admin_users in pgbouncer.ini, and is its password in the passfile?", cfg.User)
	case err != nil && limited.Err() != nil:
		return nil, context.Cause(limited)
	case err != nil:
		return nil, errors.New(postgres.Cause(err))
	}
	return c, nil
}

// run sends a command of the console, and returns its rows by the names of their columns.
func run(ctx context.Context, c *pgconn.PgConn, command string) (rows []map[string]string, err error) {
	results, err := c.Exec(ctx, command).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	for _, res := range results {
		for _, values := range res.Rows {
			row := map[string]string{}
			for i, f := range res.FieldDescriptions {
				row[f.Name] = string(values[i])
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

func quoted(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }
