package vfs

import (
	"slices"
	"sync"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/content"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
)

// reapBatch is how many orphans one transaction frees.
const reapBatch = 64

// orphanSet holds the inodes without a name. They live until the kernel has
// forgotten them. Its size is that of the index's list of orphans.
type orphanSet struct {
	mu   sync.Mutex
	all  map[vfolder.Ino]struct{}
	due  map[vfolder.Ino]struct{} // forgotten by the kernel, to be freed
	wake chan struct{}
}

func (s *orphanSet) add(ino vfolder.Ino) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[ino] = struct{}{}
}

func (s *orphanSet) remove(ino vfolder.Ino) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, ino)
	delete(s.due, ino)
}

// free puts an orphan on the list of those to be freed.
func (s *orphanSet) free(ino vfolder.Ino) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.all[ino]; !ok {
		return
	}
	s.due[ino] = struct{}{}
	select {
	case s.wake <- struct{}{}:
	default: // it is awake
	}
}

func (s *orphanSet) next() []vfolder.Ino {
	s.mu.Lock()
	defer s.mu.Unlock()
	var batch []vfolder.Ino
	for ino := range s.due {
		if len(batch) == reapBatch {
			break
		}
		batch = append(batch, ino)
		delete(s.due, ino)
	}
	return batch
}

func (fs *FS) loadOrphans() error {
	s := &fs.orphans
	s.all, s.due, s.wake = make(map[vfolder.Ino]struct{}), make(map[vfolder.Ino]struct{}), make(chan struct{}, 1)
	return fs.db.View(func(tx *meta.Tx) error {
		list, err := tx.Orphans()
		for _, ino := range list {
			s.all[ino] = struct{}{}
		}
		return err
	})
}

// Orphans lists the inodes without a name, sorted.
func (fs *FS) Orphans() []vfolder.Ino {
	fs.orphans.mu.Lock()
	defer fs.orphans.mu.Unlock()
	list := make([]vfolder.Ino, 0, len(fs.orphans.all))
	for ino := range fs.orphans.all {
		list = append(list, ino)
	}
	slices.Sort(list)
	return list
}

// Forget says that the kernel dropped an inode.
func (fs *FS) Forget(ino vfolder.Ino) { fs.orphans.free(ino) }

// orphaned notes that an inode lost its last name. The kernel will say when it
// drops it, unless it never knew it.
func (fs *FS) orphaned(req *fusefs.Request, ino vfolder.Ino) {
	fs.orphans.add(ino)
	if req.Unique == 0 {
		fs.freeUnknown(ino)
	}
}

func (fs *FS) freeUnknown(ino vfolder.Ino) {
	if fs.probe.Load() != nil {
		fs.orphans.free(ino) // reap asks the kernel
	}
}

// Freed takes over an inode that the reconciler removed; see reconcile.Local.
func (fs *FS) Freed(n *meta.Inode) {
	orphan := false
	err := fs.db.View(func(tx *meta.Tx) error {
		now, err := tx.Inode(n.Ino)
		orphan = err == nil && now.Nlink == 0
		return err
	})
	switch {
	case err == nil && orphan:
		fs.orphans.add(n.Ino)
		fs.stale(n.Ino)
		fs.freeUnknown(n.Ino)
	case err != nil && vfolder.KindOf(err) == vfolder.KindStale:
		fs.discard(n)
	}
}

// discard drops the local bytes of an inode that is gone from the index.
func (fs *FS) discard(n *meta.Inode) {
	fs.orphans.remove(n.Ino)
	if nd := fs.nodes.peek(n.Ino); nd != nil {
		nd.mu.Lock()
		nd.endPeriod()
		nd.epoch.Add(1)
		nd.settled = false
		_ = nd.closeFile()
		nd.mu.Unlock()
		fs.unpin(nd)
	}
	if !n.IsRegular() || n.Data == meta.DataRemote {
		return
	}
	if err := fs.content.Remove(content.ID{Ino: n.Ino, Gen: n.DataGen}); err != nil {
		fs.log.Warn("local bytes of a removed file are left", "ino", n.Ino, "err", err)
	}
}

// reap frees orphans that the kernel has forgotten.
func (fs *FS) reap() {
	for {
		select {
		case <-fs.ctx.Done():
			return
		case <-fs.orphans.wake:
		}
		for {
			batch := fs.orphans.next()
			if len(batch) == 0 {
				break
			}
			if err := fs.freeBatch(batch); err != nil {
				// They stay orphans, and are freed at the next start.
				fs.log.Warn("removed files are not freed yet", "err", err)
			}
		}
	}
}

func (fs *FS) freeBatch(batch []vfolder.Ino) error {
	if known := fs.probe.Load(); known != nil {
		// The kernel may have looked an inode up again, and lost its name since.
		batch = slices.DeleteFunc(batch, *known)
	}
	var gone []*meta.Inode
	err := fs.db.Update(func(tx *meta.Tx) error {
		gone = gone[:0]
		for _, ino := range batch {
			n, ok, err := tx.Free(ino)
			if err != nil && vfolder.KindOf(err) != vfolder.KindStale {
				return err
			}
			if ok {
				gone = append(gone, n)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, n := range gone {
		fs.discard(n)
	}
	for i, n := range gone {
		if i == 0 || n.Folder != gone[i-1].Folder {
			fs.settleRemote(n.Folder)
		}
	}
	return nil
}
