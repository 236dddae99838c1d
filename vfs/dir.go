package vfs

import (
	"errors"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
	"golang.org/x/sys/unix"
)

// Unlink removes a name that is not a directory.
func (fs *FS) Unlink(req *fusefs.Request, parent vfolder.Ino, name string) error {
	return fs.drop(req, "unlink", parent, name, (*meta.Tx).Unlink)
}

// Rmdir removes an empty directory.
func (fs *FS) Rmdir(req *fusefs.Request, parent vfolder.Ino, name string) error {
	return fs.drop(req, "rmdir", parent, name, (*meta.Tx).Rmdir)
}

func (fs *FS) drop(req *fusefs.Request, op string, parent vfolder.Ino, name string, do func(*meta.Tx, vfolder.Ino, string) (*meta.Inode, error)) error {
	if _, err := fs.mutableDir(req, op, parent, name); err != nil {
		return err
	}
	n, err := fs.child(req, parent, name) // its links count, and its entries
	if err != nil && (!req.Resent || !errors.Is(err, vfolder.KindNotFound)) {
		return err
	}
	if err == nil && n.IsDir() && !n.Listed {
		if err := fs.list(req, n.Ino); err != nil {
			return err
		}
	}
	var gone *meta.Inode
	_, replayed, err := fs.once(req, func(tx *meta.Tx) (vfolder.Ino, error) {
		n, err := do(tx, parent, name)
		gone = n
		return 0, err
	})
	if err != nil || replayed {
		return err
	}
	if gone.Nlink == 0 {
		fs.orphaned(req, gone.Ino)
	}
	fs.stale(parent, gone.Ino)
	fs.tellEntry(req, parent, name)
	return nil
}

// readBatch is how many entries are read from the index at once.
const readBatch = 256

type listed struct {
	entry meta.DirEntry
	n     *meta.Inode // with attributes only
}

// ReadDir yields names in the order of their cookies.
func (fs *FS) ReadDir(req *fusefs.Request, ino vfolder.Ino, after uint64, yield func(fusefs.DirEntry) bool) error {
	return fs.scan(req, ino, after, false, func(batch []listed) (bool, error) {
		for _, l := range batch {
			if !yield(direntOf(l.entry)) {
				return false, nil
			}
		}
		return true, nil
	})
}

func direntOf(e meta.DirEntry) fusefs.DirEntry {
	return fusefs.DirEntry{Ino: e.Ino, Name: e.Name, Type: e.Type, Cookie: e.Cookie}
}

// ReadDirPlus yields names with attributes, which are brought from the bucket
// in batches where they are not known.
func (fs *FS) ReadDirPlus(req *fusefs.Request, ino vfolder.Ino, after uint64, yield func(fusefs.DirEntry, fusefs.Attr) bool) error {
	return fs.scan(req, ino, after, true, func(batch []listed) (bool, error) {
		for _, l := range batch {
			a, err := fs.attrOfListed(l.n)
			if errors.Is(err, vfolder.KindStale) {
				continue // removed since it was read
			}
			if err != nil {
				return false, err
			}
			e := direntOf(l.entry)
			e.Ino, e.Type = a.Ino, a.Mode&unix.S_IFMT
			if !yield(e, a) {
				return false, nil
			}
		}
		return true, nil
	})
}

// attrOfListed avoids a node for every entry of a large directory.
func (fs *FS) attrOfListed(n *meta.Inode) (fusefs.Attr, error) {
	nd := fs.nodes.peek(n.Ino)
	if nd == nil {
		if !fs.needsRecovery(n) {
			return attrOf(n), nil
		}
		nd = fs.pin(n.Ino)
	}
	defer fs.unpin(nd)
	n, err := fs.rlock(nd)
	if err != nil {
		return fusefs.Attr{}, err
	}
	defer nd.mu.RUnlock()
	return nd.attr(n), nil
}

func (fs *FS) scan(req *fusefs.Request, ino vfolder.Ino, after uint64, plus bool, emit func([]listed) (bool, error)) error {
	if err := fs.listed(req, ino); err != nil {
		return err
	}
	for rounds := 0; ; {
		batch, unknown, err := fs.readEntries(ino, after, plus)
		if err != nil {
			return err
		}
		if len(unknown) > 0 {
			if rounds++; rounds > maxRounds {
				return errBusy("readdir")
			}
			if err := fs.hydrate(req, ino, unknown...); err != nil {
				return err
			}
			continue // entries may name other inodes now, or be gone
		}
		if len(batch) == 0 {
			return nil
		}
		more, err := emit(batch)
		if err != nil || !more {
			return err
		}
		after, rounds = batch[len(batch)-1].entry.Cookie, 0
	}
}

func (fs *FS) readEntries(ino vfolder.Ino, after uint64, plus bool) (batch []listed, unknown []string, err error) {
	err = fs.db.View(func(tx *meta.Tx) error {
		dir, err := tx.Inode(ino)
		if err != nil {
			return err
		}
		if !dir.IsDir() {
			return fail(vfolder.KindNotDir, "readdir", dir.Name, "is not a directory")
		}
		err = tx.Entries(ino, after, func(e meta.DirEntry) bool {
			batch = append(batch, listed{entry: e})
			return len(batch) < readBatch
		})
		if err != nil || !plus {
			return err
		}
		for i := range batch {
			n, err := tx.Inode(batch[i].entry.Ino)
			if err != nil {
				return err
			}
			if batch[i].n = n; n.Unhydrated {
				unknown = append(unknown, batch[i].entry.Name)
			}
		}
		return nil
	})
	return batch, unknown, err
}
