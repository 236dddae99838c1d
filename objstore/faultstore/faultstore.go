// Package faultstore decorates an object store with faults, for tests of what
// is built on it: requests that fail, answers that get lost, delays, and a
// store that is down.
package faultstore

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

// Op names a call of objstore.Store.
type Op string

// The calls that can be made to fail.
const (
	Put            Op = "put"
	Get            Op = "get"
	Head           Op = "head"
	List           Op = "list"
	Copy           Op = "copy"
	Delete         Op = "delete"
	CreateUpload   Op = "create-upload"
	UploadPart     Op = "upload-part"
	CopyPart       Op = "copy-part"
	CompleteUpload Op = "complete-upload"
	AbortUpload    Op = "abort-upload"
)

// Call is one call under way. Key is the key or, for List, the prefix.
type Call struct {
	Op  Op
	Key string
}

// Fault is what happens to a call. The zero Fault is none.
type Fault struct {
	// Before fails the call without doing it.
	Before error
	// After does the call and then fails it: the answer got lost. A List
	// yields its first entry and then fails.
	After error
	// Delay comes before the call; it ends early, with KindInterrupted, when
	// the call's context does.
	Delay time.Duration
	// Wait, when not nil, holds the call until it is closed or the context
	// ends: for tests that need a request to be under way.
	Wait <-chan struct{}
}

// Rule decides about each call and is called concurrently. Rules are asked in
// order; the first one with ok decides.
type Rule func(Call) (f Fault, ok bool)

// ErrInjected is the cause of every fault made here.
var ErrInjected = errors.New("injected fault")

// Unreachable is the error of a request whose outcome is unknown.
func Unreachable(op, key string) error {
	return &vfolder.Error{Op: op, Kind: vfolder.KindUnreachable, Path: key, Err: ErrInjected}
}

// FailBefore makes the calls that match fail with KindUnreachable, undone.
func FailBefore(match func(Call) bool) Rule {
	return func(c Call) (Fault, bool) { return Fault{Before: Unreachable(string(c.Op), c.Key)}, match(c) }
}

// FailAfter makes the calls that match happen and lose their answer.
func FailAfter(match func(Call) bool) Rule {
	return func(c Call) (Fault, bool) { return Fault{After: Unreachable(string(c.Op), c.Key)}, match(c) }
}

// Times limits a rule to its first n hits.
func Times(n int64, r Rule) Rule {
	var used atomic.Int64
	return func(c Call) (Fault, bool) {
		f, ok := r(c)
		if !ok || used.Add(1) > n {
			return Fault{}, false
		}
		return f, true
	}
}

// On matches the calls of the given kinds, whatever the key.
func On(ops ...Op) func(Call) bool {
	return func(c Call) bool {
		for _, op := range ops {
			if c.Op == op {
				return true
			}
		}
		return false
	}
}

// Store is the decorator. All methods are safe for concurrent use.
type Store struct {
	inner objstore.Store
	down  atomic.Bool

	mu    sync.Mutex
	rules []Rule     // guarded by mu
	calls map[Op]int // guarded by mu
}

var _ objstore.Store = (*Store)(nil)

// New decorates a store; without rules nothing changes.
func New(inner objstore.Store, rules ...Rule) *Store {
	return &Store{inner: inner, rules: rules, calls: make(map[Op]int)}
}

// SetRules replaces the rules for the calls that begin from now on.
func (s *Store) SetRules(rules ...Rule) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules = rules
}

// SetDown makes every call fail with KindUnreachable, or work again.
func (s *Store) SetDown(down bool) { s.down.Store(down) }

// Calls is how many calls of op have begun, failed ones included.
func (s *Store) Calls(op Op) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[op]
}

// begin counts a call, waits as its fault says, and returns the error that
// replaces it (before) or its answer (after).
func (s *Store) begin(ctx context.Context, op Op, key string) (before, after error) {
	c := Call{Op: op, Key: key}
	s.mu.Lock()
	s.calls[op]++
	rules := s.rules
	s.mu.Unlock()
	if s.down.Load() {
		return Unreachable(string(op), key), nil
	}
	for _, r := range rules {
		f, ok := r(c)
		if !ok {
			continue
		}
		if err := hold(ctx, c, f); err != nil {
			return err, nil
		}
		return f.Before, f.After
	}
	return nil, nil
}

func hold(ctx context.Context, c Call, f Fault) error {
	var delay <-chan time.Time
	if f.Delay > 0 {
		t := time.NewTimer(f.Delay)
		defer t.Stop()
		delay = t.C
	}
	for _, wait := range []func() bool{
		func() bool { return delay == nil || receive(ctx, delay) },
		func() bool { return f.Wait == nil || receive(ctx, f.Wait) },
	} {
		if !wait() {
			return &vfolder.Error{Op: string(c.Op), Kind: vfolder.KindInterrupted, Path: c.Key, Err: ctx.Err()}
		}
	}
	return nil
}

