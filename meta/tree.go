package meta

import (
	"errors"

	"github.com/vfolder/vfolder"
	"golang.org/x/sys/unix"
)

// The operations on names. Each keeps entry, inode, link count, parent times,
// rows and the queue consistent within the transaction. Permission checks are
// the kernel's and the caller's business.

// Create makes n under (parent, name): Ino, Folder, Parent, Name, Nlink, Data
// and, where they are 0, times are set here. KindExists when the name is taken,
// KindNotFound when the directory was removed.
func (tx *Tx) Create(parent vfolder.Ino, name string, n *Inode) error {
	dir, err := tx.liveDir(parent)
	if err != nil {
		return err
	}
	if err := tx.mustBeFree(parent, name); err != nil {
		return err
	}
	if err := tx.newInode(dir, n); err != nil {
		return err
	}
	n.Parent, n.Name = parent, name
	if n.Folder == 0 {
		n.Folder = n.Ino // a folder's root
	}
	return tx.insert(dir, name, n, Entry{Ino: n.Ino, Type: n.Mode & unix.S_IFMT})
}

// CreateOrphan makes n without a name, in the folder of directory parent.
func (tx *Tx) CreateOrphan(parent vfolder.Ino, n *Inode) error {
	dir, err := tx.liveDir(parent)
	if err != nil {
		return err
	}
	if err := tx.newInode(dir, n); err != nil {
		return err
	}
	n.Nlink = 0
	if err := tx.put(orphanKey(n.Ino), nil); err != nil {
		return err
	}
	return tx.PutInode(n)
}

func (tx *Tx) newInode(dir *Inode, n *Inode) error {
	ino, err := tx.number()
	if err != nil {
		return err
	}
	n.Ino, n.Folder, n.Nlink, n.Listed = vfolder.Ino(ino), dir.Folder, 1, true
	if n.IsDir() {
		n.Nlink = 2
	}
	if n.IsRegular() {
		n.Data, n.Boot = DataComplete, tx.db.boot
	}
	n.Gen, n.AttrGen = 1, 1
	now := tx.Now()
	for _, t := range []*int64{&n.Atime, &n.Mtime, &n.Ctime, &n.Btime} {
		if *t == 0 {
			*t = now
		}
	}
	return nil
}

// Link gives inode ino a further name.
func (tx *Tx) Link(ino, parent vfolder.Ino, name, linkID string) (*Inode, error) {
	dir, err := tx.liveDir(parent)
	if err != nil {
		return nil, err
	}
	if err := tx.mustBeFree(parent, name); err != nil {
		return nil, err
	}
	n, err := tx.Inode(ino)
	if err != nil {
		return nil, err
	}
	switch {
	case n.IsDir():
		return nil, vfolder.Errorf(vfolder.KindPermission, "link", name, "directories have one name")
	case n.Folder != dir.Folder:
		return nil, vfolder.Errorf(vfolder.KindCrossDevice, "link", name, "the names of a file lie in one folder")
	case n.Nlink >= vfolder.MaxLinks:
		return nil, vfolder.Errorf(vfolder.KindTooManyLinks, "link", name, "a file has at most %d names", vfolder.MaxLinks)
	}
	n.Ctime = tx.Now()
	n.AttrGen++
	if n.Nlink == 0 { // O_TMPFILE gets its first name
		if err := tx.del(orphanKey(ino)); err != nil {
			return nil, err
		}
		n.Parent, n.Name, n.Nlink = parent, name, 1
		return n, tx.insert(dir, name, n, Entry{Ino: ino, Type: n.Mode & unix.S_IFMT})
	}
	if n.Link == "" {
		n.Link = linkID
		if err := tx.put(nameKey(ino, n.Parent, n.Name), nil); err != nil {
			return nil, err
		}
		if err := tx.put(groupKey(n.Folder, linkID), inodeKey(ino)[1:]); err != nil {
			return nil, err
		}
	}
	if err := tx.put(nameKey(ino, parent, name), nil); err != nil {
		return nil, err
	}
	n.Nlink++
	if err := tx.insert(dir, name, n, Entry{Ino: ino, Type: n.Mode & unix.S_IFMT}); err != nil {
		return nil, err
	}
	return n, tx.queueNames(n) // the other names learn of the group
}

