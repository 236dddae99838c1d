package daemon

import (
	"bufio"
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/config"
	"github.com/vfolder/vfolder/control"
)

// process implements control.Daemon.
type process struct{ w *worker }

var _ control.Daemon = process{}

// healthWait bounds the question whether the store answers.
const healthWait = 2 * time.Second

// progressStep is how often a wait for the bucket is looked at.
const progressStep = 200 * time.Millisecond

// Status describes the daemon. It waits for the object store only shortly.
func (p process) Status(ctx context.Context) (control.DaemonStatus, error) {
	w := p.w
	st := control.DaemonStatus{
		PID: os.Getppid(), Worker: os.Getpid(), Program: w.program, Started: w.started.UnixNano(),
		Mountpoint: w.mount.Point, Mounted: w.served.Load(), StateDir: w.cfg.Daemon.StateDir, LogDir: os.Getenv(envLogDir),
		Store:    w.storeStatus(ctx),
		Warnings: hostWarnings(),
	}
	st.CacheBytes, st.CacheFiles = w.content.Usage()
	var err error
	st.Pending, err = w.pendingAll()
	return st, err
}

func (w *worker) storeStatus(ctx context.Context) control.StoreStatus {
	st := control.StoreStatus{Endpoint: w.cfg.Store.Endpoint, Bucket: w.cfg.Store.Bucket, Embedded: w.cfg.Store.Embedded()}
	if st.Embedded {
		st.Bucket = config.DefaultBucket
		st.Endpoint, _ = storeAddr(w.cfg.Daemon.StateDir)
	}
	err := w.late.cause()
	if store := w.store.Load(); store != nil {
		ctx, cancel := context.WithTimeout(ctx, healthWait)
		defer cancel()
		_, err = (*store).Head(ctx, vfolder.ReservedPrefix+"format.json")
		if vfolder.KindOf(err) == vfolder.KindNotFound {
			err = nil
		}
		if err == nil && w.bucket.Load() == nil {
			err = errors.New("the folders of the bucket are being looked up")
		}
	}
	st.Reachable = err == nil
	if err != nil {
		st.Error = err.Error()
	}
	return st
}

// hostWarnings are facts about this host that break sessions.
func hostWarnings() []string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	shared := true
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 7 || fields[4] != "/" {
			continue
		}
		shared = false
		for _, option := range fields[6:] {
			if option == "-" {
				break
			}
			shared = shared || strings.HasPrefix(option, "shared:")
		}
	}
	if shared {
		return nil
	}
	return []string{"'/' is not a shared mount: sessions may not see folders; fix: sudo mount --make-rshared /"}
}

// Restart has the supervisor hand over to a new worker.
func (p process) Restart(context.Context) error {
	if err := syscall.Kill(os.Getppid(), syscall.SIGHUP); err != nil {
		return &vfolder.Error{Op: "restart", Kind: vfolder.KindOf(err), Err: err}
	}
	return nil
}

// Stop waits for the bucket within limits, then ends the worker for good.
func (p process) Stop(ctx context.Context, o control.StopOptions, progress func(control.Pending)) (control.StopResult, error) {
	w := p.w
	left, err := w.drain(ctx, time.Duration(o.DrainMillis)*time.Millisecond, progress)
	if err != nil {
		return control.StopResult{}, err
	}
	w.log.Info("stop", "left_files", left.Files, "left_bytes", left.Bytes)
	w.endWith(endStop)
	return control.StopResult{Left: left}, nil
}

// drain syncs all folders at once, for at most wait, and says what is left.
// Only the caller's own ctx ends it with an error: what cannot be brought into
// the bucket stays on disk.
func (w *worker) drain(ctx context.Context, wait time.Duration, progress func(control.Pending)) (control.Pending, error) {
	left, err := w.pendingAll()
	if err != nil || wait <= 0 || left.Files == 0 {
		return left, err
	}
	folders, err := w.folderRecords()
	if err != nil {
		return left, err
	}
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	done := make(chan error, len(folders))
	for _, f := range folders {
		go func() { done <- w.sync(limited, f.Root, nil) }()
	}
	tick := time.NewTicker(progressStep)
	defer tick.Stop()
	for open := len(folders); open > 0; {
		select {
		case err := <-done:
			open--
			if err != nil && !errors.Is(err, vfolder.KindTimeout) {
				w.log.Warn("stop: a folder is not wholly in the bucket", "err", err)
			}
		case <-tick.C:
			if now, err := w.pendingAll(); err == nil {
				left = now
				progress(left)
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return left, err
	}
	return w.pendingAll()
}
