package vfs

import (
	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
)

// The root's entries are the folders. They come and go by folder commands only:
// nothing in the root itself is changed by file operations.

func errRoot(op, name string) error {
	return fail(vfolder.KindPermission, op, name, "folders are made and removed with the folder commands")
}

// mutable prepares a change of an inode: its folder may be written.
func (fs *FS) mutable(req *fusefs.Request, op string, nd *node) (*meta.Inode, error) {
	if nd.ino == vfolder.RootIno {
		return nil, errRoot(op, "")
	}
	n, err := fs.inode(nd)
	if err != nil {
		return nil, err
	}
	return n, fs.writable(req, n.Folder)
}

// mutableDir prepares a change of the entries of a directory: its folder may be
// written, and every entry is known, so that a name that is taken is seen.
func (fs *FS) mutableDir(req *fusefs.Request, op string, dir vfolder.Ino, name string) (*meta.Inode, error) {
	if dir == vfolder.RootIno {
		return nil, errRoot(op, name)
	}
	if err := checkName(op, name); err != nil {
		return nil, err
	}
	nd := fs.pin(dir)
	defer fs.unpin(nd)
	n, err := fs.mutable(req, op, nd)
	if err != nil {
		return nil, err
	}
	if !n.IsDir() {
		return nil, fail(vfolder.KindNotDir, op, name, "its parent is not a directory")
	}
	if !n.Listed {
		if err := fs.list(req, dir); err != nil {
			return nil, err
		}
		return fs.inode(nd)
	}
	return n, nil
}