// insert writes inode and entry, touches the directory and queues the name.
func (tx *Tx) insert(dir *Inode, name string, n *Inode, e Entry) error {
	if err := tx.PutInode(n); err != nil {
		return err
	}
	if err := tx.queuePut(dir.Ino, name, n, &e); err != nil {
		return err
	}
	if err := tx.putEntry(dir.Ino, name, e); err != nil {
		return err
	}
	if n.IsDir() {
		dir.Nlink++
	}
	return tx.touchDir(dir)
}

// touchDir stamps a directory whose entries changed and queues its object.
func (tx *Tx) touchDir(dir *Inode) error {
	now := tx.Now()
	dir.Mtime, dir.Ctime = now, now
	dir.AttrGen++
	if err := tx.PutInode(dir); err != nil {
		return err
	}
	return tx.queueNames(dir)
}

// Touch stores n, whose attributes the caller has changed, under a new
// attribute generation and queues all its names.
func (tx *Tx) Touch(n *Inode) error {
	n.AttrGen++
	if err := tx.PutInode(n); err != nil {
		return err
	}
	return tx.queueNames(n)
}

// MarkDirty stores n with a new content generation: a dirty period begins. It
// queues all names of n.
func (tx *Tx) MarkDirty(n *Inode) error {
	n.Gen++
	n.Dirty, n.Boot = true, tx.db.boot
	if err := tx.PutInode(n); err != nil {
		return err
	}
	return tx.queueNames(n)
}

// Unlink removes a name that is not a directory and returns the inode as it is
// then; with Nlink 0 it is an orphan until Free.
func (tx *Tx) Unlink(parent vfolder.Ino, name string) (*Inode, error) {
	dir, e, n, err := tx.child(parent, name)
	if err != nil {
		return nil, err
	}
	if n.IsDir() {
		return nil, vfolder.Errorf(vfolder.KindIsDir, "unlink", name, "is a directory")
	}
	if err := tx.dropName(dir.Ino, name, e, n); err != nil {
		return nil, err
	}
	return n, tx.touchDir(dir)
}

// Rmdir removes an empty directory and returns it as an orphan.
func (tx *Tx) Rmdir(parent vfolder.Ino, name string) (*Inode, error) {
	dir, e, n, err := tx.child(parent, name)
	if err != nil {
		return nil, err
	}
	if err := tx.mustBeEmptyDir(n, name); err != nil {
		return nil, err
	}
	if err := tx.dropName(dir.Ino, name, e, n); err != nil {
		return nil, err
	}
	dir.Nlink--
	return n, tx.touchDir(dir)
}

func (tx *Tx) mustBeEmptyDir(n *Inode, name string) error {
	if !n.IsDir() {
		return vfolder.Errorf(vfolder.KindNotDir, "rmdir", name, "is not a directory")
	}
	full, err := tx.HasEntries(n.Ino)
	if err != nil {
		return err
	}
	if full {
		return &vfolder.Error{Op: "rmdir", Kind: vfolder.KindNotEmpty, Path: name}
	}
	return nil
}

// dropName removes an entry, its queued work and its claim on a row, and
// stores n with one name less.
func (tx *Tx) dropName(parent vfolder.Ino, name string, e Entry, n *Inode) error {
	if err := tx.del(tx.db.entryKey(parent, name)); err != nil {
		return err
	}
	if err := tx.unqueue(n.Folder, e.Item); err != nil {
		return err
	}
	if err := tx.disown(n.Folder, e.Row); err != nil {
		return err
	}
	n.Ctime = tx.Now()
	n.AttrGen++
	if n.IsDir() {
		n.Nlink = 0
	} else {
		n.Nlink--
	}
	if n.Link != "" {
		if err := tx.del(nameKey(n.Ino, parent, name)); err != nil {
			return err
		}
	}
	if n.Nlink == 0 {
		n.Parent, n.Name = 0, ""
		if err := tx.put(orphanKey(n.Ino), nil); err != nil {
			return err
		}
		if n.Link != "" {
			if err := tx.del(groupKey(n.Folder, n.Link)); err != nil {
				return err
			}
		}
		return tx.PutInode(n)
	}
	names, err := tx.Names(n)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return corrupt("names of a hard link", inodeKey(n.Ino))
	}
	n.Parent, n.Name = names[0].Parent, names[0].Name
	if err := tx.PutInode(n); err != nil {
		return err
	}
	return tx.queueNames(n)
}

