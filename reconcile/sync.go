package reconcile

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/meta"
)

// debt is a change that a sync waits for.
type debt struct {
	it           meta.Item
	ino          vfolder.Ino
	gen, attrGen uint64
	size         int64
}

// maxFrozen bounds how many files a sync cuts at one instant.
const maxFrozen = 1024

// Sync waits until all that was pending when it was called is in the bucket.
// Files being written are cut at that instant; what is written later is not
// waited for. progress, when not nil, is told now and then how many changes and
// bytes are left. KindPartial: some could not be brought to the bucket, each
// named in the error, or ctx ended before.
func (r *Reconciler) Sync(ctx context.Context, root vfolder.Ino, progress func(left int, bytes int64)) error {
	f, err := r.need(root)
	if err != nil {
		return err
	}
	f.hurry(1)
	defer f.hurry(-1)
	if progress == nil {
		progress = func(int, int64) {}
	}
	began := f.r.now()
	f.cut(ctx)
	bad := map[string]error{}
	// What a walk below a renamed directory queues, and the removals that moves
	// leave behind, come to light one after the other.
	for round := range syncRounds {
		debts, more, err := f.debts(round > 0)
		if err != nil {
			return err
		}
		if len(debts) == 0 {
			break
		}
		if err := f.settleDebts(ctx, debts, began, progress, bad); err != nil {
			return err
		}
		if !more && round > 0 {
			break
		}
	}
	f.seg.soon(f)
	progress(0, 0)
	return partial(f.name, bad)
}

// syncRounds bounds how often a sync looks for what its own work brought up.
const syncRounds = 16

func partial(folder string, bad map[string]error) error {
	if len(bad) == 0 {
		return nil
	}
	var lines []string
	for path, err := range bad {
		if len(lines) == 10 {
			lines = append(lines, fmt.Sprintf("and %d more", len(bad)-10))
			break
		}
		lines = append(lines, fmt.Sprintf("%s: %v", path, err))
	}
	return &vfolder.Error{
		Op: "sync", Kind: vfolder.KindPartial, Path: folder, Err: errors.New(strings.Join(lines, "; ")),
		Fix: "see what is left with: vfolder folder status " + folder,
	}
}

func (f *folder) hurry(n int) {
	f.mu.Lock()
	f.urgent += n
	if n > 0 {
		for _, x := range f.failures {
			x.next = time.Time{}
		}
	}
	f.mu.Unlock()
	f.rescan()
}

// cut freezes the files that are being written, all before any is sent.
func (f *folder) cut(ctx context.Context) {
	var open []vfolder.Ino
	err := f.r.db.View(func(tx *meta.Tx) error {
		return tx.Items(f.root, 0, func(it meta.Item) bool {
			if it.Kind == meta.ItemPut && f.r.local.Activity(it.Ino).Open {
				open = append(open, it.Ino)
			}
			return len(open) < maxFrozen
		})
	})
	if err != nil {
		return
	}
	for _, ino := range open {
		if !f.lock(lockIno(ino)) {
			continue // being sent: what was written since is sent after that
		}
		f.mu.Lock()
		_, have := f.frozen[ino]
		f.mu.Unlock()
		if !have {
			if z, err := f.r.local.Freeze(ctx, ino); err == nil {
				f.mu.Lock()
				f.frozen[ino] = z
				f.mu.Unlock()
			}
		}
		f.unlock(lockIno(ino))
	}
}

// debts lists what is pending. In later rounds only what the work of this sync
// may have brought up: removals, walks, and entries with an object elsewhere.
func (f *folder) debts(later bool) (out []debt, more bool, err error) {
	err = f.r.db.View(func(tx *meta.Tx) error {
		var failed error
		err := tx.Items(f.root, 0, func(it meta.Item) bool {
			d := debt{it: it}
			more = more || it.Kind == meta.ItemTree
			if it.Kind == meta.ItemPut {
				e, err := tx.Entry(it.Parent, it.Name)
				if err != nil {
					return true
				}
				n, err := tx.Inode(e.Ino)
				if err != nil {
					return true
				}
				if later {
					p, err := f.place(tx, it.Parent, it.Name, n, false)
					if err != nil || e.Row.IsZero() || e.Row == p.k {
						return true
					}
					more = true
				}
				d.ino, d.gen, d.attrGen, d.size = n.Ino, n.Gen, n.AttrGen, n.Size
			}
			out = append(out, d)
			return true
		})
		return errors.Join(err, failed)
	})
	return out, more, err
}

const progressEvery = 250 * time.Millisecond

// settleDebts waits for debts; those that fail for a lasting reason are put
// into bad.
func (f *folder) settleDebts(ctx context.Context, debts []debt, began time.Time, progress func(int, int64), bad map[string]error) error {
	var told time.Time
	for {
		f.mu.Lock()
		changed := f.changed
		f.mu.Unlock()
		for len(debts) > 0 {
			left, err := f.owed(debts[:1], began, bad)
			if err != nil {
				return err
			}
			if len(left) > 0 {
				break
			}
			debts = debts[1:]
		}
		if len(debts) == 0 {
			return nil
		}
		if since := time.Since(told); since >= progressEvery {
			start := time.Now()
			left, err := f.owed(debts, began, bad)
			if err != nil {
				return err
			}
			debts = left
			bytes := int64(0)
			for _, d := range debts {
				bytes += d.size
			}
			if len(debts) > 0 {
				progress(len(debts), bytes)
			}
			told = time.Now().Add(8 * time.Since(start)) // counting must not be most of the work
			continue
		}
		t := time.NewTimer(progressEvery)
		select {
		case <-ctx.Done():
			t.Stop()
			return f.unsettled(ctx, debts, bad)
		case <-f.ctx.Done():
			t.Stop()
			return vfolder.Errorf(vfolder.KindInterrupted, "sync", f.name, "the daemon is stopping")
		case <-changed:
		case <-t.C:
		}
		t.Stop()
	}
}