func receive[T any](ctx context.Context, ch <-chan T) bool {
	select {
	case <-ch:
		return true
	case <-ctx.Done():
		return false
	}
}

// call runs one call of the inner store between its faults.
func call[T any](ctx context.Context, s *Store, op Op, key string, f func() (T, error)) (T, error) {
	var zero T
	before, after := s.begin(ctx, op, key)
	if before != nil {
		return zero, before
	}
	v, err := f()
	if after != nil && err == nil {
		return zero, after
	}
	return v, err
}

// Put implements objstore.Store.
func (s *Store) Put(ctx context.Context, key string, body objstore.Body, size int64, o objstore.PutOptions) (objstore.Info, error) {
	return call(ctx, s, Put, key, func() (objstore.Info, error) { return s.inner.Put(ctx, key, body, size, o) })
}

// Get implements objstore.Store.
func (s *Store) Get(ctx context.Context, key string, off, length int64, ifMatch string) (io.ReadCloser, objstore.Info, error) {
	before, after := s.begin(ctx, Get, key)
	if before != nil {
		return nil, objstore.Info{}, before
	}
	rc, in, err := s.inner.Get(ctx, key, off, length, ifMatch)
	if after != nil && err == nil {
		_ = rc.Close()
		return nil, objstore.Info{}, after
	}
	return rc, in, err
}

// Head implements objstore.Store.
func (s *Store) Head(ctx context.Context, key string) (objstore.Info, error) {
	return call(ctx, s, Head, key, func() (objstore.Info, error) { return s.inner.Head(ctx, key) })
}

// List implements objstore.Store.
func (s *Store) List(ctx context.Context, prefix, startAfter string, delimited bool) iter.Seq2[objstore.Info, error] {
	return func(yield func(objstore.Info, error) bool) {
		before, after := s.begin(ctx, List, prefix)
		if before != nil {
			yield(objstore.Info{}, before)
			return
		}
		for in, err := range s.inner.List(ctx, prefix, startAfter, delimited) {
			if !yield(in, err) {
				return
			}
			if after != nil {
				break
			}
		}
		if after != nil {
			yield(objstore.Info{}, after)
		}
	}
}

// Copy implements objstore.Store.
func (s *Store) Copy(ctx context.Context, dst, src string, o objstore.CopyOptions) (objstore.Info, error) {
	return call(ctx, s, Copy, dst, func() (objstore.Info, error) { return s.inner.Copy(ctx, dst, src, o) })
}

// Delete implements objstore.Store.
func (s *Store) Delete(ctx context.Context, key string, c objstore.Condition) error {
	_, err := call(ctx, s, Delete, key, func() (struct{}, error) { return struct{}{}, s.inner.Delete(ctx, key, c) })
	return err
}

// CreateUpload implements objstore.Store.
func (s *Store) CreateUpload(ctx context.Context, key string, o objstore.PutOptions) (string, error) {
	return call(ctx, s, CreateUpload, key, func() (string, error) { return s.inner.CreateUpload(ctx, key, o) })
}

// UploadPart implements objstore.Store.
func (s *Store) UploadPart(ctx context.Context, key, upload string, n int, body objstore.Body, off, size int64) (objstore.Part, error) {
	return call(ctx, s, UploadPart, key, func() (objstore.Part, error) {
		return s.inner.UploadPart(ctx, key, upload, n, body, off, size)
	})
}

// CopyPart implements objstore.Store.
func (s *Store) CopyPart(ctx context.Context, key, upload string, n int, src string, off, size int64, srcIfMatch string) (objstore.Part, error) {
	return call(ctx, s, CopyPart, key, func() (objstore.Part, error) {
		return s.inner.CopyPart(ctx, key, upload, n, src, off, size, srcIfMatch)
	})
}

// CompleteUpload implements objstore.Store.
func (s *Store) CompleteUpload(ctx context.Context, key, upload string, parts []objstore.Part, o objstore.PutOptions) (objstore.Info, error) {
	return call(ctx, s, CompleteUpload, key, func() (objstore.Info, error) {
		return s.inner.CompleteUpload(ctx, key, upload, parts, o)
	})
}

// AbortUpload implements objstore.Store.
func (s *Store) AbortUpload(ctx context.Context, key, upload string) error {
	_, err := call(ctx, s, AbortUpload, key, func() (struct{}, error) { return struct{}{}, s.inner.AbortUpload(ctx, key, upload) })
	return err
}

// Capabilities implements objstore.Store.
func (s *Store) Capabilities() objstore.Capabilities { return s.inner.Capabilities() }
