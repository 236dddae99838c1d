package vfs

import (
	"errors"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/content"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
	"golang.org/x/sys/unix"
)

// Open prepares a file; O_TRUNC empties it.
func (fs *FS) Open(req *fusefs.Request, ino vfolder.Ino, flags uint32) error {
	nd := fs.pin(ino)
	defer fs.unpin(nd)
	n, err := fs.inode(nd)
	if err != nil {
		return err
	}
	if n.IsDir() {
		fs.touchRemote(ino)
	} else {
		fs.touchRemote(n.Parent)
	}
	if flags&unix.O_ACCMODE != unix.O_RDONLY && n.IsRegular() {
		if err := fs.writable(req, n.Folder); err != nil {
			return err
		}
	}
	if flags&unix.O_TRUNC != 0 && n.IsRegular() {
		if err := fs.truncate(nd, 0, false); err != nil {
			return err
		}
		fs.tellInode(req, ino)
	}
	return nil
}

// Flush is one close of a descriptor: what was written may settle.
func (fs *FS) Flush(_ *fusefs.Request, ino vfolder.Ino) error {
	fs.closed(ino)
	return nil
}

// Release ends an open file description.
func (fs *FS) Release(ino vfolder.Ino, _ uint32) { fs.closed(ino) }

func (fs *FS) closed(ino vfolder.Ino) {
	nd := fs.nodes.peek(ino)
	if nd == nil {
		return // not written by this worker
	}
	defer fs.unpin(nd)
	nd.mu.Lock()
	was := nd.written
	nd.written = false
	if was {
		nd.lastChange = fs.now()
	}
	nd.mu.Unlock()
	if !was {
		return
	}
	if n, err := fs.inode(nd); err == nil {
		fs.settleRemote(n.Folder)
	}
}

// errMoved says that the record names another data file than the one that is
// open: the operation starts over.
var errMoved = errors.New("the local bytes were replaced meanwhile")

// openData opens the local bytes, with nd.mu held for writing. A file that had
// none becomes partial. The record is returned as it is then.
func (fs *FS) openData(nd *node, n *meta.Inode) (*meta.Inode, error) {
	if nd.file != nil && nd.gen == n.DataGen && n.Data != meta.DataRemote {
		return n, nil
	}
	if err := nd.closeFile(); err != nil {
		return nil, err
	}
	if n.Data == meta.DataRemote {
		var err error
		if n, err = fs.startPartial(nd); err != nil {
			return nil, err
		}
	}
	missing, err := fs.openFile(nd, n)
	if err != nil || !missing {
		return n, err
	}
	switch {
	case n.Data == meta.DataPartial:
		err = nd.file.CreatePartial(n.Size)
		if err == nil {
			err = nd.file.SetTimes(n.Mtime)
		}
	case nd.sizeOf(n) == 0:
		nd.absent = true
	case !n.Dirty && !n.Base.IsZero(): // somebody cleared the cache; the bucket has the bytes
		if n, err = fs.forgetBytes(nd, n); err == nil {
			return fs.openData(nd, n)
		}
	default:
		err = fail(vfolder.KindCorrupt, "open", n.Name, "the local bytes of inode %d are gone", n.Ino)
	}
	if err != nil {
		_ = nd.closeFile()
		return nil, err
	}
	return n, nil
}

// openFile gets the handle of the record's data file and says whether there is
// no such file.
func (fs *FS) openFile(nd *node, n *meta.Inode) (missing bool, err error) {
	f := fs.content.File(content.ID{Ino: n.Ino, Gen: n.DataGen})
	known := make([]content.Range, len(n.Known))
	for i, r := range n.Known {
		known[i] = content.Range{Off: r[0], Len: r[1]}
	}
	err = f.Recover(n.Data == meta.DataPartial, known)
	if err != nil && vfolder.KindOf(err) != vfolder.KindNotFound {
		_ = f.Close()
		return false, err
	}
	nd.file, nd.gen, nd.absent = f, n.DataGen, false
	return err != nil, nil
}

// startPartial stores that bytes of a remote file are going to be local.
func (fs *FS) startPartial(nd *node) (*meta.Inode, error) {
	return fs.update(nd, func(tx *meta.Tx, n *meta.Inode) error {
		if n.Data != meta.DataRemote {
			return errMoved
		}
		n.DataGen++
		n.Known, n.Data, n.Boot = nil, meta.DataPartial, fs.db.Boot()
		if n.Size == 0 {
			n.Data = meta.DataComplete
		}
		return tx.PutInode(n)
	})
}

// sizeOf is the size as it is now; nd.mu is held.
func (nd *node) sizeOf(n *meta.Inode) int64 {
	if nd.open {
		return nd.size
	}
	return n.Size
}

// begin opens a dirty period in memory, as n was stored.
func (nd *node) begin(n *meta.Inode, now time.Time) {
	nd.open = true
	nd.size, nd.mtime, nd.ctime = n.Size, n.Mtime, n.Ctime
	nd.dirtySince, nd.lastChange = now, now
	nd.writes, nd.flushed = 1, 0 // the length may have changed already
}
