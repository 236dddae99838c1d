package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/config"
	"github.com/vfolder/vfolder/content"
	"github.com/vfolder/vfolder/control"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/objstore"
	"github.com/vfolder/vfolder/reconcile"
	"github.com/vfolder/vfolder/supervisor"
	"github.com/vfolder/vfolder/vfs"
)

const (
	// Parts of a hand-over, together below the supervisor's patience.
	answerPatience  = time.Second      // of control calls under way
	drainPatience   = 15 * time.Second // of requests of the kernel
	addrEvery       = 5 * time.Second  // look whether the embedded store moved
	maxHostName     = 64
	bootIDFile      = "/proc/sys/kernel/random/boot_id"
	supervisorGrace = 30 * time.Second // for a child to end; more than the sum of the above
)

// end says why a worker ends.
type end uint8

const (
	endHandOver end = iota + 1 // another worker follows
	endStop                    // done for good
	endUnmounted
)

// worker serves the mount.
type worker struct {
	cfg     *config.Config
	program string
	log     *slog.Logger
	started time.Time
	hostID  string

	db      *meta.DB
	content *content.Store
	fs      *vfs.FS
	mount   supervisor.Served
	fuse    *fusefs.Server
	late    *lateRemote
	bucket  atomic.Pointer[reconcile.Reconciler]
	store   atomic.Pointer[objstore.Store] // once the bucket was opened

	lateStore *lateStore // only connect's

	served atomic.Bool // the mount answers
	ending chan end    // buffered; the first value counts
	tasks  sync.WaitGroup
	ctx    context.Context // of background work; ends with the worker
	cancel context.CancelFunc
}

// RunWorker serves the mounts that the supervisor of this process gives, until
// it is told to end, and returns the exit code that the supervisor expects.
func RunWorker(ctx context.Context, cfg *config.Config, program string) (code int, err error) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	dropKept(envStateLock, envRunLock)
	in, err := supervisor.FromEnviron()
	if err != nil {
		return 1, err
	}
	if len(in.Mounts) != 1 {
		return 1, vfolder.Errorf(vfolder.KindInvalid, "worker", "", "%d mounts were given, one is served", len(in.Mounts))
	}
	listener, err := controlListener()
	if err != nil {
		return 1, err
	}
	w := &worker{
		cfg: cfg, program: program, started: time.Now(), mount: in.Mounts[0],
		log:  newLogger(os.Stderr, cfg.Daemon.LogLevel).With("process", "worker"),
		late: newLateRemote(latePatience), ending: make(chan end, 1),
	}
	slog.SetDefault(w.log)
	w.ctx, w.cancel = context.WithCancel(context.Background())
	defer w.cancel()
	if err := w.open(in.Resume); err != nil {
		writeFailure(cfg, err)
		return 1, err
	}
	_ = os.Remove(failurePath(cfg))
	api := control.NewServer(control.Services{
		Folders: folders{w}, Files: files{tree: known{w.fs, w}}, Daemon: process{w}, Program: program,
	}, w.log)
	apiDone := make(chan error, 1)
	go func() { apiDone <- api.Serve(listener) }()
	fuseDone := make(chan error, 1)
	go func() { fuseDone <- w.fuse.Serve() }()
	w.tasks.Go(w.connect)
	w.served.Store(true)
	if err := in.Ready(); err != nil {
		w.log.Warn("the supervisor was not told", "err", err)
	}
	w.log.Info("serving", "mount", w.mount.Point, "resume", int(in.Resume), "took", time.Since(w.started))

	why := endUnmounted
	select {
	case <-ctx.Done():
		why = endHandOver
	case <-signals:
		why = endHandOver
	case why = <-w.ending:
	case err := <-fuseDone:
		fuseDone <- err
		if err != nil {
			return 1, err
		}
	case err := <-apiDone:
		return 1, err
	}
	if err := w.close(why, api, fuseDone); err != nil {
		return 1, err
	}
	if why == endHandOver {
		return 0, nil
	}
	return supervisor.ExitStop, nil
}

// open opens all that is local and takes the mount over.
func (w *worker) open(resume fusefs.Resume) (err error) {
	state := w.cfg.Daemon.StateDir
	if w.hostID, err = hostID(state); err != nil {
		return err
	}
	boot, err := os.ReadFile(bootIDFile)
	if err != nil {
		return &vfolder.Error{Op: "start", Kind: vfolder.KindOf(err), Path: bootIDFile, Err: err}
	}
	var undo []func() error
	defer func() {
		for i := len(undo) - 1; err != nil && i >= 0; i-- {
			_ = undo[i]()
		}
	}()
	w.db, err = meta.Open(meta.Options{Dir: filepath.Join(state, indexDir), BootID: strings.TrimSpace(string(boot)), Log: w.log})
	if err != nil {
		return err
	}
	undo = append(undo, w.db.Close)
	w.content, err = content.Open(content.Options{
		Dir: filepath.Join(state, contentDir), ReserveBytes: w.cfg.Daemon.ReserveBytes, Log: w.log,
	})
	if err != nil {
		return err
	}
	undo = append(undo, w.content.Close)
	w.fs, err = vfs.New(vfs.Config{
		DB: w.db, Content: w.content, Remote: w.late, RecoveryDir: filepath.Join(state, recoveryDir), Log: w.log,
	})
	if err != nil {
		return err
	}
	undo = append(undo, func() error { w.fs.Abandon(); return nil })
	owners, err := fusefs.LoadOwnerMap(uint32(os.Getuid()), uint32(os.Getgid()))
	if err != nil {
		return err
	}
	w.fuse, err = fusefs.New(fusefs.Config{
		FD: int(w.mount.Device.Fd()), Init: w.mount.Init, Owners: owners, InFlight: w.mount.InFlight,
		Resume: resume, Logger: w.log,
	}, w.fs)
	if err != nil {
		return err
	}
	w.fs.SetInvalidator(w.fuse.Invalidator())
	w.fs.SetProbe(w.fuse.Probe)
	return nil
}

