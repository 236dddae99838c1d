package fusetest

import (
	"errors"
	"io"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
)

var _ fusefs.FS = (*Tree)(nil)

// again reports the inode of a request that was carried out before its process
// died; t.mu is held.
func (t *Tree) again(req *fusefs.Request) (vfolder.Ino, bool) {
	if !req.Resent {
		return 0, false
	}
	ino, ok := t.done[req.Unique]
	return ino, ok
}

// Lookup implements fusefs.FS, like all that follow.
func (t *Tree) Lookup(_ *fusefs.Request, parent vfolder.Ino, name string) (fusefs.Attr, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, err := t.directory(parent)
	if err != nil {
		return fusefs.Attr{}, err
	}
	if name == ".." {
		return t.stat(p.parent)
	}
	if len(name) > vfolder.MaxNameBytes {
		return fusefs.Attr{}, vfolder.KindNameTooLong
	}
	e, ok := p.kids[name]
	if !ok {
		return fusefs.Attr{}, vfolder.KindNotFound
	}
	return t.stat(e.ino)
}

func (t *Tree) GetAttr(_ *fusefs.Request, ino vfolder.Ino) (fusefs.Attr, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stat(ino)
}

func (t *Tree) SetAttr(_ *fusefs.Request, ino vfolder.Ino, set fusefs.SetAttr) (fusefs.Attr, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.find(ino)
	if err != nil {
		return fusefs.Attr{}, err
	}
	a := n.attr
	a.Ctime = time.Now().UnixNano()
	if set.Size != nil {
		f, err := t.data(ino)
		if err != nil {
			return fusefs.Attr{}, err
		}
		if err := f.Truncate(*set.Size); err != nil {
			return fusefs.Attr{}, err
		}
		a.Rdev = 0
	}
	if set.Mode != nil {
		a.Mode = a.Mode&syscall.S_IFMT | *set.Mode
	}
	if set.KillPriv {
		a.Mode &^= syscall.S_ISUID | syscall.S_ISGID
	}
	if set.UID != nil {
		a.UID = *set.UID
	}
	if set.GID != nil {
		a.GID = *set.GID
	}
	if set.Atime != nil {
		a.Atime = *set.Atime
	}
	if set.Mtime != nil {
		a.Mtime = *set.Mtime
		if a.Mode&syscall.S_IFMT == syscall.S_IFREG {
			a.Rdev = explicitMtime
		}
	}
	if err := t.commit(change{Op: "attr", Ino: ino, Attr: &a}); err != nil {
		return fusefs.Attr{}, err
	}
	return t.stat(ino)
}

func (t *Tree) ReadLink(_ *fusefs.Request, ino vfolder.Ino) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.find(ino)
	if err != nil {
		return "", err
	}
	return n.link, nil
}

// mk makes an inode, nameless when name is empty.
func (t *Tree) mk(req *fusefs.Request, parent vfolder.Ino, name string, a fusefs.Attr, link string) (fusefs.Attr, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ino, ok := t.again(req); ok {
		return t.stat(ino)
	}
	p, err := t.directory(parent)
	if err != nil {
		return fusefs.Attr{}, err
	}
	if p.attr.Nlink == 0 {
		return fusefs.Attr{}, vfolder.KindNotFound
	}
	if len(name) > vfolder.MaxNameBytes {
		return fusefs.Attr{}, vfolder.KindNameTooLong
	}
	if _, ok := p.kids[name]; ok {
		return fusefs.Attr{}, vfolder.KindExists
	}
	a.Ino, a.UID, a.GID = t.next, req.UID, req.GID
	if p.attr.Mode&syscall.S_ISGID != 0 {
		a.GID = p.attr.GID
		if a.Mode&syscall.S_IFMT == syscall.S_IFDIR {
			a.Mode |= syscall.S_ISGID
		}
	}
	err = t.commit(change{Unique: req.Unique, Op: "make", Ino: a.Ino, Parent: parent, Name: name, Attr: &a, Link: link})
	if err != nil {
		return fusefs.Attr{}, err
	}
	return t.stat(a.Ino)
}

func (t *Tree) Mknod(req *fusefs.Request, parent vfolder.Ino, name string, mode, _, rdev uint32) (fusefs.Attr, error) {
	return t.mk(req, parent, name, fusefs.Attr{Mode: mode, Rdev: rdev}, "")
}

func (t *Tree) Mkdir(req *fusefs.Request, parent vfolder.Ino, name string, mode, _ uint32) (fusefs.Attr, error) {
	return t.mk(req, parent, name, fusefs.Attr{Mode: mode}, "")
}

func (t *Tree) Symlink(req *fusefs.Request, parent vfolder.Ino, name, target string) (fusefs.Attr, error) {
	return t.mk(req, parent, name, fusefs.Attr{Mode: syscall.S_IFLNK | 0o777}, target)
}

