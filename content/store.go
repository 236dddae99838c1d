package content

import (
	"cmp"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

const (
	defaultMaxOpen      = 4096
	defaultReserveBytes = 256 << 20
	defaultCheapCut     = 1 << 20
	shardCount          = 256
	tempPrefix          = "tmp-" // files in Dir itself that a rename or an unlink was to follow
)

// Options of Open.
type Options struct {
	Dir string // made with mode 0700 where missing
	// MaxOpen bounds the cached descriptors (default 4096, at most half of
	// RLIMIT_NOFILE). Files in use at the same time may go beyond it.
	MaxOpen int
	// ReserveBytes is the free space that is never written into: with less,
	// writes fail with KindNoSpace. Default: 256 MiB or 1 % of the file
	// system, whichever is less. Negative: none.
	ReserveBytes int64
	Log          *slog.Logger
}

// Store is a directory of data files. Safe for concurrent use.
type Store struct {
	dir      string
	dirfd    int
	log      *slog.Logger
	reserve  int64
	budget   atomic.Int64 // bytes that may be written before free space is looked at again
	temps    atomic.Uint64
	cheapCut int64       // a truncation under a View that cuts off no more just copies it
	noClone  atomic.Bool // FICLONERANGE was refused once
	noXattr  atomic.Bool

	fds    fdCache
	shards [shardCount]shard

	mu     sync.Mutex // guards table, gone, File.refs and closed
	table  map[ID]*File
	gone   map[*File]struct{} // removed, with live handles
	closed bool

	stop    chan struct{}
	counted chan struct{}
}

// shard is one subdirectory, with its share of the usage.
type shard struct {
	mu          sync.Mutex
	fd          int // -1: not opened yet
	shut        bool
	changes     uint64 // of names; starts at 1: an earlier process may not have synced
	synced      uint64 // how many of changes are durable
	counted     bool   // bytes and files are right; before, changes are not added
	bytes, file int64
}

// Open opens or makes the directory and removes what dead freezes left. The
// files are counted in the background, see Counted. A file system whose holes
// are not told apart from data at 4 KiB is refused with KindUnsupported.
// Only one Store may use a directory at a time; the caller sees to that.
func Open(o Options) (*Store, error) {
	if err := unix.Mkdir(o.Dir, 0o700); err != nil && err != unix.EEXIST {
		return nil, fail("open", o.Dir, err)
	}
	fd, err := unix.Open(o.Dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fail("open", o.Dir, err)
	}
	s := &Store{
		dir: o.Dir, dirfd: fd, log: cmp.Or(o.Log, slog.Default()), table: make(map[ID]*File), gone: make(map[*File]struct{}),
		cheapCut: defaultCheapCut,
		stop:     make(chan struct{}), counted: make(chan struct{}),
	}
	for i := range s.shards {
		s.shards[i].fd, s.shards[i].changes = -1, 1
	}
	s.fds.max = openLimit(o.MaxOpen)
	if err := s.prepare(o.ReserveBytes); err != nil {
		unix.Close(fd)
		return nil, fail("open", o.Dir, err)
	}
	go s.count()
	return s, nil
}

func openLimit(limit int) int {
	if limit <= 0 {
		limit = defaultMaxOpen
	}
	var rl unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &rl) == nil && rl.Cur/2 < uint64(limit) {
		limit = max(int(rl.Cur/2), 1)
	}
	return limit
}

func (s *Store) prepare(reserve int64) error {
	var fs unix.Statfs_t
	if err := again(func() error { return unix.Fstatfs(s.dirfd, &fs) }); err != nil {
		return err
	}
	switch {
	case reserve > 0:
		s.reserve = reserve
	case reserve == 0:
		s.reserve = min(defaultReserveBytes, int64(fs.Blocks)*fs.Bsize/100)
	}
	names, err := readNames(s.dirfd)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, tempPrefix) {
			if err := unix.Unlinkat(s.dirfd, name, 0); err != nil {
				return err
			}
		}
	}
	return s.probe()
}

// probe makes sure that unknown blocks can be told from known ones after a
// crash: a block written inside a hole must be the only data in the file.
func (s *Store) probe() error {
	const at = 512 << 10
	fd, err := s.tempFile()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := ftruncate(fd, 50); err != nil {
		return err
	}
	_, small := unix.Seek(fd, 0, unix.SEEK_DATA)
	if err := ftruncate(fd, 1<<20); err != nil {
		return err
	}
	if _, err := pwriteFull(fd, make([]byte, blockBytes), at); err != nil {
		return err
	}
	data, err1 := unix.Seek(fd, 0, unix.SEEK_DATA)
	hole, err2 := unix.Seek(fd, at, unix.SEEK_HOLE)
	if small != unix.ENXIO || err1 != nil || err2 != nil || data != at || hole != at+blockBytes {
		return &vfolder.Error{
			Op: "content open", Kind: vfolder.KindUnsupported, Path: s.dir,
			Err: errors.New("this file system does not tell holes from data in blocks of 4 KiB"),
			Fix: "keep the cache on ext4, XFS, Btrfs or tmpfs",
		}
	}
	return nil
}

