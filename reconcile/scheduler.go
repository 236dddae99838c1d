package reconcile

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/meta"
)

// folder is the publishing side of one folder: a goroutine that looks at the
// queue in order, and one for each item under way.
//
// The order is law. New keys (classNew) go at any time and together.
// Replacements wait until no older new key is pending, removals until nothing
// older is. So a name that points at others (a git ref, a database) is never
// in the bucket before what it points at, and nothing is removed before what
// took its place is there.
type folder struct {
	r      *Reconciler
	root   vfolder.Ino
	id     string
	name   string
	prefix string

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // items under way
	wakeup chan struct{}
	used   atomic.Int64 // Config.Clock when the folder was last used
	// Of the goroutine that lists folders: Config.Clock of the last whole
	// listing, and how long it took.
	scannedAt, scanTook time.Duration

	lease lease
	links linkCache
	seg   segmentState

	mu       sync.Mutex
	stopping bool
	stale    bool            // the queue is to be looked at again
	ready    []work          // found ready, not begun
	flying   map[uint64]bool // seqs in ready or under way
	locks    map[string]bool // of keys and inodes that something is under way for
	wanted   map[meta.RowKey]bool
	failures map[string]*failure
	refused  map[string]int // how often a key was refused without a reason to be seen
	blocked  bool           // something waits for another thing to finish
	urgent   int            // syncs and drains under way: nothing waits to settle
	uploads  map[vfolder.Ino]time.Duration
	frozen   map[vfolder.Ino]*Frozen // cut by a sync
	notes    []Conflict
	changed  chan struct{} // closed and renewed whenever an item ended
	lastWork time.Duration // Config.Clock when there last was work
}

type class uint8

const (
	classNew class = iota
	classReplace
	classDelete
	classMarker // a directory's attributes, on which nothing depends
	classStale  // the item stands for nothing any more
)

// work is an item that may begin.
type work struct {
	it    meta.Item
	class class
}

// failure is what is known of an item that did not work. It is kept by the name
// or key concerned, since a change gives an item a new place in the queue.
type failure struct {
	path     string
	err      error
	tries    int
	next     time.Time
	at       time.Time
	lasting  bool // no matter of the store's availability: holds nothing back
	isDelete bool
}

const (
	retryFirst = time.Second
	retryMost  = 5 * time.Minute

	readyMost  = 256   // items found ready in one look
	windowMost = 16384 // items looked at in one look
	lookEvery  = 20 * time.Millisecond
	blockedFor = 250 * time.Millisecond
)

func newFolder(r *Reconciler, m *meta.Folder) *folder {
	f := &folder{
		r: r, root: m.Root, id: m.Record.ID, name: m.Record.Name, prefix: m.Record.Prefix,
		wakeup: make(chan struct{}, 1), stale: true,
		flying: map[uint64]bool{}, locks: map[string]bool{}, wanted: map[meta.RowKey]bool{}, failures: map[string]*failure{}, refused: map[string]int{},
		uploads: map[vfolder.Ino]time.Duration{}, frozen: map[vfolder.Ino]*Frozen{}, changed: make(chan struct{}),
	}
	f.ctx, f.cancel = context.WithCancel(r.ctx)
	f.lease.init(f, m)
	f.links.init()
	f.seg.init()
	f.lastWork = r.cfg.Clock()
	f.scannedAt = f.lastWork
	f.used.Store(int64(f.lastWork))
	return f
}

// rescan makes the queue be looked at again.
func (f *folder) rescan() {
	f.mu.Lock()
	f.stale = true
	f.mu.Unlock()
	f.wake()
}

func (f *folder) wake() {
	select {
	case f.wakeup <- struct{}{}:
	default:
	}
}

// stop ends the goroutine and waits for what is under way.
func (f *folder) stop() {
	f.mu.Lock()
	f.stopping = true
	f.mu.Unlock()
	f.wake()
	f.cancel()
	f.wg.Wait()
	f.mu.Lock()
	for ino, z := range f.frozen {
		z.Close()
		delete(f.frozen, ino)
	}
	f.mu.Unlock()
}