// hostID names this state directory in leases: two daemons never share one,
// also on one host.
func hostID(state string) (string, error) {
	path := filepath.Join(state, hostFile)
	text, err := os.ReadFile(path)
	if id := strings.TrimSpace(string(text)); err == nil && id != "" {
		return id, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", &vfolder.Error{Op: "start", Kind: vfolder.KindOf(err), Path: path, Err: err}
	}
	name, err := os.Hostname()
	if err != nil || name == "" {
		name = "host"
	}
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' {
			return r
		}
		return '-'
	}, name[:min(len(name), maxHostName)])
	var b [6]byte
	rand.Read(b[:])
	id := name + "-" + hex.EncodeToString(b[:])
	return id, replaceFile(path, []byte(id+"\n"))
}

// connect brings the bucket's side up when the object store answers.
func (w *worker) connect() {
	for pause := openFirst; ; pause = min(2*pause, openMost) {
		err := w.connectOnce()
		if err == nil || w.ctx.Err() != nil {
			break
		}
		w.late.note(err)
		w.log.Error("the bucket cannot be used yet; what is local is served", "err", err, "again_in", pause)
		select {
		case <-time.After(pause):
		case <-w.ctx.Done():
			return
		}
	}
	if w.cfg.Store.Embedded() {
		w.watchAddr()
	}
}

func (w *worker) connectOnce() error {
	store, err := w.openBucket()
	if err != nil {
		return err
	}
	r, err := reconcile.New(reconcile.Config{DB: w.db, Content: w.content, Store: store, HostID: w.hostID, Log: w.log})
	if err != nil {
		return err
	}
	r.SetLocal(w.fs)
	if err := r.Start(w.ctx); err != nil {
		return errors.Join(err, r.Close())
	}
	w.bucket.Store(r)
	w.late.set(r)
	w.log.Info("the bucket is connected", "took", time.Since(w.started))
	return nil
}

// openBucket waits for the store when it was never used before; else the store
// may come later.
func (w *worker) openBucket() (objstore.Store, error) {
	caps, ok := knownCapabilities(w.cfg, w.program)
	if !ok {
		store, err := openUntil(w.ctx, w.cfg, w.program, w.log, w.late.note)
		if err == nil {
			w.store.Store(&store)
		}
		return store, err
	}
	if w.lateStore == nil {
		late := newLateStore(caps)
		w.lateStore = late
		w.tasks.Go(func() {
			store, err := openUntil(w.ctx, w.cfg, w.program, w.log, func(err error) {
				late.note(err)
				w.late.note(err)
			})
			if err == nil {
				late.set(store)
				w.store.Store(&store)
			}
		})
	}
	return w.lateStore, nil
}

// watchAddr hands over to a new worker when the embedded store had to move to
// another port.
func (w *worker) watchAddr() {
	was, err := storeAddr(w.cfg.Daemon.StateDir)
	if err != nil {
		w.log.Warn("the embedded store's address cannot be watched", "err", err)
		return
	}
	tick := time.NewTicker(addrEvery)
	defer tick.Stop()
	for {
		select {
		case <-w.ctx.Done():
			return
		case <-tick.C:
		}
		if now, err := storeAddr(w.cfg.Daemon.StateDir); err == nil && now != was {
			w.log.Info("the embedded store moved", "from", was, "to", now)
			w.endWith(endHandOver)
			return
		}
	}
}

func (w *worker) endWith(why end) {
	select {
	case w.ending <- why:
	default: // it ends already
	}
}

// close ends everything in order: nobody asks any more, then what serves, then
// what is served from. When the kernel's requests do not end in time, nothing
// is closed: the next worker recovers as after a kill.
func (w *worker) close(why end, api *control.Server, fuseDone chan error) error {
	begun := time.Now()
	w.served.Store(false)
	ctx, cancel := context.WithTimeout(context.Background(), answerPatience)
	if err := api.Shutdown(ctx); err != nil {
		w.log.Info("control calls were cut off", "err", err)
	}
	cancel()
	if why != endUnmounted {
		ctx, cancel := context.WithTimeout(context.Background(), drainPatience)
		defer cancel()
		if err := w.fuse.Drain(ctx); err != nil {
			return err
		}
		if err := <-fuseDone; err != nil && !errors.Is(err, fusefs.ErrDrained) {
			return err
		}
	}
	w.cancel()
	w.tasks.Wait()
	var errs []error
	if r := w.bucket.Load(); r != nil {
		errs = append(errs, r.Close())
	}
	errs = append(errs, w.fs.Close(), w.content.Close(), w.db.Close())
	err := errors.Join(errs...)
	w.log.Info("ended", "why", int(why), "took", time.Since(begun), "err", err)
	return err
}
