package vfs

import (
	"errors"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
	"golang.org/x/sys/unix"
)

// once runs a change that must not be carried out twice: do and the record of
// the reply are one transaction. A request that an earlier worker carried out
// is answered from the record (replayed), do is not called then.
func (fs *FS) once(req *fusefs.Request, do func(*meta.Tx) (vfolder.Ino, error)) (ino vfolder.Ino, replayed bool, err error) {
	err = fs.db.Update(func(tx *meta.Tx) error {
		ino, replayed = 0, false
		if req.Resent {
			var err error
			if ino, replayed, err = tx.Reply(req.Unique); err != nil || replayed {
				return err
			}
		}
		var err error
		if ino, err = do(tx); err != nil {
			return err
		}
		return tx.PutReply(req.Unique, ino)
	})
	return ino, replayed, err
}

// newInode is a node of that mode made by req in dir: in a setgid directory it
// gets the directory's group, and a directory the bit too.
func (fs *FS) newInode(req *fusefs.Request, dir *meta.Inode, mode, umask uint32) *meta.Inode {
	if mode&unix.S_IFMT == 0 {
		mode |= unix.S_IFREG
	}
	n := &meta.Inode{Mode: mode &^ (umask & 0o777), UID: req.UID, GID: req.GID}
	if dir.Mode&unix.S_ISGID != 0 {
		n.GID = dir.GID
		if n.IsDir() {
			n.Mode |= unix.S_ISGID
		}
	}
	now := fs.nanos()
	n.Atime, n.Mtime, n.Ctime, n.Btime = now, now, now, now
	return n
}

// make makes n under a name.
func (fs *FS) make(req *fusefs.Request, dir *meta.Inode, name string, n *meta.Inode) (fusefs.Attr, error) {
	ino, replayed, err := fs.once(req, func(tx *meta.Tx) (vfolder.Ino, error) {
		err := tx.Create(dir.Ino, name, n)
		return n.Ino, err
	})
	if err != nil {
		return fusefs.Attr{}, err
	}
	if replayed {
		return fs.GetAttr(req, ino)
	}
	fs.stale(dir.Ino)
	fs.tellEntry(req, dir.Ino, name)
	return attrOf(n), nil
}

// Mknod makes any non-directory.
func (fs *FS) Mknod(req *fusefs.Request, parent vfolder.Ino, name string, mode, umask, rdev uint32) (fusefs.Attr, error) {
	dir, err := fs.mutableDir(req, "mknod", parent, name)
	if err != nil {
		return fusefs.Attr{}, err
	}
	n := fs.newInode(req, dir, mode, umask)
	switch n.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK:
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Rdev = rdev
	default:
		return fusefs.Attr{}, fail(vfolder.KindInvalid, "mknod", name, "mode %o", mode)
	}
	return fs.make(req, dir, name, n)
}

// Mkdir makes a directory.
func (fs *FS) Mkdir(req *fusefs.Request, parent vfolder.Ino, name string, mode, umask uint32) (fusefs.Attr, error) {
	dir, err := fs.mutableDir(req, "mkdir", parent, name)
	if err != nil {
		return fusefs.Attr{}, err
	}
	return fs.make(req, dir, name, fs.newInode(req, dir, mode&^unix.S_IFMT|unix.S_IFDIR, umask))
}

// Create is open(O_CREAT). The new file begins with a dirty period, so that the
// first write needs no transaction of its own.
func (fs *FS) Create(req *fusefs.Request, parent vfolder.Ino, name string, mode, umask, flags uint32) (fusefs.Attr, error) {
	dir, err := fs.mutableDir(req, "create", parent, name)
	if err != nil {
		return fusefs.Attr{}, err
	}
	n := fs.newInode(req, dir, mode&^unix.S_IFMT|unix.S_IFREG, umask)
	n.Dirty = true
	a, err := fs.make(req, dir, name, n)
	switch {
	case err == nil:
		fs.created(a.Ino, flags)
		return a, nil
	case !errors.Is(err, vfolder.KindExists) || flags&unix.O_EXCL != 0:
		return a, err
	}
	// Somebody else made it between the kernel's look and this request.
	if a, err = fs.Lookup(req, parent, name); err != nil {
		return a, err
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return a, fail(vfolder.KindIsDir, "create", name, "is a directory")
	case unix.S_IFREG:
	default:
		return a, &vfolder.Error{Op: "create", Kind: vfolder.KindExists, Path: name}
	}
	if err := fs.Open(req, a.Ino, flags); err != nil {
		return a, err
	}
	return fs.GetAttr(req, a.Ino)
}

// created opens the dirty period in memory that a new file was stored with.
func (fs *FS) created(ino vfolder.Ino, flags uint32) {
	nd := fs.pin(ino)
	defer fs.unpin(nd)
	n, err := fs.lock(nd)
	if err != nil {
		return // the file is as good without: the first write begins a period
	}
	defer nd.mu.Unlock()
	if n.Dirty && n.Gen == 1 && !nd.open && n.Data == meta.DataComplete && n.Size == 0 {
		nd.begin(n, fs.now())
		nd.armed = true
	}
	nd.written = nd.written || flags&unix.O_ACCMODE != unix.O_RDONLY
}

// Tmpfile makes a nameless file.
func (fs *FS) Tmpfile(req *fusefs.Request, parent vfolder.Ino, mode, umask, flags uint32) (fusefs.Attr, error) {
	dir, err := fs.mutableDir(req, "tmpfile", parent, "")
	if err != nil {
		return fusefs.Attr{}, err
	}
	n := fs.newInode(req, dir, mode&^unix.S_IFMT|unix.S_IFREG, umask)
	n.Dirty = true
	ino, replayed, err := fs.once(req, func(tx *meta.Tx) (vfolder.Ino, error) {
		err := tx.CreateOrphan(parent, n)
		return n.Ino, err
	})
	if err != nil {
		return fusefs.Attr{}, err
	}
	if replayed {
		return fs.GetAttr(req, ino)
	}
	fs.orphans.add(ino)
	fs.created(ino, flags)
	return attrOf(n), nil
}
