package fusefs

import (
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

// cacheTime is how long the kernel trusts what it was told; changes that it did
// not make itself are announced through the Invalidator.
const cacheTime = time.Hour

// generation goes with every inode number: numbers are never used twice.
const generation = 1

func (t *task) fillAttr(a Attr, out *fuse.Attr) {
	out.Ino = uint64(a.Ino)
	out.Size, out.Blocks = uint64(a.Size), uint64(a.Blocks)
	out.Atime, out.Atimensec = splitTime(a.Atime)
	out.Mtime, out.Mtimensec = splitTime(a.Mtime)
	out.Ctime, out.Ctimensec = splitTime(a.Ctime)
	out.Mode, out.Nlink, out.Rdev = a.Mode, a.Nlink, a.Rdev
	out.Uid, out.Gid = t.s.cfg.Owners.ToHost(a.UID, a.GID)
	out.Blksize = vfolder.BlockBytes
}

// splitTime splits Unix nanoseconds so that the remainder is not negative.
func splitTime(ns int64) (sec uint64, nsec uint32) {
	s, n := ns/1e9, ns%1e9
	if n < 0 {
		s, n = s-1, n+1e9
	}
	return uint64(s), uint32(n)
}

func (t *task) fillEntry(a Attr, out *fuse.EntryOut) {
	out.NodeId, out.Generation = uint64(a.Ino), generation
	out.SetEntryTimeout(cacheTime)
	out.SetAttrTimeout(cacheTime)
	t.fillAttr(a, &out.Attr)
}

// entry answers with an inode that was looked up or made.
func (t *task) entry(a Attr, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	out, size := result[fuse.EntryOut](t, 0)
	t.fillEntry(a, out)
	return size, nil
}

func (t *task) dir() vfolder.Ino { return vfolder.Ino(t.node) }

func (t *task) lookup() (int, error) {
	_, rest, err := request[fuse.InHeader](t)
	if err != nil {
		return 0, err
	}
	name, _, err := oneName(rest)
	if err != nil {
		return 0, err
	}
	if name == "." { // a file handle (name_to_handle_at) is turned into an inode
		a, err := t.s.fs.GetAttr(&t.req, t.dir())
		return t.entry(a, err)
	}
	a, err := t.s.fs.Lookup(&t.req, t.dir(), name)
	if err != nil && name != ".." && vfolder.KindOf(err) == vfolder.KindNotFound {
		// A negative entry: node 0 with a timeout.
		out, size := result[fuse.EntryOut](t, 0)
		out.SetEntryTimeout(cacheTime)
		return size, nil
	}
	return t.entry(a, err)
}

func (t *task) mknod() (int, error) {
	in, rest, err := request[fuse.MknodIn](t)
	if err != nil {
		return 0, err
	}
	name, _, err := oneName(rest)
	if err != nil {
		return 0, err
	}
	a, err := t.s.fs.Mknod(&t.req, t.dir(), name, in.Mode, in.Umask, in.Rdev)
	return t.entry(a, err)
}

func (t *task) mkdir() (int, error) {
	in, rest, err := request[fuse.MkdirIn](t)
	if err != nil {
		return 0, err
	}
	name, _, err := oneName(rest)
	if err != nil {
		return 0, err
	}
	a, err := t.s.fs.Mkdir(&t.req, t.dir(), name, in.Mode&^syscall.S_IFMT|syscall.S_IFDIR, in.Umask)
	return t.entry(a, err)
}

func (t *task) symlink() (int, error) {
	_, rest, err := request[fuse.InHeader](t)
	if err != nil {
		return 0, err
	}
	list, _, err := names(rest, 2)
	if err != nil {
		return 0, err
	}
	a, err := t.s.fs.Symlink(&t.req, t.dir(), list[0], list[1])
	return t.entry(a, err)
}

func (t *task) link() (int, error) {
	in, rest, err := request[fuse.LinkIn](t)
	if err != nil {
		return 0, err
	}
	name, _, err := oneName(rest)
	if err != nil {
		return 0, err
	}
	a, err := t.s.fs.Link(&t.req, vfolder.Ino(in.Oldnodeid), t.dir(), name)
	return t.entry(a, err)
}

func (t *task) unlink() (int, error) { return t.remove(t.s.fs.Unlink) }
func (t *task) rmdir() (int, error)  { return t.remove(t.s.fs.Rmdir) }

func (t *task) remove(do func(*Request, vfolder.Ino, string) error) (int, error) {
	_, rest, err := request[fuse.InHeader](t)
	if err != nil {
		return 0, err
	}
	name, _, err := oneName(rest)
	if err != nil {
		return 0, err
	}
	return 0, do(&t.req, t.dir(), name)
}

// renameIn is the old request, without flags.
type renameIn struct {
	fuse.InHeader
	Newdir uint64
}

func (t *task) rename() (int, error) {
	in, rest, err := request[renameIn](t)
	if err != nil {
		return 0, err
	}
	return t.renameTo(in.Newdir, 0, rest)
}

func (t *task) rename2() (int, error) {
	in, rest, err := request[fuse.RenameIn](t)
	if err != nil {
		return 0, err
	}
	return t.renameTo(in.Newdir, in.Flags, rest)
}

func (t *task) renameTo(newDir uint64, flags uint32, rest []byte) (int, error) {
	list, _, err := names(rest, 2)
	if err != nil {
		return 0, err
	}
	if flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return 0, vfolder.KindInvalid // a whiteout, say
	}
	return 0, t.s.fs.Rename(&t.req, t.dir(), list[0], vfolder.Ino(newDir), list[1], flags)
}

