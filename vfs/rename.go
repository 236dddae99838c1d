package vfs

import (
	"errors"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
	"golang.org/x/sys/unix"
)

// Rename moves or exchanges names within a folder.
func (fs *FS) Rename(req *fusefs.Request, parent vfolder.Ino, name string, newParent vfolder.Ino, newName string, flags uint32) error {
	exchange := flags&unix.RENAME_EXCHANGE != 0
	noReplace := flags&unix.RENAME_NOREPLACE != 0
	if flags&^(unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE) != 0 || exchange && noReplace {
		return fail(vfolder.KindInvalid, "rename", name, "flags %#x", flags)
	}
	dir, err := fs.mutableDir(req, "rename", parent, name)
	if err != nil {
		return err
	}
	newDir, err := fs.mutableDir(req, "rename", newParent, newName)
	if err != nil {
		return err
	}
	if dir.Folder != newDir.Folder {
		return fail(vfolder.KindCrossDevice, "rename", name, "folders are separate file systems")
	}
	if !req.Resent {
		if err := fs.prepareRename(req, parent, name, newParent, newName, exchange); err != nil {
			return err
		}
	}
	touched := []vfolder.Ino{parent, newParent}
	var lost *meta.Inode
	_, _, err = fs.once(req, func(tx *meta.Tx) (vfolder.Ino, error) {
		touched, lost = touched[:2], nil
		if exchange {
			for _, p := range []meta.Place{{Parent: parent, Name: name}, {Parent: newParent, Name: newName}} {
				e, err := tx.Entry(p.Parent, p.Name)
				if err != nil {
					return 0, err
				}
				touched = append(touched, e.Ino)
			}
			return 0, tx.Exchange(parent, name, newParent, newName)
		}
		moved, replaced, err := tx.Rename(parent, name, newParent, newName, noReplace)
		if err != nil {
			return 0, err
		}
		touched = append(touched, moved.Ino)
		if replaced != nil {
			touched = append(touched, replaced.Ino)
			lost = replaced
		}
		return 0, nil
	})
	if err != nil {
		return err
	}
	if lost != nil && lost.Nlink == 0 {
		fs.orphaned(req, lost.Ino)
	}
	fs.stale(touched...)
	fs.tellEntry(req, parent, name)
	fs.tellEntry(req, newParent, newName)
	return nil
}

// prepareRename makes both names known with attributes: links and emptiness
// count.
func (fs *FS) prepareRename(req *fusefs.Request, parent vfolder.Ino, name string, newParent vfolder.Ino, newName string, exchange bool) error {
	if _, err := fs.child(req, parent, name); err != nil {
		return err
	}
	target, err := fs.child(req, newParent, newName)
	switch {
	case errors.Is(err, vfolder.KindNotFound) && !exchange:
		return nil
	case err != nil:
		return err
	case target.IsDir() && !target.Listed && !exchange:
		return fs.list(req, target.Ino)
	}
	return nil
}
