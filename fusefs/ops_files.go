package fusefs

import (
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

func (t *task) attr(a Attr, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	out, size := result[fuse.AttrOut](t, 0)
	out.SetTimeout(cacheTime)
	t.fillAttr(a, &out.Attr)
	return size, nil
}

func (t *task) getattr() (int, error) {
	a, err := t.s.fs.GetAttr(&t.req, t.dir())
	return t.attr(a, err)
}

// statx is asked when the caller wants the birth time.
func (t *task) statx() (int, error) {
	a, err := t.s.fs.GetAttr(&t.req, t.dir())
	if err != nil {
		return 0, err
	}
	out, size := result[fuse.StatxOut](t, 0)
	out.SetTimeout(cacheTime)
	out.Mask = unix.STATX_BASIC_STATS | unix.STATX_BTIME
	out.Blksize = vfolder.BlockBytes
	out.Nlink, out.Mode, out.Ino = a.Nlink, uint16(a.Mode), uint64(a.Ino)
	out.Uid, out.Gid = t.s.cfg.Owners.ToHost(a.UID, a.GID)
	out.Size, out.Blocks = uint64(a.Size), uint64(a.Blocks)
	out.Atime.Sec, out.Atime.Nsec = splitTime(a.Atime)
	out.Mtime.Sec, out.Mtime.Nsec = splitTime(a.Mtime)
	out.Ctime.Sec, out.Ctime.Nsec = splitTime(a.Ctime)
	out.Btime.Sec, out.Btime.Nsec = splitTime(a.Btime)
	// The 32-bit encoding has the layout of the low bits of the C library's.
	out.RdevMajor, out.RdevMinor = unix.Major(uint64(a.Rdev)), unix.Minor(uint64(a.Rdev))
	return size, nil
}

func (t *task) setattr() (int, error) {
	in, _, err := request[fuse.SetAttrIn](t)
	if err != nil {
		return 0, err
	}
	set := SetAttr{KillPriv: in.Valid&fuse.FATTR_KILL_SUIDGID != 0}
	if mode, ok := in.GetMode(); ok {
		set.Mode = &mode
	}
	owners := t.s.cfg.Owners
	if uid, ok := in.GetUID(); ok {
		if set.UID, err = owners.uids.change(uid); err != nil {
			return 0, err
		}
	}
	if gid, ok := in.GetGID(); ok {
		if set.GID, err = owners.gids.change(gid); err != nil {
			return 0, err
		}
	}
	if size, ok := in.GetSize(); ok {
		n := int64(size)
		if n < 0 || n > vfolder.MaxFileBytes {
			return 0, vfolder.KindTooLarge
		}
		set.Size = &n
	}
	now := time.Now().UnixNano()
	set.Atime = timeOf(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec, now)
	set.Mtime = timeOf(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec, now)
	set.Ctime = timeOf(in.Valid, fuse.FATTR_CTIME, 0, in.Ctime, in.Ctimensec, now)
	a, err := t.s.fs.SetAttr(&t.req, t.dir(), set)
	return t.attr(a, err)
}

func timeOf(valid, set, setNow uint32, sec uint64, nsec uint32, now int64) *int64 {
	if valid&(set|setNow) == 0 {
		return nil
	}
	if valid&setNow == 0 {
		now = int64(sec)*1e9 + int64(nsec)
	}
	return &now
}

// opened fills the answer of OPEN: no handle, and the cached pages stay, since
// changes from elsewhere are announced.
func (t *task) opened(at int) int {
	out, size := result[fuse.OpenOut](t, at)
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return size
}

func (t *task) open() (int, error) {
	in, _, err := request[fuse.OpenIn](t)
	if err != nil {
		return 0, err
	}
	flags := in.Flags
	drop := in.Mode&fuse.OPEN_KILL_SUIDGID != 0 && flags&syscall.O_TRUNC != 0
	if drop {
		flags &^= syscall.O_TRUNC
	}
	if err := t.s.fs.Open(&t.req, t.dir(), flags); err != nil {
		return 0, err
	}
	if drop { // the truncation has to drop setuid and setgid too
		zero := int64(0)
		if _, err := t.s.fs.SetAttr(&t.req, t.dir(), SetAttr{Size: &zero, KillPriv: true}); err != nil {
			t.s.fs.Release(t.dir(), flags)
			return 0, err
		}
	}
	return t.opened(0), nil
}

func (t *task) create() (int, error) {
	in, rest, err := request[fuse.CreateIn](t)
	if err != nil {
		return 0, err
	}
	name, _, err := oneName(rest)
	if err != nil {
		return 0, err
	}
	a, err := t.s.fs.Create(&t.req, t.dir(), name, in.Mode&^syscall.S_IFMT|syscall.S_IFREG, in.Umask, in.Flags)
	return t.created(a, err)
}

func (t *task) tmpfile() (int, error) {
	in, _, err := request[fuse.CreateIn](t)
	if err != nil {
		return 0, err
	}
	a, err := t.s.fs.Tmpfile(&t.req, t.dir(), in.Mode&^syscall.S_IFMT|syscall.S_IFREG, in.Umask, in.Flags)
	return t.created(a, err)
}

func (t *task) created(a Attr, err error) (int, error) {
	size, err := t.entry(a, err)
	if err != nil {
		return 0, err
	}
	return t.opened(size), nil
}

// span checks a range of a file.
func span(off uint64, length uint64) error {
	if off > 1<<63-1 || length > 1<<63-1 || off+length > 1<<63-1 {
		return vfolder.KindInvalid
	}
	return nil
}

func (t *task) read() (int, error) {
	in, _, err := request[fuse.ReadIn](t)
	if err != nil {
		return 0, err
	}
	if err := span(in.Offset, uint64(in.Size)); err != nil {
		return 0, err
	}
	body, err := t.room(int(in.Size))
	if err != nil {
		return 0, err
	}
	return t.s.fs.Read(&t.req, t.dir(), body, int64(in.Offset))
}

func (t *task) write() (int, error) {
	in, data, err := request[fuse.WriteIn](t)
	if err != nil {
		return 0, err
	}
	if int(in.Size) != len(data) {
		return 0, vfolder.Errorf(vfolder.KindIO, "request", "", "%d bytes announced, %d sent", in.Size, len(data))
	}
	if in.Offset > uint64(vfolder.MaxFileBytes) || in.Offset+uint64(in.Size) > uint64(vfolder.MaxFileBytes) {
		return 0, vfolder.KindTooLarge
	}
	n, err := t.s.fs.Write(&t.req, t.dir(), data, int64(in.Offset), in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0)
	if err != nil && n <= 0 {
		return 0, err
	}
	out, size := result[fuse.WriteOut](t, 0)
	out.Size = uint32(n)
	return size, nil
}

func (t *task) flush() (int, error) { return 0, t.s.fs.Flush(&t.req, t.dir()) }

func (t *task) release() (int, error) {
	in, _, err := request[fuse.ReleaseIn](t)
	if err != nil {
		return 0, err
	}
	t.s.fs.Release(t.dir(), in.Flags)
	return 0, nil
}

func (t *task) fsync() (int, error) {
	in, _, err := request[fuse.FsyncIn](t)
	if err != nil {
		return 0, err
	}
	const dataOnly = 1
	return 0, t.s.fs.Fsync(&t.req, t.dir(), in.FsyncFlags&dataOnly != 0)
}

func (t *task) fsyncdir() (int, error) { return 0, t.s.fs.FsyncDir(&t.req, t.dir()) }

func (t *task) fallocate() (int, error) {
	in, _, err := request[fuse.FallocateIn](t)
	if err != nil {
		return 0, err
	}
	if err := span(in.Offset, in.Length); err != nil {
		return 0, err
	}
	if in.Offset+in.Length > uint64(vfolder.MaxFileBytes) {
		return 0, vfolder.KindTooLarge
	}
	return 0, t.s.fs.Fallocate(&t.req, t.dir(), in.Mode, int64(in.Offset), int64(in.Length))
}

func (t *task) lseek() (int, error) {
	in, _, err := request[fuse.LseekIn](t)
	if err != nil {
		return 0, err
	}
	if err := span(in.Offset, 0); err != nil {
		return 0, vfolder.KindNoData
	}
	off, err := t.s.fs.Seek(&t.req, t.dir(), int64(in.Offset), in.Whence)
	if err != nil {
		return 0, err
	}
	out, size := result[fuse.LseekOut](t, 0)
	out.Offset = uint64(off)
	return size, nil
}

func (t *task) copyFileRange() (int, error) {
	in, _, err := request[fuse.CopyFileRangeIn](t)
	if err != nil {
		return 0, err
	}
	const most = 1 << 30 // the reply has 32 bits; callers go on where it ends
	n := min(in.Len, most)
	if span(in.OffIn, n) != nil || span(in.OffOut, n) != nil {
		return 0, vfolder.KindInvalid
	}
	if in.OffOut+n > uint64(vfolder.MaxFileBytes) {
		return 0, vfolder.KindTooLarge
	}
	done, err := t.s.fs.CopyRange(&t.req, t.dir(), int64(in.OffIn), vfolder.Ino(in.NodeIdOut), int64(in.OffOut), int64(n))
	if err != nil {
		return 0, err
	}
	out, size := result[fuse.WriteOut](t, 0)
	out.Size = uint32(done)
	return size, nil
}

func (t *task) statfs() (int, error) {
	st, err := t.s.fs.StatFS(&t.req, t.dir())
	if err != nil {
		return 0, err
	}
	out, size := result[fuse.StatfsOut](t, 0)
	out.Bsize, out.Frsize = st.BlockSize, st.BlockSize
	out.Blocks, out.Bfree, out.Bavail = st.Blocks, st.Free, st.Avail
	out.Files, out.Ffree = st.Files, st.FilesFree
	out.NameLen = vfolder.MaxNameBytes
	return size, nil
}

func (t *task) ioctl() (int, error) { return 0, unix.ENOTTY }

func (t *task) destroy() (int, error) { return 0, nil }

// notifyReply answers a question that this server never asks.
func (t *task) notifyReply() (int, error) { return 0, nil }

// interrupt has no reply.
func (t *task) interrupt() (int, error) {
	in, _, err := request[fuse.InterruptIn](t)
	if err != nil {
		return 0, err
	}
	key := in.Unique &^ resendBit
	s := t.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if waiting := s.waiting[key]; waiting != nil {
		waiting.interruptLocked()
		return 0, nil
	}
	// The handler may be about to wait. Most never do: keep few.
	if len(s.early) >= maxInFlight {
		clear(s.early)
	}
	s.early[key] = struct{}{}
	return 0, nil
}