// Free deletes an orphan for good. An inode that has a name, or is gone, is
// left alone and reported false. The local bytes are the caller's to remove.
func (tx *Tx) Free(ino vfolder.Ino) (*Inode, bool, error) {
	orphan, err := tx.has(orphanKey(ino))
	if err != nil || !orphan {
		return nil, false, err
	}
	n, err := tx.Inode(ino)
	if err != nil {
		return nil, false, err
	}
	if err := tx.dropXattrs(ino); err != nil {
		return nil, false, err
	}
	if err := tx.del(orphanKey(ino)); err != nil {
		return nil, false, err
	}
	return n, true, tx.del(inodeKey(ino))
}

func (tx *Tx) dropXattrs(ino vfolder.Ino) error {
	xs, err := tx.Xattrs(ino)
	if err != nil {
		return err
	}
	for name := range xs {
		if err := tx.del(xattrKey(ino, name)); err != nil {
			return err
		}
	}
	return nil
}

// Rename moves (parent, name) to (newParent, newName) within a folder and
// returns the inode that lost its name there, if any. Directories get an
// ItemTree, so that what lies below follows.
func (tx *Tx) Rename(parent vfolder.Ino, name string, newParent vfolder.Ino, newName string, noReplace bool) (moved, replaced *Inode, err error) {
	dir, e, n, err := tx.child(parent, name)
	if err != nil {
		return nil, nil, err
	}
	newDir := dir
	if newParent != parent {
		if newDir, err = tx.liveDir(newParent); err != nil {
			return nil, nil, err
		}
	}
	if newDir.Folder != dir.Folder {
		return nil, nil, vfolder.Errorf(vfolder.KindCrossDevice, "rename", name, "folders are separate file systems")
	}
	if n.IsDir() {
		if err := tx.mustNotContain(n, newDir); err != nil {
			return nil, nil, err
		}
	}
	d, err := tx.Entry(newParent, newName)
	switch {
	case errors.Is(err, vfolder.KindNotFound):
	case err != nil:
		return nil, nil, err
	case noReplace:
		return nil, nil, &vfolder.Error{Op: "rename", Kind: vfolder.KindExists, Path: newName}
	case d.Ino == e.Ino:
		return n, nil, nil // two names of one file: POSIX says that nothing happens
	default:
		if replaced, err = tx.replace(n, newDir, newName, d); err != nil {
			return nil, nil, err
		}
	}
	if err := tx.move(dir, name, e, n, newDir, newName); err != nil {
		return nil, nil, err
	}
	if n.IsDir() && parent != newParent {
		dir.Nlink--
		newDir.Nlink++
	}
	if err := tx.touchDir(dir); err != nil {
		return nil, nil, err
	}
	if newParent != parent {
		if err := tx.touchDir(newDir); err != nil {
			return nil, nil, err
		}
	}
	return n, replaced, nil
}

// replace drops the entry that a rename of n lands on.
func (tx *Tx) replace(n *Inode, newDir *Inode, newName string, d Entry) (*Inode, error) {
	old, err := tx.Inode(d.Ino)
	if err != nil {
		return nil, err
	}
	switch {
	case n.IsDir() && old.IsDir():
		if err := tx.mustBeEmptyDir(old, newName); err != nil {
			return nil, err
		}
		newDir.Nlink--
	case n.IsDir():
		return nil, vfolder.Errorf(vfolder.KindNotDir, "rename", newName, "is not a directory")
	case old.IsDir():
		return nil, vfolder.Errorf(vfolder.KindIsDir, "rename", newName, "is a directory")
	}
	return old, tx.dropName(newDir.Ino, newName, d, old)
}

// move carries an entry, with the row that it owns, to a free name.
func (tx *Tx) move(dir *Inode, name string, e Entry, n *Inode, newDir *Inode, newName string) error {
	if err := tx.del(tx.db.entryKey(dir.Ino, name)); err != nil {
		return err
	}
	if err := tx.unqueue(n.Folder, e.Item); err != nil {
		return err
	}
	return tx.place(dir.Ino, name, e, n, newDir.Ino, newName)
}

// place writes the entry at its new name; the old key is deleted or overwritten
// by the caller.
func (tx *Tx) place(parent vfolder.Ino, name string, e Entry, n *Inode, newParent vfolder.Ino, newName string) error {
	if n.Link != "" {
		if err := tx.del(nameKey(n.Ino, parent, name)); err != nil {
			return err
		}
		if err := tx.put(nameKey(n.Ino, newParent, newName), nil); err != nil {
			return err
		}
	}
	if n.Parent == parent && n.Name == name {
		n.Parent, n.Name = newParent, newName
	}
	n.Ctime = tx.Now()
	n.AttrGen++
	if err := tx.PutInode(n); err != nil {
		return err
	}
	if err := tx.own(e.Row, newParent, newName); err != nil {
		return err
	}
	e.Item = 0
	if err := tx.queuePut(newParent, newName, n, &e); err != nil {
		return err
	}
	if err := tx.putEntry(newParent, newName, e); err != nil {
		return err
	}
	if n.IsDir() {
		return tx.queueTree(n)
	}
	if n.Link != "" {
		return tx.queueNames(n) // the link record names every key
	}
	return nil
}