func (t *task) readlink() (int, error) {
	target, err := t.s.fs.ReadLink(&t.req, t.dir())
	if err != nil {
		return 0, err
	}
	body, err := t.room(len(target))
	if err != nil {
		return 0, err
	}
	return copy(body, target), nil
}

// forget has no reply. The kernel says it when it drops an inode, but also when
// it could not use one of several references: only its own word that the inode
// is gone is passed on.
func (t *task) forget() (int, error) {
	t.forgotten(t.dir())
	return 0, nil
}

func (t *task) batchForget() (int, error) {
	in, rest, err := request[struct {
		fuse.InHeader
		Count, Dummy uint32
	}](t)
	if err != nil {
		return 0, err
	}
	const one = 16 // node id and count of references
	for n := in.Count; n > 0 && len(rest) >= one; n-- {
		t.forgotten(vfolder.Ino(le64(rest)))
		rest = rest[one:]
	}
	return 0, nil
}

func (t *task) forgotten(ino vfolder.Ino) {
	if !t.s.Probe(ino) {
		t.s.fs.Forget(ino)
	}
}

// reserved reports xattr names that are the kernel's and not kept: without the
// POSIX_ACL capability an ACL would be stored and not enforced.
func reserved(name string) bool { return strings.HasPrefix(name, "system.") }

func (t *task) getxattr() (int, error) {
	in, rest, err := request[fuse.GetXAttrIn](t)
	if err != nil {
		return 0, err
	}
	name, _, err := oneName(rest)
	if err != nil {
		return 0, err
	}
	if reserved(name) {
		return 0, unix.EOPNOTSUPP
	}
	value, err := t.s.fs.GetXattr(&t.req, t.dir(), name)
	if err != nil {
		return 0, err
	}
	return t.sized(in.Size, value)
}

func (t *task) listxattr() (int, error) {
	in, _, err := request[fuse.GetXAttrIn](t)
	if err != nil {
		return 0, err
	}
	list, err := t.s.fs.ListXattr(&t.req, t.dir())
	if err != nil {
		return 0, err
	}
	var all []byte
	for _, name := range list {
		all = append(append(all, name...), 0)
	}
	return t.sized(in.Size, all)
}

// sized answers a request that asks for the size first (limit 0), then for the
// value.
func (t *task) sized(limit uint32, value []byte) (int, error) {
	if limit == 0 {
		out, size := result[fuse.GetXAttrOut](t, 0)
		out.Size = uint32(len(value))
		return size, nil
	}
	if len(value) > int(limit) {
		return 0, vfolder.KindRange
	}
	body, err := t.room(len(value))
	if err != nil {
		return 0, err
	}
	return copy(body, value), nil
}

func (t *task) setxattr() (int, error) {
	in, rest, err := request[struct {
		fuse.InHeader
		Size, Flags uint32
	}](t)
	if err != nil {
		return 0, err
	}
	name, value, err := oneName(rest)
	if err != nil {
		return 0, err
	}
	if int(in.Size) > len(value) {
		return 0, vfolder.Errorf(vfolder.KindIO, "request", "", "the value has %d bytes of %d", len(value), in.Size)
	}
	if reserved(name) {
		return 0, unix.EOPNOTSUPP
	}
	return 0, t.s.fs.SetXattr(&t.req, t.dir(), name, value[:in.Size], in.Flags)
}

func (t *task) removexattr() (int, error) {
	_, rest, err := request[fuse.InHeader](t)
	if err != nil {
		return 0, err
	}
	name, _, err := oneName(rest)
	if err != nil {
		return 0, err
	}
	if reserved(name) {
		return 0, unix.EOPNOTSUPP
	}
	return 0, t.s.fs.RemoveXattr(&t.req, t.dir(), name)
}
