package reconcile

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/objstore"
)

// lease says which host may write a folder. It is an object that is only ever
// replaced under a condition; its epoch grows with each new holder.
//
// A holder counts its validity from before the request that renewed it, less a
// margin, and sends nothing after. A host that wants it waits until it has seen
// the object unchanged for the whole time and a margin. So that clocks need not
// agree, only elapsed time is compared, on a clock that goes on in sleep.
type lease struct {
	f *folder

	local atomic.Bool  // local writes may go on: held, and not known to be lost
	until atomic.Int64 // Config.Clock until which uploads may be sent

	mu      sync.Mutex // held during requests: one at a time
	num     atomic.Uint64
	etag    string
	have    bool
	sawETag string        // of another holder's object
	sawAt   time.Duration // Config.Clock when it was first seen
	nextTry time.Duration
	denied  error
}

// leaseRecord is the object.
type leaseRecord struct {
	Host     string `json:"host"`
	Epoch    uint64 `json:"epoch"`
	TTL      int64  `json:"ttl_ms"`
	Nonce    string `json:"nonce"`
	Released bool   `json:"released"`
}

func (l *lease) init(f *folder, m *meta.Folder) {
	l.f = f
	l.num.Store(m.Epoch)
	l.etag, l.have = m.LeaseETag, m.Held
	l.local.Store(m.Held) // this host's until it is known to be another's
}

func (l *lease) epoch() uint64 { return l.num.Load() }

func (l *lease) key() string { return l.f.own("lease.json") }

// margin is what clocks and requests may be off by.
func (l *lease) margin() time.Duration { return l.f.r.cfg.LeaseTTL / 6 }

func (l *lease) clock() time.Duration { return l.f.r.cfg.Clock() }

func (l *lease) valid() bool { return int64(l.clock()) < l.until.Load() }

func (l *lease) held() bool { return l.local.Load() }

// Writable implements vfs.Remote. A host that holds the lease goes on writing
// locally when the store does not answer; its changes wait.
func (r *Reconciler) Writable(ctx context.Context, root vfolder.Ino) error {
	f, err := r.need(root)
	if err != nil {
		return err
	}
	if f.lease.local.Load() {
		return nil
	}
	f.use()
	return f.lease.acquire(ctx, true)
}

// ensure makes uploads possible: nil while the lease is valid.
func (l *lease) ensure(ctx context.Context) error {
	if l.valid() {
		return nil
	}
	return l.acquire(ctx, false)
}

// during bounds a request by the lease's validity. A long upload lives on as
// long as the lease is renewed.
func (l *lease) during(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if err := l.ensure(ctx); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		for {
			t := time.NewTimer(max(time.Duration(l.until.Load())-l.clock(), time.Millisecond))
			select {
			case <-done:
				t.Stop()
				return
			case <-t.C:
				if !l.valid() && l.ensure(ctx) != nil {
					cancel()
					return
				}
			}
		}
	}()
	return ctx, sync.OnceFunc(func() { close(done); cancel() }), nil
}

// due renews in time and returns when it has to be done again.
func (l *lease) due(ctx context.Context) time.Duration {
	if !l.local.Load() || l.until.Load() == 0 {
		return time.Hour
	}
	third := l.f.r.cfg.LeaseTTL / 3
	left := time.Duration(l.until.Load()) - l.clock()
	if left > third {
		return left - third
	}
	if err := l.renew(ctx); err != nil {
		l.f.r.outage.note(l.f.r.now(), err)
		return outageFirst
	}
	return third
}

func (l *lease) renew(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.take(ctx)
}

// acquire takes the lease if it is free. With soft set, a holder that cannot
// reach the store counts as holding.
func (l *lease) acquire(ctx context.Context, soft bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.valid() || soft && l.local.Load() {
		return nil
	}
	if l.denied != nil && l.clock() < l.nextTry {
		return l.denied
	}
	err := l.take(ctx)
	switch {
	case err == nil:
		l.denied = nil
	case vfolder.KindOf(err) == vfolder.KindLocked:
		l.denied, l.nextTry = err, l.clock()+min(l.f.r.cfg.LeaseTTL/10, time.Second)
	}
	return err
}

