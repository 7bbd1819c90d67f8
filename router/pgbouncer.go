package router

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgrepmgr/repmgr/conninfo"
	"github.com/pgrepmgr/repmgr/internal/durable"
	"github.com/pgrepmgr/repmgr/internal/failure"
	"github.com/pgrepmgr/repmgr/registry"
)

// PgBouncer is one that reads its databases from a file of this machine, and whose console is told to read it again.
type PgBouncer struct {
	Console string // conninfo of its database "pgbouncer", as one of admin_users
	File    string // lines of [databases], whose host and port are written here; pgbouncer.ini includes it with %include. Empty: nothing is written

	nodes []registry.Record // all, as Point has seen them
}

func (p *PgBouncer) String() string {
	params, _ := conninfo.Parse(p.Console)
	return "PgBouncer at " + net.JoinHostPort(params["host"], params["port"])
}

// loginRetry is how long PgBouncer shall wait, in seconds, after a connection to a server has failed: it would go on to do so, by default for 15 s, when
// the server of the database is another one already.
const loginRetry = 0.1

// Point writes the file, makes PgBouncer read it, and lets clients go on that Hold has stopped.
func (p *PgBouncer) Point(ctx context.Context, d Destination) error {
	if d.Primary.ID == 0 { // its clients wait until there is one
		return nil
	}
	p.nodes = append(slices.Clone(d.Others), d.Primary)
	changed := false
	if p.File != "" {
		host, port := at(d.Primary)
		var err error
		if changed, err = rewriteFile(p.File, host, port); err != nil {
			return err
		}
	}
	c, err := p.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	if p.File != "" {
		if _, err := run(ctx, c, "RELOAD"); err != nil {
			return err
		}
	}
	databases, err := p.databases(ctx, c)
	if err != nil {
		return err
	}
	if err := p.hurry(ctx, c); err != nil {
		return err
	}
	var failed []error
	for _, b := range databases {
		if !changed && p.File == "" { // it points to a name that leads elsewhere now
			_, err := run(ctx, c, "RECONNECT "+quoted(b.name))
			failed = append(failed, err)
		}
		if b.paused {
			_, err := run(ctx, c, "RESUME "+quoted(b.name))
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// hurry makes PgBouncer try a server again at once.
func (p *PgBouncer) hurry(ctx context.Context, c *pgconn.PgConn) error {
	rows, err := run(ctx, c, "SHOW CONFIG")
	if err != nil {
		return err
	}
	for _, row := range rows {
		if row["key"] == "server_login_retry" {
			if now, err := strconv.ParseFloat(row["value"], 64); err != nil || now > loginRetry {
				_, err = run(ctx, c, fmt.Sprintf("SET server_login_retry = '%g'", loginRetry))
				return err
			}
		}
	}
	return nil
}

// Hold pauses the databases whose servers are nodes, and waits until no transaction is under way. What goes
// on longer than ctx goes on; new ones wait all the same.
func (p *PgBouncer) Hold(ctx context.Context) error {
	c, err := p.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	databases, err := p.databases(ctx, c)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	failed := make([]error, len(databases))
	for i, b := range databases {
		wg.Go(func() { // each waits for its own transactions
			c, err := p.connect(ctx)
			if err == nil {
				_, err = run(ctx, c, "PAUSE "+quoted(b.name))
				_ = c.Close(context.WithoutCancel(ctx))
			}
			failed[i] = err
		})
	}
	wg.Wait()
	return errors.Join(failed...)
}

// database is one that leads to a node.
type database struct {
	name   string
	paused bool
}

// databases are those of PgBouncer that lead to a node, or that the file names.
func (p *PgBouncer) databases(ctx context.Context, c *pgconn.PgConn) (all []database, err error) {
	rows, err := run(ctx, c, "SHOW DATABASES")
	if err != nil {
		return nil, err
	}
	ours := map[string]bool{}
	for _, r := range p.nodes {
		host, port := at(r)
		ours[net.JoinHostPort(host, port)] = true
	}
	for _, row := range rows {
		if ours[net.JoinHostPort(row["host"], row["port"])] {
			all = append(all, database{row["name"], row["paused"] == "1"})
		}
	}
	if len(all) == 0 {
		return nil, failure.WithHint(errors.New("none of its databases has the host and the port of a node"), "Set router_pgbouncer_file to a file with databases that pgbouncer.ini includes with %%include.")
	}
	return all, nil
}

func (p *PgBouncer) connect(ctx context.Context) (*pgconn.PgConn, error) {
	text, err := conninfo.ForPGX(p.Console)
	if err != nil {
		return nil, err
	}
	cfg, err := pgconn.ParseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("router_pgbouncer: %w", err)
	}
	if cfg.Database == "" || cfg.Database == cfg.User {
		cfg.Database = "pgbouncer"
	}
	c, err := pgconn.ConnectConfig(ctx, cfg)
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) {
		return nil, failure.WithHint(err, "Is %q one of admin_users in pgbouncer.ini, and is its password in the passfile?", cfg.User)
	}
	return c, err
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

var (
	databaseLine = regexp.MustCompile(`^(\s*(?:"(?:[^"]|"")*"|[^"\s=;#\[%]+)\s*=)(.*)$`)
	pairOfLine   = regexp.MustCompile(`\s*\b(\w+)\s*=\s*(?:'(?:[^']|'')*'|[^\s']*)`)
)

// rewrite gives each database of a text the host and the port of the primary. What else a line says stays.
func rewrite(text, host, port string) (out string, databases int) {
	if strings.ContainsAny(host, " '") {
		host = "'" + strings.ReplaceAll(host, "'", "''") + "'"
	}
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		m := databaseLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		databases++
		rest := pairOfLine.ReplaceAllStringFunc(m[2], func(pair string) string {
			if key, _, _ := strings.Cut(pair, "="); slices.Contains([]string{"host", "port"}, strings.TrimSpace(key)) {
				return ""
			}
			return pair
		})
		if rest != "" && rest[0] > ' ' {
			rest = " " + rest
		}
		lines[i] = fmt.Sprintf("%s host=%s port=%s%s", m[1], host, port, rest)
	}
	return strings.Join(lines, "\n"), databases
}

// rewriteFile is rewrite for a file, which keeps its mode and its group.
func rewriteFile(path, host, port string) (changed bool, err error) {
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return false, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	now, databases := rewrite(string(text), host, port)
	switch {
	case databases == 0:
		return false, fmt.Errorf("%s has no line of a database, such as: app = dbname=app", path)
	case now == string(text):
		return false, nil
	}
	return true, replace(path, []byte(now))
}

// replace writes a file anew, so that a reader finds the old one or the new one.
func replace(path string, data []byte) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	tmp := path + ".repmgr"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	if err = os.Chmod(tmp, info.Mode().Perm()); err == nil {
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			err = os.Chown(tmp, -1, int(s.Gid))
		}
		if errors.Is(err, fs.ErrPermission) && info.Mode().Perm()&0o004 != 0 { // everybody may read it
			err = nil
		}
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}
