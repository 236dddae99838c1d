package vfs

import (
	"container/list"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/content"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
)

// node is what memory holds of an inode in use. The index's record is cached in
// rec; while a dirty period is open, size and times here are newer.
type node struct {
	ino  vfolder.Ino
	refs int           // guarded by nodeTable.mu
	elem *list.Element // guarded by nodeTable.mu; nil while refs > 0

	// epoch counts changes of the record. A cached record is valid if it was
	// read after the last one: readers take the epoch before they read, writers
	// raise it after they have committed.
	epoch atomic.Uint64
	rec   atomic.Pointer[cachedRecord]
	atime atomic.Int64 // newer than the record's when not 0
	// synced: neither record nor names changed since the last barrier.
	synced atomic.Bool

	mu      sync.RWMutex
	settled bool          // recovered since the worker started
	file    *content.File // nil: not opened
	gen     uint32        // of file
	absent  bool          // file is empty and has no data file yet
	open    bool          // a dirty period is open: the three below are right
	size    int64
	mtime   int64
	ctime   int64
	// armed says that the index knows of local bytes without a flush, and that
	// no privileges are left to drop: writing needs no transaction.
	armed   bool
	writes  uint64 // changes of content since the period began
	flushed uint64 // how many of them are on disk

	written    bool // since the last close or flush
	lastChange time.Time
	dirtySince time.Time

	fetchMu sync.Mutex // guards what follows
	flights []*flight
	seqNext int64 // where a sequential reader reads next
	streak  int   // sequential reads in a row
}

type cachedRecord struct {
	epoch uint64
	n     *meta.Inode // never changed
}

// nodeTable holds the nodes in use, and those used lately.
type nodeTable struct {
	mu   sync.Mutex
	all  map[vfolder.Ino]*node
	idle *list.List // nodes with refs 0, the least recently used first
	max  int
}

func (t *nodeTable) init(limit int) {
	t.all, t.idle, t.max = make(map[vfolder.Ino]*node), list.New(), limit
}

// peek returns the node only if there is one. Unpin it.
func (t *nodeTable) peek(ino vfolder.Ino) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	nd := t.all[ino]
	if nd != nil {
		t.take(nd)
	}
	return nd
}

func (t *nodeTable) take(nd *node) {
	nd.refs++
	if nd.elem != nil {
		t.idle.Remove(nd.elem)
		nd.elem = nil
	}
}

// hold pins a node that is pinned already once more.
func (t *nodeTable) hold(nd *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	nd.refs++
}

// pin returns the inode's node, which stays until unpin.
func (fs *FS) pin(ino vfolder.Ino) *node {
	t := &fs.nodes
	t.mu.Lock()
	nd := t.all[ino]
	if nd == nil {
		nd = &node{ino: ino}
		t.all[ino] = nd
	}
	t.take(nd)
	var victim *node
	if len(t.all) > t.max && t.idle.Len() > 0 {
		victim = t.idle.Front().Value.(*node)
		t.take(victim)
	}
	t.mu.Unlock()
	if victim != nil {
		fs.evict(victim)
	}
	return nd
}

func (fs *FS) unpin(nd *node) {
	t := &fs.nodes
	t.mu.Lock()
	defer t.mu.Unlock()
	if nd.refs--; nd.refs == 0 && t.all[nd.ino] == nd {
		nd.elem = t.idle.PushBack(nd)
	}
}

// evict drops a pinned node from memory unless somebody else came to use it.
func (fs *FS) evict(nd *node) {
	if err := fs.retire(nd); err != nil {
		fs.log.Error("an inode cannot be stored", "ino", nd.ino, "err", err)
		fs.unpin(nd)
		return
	}
	t := &fs.nodes
	t.mu.Lock()
	defer t.mu.Unlock()
	if nd.refs--; nd.refs > 0 {
		return
	}
	nd.elem = nil
	if t.all[nd.ino] == nd && nd.file == nil && !nd.open { // nobody used it since: refs was 1
		delete(t.all, nd.ino)
		return
	}
	nd.elem = t.idle.PushBack(nd)
}

// drain retires all nodes.
func (t *nodeTable) drain(retire func(*node) error) error {
	t.mu.Lock()
	all := make([]*node, 0, len(t.all))
	for _, nd := range t.all {
		all = append(all, nd)
	}
	t.mu.Unlock()
	var errs error
	for _, nd := range all {
		errs = errors.Join(errs, retire(nd))
	}
	return errs
}