// Exchange swaps two names of a folder.
func (tx *Tx) Exchange(p1 vfolder.Ino, n1 string, p2 vfolder.Ino, n2 string) error {
	d1, e1, a, err := tx.child(p1, n1)
	if err != nil {
		return err
	}
	d2, e2, b, err := tx.child(p2, n2)
	if err != nil {
		return err
	}
	if d1.Folder != d2.Folder {
		return vfolder.Errorf(vfolder.KindCrossDevice, "rename", n1, "folders are separate file systems")
	}
	if a.Ino == b.Ino {
		return nil
	}
	if p1 == p2 {
		d2 = d1
	}
	if a.IsDir() {
		if err := tx.mustNotContain(a, d2); err != nil {
			return err
		}
	}
	if b.IsDir() {
		if err := tx.mustNotContain(b, d1); err != nil {
			return err
		}
	}
	if err := tx.unqueue(a.Folder, e1.Item); err != nil {
		return err
	}
	if err := tx.unqueue(b.Folder, e2.Item); err != nil {
		return err
	}
	if err := tx.place(p1, n1, e1, a, p2, n2); err != nil {
		return err
	}
	if err := tx.place(p2, n2, e2, b, p1, n1); err != nil {
		return err
	}
	if p1 != p2 && a.IsDir() != b.IsDir() {
		if a.IsDir() {
			d1.Nlink--
			d2.Nlink++
		} else {
			d1.Nlink++
			d2.Nlink--
		}
	}
	if err := tx.touchDir(d1); err != nil || p1 == p2 {
		return err
	}
	return tx.touchDir(d2)
}

func (tx *Tx) child(parent vfolder.Ino, name string) (*Inode, Entry, *Inode, error) {
	e, err := tx.Entry(parent, name)
	if err != nil {
		return nil, e, nil, err
	}
	dir, err := tx.Inode(parent)
	if err != nil {
		return nil, e, nil, err
	}
	n, err := tx.Inode(e.Ino)
	return dir, e, n, err
}

// liveDir reads a directory that can take entries.
func (tx *Tx) liveDir(ino vfolder.Ino) (*Inode, error) {
	dir, err := tx.Inode(ino)
	switch {
	case err != nil:
		return nil, err
	case !dir.IsDir():
		return nil, vfolder.Errorf(vfolder.KindNotDir, "directory", dir.Name, "is not a directory")
	case dir.Nlink == 0:
		return nil, vfolder.Errorf(vfolder.KindNotFound, "directory", "", "was removed")
	}
	return dir, nil
}

func (tx *Tx) mustBeFree(parent vfolder.Ino, name string) error {
	taken, err := tx.has(tx.db.entryKey(parent, name))
	if err != nil {
		return err
	}
	if taken {
		return &vfolder.Error{Op: "create", Kind: vfolder.KindExists, Path: name}
	}
	return nil
}

// mustNotContain refuses to move a directory into its own subtree.
func (tx *Tx) mustNotContain(n, dir *Inode) error {
	for at := dir; ; {
		if at.Ino == n.Ino {
			return vfolder.Errorf(vfolder.KindInvalid, "rename", n.Name, "a directory cannot go into itself")
		}
		if at.Parent == 0 || at.Ino == at.Folder {
			return nil
		}
		up, err := tx.Inode(at.Parent)
		if err != nil {
			return err
		}
		at = up
	}
}

// Path returns the names from the folder's root (exclusive) to an inode, by its
// first name. KindNotFound for an orphan or below a removed directory.
func (tx *Tx) Path(n *Inode) ([]string, error) {
	var up []string
	for n.Ino != n.Folder {
		if n.Parent == 0 {
			return nil, vfolder.Errorf(vfolder.KindNotFound, "path", n.Name, "has no name any more")
		}
		up = append(up, n.Name)
		p, err := tx.Inode(n.Parent)
		if err != nil {
			return nil, err
		}
		n = p
	}
	for i, j := 0, len(up)-1; i < j; i, j = i+1, j-1 {
		up[i], up[j] = up[j], up[i]
	}
	return up, nil
}
