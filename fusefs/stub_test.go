package fusefs

import (
	"syscall"

	"github.com/vfolder/vfolder"
)

// stub is the least FS: each inode is an empty file and a directory with one
// name. Lookup calls hook, where there is one.
type stub struct {
	hook func(*Request) error
}

var _ FS = (*stub)(nil)

func (*stub) one(ino vfolder.Ino) (Attr, error) {
	return Attr{Ino: ino, Mode: syscall.S_IFREG | 0o644, Nlink: 1}, nil
}

func (f *stub) Lookup(r *Request, _ vfolder.Ino, _ string) (Attr, error) {
	if f.hook != nil {
		if err := f.hook(r); err != nil {
			return Attr{}, err
		}
	}
	return f.one(2)
}
func (f *stub) GetAttr(_ *Request, i vfolder.Ino) (Attr, error)            { return f.one(i) }
func (f *stub) SetAttr(_ *Request, i vfolder.Ino, _ SetAttr) (Attr, error) { return f.one(i) }
func (*stub) ReadLink(*Request, vfolder.Ino) (string, error)               { return "target", nil }

func (f *stub) Mknod(*Request, vfolder.Ino, string, uint32, uint32, uint32) (Attr, error) {
	return f.one(3)
}

func (f *stub) Mkdir(*Request, vfolder.Ino, string, uint32, uint32) (Attr, error) { return f.one(3) }

func (f *stub) Symlink(*Request, vfolder.Ino, string, string) (Attr, error) { return f.one(3) }

func (f *stub) Link(_ *Request, i, _ vfolder.Ino, _ string) (Attr, error)           { return f.one(i) }
func (*stub) Unlink(*Request, vfolder.Ino, string) error                            { return nil }
func (*stub) Rmdir(*Request, vfolder.Ino, string) error                             { return nil }
func (f *stub) Tmpfile(*Request, vfolder.Ino, uint32, uint32, uint32) (Attr, error) { return f.one(3) }

func (*stub) Rename(*Request, vfolder.Ino, string, vfolder.Ino, string, uint32) error { return nil }

func (f *stub) Create(*Request, vfolder.Ino, string, uint32, uint32, uint32) (Attr, error) {
	return f.one(3)
}

func (*stub) Open(*Request, vfolder.Ino, uint32) error { return nil }
func (*stub) Read(_ *Request, _ vfolder.Ino, buf []byte, _ int64) (int, error) {
	clear(buf)
	return len(buf), nil
}

func (*stub) Write(_ *Request, _ vfolder.Ino, data []byte, _ int64, _ bool) (int, error) {
	return len(data), nil
}
func (*stub) Flush(*Request, vfolder.Ino) error                                  { return nil }
func (*stub) Release(vfolder.Ino, uint32)                                        {}
func (*stub) Fsync(*Request, vfolder.Ino, bool) error                            { return nil }
func (*stub) FsyncDir(*Request, vfolder.Ino) error                               { return nil }
func (*stub) Fallocate(*Request, vfolder.Ino, uint32, int64, int64) error        { return nil }
func (*stub) Seek(_ *Request, _ vfolder.Ino, off int64, _ uint32) (int64, error) { return off, nil }

func (*stub) CopyRange(_ *Request, _ vfolder.Ino, _ int64, _ vfolder.Ino, _, n int64) (int64, error) {
	return n, nil
}

func (*stub) ReadDir(_ *Request, _ vfolder.Ino, after uint64, yield func(DirEntry) bool) error {
	if after < 3 {
		yield(DirEntry{Ino: 2, Name: "name", Type: syscall.S_IFREG, Cookie: 3})
	}
	return nil
}

func (f *stub) ReadDirPlus(r *Request, i vfolder.Ino, after uint64, yield func(DirEntry, Attr) bool) error {
	return f.ReadDir(r, i, after, func(e DirEntry) bool {
		a, _ := f.one(e.Ino)
		return yield(e, a)
	})
}

func (*stub) GetXattr(*Request, vfolder.Ino, string) ([]byte, error)       { return []byte("value"), nil }
func (*stub) SetXattr(*Request, vfolder.Ino, string, []byte, uint32) error { return nil }
func (*stub) ListXattr(*Request, vfolder.Ino) ([]string, error)            { return []string{"user.name"}, nil }
func (*stub) RemoveXattr(*Request, vfolder.Ino, string) error              { return nil }
func (*stub) StatFS(*Request, vfolder.Ino) (Statfs, error)                 { return Statfs{BlockSize: 4096}, nil }
func (*stub) Forget(vfolder.Ino)                                           {}
func (*stub) Orphans() []vfolder.Ino                                       { return nil }