func (f *folder) run() {
	defer f.r.wg.Done()
	f.recover(f.ctx)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var last time.Time
	next := time.Duration(0)
	for f.ctx.Err() == nil {
		timer.Reset(next)
		select {
		case <-f.ctx.Done():
			return
		case <-f.wakeup:
		case <-timer.C:
			f.mu.Lock()
			f.stale = true
			f.mu.Unlock()
		}
		next = f.pump(&last)
	}
}

// pump begins what is ready, looking at the queue when there is reason to. It
// returns when to come back without being woken.
func (f *folder) pump(last *time.Time) time.Duration {
	now := f.r.now()
	if d := f.r.outage.rest(now); d > 0 {
		return d
	}
	f.mu.Lock()
	look := f.stale && len(f.ready) < readyMost/4
	f.mu.Unlock()
	wait := f.upkeep()
	if look {
		if d := lookEvery - time.Since(*last); d > 0 && !last.IsZero() {
			f.begin()
			return d
		}
		*last = time.Now()
		d, err := f.look(now)
		if err != nil {
			f.r.log.Error("the queue of a folder cannot be read", "folder", f.name, "err", err)
			d = retryFirst
		}
		wait = min(wait, d)
	}
	if !f.begin() {
		return blockedFor
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stale {
		wait = min(wait, lookEvery)
	}
	return wait
}

// begin starts ready items as far as there are slots, and reports whether the
// folder may write. Others wait for the end of one under way.
func (f *folder) begin() bool {
	f.mu.Lock()
	n := len(f.ready)
	f.mu.Unlock()
	if n == 0 {
		return true
	}
	if err := f.lease.ensure(f.ctx); err != nil {
		if vfolder.KindOf(err) != vfolder.KindUnreachable && f.ctx.Err() == nil {
			f.r.log.Debug("a folder's changes wait for its lease", "folder", f.name, "err", err)
		}
		f.r.outage.note(f.r.now(), err)
		return false
	}
	for {
		select {
		case f.r.slots <- struct{}{}:
		default:
			return true
		}
		f.mu.Lock()
		if len(f.ready) == 0 || f.stopping {
			f.mu.Unlock()
			<-f.r.slots
			return true
		}
		w := f.ready[0]
		f.ready = f.ready[1:]
		f.wg.Add(1)
		f.mu.Unlock()
		go f.work(w)
	}
}

// work carries one item out.
func (f *folder) work(w work) {
	defer f.wg.Done()
	err := f.carryOut(f.ctx, w)
	<-f.r.slots
	f.ended(w, err)
	f.r.wakeStarved()
}

// wakeStarved wakes the folders that have something ready: a slot is free.
func (r *Reconciler) wakeStarved() {
	for _, f := range r.all() {
		f.mu.Lock()
		n := len(f.ready)
		f.mu.Unlock()
		if n > 0 {
			f.wake()
		}
	}
}

// errBlocked ends an attempt that has to wait for another item.
var errBlocked = errors.New("waits for another change")

func (f *folder) ended(w work, err error) {
	now := f.r.now()
	name := failureKey(w.it)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.flying, w.it.Seq)
	f.lastWork = f.r.cfg.Clock()
	f.stale = true
	switch {
	case err == nil:
		f.r.outage.note(now, nil)
		delete(f.failures, name)
	case errors.Is(err, errBlocked):
		f.blocked = true
	case f.ctx.Err() != nil || vfolder.KindOf(err) == vfolder.KindInterrupted:
	default:
		f.failed(w, name, now, err)
	}
	close(f.changed)
	f.changed = make(chan struct{})
	f.wake()
}

// failed notes a failure; mu is held.
func (f *folder) failed(w work, name string, now time.Time, err error) {
	x := f.failures[name]
	if x == nil {
		x = &failure{isDelete: w.it.Kind == meta.ItemDelete}
		f.failures[name] = x
	}
	down := f.r.outage.note(now, err)
	x.err, x.at, x.lasting = err, now, !down
	x.tries++
	wait := retryFirst << min(x.tries-1, 9)
	if down {
		wait = min(wait, outageMost)
	}
	x.next = now.Add(min(wait, retryMost))
	x.path = w.it.Name
	var e *vfolder.Error
	if w.it.Kind != meta.ItemPut && errors.As(err, &e) {
		x.path = e.Path
	}
	f.r.log.Warn("a change could not be brought to the bucket; it is tried again", "folder", f.name, "name", x.path, "tries", x.tries, "next", x.next, "err", err)
}