func (t *Tree) Create(req *fusefs.Request, parent vfolder.Ino, name string, mode, _, flags uint32) (fusefs.Attr, error) {
	a, err := t.mk(req, parent, name, fusefs.Attr{Mode: mode}, "")
	if errors.Is(err, vfolder.KindExists) && flags&syscall.O_EXCL == 0 {
		return t.Lookup(req, parent, name)
	}
	return a, err
}

func (t *Tree) Tmpfile(req *fusefs.Request, parent vfolder.Ino, mode, _, _ uint32) (fusefs.Attr, error) {
	return t.mk(req, parent, "", fusefs.Attr{Mode: mode}, "")
}

func (t *Tree) Link(req *fusefs.Request, ino, parent vfolder.Ino, name string) (fusefs.Attr, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ino, ok := t.again(req); ok {
		return t.stat(ino)
	}
	p, err := t.directory(parent)
	if err != nil {
		return fusefs.Attr{}, err
	}
	if _, err := t.find(ino); err != nil {
		return fusefs.Attr{}, err
	}
	if _, ok := p.kids[name]; ok {
		return fusefs.Attr{}, vfolder.KindExists
	}
	if err := t.commit(change{Unique: req.Unique, Op: "link", Ino: ino, Parent: parent, Name: name}); err != nil {
		return fusefs.Attr{}, err
	}
	return t.stat(ino)
}

func (t *Tree) Unlink(req *fusefs.Request, parent vfolder.Ino, name string) error {
	return t.remove(req, parent, name, false)
}

func (t *Tree) Rmdir(req *fusefs.Request, parent vfolder.Ino, name string) error {
	return t.remove(req, parent, name, true)
}

func (t *Tree) remove(req *fusefs.Request, parent vfolder.Ino, name string, dir bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.again(req); ok {
		return nil
	}
	p, err := t.directory(parent)
	if err != nil {
		return err
	}
	e, ok := p.kids[name]
	if !ok {
		return vfolder.KindNotFound
	}
	switch n := t.nodes[e.ino]; {
	case dir && !n.isDir():
		return vfolder.KindNotDir
	case !dir && n.isDir():
		return vfolder.KindIsDir
	case len(n.kids) > 0:
		return vfolder.KindNotEmpty
	}
	return t.commit(change{Unique: req.Unique, Op: "remove", Ino: e.ino, Parent: parent, Name: name})
}

func (t *Tree) Rename(req *fusefs.Request, parent vfolder.Ino, name string, to vfolder.Ino, toName string, flags uint32) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.again(req); ok {
		return nil
	}
	p, err := t.directory(parent)
	if err != nil {
		return err
	}
	q, err := t.directory(to)
	if err != nil {
		return err
	}
	e, ok := p.kids[name]
	if !ok {
		return vfolder.KindNotFound
	}
	exchange := flags&unix.RENAME_EXCHANGE != 0
	old, exists := q.kids[toName]
	switch {
	case flags&unix.RENAME_NOREPLACE != 0 && exists:
		return vfolder.KindExists
	case exchange && !exists:
		return vfolder.KindNotFound
	case exists && !exchange:
		n, o := t.nodes[e.ino], t.nodes[old.ino]
		switch {
		case n == o:
			return nil
		case len(o.kids) > 0:
			return vfolder.KindNotEmpty
		case o.isDir() && !n.isDir():
			return vfolder.KindIsDir
		case !o.isDir() && n.isDir():
			return vfolder.KindNotDir
		}
	}
	return t.commit(change{Unique: req.Unique, Op: "rename", Ino: e.ino, Parent: parent, Name: name, To: to, ToName: toName, Exchange: exchange})
}

func (t *Tree) Open(_ *fusefs.Request, ino vfolder.Ino, flags uint32) error {
	if flags&syscall.O_DIRECTORY != 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f, err := t.data(ino)
	if err == nil && flags&syscall.O_TRUNC != 0 {
		t.nodes[ino].attr.Rdev = 0
		err = f.Truncate(0)
	}
	return err
}

