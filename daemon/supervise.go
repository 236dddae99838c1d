package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/config"
	"github.com/vfolder/vfolder/control"
	"github.com/vfolder/vfolder/supervisor"
)

// SuperviseOptions of RunSupervisor.
type SuperviseOptions struct {
	// Program is the path of vfolderd, and Flags what its children are given
	// besides the subcommand.
	Program string
	Flags   []string
	// LogToFile writes to the log directory instead of standard error.
	LogToFile bool
	// Report, if not nil, gets a control.Report when the mount is live or the
	// start has failed, and is closed.
	Report io.WriteCloser
}

const (
	reportPoll = 20 * time.Millisecond
	reportAsk  = 5 * time.Second // a worker that is not up yet leaves the call waiting
)

// RunSupervisor mounts, runs the worker and, with the embedded store, the store,
// and returns when the daemon has stopped for good, or, under systemd, has
// handed its mount over. It is called once in a process.
func RunSupervisor(ctx context.Context, cfg *config.Config, o SuperviseOptions) error {
	report := newReporter(o.Report)
	err := supervise(ctx, cfg, o, report)
	report.send(err)
	return err
}

func supervise(ctx context.Context, cfg *config.Config, o SuperviseOptions, report *reporter) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := cfg.Daemon
	if err := prepareDirs(cfg); err != nil {
		return err
	}
	if err := keepLock(envStateLock, filepath.Join(d.StateDir, lockFile)); err != nil {
		return err
	}
	if err := keepLock(envRunLock, filepath.Join(d.RunDir, lockFile)); err != nil {
		return err
	}
	output, log, err := openOutput(cfg, o.LogToFile)
	if err != nil {
		return err
	}
	slog.SetDefault(log)
	if err := checkStore(cfg); err != nil {
		return err
	}
	if err := keepControl(d.Socket()); err != nil {
		return err
	}
	child := func(name string) supervisor.Program {
		return supervisor.Program{Name: name, Argv: append([]string{o.Program, name}, o.Flags...)}
	}
	sc := supervisor.Config{
		Points: []string{d.Mountpoint}, Worker: child("worker"), Patience: supervisorGrace, Log: output, Logger: log,
	}
	if cfg.Store.Embedded() {
		if _, err := storeAddr(d.StateDir); err != nil {
			return err
		}
		sc.Helpers = append(sc.Helpers, child("store"))
	}
	log.Info("vfolderd starts", "pid", os.Getpid(), "state", d.StateDir, "mount", d.Mountpoint)
	_ = os.Remove(failurePath(cfg))
	watching := make(chan error, 1)
	go func() { watching <- report.whenLive(ctx, cfg, cancel) }()
	err = supervisor.Run(ctx, sc)
	cancel()
	if failed := <-watching; failed != nil {
		err = errors.Join(failed, err)
	}
	if err != nil {
		log.Error("vfolderd ends", "err", err)
		return err
	}
	log.Info("vfolderd ends")
	return nil
}

// prepareDirs makes the directories, and refuses those that others can enter.
func prepareDirs(cfg *config.Config) error {
	d := cfg.Daemon
	for _, dir := range []string{d.StateDir, d.RunDir} {
		if err := privateDir(dir); err != nil {
			return err
		}
	}
	if d.Mountpoint == filepath.Join(d.RunDir, filepath.Base(d.Mountpoint)) {
		// A dead mount of ours is there and cannot be looked at: the supervisor
		// clears it away.
		if err := os.Mkdir(d.Mountpoint, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return &vfolder.Error{Op: "mountpoint", Kind: vfolder.KindOf(err), Path: d.Mountpoint, Err: err}
		}
	}
	return nil
}

func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return &vfolder.Error{
			Op: "start", Kind: vfolder.KindOf(err), Path: dir, Err: err, Fix: "set daemon.state_dir and daemon.run_dir, or XDG_RUNTIME_DIR",
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return &vfolder.Error{Op: "start", Kind: vfolder.KindOf(err), Path: dir, Err: err}
	}
	if int(st.Uid) != os.Geteuid() {
		return &vfolder.Error{
			Op: "start", Kind: vfolder.KindAccess, Path: dir,
			Err: fmt.Errorf("it belongs to user %d, not to %d", st.Uid, os.Geteuid()), Fix: "chown it, or use another directory",
		}
	}
	if st.Mode&0o077 != 0 {
		if err := os.Chmod(dir, 0o700); err != nil {
			return &vfolder.Error{Op: "start", Kind: vfolder.KindOf(err), Path: dir, Err: err, Fix: "chmod 700 " + dir}
		}
	}
	return nil
}

// openOutput is where children and the supervisor itself write.
func openOutput(cfg *config.Config, toFile bool) (*os.File, *slog.Logger, error) {
	if !toFile {
		_ = os.Unsetenv(envLogDir)
		return os.Stderr, newLogger(os.Stderr, cfg.Daemon.LogLevel).With("process", "supervisor"), nil
	}
	l, err := openLog(filepath.Join(cfg.Daemon.LogDir(), LogName), maxLogBytes)
	if err != nil {
		return nil, nil, err
	}
	pipe, err := l.pipe()
	if err != nil {
		return nil, nil, err
	}
	return pipe, newLogger(l, cfg.Daemon.LogLevel).With("process", "supervisor"), os.Setenv(envLogDir, cfg.Daemon.LogDir())
}

// checkStore finds out before anything is mounted that the credentials cannot
// be read, and makes those of the embedded store.
func checkStore(cfg *config.Config) error {
	if cfg.Store.Embedded() {
		_, _, err := config.MakeCredentials(cfg.Store.CredentialsFile)
		return err
	}
	_, err := config.ReadCredentials(cfg.Store.CredentialsFile)
	return err
}

// reporter tells once how the start went.
type reporter struct{ to chan io.WriteCloser }

func newReporter(to io.WriteCloser) *reporter {
	r := &reporter{to: make(chan io.WriteCloser, 1)}
	if to != nil {
		r.to <- to
	}
	return r
}

func (r *reporter) send(err error) {
	select {
	case to := <-r.to:
		_ = json.NewEncoder(to).Encode(control.NewReport(err))
		_ = to.Close()
	default:
	}
}

// whenLive reports once the worker answers and its mount is live. A worker that
// cannot start before it ever did ends the whole daemon with its error: nobody
// depends on the mount yet, and somebody waits for an answer.
func (r *reporter) whenLive(ctx context.Context, cfg *config.Config, stop func()) error {
	client := control.Dial(cfg.Daemon.Socket())
	defer client.Close()
	tick := time.NewTicker(reportPoll)
	defer tick.Stop()
	for {
		ask, cancel := context.WithTimeout(ctx, reportAsk)
		st, err := client.Status(ask)
		cancel()
		if err == nil && st.Mounted {
			r.send(nil)
			return nil
		}
		if err := readFailure(cfg); err != nil {
			stop()
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// failurePath is where a worker that cannot start leaves the reason.
func failurePath(cfg *config.Config) string { return filepath.Join(cfg.Daemon.RunDir, "worker.failed") }

func writeFailure(cfg *config.Config, err error) {
	text, jsonErr := json.Marshal(control.NewReport(err))
	if jsonErr == nil {
		_ = replaceFile(failurePath(cfg), text)
	}
}

func readFailure(cfg *config.Config) error {
	text, err := os.ReadFile(failurePath(cfg))
	if err != nil {
		return nil
	}
	var r control.Report
	if json.Unmarshal(text, &r) != nil {
		return nil
	}
	return r.Err()
}
