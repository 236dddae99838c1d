package vfs

import (
	"errors"
	"slices"
	"strings"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
	"golang.org/x/sys/unix"
)

// checkXattr refuses what is not kept: namespaces other than user, security and
// trusted, the last being root's. ACLs (system.posix_acl_*) would be stored and
// not enforced.
func checkXattr(req *fusefs.Request, name string) error {
	if len(name) > vfolder.MaxXattrNameBytes {
		return fail(vfolder.KindRange, "xattr", name[:32]+"...", "the name has %d bytes", len(name))
	}
	space, key, _ := strings.Cut(name, ".")
	switch {
	case space == "trusted" && req.UID != 0:
		return fail(vfolder.KindPermission, "xattr", name, "only root may use trusted attributes")
	case space != "user" && space != "security" && space != "trusted":
		return fail(vfolder.KindUnsupported, "xattr", name, "attributes of this kind are not kept")
	case key == "":
		return fail(vfolder.KindInvalid, "xattr", name, "the name is incomplete")
	}
	return nil
}

// GetXattr reads an extended attribute.
func (fs *FS) GetXattr(req *fusefs.Request, ino vfolder.Ino, name string) (value []byte, err error) {
	if err := checkXattr(req, name); err != nil {
		if errors.Is(err, vfolder.KindPermission) {
			return nil, &vfolder.Error{Op: "xattr", Kind: vfolder.KindNoAttr, Path: name} // as Linux hides them
		}
		return nil, err
	}
	err = fs.db.View(func(tx *meta.Tx) error {
		value, err = tx.Xattr(ino, name)
		return err
	})
	return value, err
}

// ListXattr lists the names of extended attributes, sorted.
func (fs *FS) ListXattr(req *fusefs.Request, ino vfolder.Ino) (names []string, err error) {
	var all map[string][]byte
	err = fs.db.View(func(tx *meta.Tx) error {
		all, err = tx.Xattrs(ino)
		return err
	})
	for name := range all {
		if strings.HasPrefix(name, "trusted.") && req.UID != 0 {
			continue
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names, err
}

// SetXattr stores an extended attribute; flags are those of setxattr(2).
func (fs *FS) SetXattr(req *fusefs.Request, ino vfolder.Ino, name string, value []byte, flags uint32) error {
	if flags&^(unix.XATTR_CREATE|unix.XATTR_REPLACE) != 0 {
		return fail(vfolder.KindInvalid, "setxattr", name, "flags %#x", flags)
	}
	if len(value) > vfolder.MaxXattrValueBytes {
		return unix.E2BIG // no Kind stands for it
	}
	return fs.changeXattr(req, "setxattr", ino, name, func(tx *meta.Tx) error {
		_, err := tx.Xattr(ino, name)
		switch {
		case err == nil:
			if flags&unix.XATTR_CREATE != 0 {
				return &vfolder.Error{Op: "setxattr", Kind: vfolder.KindExists, Path: name}
			}
		case !errors.Is(err, vfolder.KindNoAttr) || flags&unix.XATTR_REPLACE != 0:
			return err
		}
		return tx.PutXattr(ino, name, value)
	})
}

// RemoveXattr removes an extended attribute.
func (fs *FS) RemoveXattr(req *fusefs.Request, ino vfolder.Ino, name string) error {
	return fs.changeXattr(req, "removexattr", ino, name, func(tx *meta.Tx) error {
		if _, err := tx.Xattr(ino, name); err != nil {
			return err
		}
		return tx.DeleteXattr(ino, name)
	})
}

func (fs *FS) changeXattr(req *fusefs.Request, op string, ino vfolder.Ino, name string, do func(*meta.Tx) error) error {
	if err := checkXattr(req, name); err != nil {
		return err
	}
	nd := fs.pin(ino)
	defer fs.unpin(nd)
	if _, err := fs.mutable(req, op, nd); err != nil {
		return err
	}
	if _, err := fs.lock(nd); err != nil {
		return err
	}
	defer nd.mu.Unlock()
	if name == capsXattr {
		nd.armed = false // the next write has to drop it
	}
	_, err := fs.update(nd, func(tx *meta.Tx, n *meta.Inode) error {
		if req.Resent {
			if _, done, err := tx.Reply(req.Unique); err != nil || done {
				return err
			}
		}
		if err := do(tx); err != nil {
			return err
		}
		n.Ctime = fs.nanos()
		if err := tx.Touch(n); err != nil {
			return err
		}
		return tx.PutReply(req.Unique, ino)
	})
	if err == nil {
		fs.tellInode(req, ino)
	}
	return err
}