func failureKey(it meta.Item) string {
	switch it.Kind {
	case meta.ItemPut:
		return fmt.Sprintf("p%d/%s", it.Parent, it.Name)
	case meta.ItemDelete:
		return fmt.Sprintf("d%d/%s", it.Row.Dir, it.Row.Name)
	}
	return fmt.Sprintf("t%d", it.Ino)
}

// look reads the queue in order and collects what may begin. It returns when
// to look again if nothing happens until then.
func (f *folder) look(now time.Time) (time.Duration, error) {
	f.mu.Lock()
	f.stale, f.blocked = false, false
	urgent := f.urgent > 0
	f.mu.Unlock()
	l := looker{f: f, now: now, urgent: urgent, wait: time.Hour, keys: map[vfolder.Ino]string{}}
	err := f.r.db.View(func(tx *meta.Tx) error {
		var failed error
		err := tx.Items(f.root, 0, func(it meta.Item) bool {
			var more bool
			more, failed = l.item(tx, it)
			return more && failed == nil
		})
		return errors.Join(err, failed)
	})
	if err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range l.found {
		f.flying[w.it.Seq] = true
	}
	f.ready = append(f.ready, l.found...)
	if l.seen > 0 {
		f.lastWork = f.r.cfg.Clock()
	} else {
		clear(f.wanted)
		clear(f.failures)
		clear(f.refused)
		clear(f.uploads)
	}
	if f.blocked {
		l.wait = min(l.wait, blockedFor)
	}
	return max(l.wait, lookEvery), nil
}

// looker is one look at the queue.
type looker struct {
	f      *folder
	now    time.Time
	urgent bool
	wait   time.Duration
	found  []work
	seen   int
	keys   map[vfolder.Ino]string // prefix by directory, "" for one that is gone

	olderNew, olderAny bool
}

// item decides on one item and reports whether to go on.
func (l *looker) item(tx *meta.Tx, it meta.Item) (bool, error) {
	f := l.f
	l.seen++
	f.mu.Lock()
	flying := f.flying[it.Seq]
	var fail failure
	if x := f.failures[failureKey(it)]; x != nil {
		fail = *x
	}
	wanted := it.Kind == meta.ItemDelete && f.wanted[it.Row]
	f.mu.Unlock()
	c, ready, err := l.classify(tx, it)
	if err != nil {
		return false, err
	}
	if c == classStale {
		if !flying {
			l.found = append(l.found, work{it, c})
		}
		return len(l.found) < readyMost, nil
	}
	may := c == classNew || c == classMarker || c == classReplace && !l.olderNew || c == classDelete && (!l.olderAny || wanted)
	if wait := fail.next.Sub(l.now); wait > 0 {
		l.wait = min(l.wait, wait)
		may = false
	} else if wait := ready.Sub(l.now); wait > 0 && !l.urgent {
		l.wait = min(l.wait, wait)
		may = false
	}
	if may && !flying {
		l.found = append(l.found, work{it, c})
	}
	if !fail.lasting {
		l.olderNew = l.olderNew || c == classNew
		l.olderAny = l.olderAny || c == classNew || c == classReplace
	}
	return len(l.found) < readyMost && l.seen < windowMost, nil
}

// classify says what an item is and from when on it may begin.
func (l *looker) classify(tx *meta.Tx, it meta.Item) (class, time.Time, error) {
	switch it.Kind {
	case meta.ItemTree:
		return classNew, time.Time{}, nil
	case meta.ItemDelete:
		return classDelete, time.Time{}, nil
	}
	e, err := tx.Entry(it.Parent, it.Name)
	if errors.Is(err, vfolder.KindNotFound) || err == nil && e.Item != it.Seq {
		return classStale, time.Time{}, nil
	}
	if err != nil {
		return 0, time.Time{}, err
	}
	n, err := tx.Inode(e.Ino)
	if errors.Is(err, vfolder.KindStale) {
		return classStale, time.Time{}, nil
	}
	if err != nil {
		return 0, time.Time{}, err
	}
	k, at, err := l.rowAt(tx, it, n)
	if err != nil {
		return 0, time.Time{}, err
	}
	c := classNew
	switch {
	case n.IsDir() && !e.Row.IsZero() && e.Row == k:
		return classMarker, time.Unix(0, it.Since).Add(l.f.r.cfg.DirSettle), nil
	case at != nil && !at.Absent:
		c = classReplace
	}
	return c, l.f.readyAt(it, n), nil
}

