package daemon

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/objstore"
)

// lateStore is a bucket that may not be there yet, whose capabilities are known
// from an earlier start: with it the reconciler can be started while the store
// is down, so that a folder whose lease this host holds stays writable. Until
// the bucket was opened every call fails with KindUnreachable; the first attempt
// is waited for.
type lateStore struct {
	caps  objstore.Capabilities
	inner atomic.Pointer[objstore.Store]
	tried chan struct{} // closed after the first attempt

	mu    sync.Mutex
	once  sync.Once
	cause error
}

var _ objstore.Store = (*lateStore)(nil)

// firstAttempt bounds the wait for the first attempt.
const firstAttempt = 5 * time.Second

func newLateStore(caps objstore.Capabilities) *lateStore {
	return &lateStore{caps: caps, tried: make(chan struct{})}
}

func (l *lateStore) set(s objstore.Store) {
	l.inner.Store(&s)
	l.once.Do(func() { close(l.tried) })
}

// note keeps why an attempt failed.
func (l *lateStore) note(err error) {
	l.mu.Lock()
	l.cause = err
	l.mu.Unlock()
	l.once.Do(func() { close(l.tried) })
}

func (l *lateStore) store(ctx context.Context) (objstore.Store, error) {
	if s := l.inner.Load(); s != nil {
		return *s, nil
	}
	timer := time.NewTimer(firstAttempt)
	defer timer.Stop()
	select {
	case <-l.tried:
	case <-timer.C:
	case <-ctx.Done():
		return nil, &vfolder.Error{Op: "object store", Kind: vfolder.KindInterrupted, Err: ctx.Err()}
	}
	if s := l.inner.Load(); s != nil {
		return *s, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.cause
	if err == nil {
		err = errors.New("it has not answered yet")
	}
	return nil, &vfolder.Error{Op: "object store", Kind: vfolder.KindUnreachable, Err: err}
}

// Capabilities implements objstore.Store, as do the others.
func (l *lateStore) Capabilities() objstore.Capabilities { return l.caps }

func (l *lateStore) Put(ctx context.Context, key string, body objstore.Body, size int64, o objstore.PutOptions) (objstore.Info, error) {
	s, err := l.store(ctx)
	if err != nil {
		return objstore.Info{}, err
	}
	return s.Put(ctx, key, body, size, o)
}

func (l *lateStore) Get(ctx context.Context, key string, off, length int64, ifMatch string) (io.ReadCloser, objstore.Info, error) {
	s, err := l.store(ctx)
	if err != nil {
		return nil, objstore.Info{}, err
	}
	return s.Get(ctx, key, off, length, ifMatch)
}

func (l *lateStore) Head(ctx context.Context, key string) (objstore.Info, error) {
	s, err := l.store(ctx)
	if err != nil {
		return objstore.Info{}, err
	}
	return s.Head(ctx, key)
}

func (l *lateStore) List(ctx context.Context, prefix, startAfter string, delimited bool) iter.Seq2[objstore.Info, error] {
	s, err := l.store(ctx)
	if err != nil {
		return func(yield func(objstore.Info, error) bool) { yield(objstore.Info{}, err) }
	}
	return s.List(ctx, prefix, startAfter, delimited)
}

func (l *lateStore) Copy(ctx context.Context, dst, src string, o objstore.CopyOptions) (objstore.Info, error) {
	s, err := l.store(ctx)
	if err != nil {
		return objstore.Info{}, err
	}
	return s.Copy(ctx, dst, src, o)
}

func (l *lateStore) Delete(ctx context.Context, key string, c objstore.Condition) error {
	s, err := l.store(ctx)
	if err != nil {
		return err
	}
	return s.Delete(ctx, key, c)
}

func (l *lateStore) CreateUpload(ctx context.Context, key string, o objstore.PutOptions) (string, error) {
	s, err := l.store(ctx)
	if err != nil {
		return "", err
	}
	return s.CreateUpload(ctx, key, o)
}

func (l *lateStore) UploadPart(ctx context.Context, key, upload string, n int, body objstore.Body, off, size int64) (objstore.Part, error) {
	s, err := l.store(ctx)
	if err != nil {
		return objstore.Part{}, err
	}
	return s.UploadPart(ctx, key, upload, n, body, off, size)
}

func (l *lateStore) CopyPart(ctx context.Context, key, upload string, n int, src string, off, size int64, srcIfMatch string) (objstore.Part, error) {
	s, err := l.store(ctx)
	if err != nil {
		return objstore.Part{}, err
	}
	return s.CopyPart(ctx, key, upload, n, src, off, size, srcIfMatch)
}

func (l *lateStore) CompleteUpload(ctx context.Context, key, upload string, parts []objstore.Part, o objstore.PutOptions) (objstore.Info, error) {
	s, err := l.store(ctx)
	if err != nil {
		return objstore.Info{}, err
	}
	return s.CompleteUpload(ctx, key, upload, parts, o)
}

func (l *lateStore) AbortUpload(ctx context.Context, key, upload string) error {
	s, err := l.store(ctx)
	if err != nil {
		return err
	}
	return s.AbortUpload(ctx, key, upload)
}
