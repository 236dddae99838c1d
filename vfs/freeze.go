package vfs

import (
	"context"
	"errors"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/content"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/reconcile"
)

// Freeze ends the inode's dirty period; see reconcile.Local.
func (fs *FS) Freeze(ctx context.Context, ino vfolder.Ino) (*reconcile.Frozen, error) {
	nd := fs.pin(ino)
	defer fs.unpin(nd)
	for range maxRounds {
		fr, err := fs.freezeOnce(nd)
		if !errors.Is(err, errMoved) {
			return fr, err
		}
		if err := ctx.Err(); err != nil {
			return nil, &vfolder.Error{Op: "freeze", Kind: vfolder.KindInterrupted, Err: err}
		}
	}
	return nil, errBusy("freeze")
}

func (fs *FS) freezeOnce(nd *node) (*reconcile.Frozen, error) {
	n, err := fs.lock(nd)
	if err != nil {
		return nil, err
	}
	defer nd.mu.Unlock()
	var view *content.View
	if n.IsRegular() && n.Data != meta.DataRemote {
		if n, err = fs.openData(nd, n); err != nil {
			return nil, err
		}
		if err := nd.create(); err != nil { // an empty file has a view too
			return nil, err
		}
		if view, err = nd.file.Freeze(); err != nil {
			return nil, err
		}
	}
	fr := &reconcile.Frozen{View: view, Close: func() {}}
	if view != nil {
		fr.Close = func() {
			if err := view.Close(); err != nil {
				fs.log.Warn("a frozen view did not close", "ino", nd.ino, "err", err)
			}
		}
	}
	gen := n.DataGen
	read := func(tx *meta.Tx, n *meta.Inode) (err error) {
		if n.DataGen != gen {
			return errMoved
		}
		fr.Inode = n
		fr.Xattrs, err = tx.Xattrs(n.Ino)
		return err
	}
	if nd.open {
		_, err = fs.update(nd, func(tx *meta.Tx, n *meta.Inode) error {
			if err := read(tx, n); err != nil {
				return err
			}
			return tx.PutInode(n)
		})
	} else {
		err = fs.db.View(func(tx *meta.Tx) error {
			n, err := tx.Inode(nd.ino)
			if err != nil {
				return err
			}
			return read(tx, n)
		})
	}
	if err != nil {
		fr.Close()
		return nil, err
	}
	nd.endPeriod()
	return fr, nil
}

// Activity tells how a file is being used.
func (fs *FS) Activity(ino vfolder.Ino) reconcile.Activity {
	nd := fs.nodes.peek(ino)
	if nd == nil {
		return reconcile.Activity{}
	}
	defer fs.unpin(nd)
	nd.mu.RLock()
	defer nd.mu.RUnlock()
	a := reconcile.Activity{Open: nd.written, LastChange: nd.lastChange}
	if nd.open {
		a.DirtySince = nd.dirtySince
	}
	return a
}

// Changed drops what is cached of an inode.
func (fs *FS) Changed(ino vfolder.Ino) {
	fs.stale(ino)
	fs.invalidateInode(ino)
}

// EntryChanged drops what is cached of a name, and of its directory.
func (fs *FS) EntryChanged(parent vfolder.Ino, name string) {
	fs.stale(parent)
	fs.invalidateEntry(parent, name)
}
