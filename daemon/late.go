package daemon

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/vfs"
)

// latePatience is how long an operation that needs the bucket waits for it
// after a start, before it fails with KindUnreachable. The embedded store, and
// a store that answers, take far less.
const latePatience = 30 * time.Second

// lateRemote is the bucket's side from the start on: until it is there, what
// needs it waits, within limits.
type lateRemote struct {
	real     atomic.Pointer[vfs.Remote]
	ready    chan struct{} // closed when real is set
	patience time.Duration

	mu  sync.Mutex
	why error // the last failure
}

var _ vfs.Remote = (*lateRemote)(nil)

func newLateRemote(patience time.Duration) *lateRemote {
	return &lateRemote{ready: make(chan struct{}), patience: patience}
}

// set says that the bucket's side is there. Call it once.
func (l *lateRemote) set(r vfs.Remote) {
	l.real.Store(&r)
	close(l.ready)
}

// note keeps the reason of a failed attempt.
func (l *lateRemote) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.why = err
}

// cause is why the bucket's side is not there.
func (l *lateRemote) cause() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.why == nil {
		return errors.New("the object store has not answered yet")
	}
	return l.why
}

func (l *lateRemote) wait(ctx context.Context) (vfs.Remote, error) {
	if r := l.real.Load(); r != nil {
		return *r, nil
	}
	timer := time.NewTimer(l.patience)
	defer timer.Stop()
	select {
	case <-l.ready:
		return *l.real.Load(), nil
	case <-ctx.Done():
		return nil, &vfolder.Error{Op: "bucket", Kind: vfolder.KindInterrupted, Err: ctx.Err()}
	case <-timer.C:
		return nil, &vfolder.Error{Op: "bucket", Kind: vfolder.KindUnreachable, Err: l.cause(), Fix: "vfolder daemon status"}
	}
}

// List implements vfs.Remote, as do the others.
func (l *lateRemote) List(ctx context.Context, dir vfolder.Ino) error {
	r, err := l.wait(ctx)
	if err != nil {
		return err
	}
	return r.List(ctx, dir)
}

func (l *lateRemote) Hydrate(ctx context.Context, parent vfolder.Ino, names ...string) error {
	r, err := l.wait(ctx)
	if err != nil {
		return err
	}
	return r.Hydrate(ctx, parent, names...)
}

func (l *lateRemote) Fetch(ctx context.Context, ino vfolder.Ino, off, length int64, fill func(off int64, data []byte) error) error {
	r, err := l.wait(ctx)
	if err != nil {
		return err
	}
	return r.Fetch(ctx, ino, off, length, fill)
}

func (l *lateRemote) Writable(ctx context.Context, folder vfolder.Ino) error {
	r, err := l.wait(ctx)
	if err != nil {
		return err
	}
	return r.Writable(ctx, folder)
}

// Touch before the bucket is there needs no memory: it comes again with use.
func (l *lateRemote) Touch(dir vfolder.Ino) {
	if r := l.real.Load(); r != nil {
		(*r).Touch(dir)
	}
}

// Settle before the bucket is there is nothing lost: the index has the work.
func (l *lateRemote) Settle(folder vfolder.Ino) {
	if r := l.real.Load(); r != nil {
		(*r).Settle(folder)
	}
}
