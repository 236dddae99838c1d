package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
)

// defaultPatience is how long a child may take to answer what it has begun.
const defaultPatience = 30 * time.Second

// Config says what to supervise.
type Config struct {
	Points   []string      // mount points, existing directories
	Worker   Program       // serves them: FromEnviron, Ready, SIGTERM, ExitStop
	Helpers  []Program     // run besides it, started first, ended last
	Patience time.Duration // for a child to end after SIGTERM; 0 is 30 s
	Log      *os.File      // standard output and error of children; nil: the supervisor's own
	Logger   *slog.Logger  // nil: slog.Default
}

// Run mounts (or takes over a former supervisor's mounts) and keeps the
// children running until the worker exits with ExitStop or ctx ends, then
// unmounts and returns. Signals:
//
//   - SIGHUP: planned restart: the worker hands over to a new one, of the
//     program as it is on disk now.
//   - SIGTERM, SIGINT: the supervisor itself hands over and leaves the mounts,
//     to systemd's file descriptor store (Run returns nil), or where there is
//     none to its own program run anew in this process (Run does not return).
//
// It must be called once in a process, on its way to exit.
func Run(ctx context.Context, cfg Config) (err error) {
	// Children are killed when the thread that started them ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if cfg.Patience <= 0 {
		cfg.Patience = defaultPatience
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Log == nil {
		cfg.Log = os.Stderr
	}
	program, err := os.Executable()
	if err != nil {
		return &vfolder.Error{Op: "supervisor", Err: err}
	}
	r := &runner{cfg: cfg, program: program, log: cfg.Log, logger: cfg.Logger, service: newService(), events: make(chan event, 16)}
	if err := r.prepare(); err != nil {
		return err
	}
	return r.loop(ctx)
}

// runner is Run's state; only Run's goroutine touches it, others send events.
type runner struct {
	cfg      Config
	program  string
	log      *os.File
	logger   *slog.Logger
	service  service
	mounts   []*Mount
	resume   fusefs.Resume
	children []*child // helpers, then the worker
	events   chan event
	running  sync.WaitGroup // goroutines that wait for children
}

func (r *runner) worker() *child { return r.children[len(r.children)-1] }

func (r *runner) prepare() error {
	var err error
	if r.mounts, r.resume, err = restore(); err != nil {
		return err
	}
	// Mounts are told apart by their point: new ones are made, those that are
	// configured no more are taken away.
	have := make(map[string]*Mount)
	for _, m := range r.mounts {
		have[m.Point] = m
	}
	r.mounts = nil
	for _, point := range r.cfg.Points {
		m := have[point]
		delete(have, point)
		if m == nil {
			if m, err = NewMount(point); err != nil {
				return errors.Join(err, r.unmount())
			}
		}
		r.mounts = append(r.mounts, m)
	}
	for _, m := range have {
		if err := m.Unmount(); err != nil {
			r.logger.Warn("former mount left", "point", m.Point, "err", err)
		}
	}
	if err := r.service.store(r.mounts, fusefs.Killed); err != nil {
		r.logger.Warn("systemd does not keep the mounts", "err", err)
	}
	for _, p := range r.cfg.Helpers {
		r.children = append(r.children, &child{Program: p})
	}
	r.children = append(r.children, &child{Program: r.cfg.Worker, worker: true})
	return nil
}

func (r *runner) unmount() error {
	err := r.service.drop()
	for _, m := range r.mounts {
		err = errors.Join(err, m.Unmount())
	}
	return err
}

// loop runs until the end, and through it: each case below either goes on or
// returns how it ends.
func (r *runner) loop(ctx context.Context) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	watchdog, stopWatchdog := watchdogTicks()
	defer stopWatchdog()
	for _, c := range r.children {
		r.startChild(c)
	}
	for {
		select {
		case <-ctx.Done():
			return r.stop()
		case s := <-signals:
			if s == syscall.SIGHUP {
				r.logger.Info("planned restart of the worker")
				r.worker().leave(r, r.cfg.Patience)
				continue
			}
			return r.handOver()
		case <-watchdog:
			_ = r.service.tell("WATCHDOG=1")
		case e := <-r.events:
			if r.handle(e) {
				return r.stop()
			}
		}
	}
}

// handle acts on an event; true when the worker is done for good.
func (r *runner) handle(e event) (stop bool) {
	switch e.kind {
	case eventReady:
		r.logger.Info("serving", "mounts", len(r.mounts), "pid", e.child.cmd.Process.Pid)
		if err := r.service.tell("READY=1\nSTATUS=serving"); err != nil {
			r.logger.Warn("systemd not told", "err", err)
		}
	case eventRestart:
		if e.child.cmd == nil && e.child.restarts != nil {
			e.child.restarts = nil
			r.startChild(e.child)
		}
	case eventExit:
		if e.child.worker && e.state.ExitCode() == ExitStop {
			e.child.ended(e.state)
			return true
		}
		r.restart(e.child, e.state)
	}
	return false
}

// restart starts a child that ended again, at once or after a pause.
func (r *runner) restart(c *child, state *os.ProcessState) {
	asked := c.leaving
	pause := c.ended(state)
	if c.worker {
		r.resume = outcome(state)
	}
	if asked {
		r.logger.Info("child ended", "child", c.Name, "how", state.String())
	} else {
		r.logger.Error("child died", "child", c.Name, "how", state.String(), "restart_in", pause, "output", r.log.Name())
	}
	if pause == 0 {
		r.startChild(c)
		return
	}
	r.later(c, pause)
}

func (r *runner) later(c *child, pause time.Duration) {
	c.restarts = time.AfterFunc(pause, func() { r.events <- event{child: c, kind: eventRestart} })
}

func (r *runner) startChild(c *child) {
	if err := c.start(r); err != nil {
		r.logger.Error("child not started", "child", c.Name, "err", err, "again_in", mostBackoff)
		r.later(c, mostBackoff)
	}
}

// end ends the children, the worker first, and waits for them.
func (r *runner) end() {
	for i := len(r.children) - 1; i >= 0; i-- {
		c := r.children[i]
		c.leave(r, r.cfg.Patience)
		for c.cmd != nil {
			e := <-r.events
			if e.kind != eventExit {
				continue
			}
			e.child.ended(e.state)
			if e.child.worker {
				r.resume = outcome(e.state)
				r.logger.Info("worker ended", "how", e.state.String())
			}
		}
	}
	r.running.Wait()
}

// stop ends everything.
func (r *runner) stop() error {
	_ = r.service.tell("STOPPING=1")
	// The worker has drained; nothing new can be served, so the mounts go first.
	r.end()
	return r.unmount()
}

// handOver leaves the mounts to the next supervisor.
func (r *runner) handOver() error {
	r.logger.Info("handing the mounts over")
	r.end()
	if r.service.address != "" {
		if err := r.service.store(r.mounts, r.resume); err != nil {
			return fmt.Errorf("mounts not handed over: %w", err)
		}
		return nil
	}
	return replace(r.program, r.mounts, r.resume)
}

// watchdogTicks are due when systemd wants to hear that the supervisor lives.
func watchdogTicks() (<-chan time.Time, func()) {
	usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || usec <= 0 {
		return nil, func() {}
	}
	ticker := time.NewTicker(time.Duration(usec) * time.Microsecond / 2)
	return ticker.C, ticker.Stop
}
