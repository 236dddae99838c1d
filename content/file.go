package content

import (
	"container/list"
	"errors"
	"io"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

// Names of the extended attributes of a data file.
const (
	labelXattr = "user.vfolder"
	limitXattr = "user.vfolder.limit" // where remote bytes end, decimal
)

// File is a handle on the local bytes of an inode. Its state comes from
// Create, CreatePartial or Recover; without one of them an existing data file
// counts as complete. Safe for concurrent use.
type File struct {
	s    *Store
	id   ID
	refs int // guarded by Store.mu; a View holds one

	mu      sync.RWMutex
	loaded  bool // what follows is valid
	shut    bool // the store is closed
	removed bool // unlinked: fd is the only way to the bytes
	size    int64
	k       knowledge
	view    *View // the live one
	charged int64 // allocated bytes as counted in the store's usage
	drift   int   // changes since charged was right

	openMu sync.Mutex   // serialises opening by those that share mu
	fd     atomic.Int32 // -1: closed. Changed under openMu or with mu held for writing
	used   atomic.Bool
	cached *list.Element // guarded by fdCache.mu
	syncMu sync.Mutex    // held while named becomes true, so that no Sync returns early
	named  atomic.Bool   // the name is known to be durable
}

// ID returns the file's name.
func (f *File) ID() ID { return f.id }

// Close gives the handle back. With the last one, and no View alive, all that
// memory holds of the file is dropped: of a partial file, persist Known before.
func (f *File) Close() error {
	f.s.mu.Lock()
	f.refs--
	last := f.refs == 0
	if last && f.s.table[f.id] == f {
		delete(f.s.table, f.id)
	}
	if last {
		delete(f.s.gone, f)
	}
	f.s.mu.Unlock()
	if !last {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if fd := f.fd.Load(); fd >= 0 && f.drift > 0 {
		f.recharge(int(fd))
	}
	f.loaded, f.k = false, knowledge{}
	return f.fail("close", f.closeFD())
}

// closeFD needs mu held for writing.
func (f *File) closeFD() error {
	f.s.fds.forget(f)
	if fd := f.fd.Swap(-1); fd >= 0 {
		return unix.Close(int(fd))
	}
	return nil
}

func (f *File) fail(op string, err error) error {
	if err == nil {
		return nil
	}
	return fail(op, f.id.String(), err)
}

func (f *File) errorf(kind vfolder.Kind, op, format string, args ...any) error {
	return vfolder.Errorf(kind, "content "+op, f.id.String(), format, args...)
}

// open returns the descriptor, which stays open while mu is held either way.
func (f *File) open() (int, error) {
	if fd := f.fd.Load(); fd >= 0 {
		if !f.used.Load() {
			f.used.Store(true)
		}
		return int(fd), nil
	}
	f.openMu.Lock()
	defer f.openMu.Unlock()
	if fd := f.fd.Load(); fd >= 0 {
		return int(fd), nil
	}
	if f.shut || f.removed {
		return -1, f.errorf(vfolder.KindStale, "open", "the store is closed or the file was removed")
	}
	dir, err := f.s.shard(f.id, false)
	if err != nil {
		return -1, f.fail("open", err)
	}
	fd, err := unix.Openat(dir, f.id.String(), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, f.fail("open", err)
	}
	f.fd.Store(int32(fd))
	f.s.fds.add(f)
	return fd, nil
}

// lock takes mu for writing with the state loaded and the file open. On an
// error mu is not held.
func (f *File) lock() (int, error) {
	f.mu.Lock()
	fd, err := f.open()
	if err == nil && !f.loaded {
		err = f.load(fd)
	}
	if err != nil {
		f.mu.Unlock()
		return -1, err
	}
	return fd, nil
}

// rlock is lock for reading.
func (f *File) rlock() (int, error) {
	for {
		f.mu.RLock()
		if f.loaded {
			fd, err := f.open()
			if err != nil {
				f.mu.RUnlock()
			}
			return fd, err
		}
		f.mu.RUnlock()
		if _, err := f.lock(); err != nil {
			return -1, err
		}
		f.mu.Unlock()
	}
}

func (f *File) load(fd int) error {
	st, err := fstat(fd)
	if err != nil {
		return f.fail("open", err)
	}
	f.size, f.charged, f.loaded = st.Size, st.Blocks*512, true
	return nil
}

// recharge brings the store's usage up to date with the file.
func (f *File) recharge(fd int) {
	st, err := fstat(fd)
	if err != nil {
		return // the next one corrects it
	}
	now := st.Blocks * 512
	if !f.removed {
		f.s.charge(f.id, now-f.charged, 0)
		f.charged = now
	}
	f.drift = 0
}

// changed notes that allocation may have changed. It asks the file system only
// now and then.
func (f *File) changed(fd int) {
	if f.drift++; f.drift >= 16 {
		f.recharge(fd)
	}
}

// Create makes a new complete, empty file: KindExists if there is one.
func (f *File) Create() error { return f.create(0) }

// CreatePartial makes a file of that size of which nothing is known:
// KindExists if there is one. Nothing is allocated.
func (f *File) CreatePartial(size int64) error {
	if size < 0 || size > vfolder.MaxFileBytes {
		return f.errorf(vfolder.KindTooLarge, "create", "%d bytes", size)
	}
	return f.create(size)
}

func (f *File) create(size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.shut || f.removed {
		return f.errorf(vfolder.KindStale, "create", "the store is closed or the file was removed")
	}
	if f.fd.Load() >= 0 {
		return f.errorf(vfolder.KindExists, "create", "it is open")
	}
	if err := f.s.admit(blockBytes); err != nil {
		return f.fail("create", err)
	}
	dir, err := f.s.shard(f.id, true)
	if err != nil {
		return f.fail("create", err)
	}
	fd, err := unix.Openat(dir, f.id.String(), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return f.fail("create", err)
	}
	if size > 0 {
		err := ftruncate(fd, size)
		if err == nil {
			err = f.storeLimit(fd, size)
		}
		if err != nil {
			unix.Close(fd)
			_ = unix.Unlinkat(dir, f.id.String(), 0) // garbage collection finds it otherwise
			return f.fail("create", err)
		}
	}
	f.size, f.k, f.charged, f.drift, f.loaded = size, knowledge{limit: size}, 0, 0, true
	f.fd.Store(int32(fd))
	f.s.changedNames(f.id)
	f.s.charge(f.id, 0, 1)
	f.s.fds.add(f)
	return nil
}

// storeLimit keeps where remote bytes end with the file. It must follow the
// truncation that lowered it: the smaller of size and limit counts.
func (f *File) storeLimit(fd int, limit int64) error {
	if f.s.noXattr.Load() {
		return nil
	}
	err := unix.Fsetxattr(fd, limitXattr, strconv.AppendInt(nil, limit, 10), 0)
	if err != nil && unsupportedXattr(err) {
		f.s.noXattr.Store(true)
		return nil
	}
	return err
}

// loadLimit finds where remote bytes end: in the attribute, or, without one,
// at the first range known that starts inside a block.
func (f *File) loadLimit(fd int, persisted []Range) (int64, error) {
	limit := f.size
	for _, r := range persisted {
		if r.Off%blockBytes != 0 {
			limit = min(limit, r.Off)
		}
	}
	var buf [32]byte
	n, err := unix.Fgetxattr(fd, limitXattr, buf[:])
	if err == unix.ENODATA || err != nil && unsupportedXattr(err) {
		return limit, nil
	}
	if err != nil {
		return 0, err
	}
	stored, err := strconv.ParseInt(string(buf[:n]), 10, 64)
	if err != nil || stored < 0 {
		return 0, f.errorf(vfolder.KindCorrupt, "recover", "limit %q", buf[:n])
	}
	return min(limit, stored), nil
}

// Recover sets the state of a file that an earlier process made: everything is
// known, or, of a partial file, persisted (from Known) and every block with
// data in the data file. It does nothing if a live handle has the state
// already, so that callers may recover on every open.
func (f *File) Recover(partial bool, persisted []Range) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.loaded {
		return nil
	}
	fd, err := f.open()
	if err != nil {
		return err
	}
	if err := f.load(fd); err != nil {
		return err
	}
	if !partial {
		return nil
	}
	k, err := f.recoverKnowledge(fd, persisted)
	if err != nil {
		f.loaded = false
		return f.fail("recover", err)
	}
	f.k = k
	return nil
}

func (f *File) recoverKnowledge(fd int, persisted []Range) (knowledge, error) {
	limit, err := f.loadLimit(fd, persisted)
	if err != nil {
		return knowledge{}, err
	}
	k := knowledge{limit: limit}
	learn := func(from, to int64) { k.have.add(from, min(to, blocksOf(limit))) }
	for _, r := range persisted {
		to := r.End() / blockBytes
		if r.End() >= limit {
			to = blocksOf(limit)
		}
		learn(blocksOf(r.Off), to)
	}
	for off := int64(0); off < limit; {
		from, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		if err != nil {
			return knowledge{}, err
		}
		if off, err = unix.Seek(fd, from, unix.SEEK_HOLE); err != nil {
			return knowledge{}, err
		}
		learn(from/blockBytes, blocksOf(off))
	}
	k.settle()
	return k, nil
}

// Complete says whether every byte is known.
func (f *File) Complete() bool {
	if _, err := f.rlock(); err != nil {
		return false
	}
	defer f.mu.RUnlock()
	return f.k.complete()
}

// Known lists what is known, sorted and coalesced. Persist it, and that the
// file is partial, for as long as Complete is false.
func (f *File) Known() []Range {
	if _, err := f.rlock(); err != nil {
		return nil
	}
	defer f.mu.RUnlock()
	return f.k.ranges(f.size)
}

// clip cuts [off,off+n) at the size and at overflow.
func (f *File) clip(off, n int64) (int64, int64) {
	off = max(off, 0)
	if n < 0 || off >= f.size {
		return off, off
	}
	return off, off + min(n, f.size-off)
}

// Missing lists what must be filled before [off,off+n) can be read: whole
// blocks, the last one cut off where remote bytes end.
func (f *File) Missing(off, n int64) []Range {
	if _, err := f.rlock(); err != nil {
		return nil
	}
	defer f.mu.RUnlock()
	return f.k.missing(f.clip(off, n))
}

// MissingForWrite lists what must be filled before [off,off+n) can be written,
// punched or zeroed: the blocks of which that covers only a part and that are
// remote.
func (f *File) MissingForWrite(off, n int64) []Range {
	if _, err := f.rlock(); err != nil {
		return nil
	}
	defer f.mu.RUnlock()
	if off < 0 || n <= 0 || n > vfolder.MaxFileBytes-off {
		return nil
	}
	return f.k.edges(off, off+n)
}

// ReadAt reads known bytes: io.EOF at the size, KindInvalid if a byte is not
// known, which is the caller's mistake (see Missing).
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	fd, err := f.rlock()
	if err != nil {
		return 0, err
	}
	defer f.mu.RUnlock()
	if off < 0 {
		return 0, f.errorf(vfolder.KindInvalid, "read", "offset %d", off)
	}
	from, end := f.clip(off, int64(len(p)))
	for a := range f.k.unknown(from, end) {
		return 0, f.errorf(vfolder.KindInvalid, "read", "block %d of [%d,%d) is not known", a, from, end)
	}
	n, err := preadFull(fd, p[:end-from], off)
	if err == nil && n < len(p) {
		return n, io.EOF
	}
	if err == io.EOF {
		err = unix.EIO // shorter than it should be: somebody else cut it
	}
	return n, f.fail("read", err)
}

