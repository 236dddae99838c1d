package vfs

import (
	"crypto/rand"
	"encoding/hex"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
	"golang.org/x/sys/unix"
)

// Symlink makes a symbolic link.
func (fs *FS) Symlink(req *fusefs.Request, parent vfolder.Ino, name, target string) (fusefs.Attr, error) {
	dir, err := fs.mutableDir(req, "symlink", parent, name)
	if err != nil {
		return fusefs.Attr{}, err
	}
	if len(target) >= vfolder.MaxPathBytes {
		return fusefs.Attr{}, fail(vfolder.KindNameTooLong, "symlink", name, "its target has %d bytes", len(target))
	}
	n := fs.newInode(req, dir, unix.S_IFLNK|0o777, 0)
	n.Target, n.Size = target, int64(len(target))
	return fs.make(req, dir, name, n)
}

// ReadLink returns a symbolic link's target.
func (fs *FS) ReadLink(_ *fusefs.Request, ino vfolder.Ino) (string, error) {
	nd := fs.pin(ino)
	defer fs.unpin(nd)
	n, err := fs.inode(nd)
	if err != nil {
		return "", err
	}
	if n.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", fail(vfolder.KindInvalid, "readlink", n.Name, "is not a symbolic link")
	}
	return n.Target, nil
}

// Link gives a file a further name in its folder.
func (fs *FS) Link(req *fusefs.Request, ino, parent vfolder.Ino, name string) (fusefs.Attr, error) {
	nd := fs.pin(ino)
	defer fs.unpin(nd)
	n, err := fs.inode(nd)
	if err != nil {
		return fusefs.Attr{}, err
	}
	dir, err := fs.mutableDir(req, "link", parent, name)
	if err != nil {
		return fusefs.Attr{}, err
	}
	if dir.Folder != n.Folder {
		return fusefs.Attr{}, fail(vfolder.KindCrossDevice, "link", name, "the names of a file lie in one folder")
	}
	var id [8]byte
	rand.Read(id[:]) // never fails
	_, replayed, err := fs.once(req, func(tx *meta.Tx) (vfolder.Ino, error) {
		_, err := tx.Link(ino, parent, name, hex.EncodeToString(id[:]))
		return ino, err
	})
	if err != nil {
		return fusefs.Attr{}, err
	}
	if !replayed {
		fs.orphans.remove(ino) // O_TMPFILE got its first name
	}
	fs.stale(ino, parent)
	fs.tellEntry(req, parent, name)
	fs.tellInode(req, ino)
	return fs.GetAttr(req, ino)
}