// unsettled is the error of a sync that was ended before it was done.
func (f *folder) unsettled(ctx context.Context, debts []debt, bad map[string]error) error {
	why := ctx.Err()
	if err := f.r.outage.cause(); err != nil {
		why = err
	} else if err := f.lease.why(); err != nil {
		why = err
	}
	f.mu.Lock()
	for _, d := range debts {
		if x := f.failures[failureKey(d.it)]; x != nil {
			bad[x.path] = x.err
		}
	}
	f.mu.Unlock()
	if len(bad) == 0 {
		bad[fmt.Sprintf("%d changes", len(debts))] = fmt.Errorf("not in the bucket yet: %w", why)
	}
	return partial(f.name, bad)
}

// owed returns the debts that are still open.
func (f *folder) owed(debts []debt, began time.Time, bad map[string]error) ([]debt, error) {
	var left []debt
	err := f.r.db.View(func(tx *meta.Tx) error {
		left = left[:0]
		for _, d := range debts {
			paid, err := f.paid(tx, d)
			if err != nil {
				return err
			}
			if !paid && !f.hopeless(d, began, bad) {
				left = append(left, d)
			}
		}
		return nil
	})
	return left, err
}

func (f *folder) paid(tx *meta.Tx, d debt) (bool, error) {
	_, there, err := tx.Item(f.root, d.it.Seq)
	if err != nil || d.it.Kind != meta.ItemPut {
		return !there, err
	}
	n, err := tx.Inode(d.ino)
	if errors.Is(err, vfolder.KindStale) || err == nil && n.Nlink == 0 {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	at := meta.Place{Parent: d.it.Parent, Name: d.it.Name}
	e, err := tx.Entry(at.Parent, at.Name)
	if errors.Is(err, vfolder.KindNotFound) || err == nil && e.Ino != d.ino {
		at = meta.Place{Parent: n.Parent, Name: n.Name} // renamed since
		e, err = tx.Entry(at.Parent, at.Name)
	}
	if err != nil || e.Item == 0 {
		return err == nil, ignoreGone(err)
	}
	o, err := tx.Row(e.Row)
	if err != nil || o == nil || o.Ino != d.ino {
		return false, err
	}
	p, err := f.place(tx, at.Parent, at.Name, n, false)
	if err != nil {
		return false, ignoreGone(err)
	}
	return e.Row == p.k && o.Gen >= d.gen && o.AttrGen >= d.attrGen, nil
}

// hopeless moves a debt that failed, since the sync began, for a reason that
// has nothing to do with the store being reachable, to bad.
func (f *folder) hopeless(d debt, began time.Time, bad map[string]error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	x := f.failures[failureKey(d.it)]
	if x == nil || !x.lasting || x.at.Before(began) {
		return false
	}
	bad[x.path] = x.err
	return true
}

// why is the reason why the lease is not had, if it is known to be another's.
func (l *lease) why() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.denied
}

// Drain syncs every folder; see Sync. The first error is returned after all
// were tried.
func (r *Reconciler) Drain(ctx context.Context, progress func(left int, bytes int64)) error {
	var first error
	for _, f := range r.all() {
		if err := r.Sync(ctx, f.root, progress); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Status of a folder's way to the bucket.
type Status struct {
	Pending   int   // changes, at most statusMost
	Bytes     int64 // of pending files
	Failures  []Failure
	Conflicts []Conflict
	Lease     LeaseStatus
	// Unreachable is why the store is not being asked now, nil when it is.
	Unreachable error
}

// Failure is a change that did not reach the bucket.
type Failure struct {
	Path  string
	Err   error
	Tries int
	Next  time.Time // when it is tried again
}

// LeaseStatus tells who may write.
type LeaseStatus struct {
	Held  bool // local writes go on
	Valid bool // uploads go on
	Epoch uint64
	Err   error // why not, where that is known
}

// statusMost bounds what Status counts.
const statusMost = 100000

// Status tells what is pending and what is wrong.
func (r *Reconciler) Status(root vfolder.Ino) (Status, error) {
	var s Status
	f, err := r.need(root)
	if err != nil {
		return s, err
	}
	err = r.db.View(func(tx *meta.Tx) error {
		return tx.Items(root, 0, func(it meta.Item) bool {
			s.Pending++
			if it.Kind == meta.ItemPut {
				if n, err := tx.Inode(it.Ino); err == nil && n.Mode&unix.S_IFMT == unix.S_IFREG {
					s.Bytes += n.Size
				}
			}
			return s.Pending < statusMost
		})
	})
	if err != nil {
		return s, err
	}
	f.mu.Lock()
	for _, x := range f.failures {
		s.Failures = append(s.Failures, Failure{x.path, x.err, x.tries, x.next})
	}
	s.Conflicts = append(s.Conflicts, f.notes...)
	f.mu.Unlock()
	s.Lease = LeaseStatus{Held: f.lease.held(), Valid: f.lease.valid(), Epoch: f.lease.epoch(), Err: f.lease.why()}
	if r.outage.rest(r.now()) > 0 {
		s.Unreachable = r.outage.cause()
	}
	return s, nil
}