// rowAt finds the row at an entry's desired key.
func (l *looker) rowAt(tx *meta.Tx, it meta.Item, n *meta.Inode) (meta.RowKey, *meta.Row, error) {
	p := place{key: l.f.prefix, prefix: l.f.prefix}
	if n.Ino != n.Folder {
		prefix, ok := l.keys[it.Parent]
		if !ok {
			dir, err := tx.Inode(it.Parent)
			if err == nil {
				prefix, err = l.f.dirPrefix(tx, dir, false)
			}
			if err != nil && !errors.Is(err, vfolder.KindNotFound) && !errors.Is(err, vfolder.KindStale) {
				return p.k, nil, err
			}
			l.keys[it.Parent] = prefix
		}
		p.prefix = prefix
		l.f.segment(&p, it.Name, n.IsDir())
	}
	if err := l.f.number(tx, &p, false); err != nil || p.k.Dir == 0 {
		return meta.RowKey{}, nil, err
	}
	at, err := tx.Row(p.k)
	return p.k, at, err
}

// readyAt says when a changed entry has settled.
func (f *folder) readyAt(it meta.Item, n *meta.Inode) time.Time {
	since := time.Unix(0, it.Since).Add(f.r.cfg.Settle)
	if !n.IsRegular() {
		return since
	}
	a := f.r.local.Activity(n.Ino)
	if a.Open {
		f.mu.Lock()
		took := f.uploads[n.Ino]
		f.mu.Unlock()
		from := a.DirtySince
		if from.IsZero() {
			from = time.Unix(0, it.Since)
		}
		return from.Add(max(f.r.cfg.OpenSettle, 10*took))
	}
	if t := a.LastChange.Add(f.r.cfg.Settle); t.After(since) {
		return t
	}
	return since
}

// lock takes names for one item; all or none.
func (f *folder) lock(names ...string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range names {
		if f.locks[n] {
			return false
		}
	}
	for _, n := range names {
		f.locks[n] = true
	}
	return true
}

func (f *folder) unlock(names ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range names {
		delete(f.locks, n)
	}
}

// busyKey reports whether something is under way at a key.
func (f *folder) busyKey(key string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.locks[lockKey(key)]
}

func lockKey(key string) string { return "k" + key }

func lockIno(ino vfolder.Ino) string { return fmt.Sprintf("i%d", ino) }

// want makes the deletion of a row that something waits for come early, unless
// it comes before that anyway.
func (f *folder) want(k meta.RowKey) {
	f.mu.Lock()
	f.wanted[k] = true
	f.mu.Unlock()
}

func (f *folder) carryOut(ctx context.Context, w work) error {
	switch {
	case w.class == classStale:
		return f.done(w.it)
	case w.it.Kind == meta.ItemDelete:
		return f.remove(ctx, w.it)
	case w.it.Kind == meta.ItemTree:
		return f.tree(ctx, w.it)
	}
	return f.publish(ctx, w.it)
}

func (f *folder) done(it meta.Item) error {
	return f.r.db.Update(func(tx *meta.Tx) error {
		_, err := tx.Done(it)
		return err
	})
}

// upkeep does what is due besides the queue, and returns when something is.
func (f *folder) upkeep() time.Duration {
	wait := f.seg.due(f)
	f.mu.Lock()
	idle := f.r.cfg.Clock() - f.lastWork
	quiet := len(f.flying) == 0 && len(f.ready) == 0
	f.mu.Unlock()
	if quiet && f.lease.held() {
		if idle >= f.r.cfg.LeaseIdle {
			f.releaseIfDrained(f.ctx)
		} else {
			wait = min(wait, f.r.cfg.LeaseIdle-idle)
		}
	}
	return max(min(wait, f.lease.due(f.ctx)), lookEvery)
}

// path shows a key as a path in the folder.
func (f *folder) path(key string) string {
	return f.name + "/" + strings.TrimPrefix(key, f.prefix)
}
