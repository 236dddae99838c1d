package vfs

import (
	"context"
	"errors"
	"strings"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
	"golang.org/x/sys/unix"
)

// maxRounds bounds how often an operation starts over because what it found
// was changed from elsewhere meanwhile.
const maxRounds = 16

func errBusy(op string) error {
	return fail(vfolder.KindBusy, op, "", "it was changed from elsewhere %d times meanwhile", maxRounds)
}

func checkName(op, name string) error {
	if len(name) > vfolder.MaxNameBytes {
		return fail(vfolder.KindNameTooLong, op, name[:32]+"...", "%d bytes, at most %d are allowed", len(name), vfolder.MaxNameBytes)
	}
	return nil
}

// Lookup finds a name, asking the bucket for what the index does not know yet.
func (fs *FS) Lookup(req *fusefs.Request, parent vfolder.Ino, name string) (fusefs.Attr, error) {
	if name == ".." {
		return fs.lookupParent(req, parent)
	}
	fs.touchRemote(parent)
	n, err := fs.child(req, parent, name)
	if err != nil {
		return fusefs.Attr{}, err
	}
	return fs.GetAttr(req, n.Ino)
}

// lookupParent serves file handles (open_by_handle_at).
func (fs *FS) lookupParent(req *fusefs.Request, ino vfolder.Ino) (fusefs.Attr, error) {
	nd := fs.pin(ino)
	defer fs.unpin(nd)
	n, err := fs.inode(nd)
	switch {
	case err != nil:
		return fusefs.Attr{}, err
	case n.Ino == vfolder.RootIno:
		return fs.GetAttr(req, n.Ino)
	case n.Parent == 0:
		return fusefs.Attr{}, fail(vfolder.KindNotFound, "lookup", "..", "was removed")
	}
	return fs.GetAttr(req, n.Parent)
}

// child returns the record of a name's inode with its attributes known.
func (fs *FS) child(req *fusefs.Request, parent vfolder.Ino, name string) (*meta.Inode, error) {
	if err := checkName("lookup", name); err != nil {
		return nil, err
	}
	for range maxRounds {
		n, listed, err := fs.entry(parent, name)
		switch {
		case errors.Is(err, vfolder.KindNotFound) && !listed:
			if err := fs.list(req, parent); err != nil {
				return nil, err
			}
		case err != nil:
			return nil, err
		case !n.Unhydrated:
			return n, nil
		default:
			if err := fs.hydrate(req, parent, name); err != nil {
				return nil, err
			}
		}
	}
	return nil, errBusy("lookup")
}

// entry reads a name and its inode from the index.
func (fs *FS) entry(parent vfolder.Ino, name string) (n *meta.Inode, listed bool, err error) {
	err = fs.db.View(func(tx *meta.Tx) error {
		e, err := tx.Entry(parent, name)
		if errors.Is(err, vfolder.KindNotFound) {
			dir, derr := tx.Inode(parent)
			if derr != nil {
				return derr
			}
			if !dir.IsDir() {
				return fail(vfolder.KindNotDir, "lookup", name, "its parent is not a directory")
			}
			listed = dir.Listed
			return err
		}
		if err != nil {
			return err
		}
		n, err = tx.Inode(e.Ino)
		return err
	})
	return n, listed, err
}

// list has the bucket's entries of a directory brought into the index.
func (fs *FS) list(req *fusefs.Request, dir vfolder.Ino) error {
	r, err := fs.reach()
	if err != nil {
		return err
	}
	req.Blocking()
	if err := r.List(req.Context, dir); err != nil {
		return err
	}
	fs.stale(dir)
	return nil
}

// listed lists a directory unless it was.
func (fs *FS) listed(req *fusefs.Request, dir vfolder.Ino) error {
	nd := fs.pin(dir)
	defer fs.unpin(nd)
	n, err := fs.inode(nd)
	if err != nil || n.Listed || !n.IsDir() {
		return err
	}
	return fs.list(req, dir)
}

func (fs *FS) hydrate(req *fusefs.Request, parent vfolder.Ino, names ...string) error {
	r, err := fs.reach()
	if err != nil {
		return err
	}
	req.Blocking()
	return r.Hydrate(req.Context, parent, names...)
}

// Resolve walks a path in a folder, given by name, without the kernel. Symbolic
// links inside the path are followed, the last component's only if follow; a
// link that leads out of the folder is KindAccess.
func (fs *FS) Resolve(ctx context.Context, folder, path string, follow bool) (fusefs.Attr, error) {
	req := &fusefs.Request{Context: ctx}
	root, err := fs.child(req, vfolder.RootIno, folder)
	if err != nil {
		return fusefs.Attr{}, err
	}
	at, links := []*meta.Inode{root}, 0
	rest := strings.Split(path, "/")
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		dir := at[len(at)-1]
		switch {
		case name == "" || name == ".":
			continue
		case !dir.IsDir():
			return fusefs.Attr{}, &vfolder.Error{Op: "open", Kind: vfolder.KindNotDir, Path: folder + ":" + path}
		case name == "..":
			if len(at) > 1 {
				at = at[:len(at)-1]
			}
			continue
		}
		n, err := fs.child(req, dir.Ino, name)
		if err != nil {
			return fusefs.Attr{}, &vfolder.Error{Op: "open", Kind: vfolder.KindOf(err), Path: folder + ":" + path, Err: err}
		}
		if n.Mode&unix.S_IFMT != unix.S_IFLNK || (len(rest) == 0 && !follow) {
			at = append(at, n)
			continue
		}
		if links++; links > 40 {
			return fusefs.Attr{}, &vfolder.Error{Op: "open", Kind: vfolder.KindLoop, Path: folder + ":" + path}
		}
		if strings.HasPrefix(n.Target, "/") {
			return fusefs.Attr{}, fail(vfolder.KindAccess, "open", folder+":"+path, "the link %q leads out of the folder", name)
		}
		rest = append(strings.Split(n.Target, "/"), rest...)
	}
	return fs.GetAttr(req, at[len(at)-1].Ino)
}
