// Command custom-cloner makes a standby from last night's backup instead of
// loading the primary with a copy: it restores what
//
//	pg_basebackup -F tar -D /backups/tonight
//
// has written, and the library does the rest. The standby then needs the WAL
// since that backup, from wal_keep_size, a slot or restore_command.
//
//	custom-cloner -config repmgr.conf -source host=node1 -backup /backups/tonight -D /srv/pg
package main

import (
	"archive/tar"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"syscall"

	"github.com/pgrepmgr/repmgr"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal is the system's
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "custom-cloner:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("custom-cloner", flag.ContinueOnError)
	config := flags.String("config", "repmgr.conf", "configuration `file` of the new standby")
	source := flags.String("source", "", "`conninfo` of the server that the backup is of")
	backup := flags.String("backup", "", "`directory` that pg_basebackup -F tar has filled")
	dir := flags.String("D", "", "data `directory` to be made")
	port := flags.Int("port", 0, "`port` of the new server, where it differs from the source's")
	if err := flags.Parse(args); err != nil {
		return err
	}
	cfg, err := repmgr.LoadConfig(*config)
	if err != nil {
		return err
	}
	cluster, err := repmgr.New(cfg)
	if err != nil {
		return err
	}
	res, err := cluster.Clone(ctx, repmgr.CloneOptions{
		Source: *source, Dir: *dir, LocalPort: *port,
		Cloner: tarCloner{*backup},
		Progress: func(p repmgr.CopyProgress) {
			fmt.Fprintf(out, "%s: %d of %d kB\n", p.Phase, p.Done>>10, p.Total>>10)
		},
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s is ready to start as a standby of %s\n", res.Dir, res.Upstream)
	return nil
}

// tarCloner is a [repmgr.Cloner] that unpacks a backup. What is its own is only
// the files: Clone checks that they are of the same cluster as the source,
// writes the standby's settings, and clears up when something goes wrong.
type tarCloner struct{ backup string }

var _ repmgr.Cloner = tarCloner{}

func (c tarCloner) Copy(ctx context.Context, job repmgr.CopyJob) error {
	archives, err := filepath.Glob(filepath.Join(c.backup, "*.tar"))
	if err != nil {
		return err
	}
	progress := repmgr.CopyProgress{Phase: "restoring"}
	into := map[string]string{"base.tar": ".", "pg_wal.tar": "pg_wal"}
	for _, name := range archives {
		if into[filepath.Base(name)] == "" {
			return fmt.Errorf("restore %s: tablespaces are more than this example knows", name)
		}
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		progress.Total += info.Size()
	}
	if len(archives) != len(into) {
		return fmt.Errorf("restore %s: no base.tar and pg_wal.tar there", c.backup)
	}
	root, err := os.OpenRoot(job.Dir) // no archive gets out of it
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range archives { // base.tar comes first: it has the directory pg_wal
		job.Log("restoring " + name)
		report := func(n int64) {
			progress.Done += n
			job.Progress(progress)
		}
		if err := unpack(ctx, name, root, into[filepath.Base(name)], report); err != nil {
			return fmt.Errorf("restore %s: %w", name, err)
		}
	}
	return nil
}

// unpack writes the files of an archive below dir, and tells report of each.
func unpack(ctx context.Context, name string, root *os.Root, dir string, report func(bytes int64)) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	archive := tar.NewReader(f)
	for ctx.Err() == nil {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		target, mode := path.Join(dir, h.Name), fs.FileMode(h.Mode)&fs.ModePerm
		switch h.Typeflag {
		case tar.TypeDir:
			if err = root.Mkdir(target, mode); errors.Is(err, fs.ErrExist) {
				err = nil
			}
		case tar.TypeReg:
			err = writeFile(root, target, mode, archive)
		default:
			err = fmt.Errorf("%s is neither file nor directory", h.Name)
		}
		if err != nil {
			return err
		}
		report(h.Size)
	}
	return context.Cause(ctx)
}

// writeFile returns when the file is on the disk: a standby that lost a part of
// its files to a power cut would not know it.
func writeFile(root *os.Root, name string, mode fs.FileMode, from io.Reader) error {
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