func (t *Tree) Read(req *fusefs.Request, ino vfolder.Ino, buf []byte, off int64) (int, error) {
	if t.Hook != nil {
		t.Hook(req, "read")
	}
	t.mu.Lock()
	f, err := t.data(ino)
	t.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := f.ReadAt(buf, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (t *Tree) Write(req *fusefs.Request, ino vfolder.Ino, data []byte, off int64, killPriv bool) (int, error) {
	if t.Hook != nil {
		t.Hook(req, "write")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f, err := t.data(ino)
	if err != nil {
		return 0, err
	}
	n := t.nodes[ino]
	if n.attr.Rdev != 0 || killPriv && n.attr.Mode&(syscall.S_ISUID|syscall.S_ISGID) != 0 {
		a := n.attr
		a.Rdev = 0
		if killPriv {
			a.Mode &^= syscall.S_ISUID | syscall.S_ISGID
		}
		if err := t.commit(change{Op: "attr", Ino: ino, Attr: &a}); err != nil {
			return 0, err
		}
	}
	return f.WriteAt(data, off)
}

func (t *Tree) Flush(*fusefs.Request, vfolder.Ino) error       { return nil }
func (t *Tree) Release(vfolder.Ino, uint32)                    {}
func (t *Tree) Fsync(*fusefs.Request, vfolder.Ino, bool) error { return nil }
func (t *Tree) FsyncDir(*fusefs.Request, vfolder.Ino) error    { return nil }

func (t *Tree) Fallocate(_ *fusefs.Request, ino vfolder.Ino, mode uint32, off, length int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	f, err := t.data(ino)
	if err != nil {
		return err
	}
	return unix.Fallocate(int(f.Fd()), mode, off, length)
}

func (t *Tree) Seek(_ *fusefs.Request, ino vfolder.Ino, off int64, whence uint32) (int64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f, err := t.data(ino)
	if err != nil {
		return 0, err
	}
	return unix.Seek(int(f.Fd()), off, int(whence))
}

func (t *Tree) CopyRange(_ *fusefs.Request, in vfolder.Ino, inOff int64, out vfolder.Ino, outOff, length int64) (int64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	src, err := t.data(in)
	if err != nil {
		return 0, err
	}
	dst, err := t.data(out)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(io.NewOffsetWriter(dst, outOff), io.NewSectionReader(src, inOff, length))
	return n, err
}

func (t *Tree) ReadDir(req *fusefs.Request, ino vfolder.Ino, after uint64, yield func(fusefs.DirEntry) bool) error {
	return t.ReadDirPlus(req, ino, after, func(e fusefs.DirEntry, _ fusefs.Attr) bool { return yield(e) })
}

func (t *Tree) ReadDirPlus(_ *fusefs.Request, ino vfolder.Ino, after uint64, yield func(fusefs.DirEntry, fusefs.Attr) bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.directory(ino)
	if err != nil {
		return err
	}
	for _, name := range sortedNames(n.kids) {
		e := n.kids[name]
		if e.cookie <= after {
			continue
		}
		a, err := t.stat(e.ino)
		if err != nil {
			return err
		}
		if !yield(fusefs.DirEntry{Ino: e.ino, Name: name, Type: a.Mode & syscall.S_IFMT, Cookie: e.cookie}, a) {
			return nil
		}
	}
	return nil
}

func (t *Tree) GetXattr(_ *fusefs.Request, ino vfolder.Ino, name string) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.find(ino)
	if err != nil {
		return nil, err
	}
	v, ok := n.xattr[name]
	if !ok {
		return nil, vfolder.KindNoAttr
	}
	return v, nil
}

func (t *Tree) SetXattr(req *fusefs.Request, ino vfolder.Ino, name string, value []byte, flags uint32) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.again(req); ok {
		return nil
	}
	n, err := t.find(ino)
	if err != nil {
		return err
	}
	_, exists := n.xattr[name]
	switch {
	case flags&unix.XATTR_CREATE != 0 && exists:
		return vfolder.KindExists
	case flags&unix.XATTR_REPLACE != 0 && !exists:
		return vfolder.KindNoAttr
	}
	return t.commit(change{Unique: req.Unique, Op: "xattr", Ino: ino, Name: name, Value: append([]byte{}, value...)})
}

func (t *Tree) ListXattr(_ *fusefs.Request, ino vfolder.Ino) ([]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.find(ino)
	if err != nil {
		return nil, err
	}
	var list []string
	for name := range n.xattr {
		list = append(list, name)
	}
	return list, nil
}

func (t *Tree) RemoveXattr(req *fusefs.Request, ino vfolder.Ino, name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.again(req); ok {
		return nil
	}
	n, err := t.find(ino)
	if err != nil {
		return err
	}
	if _, ok := n.xattr[name]; !ok {
		return vfolder.KindNoAttr
	}
	return t.commit(change{Unique: req.Unique, Op: "unxattr", Ino: ino, Name: name})
}

func (t *Tree) StatFS(*fusefs.Request, vfolder.Ino) (fusefs.Statfs, error) {
	return fusefs.Statfs{
		BlockSize: vfolder.BlockBytes, Blocks: 1 << 28, Free: 1 << 27, Avail: 1 << 27,
		Files: 1 << 30, FilesFree: 1 << 30,
	}, nil
}