// Size returns the size in bytes; 0 if there is no file.
func (f *File) Size() int64 {
	if _, err := f.rlock(); err != nil {
		return 0
	}
	defer f.mu.RUnlock()
	return f.size
}

// SetTimes sets the data file's modification time (Unix nanoseconds), so that
// it can be read back after a restart. Later writes move it to now.
func (f *File) SetTimes(mtime int64) error {
	fd, err := f.lock()
	if err != nil {
		return err
	}
	defer f.mu.Unlock()
	return f.fail("times", setMtime(fd, mtime))
}

// Mtime returns the data file's modification time in Unix nanoseconds: of the
// last write or SetTimes. Filling does not move it. 0 if there is no file.
func (f *File) Mtime() int64 {
	fd, err := f.rlock()
	if err != nil {
		return 0
	}
	defer f.mu.RUnlock()
	st, err := fstat(fd)
	if err != nil {
		return 0
	}
	return st.Mtim.Nano()
}

// Blocks returns what is allocated, in units of 512 bytes; 0 if there is no file.
func (f *File) Blocks() int64 {
	fd, err := f.rlock()
	if err != nil {
		return 0
	}
	defer f.mu.RUnlock()
	st, err := fstat(fd)
	if err != nil {
		return 0
	}
	return st.Blocks
}