// retire stores what memory knows better and gives the data file back. The
// dirty period ends; the next write begins another one.
func (fs *FS) retire(nd *node) error {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	if nd.open || nd.atime.Load() != 0 {
		_, err := fs.update(nd, func(tx *meta.Tx, n *meta.Inode) error { return tx.PutInode(n) })
		if err != nil && vfolder.KindOf(err) != vfolder.KindStale { // stale: freed
			return err
		}
	}
	nd.endPeriod()
	nd.settled = false
	return nd.closeFile()
}

func (nd *node) endPeriod() { nd.open, nd.armed = false, false }

func (nd *node) closeFile() error {
	f := nd.file
	nd.file, nd.absent = nil, false
	if f == nil {
		return nil
	}
	return f.Close()
}

// inode returns the record as the index has it; do not change it.
func (fs *FS) inode(nd *node) (*meta.Inode, error) {
	epoch := nd.epoch.Load()
	if c := nd.rec.Load(); c != nil && c.epoch == epoch {
		return c.n, nil
	}
	var n *meta.Inode
	err := fs.db.View(func(tx *meta.Tx) (err error) {
		n, err = tx.Inode(nd.ino)
		return err
	})
	if err != nil {
		return nil, err
	}
	nd.rec.Store(&cachedRecord{epoch, n})
	return n, nil
}

// stale makes the cached records of inodes invalid, after a commit.
func (fs *FS) stale(inos ...vfolder.Ino) {
	for _, ino := range inos {
		if nd := fs.nodes.peek(ino); nd != nil {
			nd.epoch.Add(1)
			nd.synced.Store(false)
			fs.unpin(nd)
		}
	}
}

// lock takes nd.mu for writing, the inode being recovered. On an error it is
// not held.
func (fs *FS) lock(nd *node) (*meta.Inode, error) {
	nd.mu.Lock()
	n, err := fs.inode(nd)
	if err == nil && !nd.settled {
		n, err = fs.recoverInode(nd, n)
	}
	if err != nil {
		nd.mu.Unlock()
		return nil, err
	}
	return n, nil
}

// rlock is lock for reading.
func (fs *FS) rlock(nd *node) (*meta.Inode, error) {
	for {
		nd.mu.RLock()
		if nd.settled {
			n, err := fs.inode(nd)
			if err != nil {
				nd.mu.RUnlock()
			}
			return n, err
		}
		nd.mu.RUnlock()
		if _, err := fs.lock(nd); err != nil {
			return nil, err
		}
		nd.mu.Unlock()
	}
}

// overlay puts what memory knows better into a record. nd.mu is held.
func (nd *node) overlay(n *meta.Inode) {
	if nd.open {
		n.Size, n.Mtime = nd.size, nd.mtime
		n.Ctime = max(n.Ctime, nd.ctime)
	}
	if t := nd.atime.Load(); t > n.Atime {
		n.Atime = t
	}
}

// update changes the inode's record in a transaction; fn stores n. nd.mu is
// held for writing. It returns the record as stored.
func (fs *FS) update(nd *node, fn func(*meta.Tx, *meta.Inode) error) (*meta.Inode, error) {
	var out *meta.Inode
	err := fs.db.Update(func(tx *meta.Tx) error {
		n, err := tx.Inode(nd.ino)
		if err != nil {
			return err
		}
		nd.overlay(n)
		out = n
		return fn(tx, n)
	})
	if err != nil {
		return nil, err
	}
	nd.epoch.Add(1)
	nd.atime.Store(0)
	nd.synced.Store(false)
	if nd.open {
		nd.size, nd.mtime, nd.ctime = out.Size, out.Mtime, out.Ctime
	}
	return out, nil
}

// attr is what the kernel is told. nd.mu is held either way.
func (nd *node) attr(n *meta.Inode) fusefs.Attr {
	a := attrOf(n)
	if nd.open {
		a.Size, a.Mtime, a.Ctime = nd.size, nd.mtime, max(nd.ctime, n.Ctime)
		a.Blocks = blocksOf(a.Size)
	}
	if t := nd.atime.Load(); t > a.Atime {
		a.Atime = t
	}
	if nd.file != nil && !nd.absent && n.Data == meta.DataComplete && nd.gen == n.DataGen {
		a.Blocks = nd.file.Blocks()
	}
	return a
}

func blocksOf(size int64) int64 { return (size + 511) / 512 }

func attrOf(n *meta.Inode) fusefs.Attr {
	return fusefs.Attr{
		Ino: n.Ino, Mode: n.Mode, UID: n.UID, GID: n.GID, Rdev: n.Rdev, Nlink: n.Nlink,
		Size: n.Size, Blocks: blocksOf(n.Size),
		Atime: n.Atime, Mtime: n.Mtime, Ctime: n.Ctime, Btime: n.Btime,
	}
}

func (fs *FS) nanos() int64 { return fs.now().UnixNano() }