// tempFile opens a new file without a name.
func (s *Store) tempFile() (int, error) {
	fd, err := unix.Openat(s.dirfd, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != unix.EOPNOTSUPP && err != unix.EISDIR {
		return fd, err
	}
	fd, name, err := s.namedTemp()
	if err != nil {
		return -1, err
	}
	return fd, unix.Unlinkat(s.dirfd, name, 0)
}

// namedTemp opens a new file in Dir, to be renamed to its place.
func (s *Store) namedTemp() (int, string, error) {
	name := tempPrefix + strconv.FormatUint(s.temps.Add(1), 10)
	fd, err := unix.Openat(s.dirfd, name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	return fd, name, err
}

// Close closes every descriptor; handles fail with KindStale from then on, and
// views with them. It does not sync.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	live := make([]*File, 0, len(s.table))
	for _, f := range s.table {
		live = append(live, f)
	}
	for f := range s.gone {
		live = append(live, f)
	}
	s.mu.Unlock()
	close(s.stop)
	<-s.counted
	for _, f := range live {
		f.mu.Lock()
		f.shut = true
		f.closeFD()
		f.mu.Unlock()
	}
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		if sh.fd >= 0 {
			unix.Close(sh.fd)
			sh.fd = -1
		}
		sh.shut = true
		sh.mu.Unlock()
	}
	return fail("close", s.dir, unix.Close(s.dirfd))
}

// File returns a handle. The data file is opened when it is first needed, and
// need not exist. All live handles of an ID share their state.
func (s *Store) File(id ID) *File {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.table[id]
	if f == nil {
		f = &File{s: s, id: id, shut: s.closed}
		f.fd.Store(-1)
		s.table[id] = f
	}
	f.refs++
	return f
}

// Remove deletes the data file. Removing what is not there is no error. Live
// handles and views go on with the unlinked file until they are closed; a
// handle made afterwards is a new file.
func (s *Store) Remove(id ID) error {
	s.mu.Lock()
	f := s.table[id]
	if f != nil {
		f.refs++
	}
	s.mu.Unlock()
	if f == nil {
		_, err := s.unlink(id)
		return fail("remove", id.String(), err)
	}
	defer f.Close()
	return fail("remove", id.String(), f.remove())
}

// remove unlinks a file with handles, which keep its descriptor.
func (f *File) remove() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.removed {
		return nil
	}
	if _, err := f.open(); err != nil {
		if vfolder.KindOf(err) == vfolder.KindNotFound {
			return nil
		}
		return err
	}
	charged, err := f.s.unlink(f.id)
	if err != nil {
		return err
	}
	if f.loaded {
		f.s.charge(f.id, charged-f.charged, 0) // unlink took off what is there now
	}
	f.removed = true
	f.s.fds.forget(f)
	f.s.mu.Lock()
	delete(f.s.table, f.id)
	f.s.gone[f] = struct{}{}
	f.s.mu.Unlock()
	return nil
}

// unlink removes a name, if it is there, and returns what was allocated.
func (s *Store) unlink(id ID) (int64, error) {
	dir, err := s.shard(id, false)
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstatat(dir, id.String(), &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil {
		err = unix.Unlinkat(dir, id.String(), 0)
	}
	if err == unix.ENOENT {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	s.charge(id, -st.Blocks*512, -1)
	return st.Blocks * 512, nil
}

func shardOf(id ID) int { return int(id.Ino & (shardCount - 1)) }

// shard returns the cached descriptor of an ID's directory, which it makes if
// it is missing and make is true.
func (s *Store) shard(id ID, create bool) (int, error) {
	n := shardOf(id)
	sh := &s.shards[n]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.fd >= 0 {
		return sh.fd, nil
	}
	if sh.shut {
		return -1, vfolder.Errorf(vfolder.KindStale, "content open", s.dir, "the store is closed")
	}
	const hex = "0123456789abcdef"
	name := string([]byte{hex[n>>4], hex[n&15]})
	fd, err := unix.Openat(s.dirfd, name, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err == unix.ENOENT && create {
		if err = unix.Mkdirat(s.dirfd, name, 0o700); err == nil || err == unix.EEXIST {
			fd, err = unix.Openat(s.dirfd, name, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		}
	}
	if err != nil {
		return -1, err
	}
	sh.fd = fd
	return fd, nil
}

// changedNames notes that a name came into an ID's directory, or another file
// under that name.
func (s *Store) changedNames(id ID) {
	sh := &s.shards[shardOf(id)]
	sh.mu.Lock()
	sh.changes++
	sh.mu.Unlock()
}

// syncNames makes the names in an ID's directory durable, once for all of them.
func (s *Store) syncNames(id ID) error {
	fd, err := s.shard(id, false)
	if err != nil {
		return err
	}
	sh := &s.shards[shardOf(id)]
	sh.mu.Lock()
	upto, synced := sh.changes, sh.synced
	sh.mu.Unlock()
	if synced == upto {
		return nil
	}
	if err := again(func() error { return unix.Fsync(fd) }); err != nil {
		return err
	}
	if synced == 0 { // the shard itself may be new
		if err := again(func() error { return unix.Fsync(s.dirfd) }); err != nil {
			return err
		}
	}
	sh.mu.Lock()
	sh.synced = max(sh.synced, upto)
	sh.mu.Unlock()
	return nil
}
