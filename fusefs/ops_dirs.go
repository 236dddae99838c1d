package fusefs

import (
	"encoding/binary"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Cookies of the entries that every directory has.
const (
	cookieDot    = 1
	cookieDotDot = 2
)

func le64(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }

// opendir lets the kernel keep a directory's listing, which the Invalidator
// drops with any of its names.
func (t *task) opendir() (int, error) {
	if err := t.s.fs.Open(&t.req, t.dir(), syscall.O_RDONLY|syscall.O_DIRECTORY); err != nil {
		return 0, err
	}
	out, size := result[fuse.OpenOut](t, 0)
	out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	return size, nil
}

func (t *task) releasedir() (int, error) { return 0, nil }

// listing prepares a reply of READDIR or READDIRPLUS and adds "." and "..".
// The parent's number is not known here; nothing reads it, since the kernel
// resolves "..".
func (t *task) listing(plus bool) (list *fuse.DirEntryList, after uint64, full bool, err error) {
	in, _, err := request[fuse.ReadIn](t)
	if err != nil {
		return nil, 0, false, err
	}
	body, err := t.room(int(in.Size))
	if err != nil {
		return nil, 0, false, err
	}
	list = fuse.NewDirEntryList(body, in.Offset)
	dots := [...]fuse.DirEntry{
		{Name: ".", Ino: t.node, Mode: syscall.S_IFDIR, Off: cookieDot},
		{Name: "..", Ino: t.node, Mode: syscall.S_IFDIR, Off: cookieDotDot},
	}
	for _, e := range dots {
		if in.Offset >= e.Off {
			continue
		}
		if plus {
			full = list.AddDirLookupEntry(e) == nil // node 0: not looked up
		} else {
			full = !list.AddDirEntry(e)
		}
		if full {
			break
		}
	}
	return list, max(in.Offset, cookieDotDot), full, nil
}

func (t *task) readdir() (int, error) {
	list, after, full, err := t.listing(false)
	if err != nil {
		return 0, err
	}
	if !full {
		err = t.s.fs.ReadDir(&t.req, t.dir(), after, func(e DirEntry) bool {
			return list.AddDirEntry(fuse.DirEntry{Name: e.Name, Ino: uint64(e.Ino), Mode: e.Type, Off: e.Cookie})
		})
	}
	return t.listed(list, err)
}

func (t *task) readdirplus() (int, error) {
	list, after, full, err := t.listing(true)
	if err != nil {
		return 0, err
	}
	if !full {
		err = t.s.fs.ReadDirPlus(&t.req, t.dir(), after, func(e DirEntry, a Attr) bool {
			out := list.AddDirLookupEntry(fuse.DirEntry{Name: e.Name, Ino: uint64(e.Ino), Mode: a.Mode & syscall.S_IFMT, Off: e.Cookie})
			if out == nil {
				return false
			}
			t.fillEntry(a, out)
			return true
		})
	}
	return t.listed(list, err)
}

// listed answers with the entries there are. An error after some of them comes
// again when the caller asks for the rest.
func (t *task) listed(list *fuse.DirEntryList, err error) (int, error) {
	n := len(list.Bytes())
	if err != nil && n == 0 {
		return 0, err
	}
	return n, nil
}