// Sync makes the bytes, the size and, for a new file, the name durable. Others
// may read and write meanwhile; what they write is not part of it.
func (f *File) Sync() error {
	fd, err := f.rlock()
	if err != nil {
		return err
	}
	// A descriptor of its own, so that nobody waits for the disk with the lock.
	fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	named := f.named.Load() || f.removed
	f.mu.RUnlock()
	if err != nil {
		return f.fail("sync", err)
	}
	defer unix.Close(fd)
	if err := again(func() error { return unix.Fdatasync(fd) }); err != nil {
		return f.fail("sync", err)
	}
	if named {
		return nil
	}
	f.syncMu.Lock()
	defer f.syncMu.Unlock()
	if f.named.Swap(true) {
		return nil // another Sync has just done it
	}
	if err := f.s.syncNames(f.id); err != nil {
		f.named.Store(false)
		return f.fail("sync", err)
	}
	return nil
}

// SetLabel stores with the data file what a recovery without an index would
// need to name it. Where there are no extended attributes it does nothing.
func (f *File) SetLabel(b []byte) error {
	fd, err := f.lock()
	if err != nil {
		return err
	}
	defer f.mu.Unlock()
	err = unix.Fsetxattr(fd, labelXattr, b, 0)
	if err != nil && (unsupportedXattr(err) || err == unix.ENOSPC) {
		return nil
	}
	return f.fail("label", err)
}

// Label returns what SetLabel stored; nothing if there is none.
func (f *File) Label() ([]byte, error) {
	fd, err := f.rlock()
	if err != nil {
		return nil, err
	}
	defer f.mu.RUnlock()
	b, err := label(fd)
	return b, f.fail("label", err)
}

func label(fd int) ([]byte, error) {
	buf := make([]byte, vfolder.MaxXattrValueBytes)
	n, err := unix.Fgetxattr(fd, labelXattr, buf)
	if errors.Is(err, unix.ENODATA) || err != nil && unsupportedXattr(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return buf[:n:n], nil
}