// take renews the lease or takes it over; mu is held.
func (l *lease) take(ctx context.Context) error {
	if l.have && l.etag != "" {
		err := l.write(ctx, l.epoch(), objstore.Condition{IfMatch: l.etag}, false)
		if err == nil || vfolder.KindOf(err) != vfolder.KindConflict && vfolder.KindOf(err) != vfolder.KindNotFound {
			return err
		}
	}
	start := l.clock()
	body, in, err := l.f.r.readSmall(ctx, l.key(), 1<<16)
	if err != nil && vfolder.KindOf(err) == vfolder.KindNotFound {
		return l.write(ctx, l.epoch()+1, objstore.Condition{IfAbsent: true}, false)
	}
	if err != nil {
		return err
	}
	var rec leaseRecord
	if err := json.Unmarshal(body, &rec); err != nil {
		return &vfolder.Error{Op: "lease", Kind: vfolder.KindCorrupt, Path: l.key(), Err: err, Fix: "delete this object when no host uses the folder"}
	}
	wait := time.Duration(rec.TTL)*time.Millisecond + l.margin()
	switch {
	case rec.Released, rec.Host == l.f.r.cfg.HostID:
	case l.sawETag != in.ETag:
		l.sawETag, l.sawAt = in.ETag, start
		return l.lose(rec)
	case start-l.sawAt < wait:
		return l.lose(rec)
	}
	return l.write(ctx, max(rec.Epoch, l.epoch())+1, objstore.Condition{IfMatch: in.ETag}, false)
}

// lose says who has it.
func (l *lease) lose(rec leaseRecord) error {
	l.until.Store(0)
	if l.have || l.local.Load() {
		l.have = false
		l.local.Store(false)
		l.f.r.log.Warn("another host writes this folder now; what was changed here and is not in the bucket waits, and becomes a conflict copy where both changed a file", "folder", l.f.name, "host", rec.Host)
		if err := l.persist(); err != nil {
			return err
		}
	}
	return &vfolder.Error{
		Op: "write", Kind: vfolder.KindLocked, Path: l.f.name, Err: fmt.Errorf("host %s writes this folder", rec.Host),
		Fix: "stop using the folder there; its lease ends by itself soon after",
	}
}

// write puts the record; mu is held. An answer that was lost is looked up by
// the record's nonce.
func (l *lease) write(ctx context.Context, epoch uint64, c objstore.Condition, released bool) error {
	cfg := &l.f.r.cfg
	rec := leaseRecord{Host: cfg.HostID, Epoch: epoch, TTL: cfg.LeaseTTL.Milliseconds(), Nonce: objstore.NewNonce(), Released: released}
	body, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	start := l.clock()
	deadline, cancel := context.WithTimeout(ctx, cfg.LeaseTTL/2)
	defer cancel()
	in, err := l.f.r.put(deadline, l.key(), bytes.NewReader(body), int64(len(body)), objstore.PutOptions{ContentType: "application/json", Condition: c})
	if err != nil {
		now, found, rerr := l.f.r.readSmall(ctx, l.key(), 1<<16)
		var is leaseRecord
		if rerr != nil || json.Unmarshal(now, &is) != nil || is.Nonce != rec.Nonce {
			return err
		}
		in = found
	}
	l.etag, l.have = in.ETag, !released
	l.num.Store(epoch)
	if released {
		l.until.Store(0)
	} else {
		l.until.Store(int64(start + cfg.LeaseTTL - l.margin()))
	}
	l.local.Store(!released)
	return l.persist()
}

func (l *lease) persist() error {
	return l.f.r.db.Update(func(tx *meta.Tx) error {
		m, err := tx.Folder(l.f.root)
		if err != nil {
			return err
		}
		if m.Epoch == l.epoch() && m.Held == l.have && m.LeaseETag == l.etag {
			return nil
		}
		m.Epoch, m.Held, m.LeaseETag = l.epoch(), l.have, l.etag
		return tx.PutFolder(m)
	})
}

// releaseIfDrained gives the lease back when nothing is pending. A change that
// comes meanwhile takes it again.
func (f *folder) releaseIfDrained(ctx context.Context) {
	l := &f.lease
	if !l.held() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.local.Store(false) // new changes wait for mu
	pending := 1
	err := f.r.db.View(func(tx *meta.Tx) (err error) { pending, err = tx.CountItems(f.root, 1); return err })
	if err != nil || pending > 0 || !l.have {
		l.local.Store(l.have)
		return
	}
	if err := l.write(ctx, l.epoch(), objstore.Condition{IfMatch: l.etag}, true); err != nil {
		l.local.Store(l.have)
		f.r.log.Info("a lease was not given back; it ends by itself", "folder", f.name, "err", err)
		f.mu.Lock()
		f.lastWork = f.r.cfg.Clock()
		f.mu.Unlock()
	}
}
