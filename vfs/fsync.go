package vfs

import (
	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/content"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
)

// Fsync makes content and attributes survive a power loss. It costs nothing
// when nothing of the inode changed since the last time.
func (fs *FS) Fsync(req *fusefs.Request, ino vfolder.Ino, _ bool) error {
	nd := fs.pin(ino)
	defer fs.unpin(nd)
	n, err := fs.rlock(nd)
	if err != nil {
		return err
	}
	bytes := n.IsRegular() && (n.Boot != 0 || nd.open && nd.writes != nd.flushed)
	nd.mu.RUnlock()
	if !bytes && nd.synced.Load() {
		return nil
	}
	req.Blocking()
	if bytes {
		if err := fs.flushBytes(nd); err != nil {
			return err
		}
	}
	nd.synced.Store(true) // before the barrier: a change during it resets the mark
	if err := fs.db.Sync(); err != nil {
		nd.synced.Store(false)
		return err
	}
	return nil
}

// flushBytes brings local bytes to disk, then stores that they are there, with
// their size and times. What is written meanwhile belongs to the next flush.
func (fs *FS) flushBytes(nd *node) error {
	n, err := fs.lock(nd)
	if err != nil {
		return err
	}
	var f *content.File
	if n.Data != meta.DataRemote {
		if n, err = fs.openData(nd, n); err == nil && !nd.absent {
			f = fs.content.File(nd.file.ID())
		}
	}
	gen, writes := n.DataGen, nd.writes
	nd.mu.Unlock()
	if err != nil {
		return err
	}
	if f != nil {
		err = f.Sync()
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	if _, err := fs.lock(nd); err != nil {
		return err
	}
	defer nd.mu.Unlock()
	_, err = fs.update(nd, func(tx *meta.Tx, n *meta.Inode) error {
		if n.DataGen == gen {
			n.Boot = 0
		}
		return tx.PutInode(n)
	})
	if err == nil {
		nd.flushed = writes
	}
	return err
}

// FsyncDir makes the names in a directory survive a power loss.
func (fs *FS) FsyncDir(req *fusefs.Request, _ vfolder.Ino) error {
	req.Blocking()
	return fs.db.Sync()
}
