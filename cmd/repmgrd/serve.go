package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/pgrepmgr/repmgr"
	"github.com/pgrepmgr/repmgr/internal/cli"
	"github.com/pgrepmgr/repmgr/router"
)

// stopLimit is how long the end of the monitor may take: its last words to the
// primary and to event_notification_command.
const stopLimit = 5 * time.Second

// exitMonitoring is repmgr's code for monitoring given up after degraded_monitoring_timeout.
const exitMonitoring = 9

// open opens what the configuration names beside the servers: the log, and etcd.
func (d *daemon) open() (logs *logOutput, shut func(), err error) {
	if logs, err = openLog(d.cfg, d.err); err != nil {
		return nil, nil, err
	}
	d.cfg.Logger = logs.logger
	shutArbiter, err := cli.OpenArbiter(&d.cfg)
	if err != nil {
		logs.close()
		return nil, nil, err
	}
	return logs, func() { shutArbiter(); logs.close() }, nil
}

// serve is the daemon itself: it runs until ctx ends, and then ends in order.
func (d *daemon) serve(ctx context.Context) error {
	logs, shut, err := d.open()
	if err != nil {
		return err
	}
	defer shut()
	var http httpService
	http.prepare(&d.cfg)
	routers, err := router.FromConfig(d.cfg, logs.logger)
	if err != nil {
		return err
	}
	d.cfg.HoldClients, d.cfg.RoutersFailing = routers.HoldClients(), routers.Failing
	monitor, err := repmgr.NewMonitor(d.cfg)
	if err != nil {
		return err
	}
	if path := d.pidFile(); path != "" {
		pid, err := d.takePidFile(path)
		if err != nil {
			return err
		}
		defer pid.remove()
	}
	for _, w := range d.cfg.Warnings {
		logs.logger.Warn(w.String(), "hint", w.Remedy)
	}
	// From here on the log tells, and whoever started us is free to go.
	hangups := make(chan os.Signal, 1) // 1: two requests to reload at once are one
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	started := time.Now()
	dog := watchdogKeeper{log: logs.logger, args: append(d.backgroundArgs(), "--watchdog")}
	monitor.TellWatchdog(&dog.pipe)
	dog.keep(ctx, d.cfg)
	var routing sync.WaitGroup
	defer func() { cancel(nil); dog.wg.Wait(); http.wg.Wait(); routing.Wait() }()
	routing.Go(func() { routers.Run(ctx, monitor.View) })
	if err := http.start(ctx, d.cfg, monitor, routers.State, logs.logger); err != nil {
		return err
	}
	ended := make(chan error, 1) // 1: Run's result waits for its reader
	go func() { ended <- monitor.Run(ctx) }()
	logs.logger.Log(ctx, repmgr.LevelNotice, "repmgrd started", "version", repmgr.Version, "pid", os.Getpid(), "config_file", d.cfg.File)
	if d.Automatic > 0 {
		defer d.endWithSwitchover(ctx, cancel, monitor, logs.logger)()
	}
	d.tellReady()
	notify(systemd.SdNotifyReady)

	var watchdog <-chan time.Time
	interval, err := systemd.SdWatchdogEnabled(false)
	if err == nil && interval > 0 {
		tick := time.NewTicker(interval / 2)
		defer tick.Stop()
		watchdog = tick.C
	}
	for {
		select {
		case <-hangups:
			notify(systemd.SdNotifyReloading + "\n" + systemd.SdNotifyMonotonicUsec())
			if d.reload(monitor, &http, logs) {
				dog.keep(ctx, d.cfg)
			}
			notify(systemd.SdNotifyReady)
		case <-watchdog:
			if d.looksAlive(monitor.Status().LookedAt, started, interval) {
				notify(systemd.SdNotifyWatchdog)
			}
		case <-ctx.Done():
			notify(systemd.SdNotifyStopping)
			select {
			case err := <-ended:
				return d.ended(ctx, err, logs.logger)
			case <-time.After(stopLimit):
				logs.logger.Warn("event_notification_command or a server does not answer: repmgrd stops without waiting for it")
				return d.ended(ctx, nil, logs.logger)
			}
		case err := <-ended:
			notify(systemd.SdNotifyStopping)
			return d.ended(ctx, err, logs.logger)
		}
	}
}

// looksAlive tells whether the monitor has looked at its servers lately. All
// that it does has a deadline; one that is silent for long hangs, and systemd
// is to start it anew.
func (d *daemon) looksAlive(lookedAt, started time.Time, interval time.Duration) bool {
	if lookedAt.Before(started) {
		lookedAt = started
	}
	return time.Since(lookedAt) < max(interval, 3*d.cfg.MonitorInterval+30*time.Second)
}

// ended turns the end of the monitor into that of the program: an end that was
// asked for is a good one.
func (d *daemon) ended(ctx context.Context, err error, log *slog.Logger) error {
	if ctx.Err() != nil && (err == nil || errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx))) {
		log.Log(context.Background(), repmgr.LevelNotice, "repmgrd stopped", "reason", context.Cause(ctx))
		return nil
	}
	if err == nil {
		err = errors.New("monitoring ended")
	}
	log.Error("repmgrd ends", "err", err)
	if errors.Is(err, repmgr.ErrTimeout) {
		return &exitError{code: exitMonitoring, err: err}
	}
	return err
}

// reload takes the configuration over that is in the file now. Where that is
// wrong, everything stays as it is, the watchdog too: a new one could not read it.
func (d *daemon) reload(monitor *repmgr.Monitor, http *httpService, logs *logOutput) (taken bool) {
	var restart []string
	cfg, err := d.load()
	if err == nil {
		cfg.Logger, cfg.Arbiter, cfg.HoldClients, cfg.RoutersFailing = logs.logger, d.cfg.Arbiter, d.cfg.HoldClients, d.cfg.RoutersFailing
		restart, err = monitor.Reload(cfg)
	} else {
		monitor.Rejected(err)
	}
	if err != nil {
		logs.logger.Error("configuration not reloaded: the old one stays", "err", err, "hint", cmp.Or(repmgr.Hint(err), "Mend the file, and send SIGHUP again."))
		cfg = d.cfg // the log file is reopened all the same, for logrotate
	} else {
		cfg.Notifiers = d.cfg.Notifiers
		if errHTTP := http.use(d.cfg.Reload(cfg)); errHTTP != nil {
			logs.logger.Error("HTTP goes on with the old configuration", "err", errHTTP)
		}
		d.cfg, taken = cfg, true
		for _, w := range cfg.Warnings {
			logs.logger.Warn(w.String(), "hint", w.Remedy)
		}
		if len(restart) > 0 {
			logs.logger.Warn("some changed settings need a restart of repmgrd", "keys", strings.Join(restart, ","))
		}
	}
	if err := logs.reopen(cfg); err != nil {
		logs.logger.Error("log file not reopened", "err", err)
	}
	if err == nil {
		logs.logger.Log(context.Background(), repmgr.LevelNotice, "configuration reloaded", "config_file", cfg.File)
	}
	return taken
}

// notify tells systemd, where it is systemd that runs us.
func notify(state string) { _, _ = systemd.SdNotify(false, state) }
