package objstore

import (
	"context"
	"io"
	"iter"
	"math/rand/v2"
	"time"

	"github.com/vfolder/vfolder"
)

// RetryPolicy says how often and how patiently the Retry decorator repeats.
type RetryPolicy struct {
	Attempts int           // in all; 1 repeats nothing
	Base     time.Duration // wait before the second attempt, doubled for each further one
	Max      time.Duration // longest wait
}

// DefaultRetry gives up after about five seconds of waiting.
var DefaultRetry = RetryPolicy{Attempts: 5, Base: 100 * time.Millisecond, Max: 3 * time.Second}

// Retry decorates s: the calls that may be repeated without changing anything
// are repeated while they fail with KindUnreachable: Head, opening a Get, each
// stretch of a List, UploadPart, CopyPart and AbortUpload. Put, Copy, Delete,
// CreateUpload and CompleteUpload go through once: only the caller can tell
// what a lost answer meant. A body from Get that breaks off is the reader's
// business too.
func Retry(s Store, p RetryPolicy) Store {
	return &retry{Store: s, policy: p}
}

type retry struct {
	Store
	policy RetryPolicy
}

// do runs f until it succeeds, fails for good, or the attempts are used up.
func (r *retry) do(ctx context.Context, f func() error) error {
	var err error
	for n := range max(r.policy.Attempts, 1) {
		if n > 0 && !r.wait(ctx, n) {
			return err
		}
		if err = f(); err == nil || vfolder.KindOf(err) != vfolder.KindUnreachable {
			return err
		}
	}
	return err
}

// wait sleeps before attempt n+1, with full jitter above half of the wait;
// false when ctx ended first.
func (r *retry) wait(ctx context.Context, n int) bool {
	d := min(r.policy.Base<<min(n-1, 20), r.policy.Max)
	if d > 0 {
		d = d/2 + rand.N(d/2+1)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

func (r *retry) Head(ctx context.Context, key string) (in Info, err error) {
	err = r.do(ctx, func() error {
		in, err = r.Store.Head(ctx, key)
		return err
	})
	return in, err
}

func (r *retry) Get(ctx context.Context, key string, off, length int64, ifMatch string) (rc io.ReadCloser, in Info, err error) {
	err = r.do(ctx, func() error {
		rc, in, err = r.Store.Get(ctx, key, off, length, ifMatch)
		return err
	})
	return rc, in, err
}

func (r *retry) UploadPart(ctx context.Context, key, upload string, n int, body Body, off, size int64) (p Part, err error) {
	err = r.do(ctx, func() error {
		p, err = r.Store.UploadPart(ctx, key, upload, n, body, off, size)
		return err
	})
	return p, err
}

func (r *retry) CopyPart(ctx context.Context, key, upload string, n int, src string, off, size int64, srcIfMatch string) (p Part, err error) {
	err = r.do(ctx, func() error {
		p, err = r.Store.CopyPart(ctx, key, upload, n, src, off, size, srcIfMatch)
		return err
	})
	return p, err
}

func (r *retry) AbortUpload(ctx context.Context, key, upload string) error {
	return r.do(ctx, func() error { return r.Store.AbortUpload(ctx, key, upload) })
}

// lastBelow sorts behind every key below a prefix that a store can hold.
const lastBelow = "\U0010ffff"

// List goes on behind the last entry that was yielded; every stretch that made
// progress has all the attempts again.
func (r *retry) List(ctx context.Context, prefix, startAfter string, delimited bool) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		after, last, failed := startAfter, "", 0
		for {
			var err error
			for in, e := range r.Store.List(ctx, prefix, after, delimited) {
				if e != nil {
					err = e
					break
				}
				if last != "" && in.Key <= last {
					continue
				}
				last, failed = in.Key, 0
				if !yield(in, nil) {
					return
				}
				after = in.Key
				if in.IsPrefix {
					after += lastBelow
				}
			}
			if err == nil {
				return
			}
			failed++
			if vfolder.KindOf(err) != vfolder.KindUnreachable || failed >= max(r.policy.Attempts, 1) || !r.wait(ctx, failed) {
				yield(Info{}, err)
				return
			}
		}
	}
}
