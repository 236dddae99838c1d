package vfs

import (
	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
	"golang.org/x/sys/unix"
)

// GetAttr tells an inode's attributes.
func (fs *FS) GetAttr(req *fusefs.Request, ino vfolder.Ino) (fusefs.Attr, error) {
	nd := fs.pin(ino)
	defer fs.unpin(nd)
	for range maxRounds {
		n, err := fs.rlock(nd)
		if err != nil {
			return fusefs.Attr{}, err
		}
		a := nd.attr(n)
		nd.mu.RUnlock()
		if !n.Unhydrated || n.Parent == 0 {
			return a, nil
		}
		if err := fs.hydrate(req, n.Parent, n.Name); err != nil {
			return fusefs.Attr{}, err
		}
		nd.epoch.Add(1)
	}
	return fusefs.Attr{}, errBusy("getattr")
}

// SetAttr changes attributes; a new size is set first.
func (fs *FS) SetAttr(req *fusefs.Request, ino vfolder.Ino, set fusefs.SetAttr) (fusefs.Attr, error) {
	nd := fs.pin(ino)
	defer fs.unpin(nd)
	if _, err := fs.mutable(req, "setattr", nd); err != nil {
		return fusefs.Attr{}, err
	}
	if set.Size != nil {
		if err := fs.truncate(nd, *set.Size, set.KillPriv); err != nil {
			return fusefs.Attr{}, err
		}
	}
	n, err := fs.lock(nd)
	if err != nil {
		return fusefs.Attr{}, err
	}
	defer nd.mu.Unlock()
	// The truncation has stamped the times and dropped privileges.
	rest := set.Mode != nil || set.UID != nil || set.GID != nil || set.Atime != nil || set.Mtime != nil || set.Ctime != nil
	if rest || set.Size == nil {
		if n, err = fs.setAttr(nd, set); err != nil {
			return fusefs.Attr{}, err
		}
	}
	fs.tellInode(req, ino)
	return nd.attr(n), nil
}

func (fs *FS) setAttr(nd *node, set fusefs.SetAttr) (*meta.Inode, error) {
	n, err := fs.update(nd, func(tx *meta.Tx, n *meta.Inode) error {
		chown := set.UID != nil || set.GID != nil
		if set.UID != nil {
			n.UID = *set.UID
		}
		if set.GID != nil {
			n.GID = *set.GID
		}
		if (chown || set.KillPriv) && !n.IsDir() {
			dropSetID(n)
			if _, err := dropCaps(tx, n); err != nil {
				return err
			}
		}
		if set.Mode != nil {
			n.Mode = n.Mode&unix.S_IFMT | *set.Mode&0o7777
		}
		if set.Atime != nil {
			n.Atime = *set.Atime
		}
		if set.Mtime != nil {
			n.Mtime = *set.Mtime
		}
		n.Ctime = fs.nanos()
		if set.Ctime != nil {
			n.Ctime = *set.Ctime
		}
		return tx.Touch(n)
	})
	if err != nil {
		return nil, err
	}
	if set.Mtime != nil && n.IsRegular() && n.Data != meta.DataRemote {
		// The data file tells the time again after a crash.
		if n, err = fs.openData(nd, n); err != nil {
			return nil, err
		}
		if !nd.absent {
			if err := nd.file.SetTimes(*set.Mtime); err != nil {
				return nil, err
			}
		}
	}
	return n, nil
}

// dropSetID drops setuid, and setgid where it is not mandatory locking's.
func dropSetID(n *meta.Inode) bool {
	was := n.Mode
	n.Mode &^= unix.S_ISUID
	if n.Mode&unix.S_IXGRP != 0 {
		n.Mode &^= unix.S_ISGID
	}
	return n.Mode != was
}

const capsXattr = "security.capability"

// dropCaps removes file capabilities, as any change of content does.
func dropCaps(tx *meta.Tx, n *meta.Inode) (bool, error) {
	if _, err := tx.Xattr(n.Ino, capsXattr); err != nil {
		if vfolder.KindOf(err) == vfolder.KindNoAttr {
			return false, nil
		}
		return false, err
	}
	return true, tx.DeleteXattr(n.Ino, capsXattr)
}
