package content

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

// maxBudget bounds how much is written between two looks at the free space:
// the reserve must survive that much and what other programs write meanwhile.
const maxBudget = 32 << 20

// Usage returns the allocated bytes and the number of data files. It is kept
// incrementally and may be off by what the file system allocates on its own
// account; it is low until Counted.
func (s *Store) Usage() (allocated, files int64) {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		allocated += sh.bytes
		files += sh.file
		sh.mu.Unlock()
	}
	return allocated, files
}

// Counted is closed when the files found at Open have been counted.
func (s *Store) Counted() <-chan struct{} { return s.counted }

// Free returns the bytes that may still be written: what the file system has
// for us, less the reserve.
func (s *Store) Free() (avail int64, err error) {
	s.mu.Lock() // Close must not take the descriptor away meanwhile
	defer s.mu.Unlock()
	if s.closed {
		return 0, vfolder.Errorf(vfolder.KindStale, "content free", s.dir, "the store is closed")
	}
	avail, err = s.statfs()
	return max(avail-s.reserve, 0), fail("free", s.dir, err)
}

func (s *Store) statfs() (int64, error) {
	var fs unix.Statfs_t
	if err := again(func() error { return unix.Fstatfs(s.dirfd, &fs) }); err != nil {
		return 0, err
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}

// admit refuses n bytes that would go into the reserve. It asks the file
// system only once per budget.
func (s *Store) admit(n int64) error {
	if s.reserve == 0 || s.budget.Add(-n) >= 0 {
		return nil
	}
	avail, err := s.statfs()
	if err != nil {
		return err
	}
	left := avail - s.reserve - n
	if left < 0 {
		s.budget.Store(0)
		return unix.ENOSPC
	}
	s.budget.Store(min(left/4, maxBudget, s.reserve/4))
	return nil
}

// charge adds to the usage, once its shard has been counted.
func (s *Store) charge(id ID, allocated, files int64) {
	sh := &s.shards[shardOf(id)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.counted {
		sh.bytes = max(sh.bytes+allocated, 0)
		sh.file = max(sh.file+files, 0)
	}
}

// count adds up what is there, shard by shard.
func (s *Store) count() {
	defer close(s.counted)
	for i := range s.shards {
		select {
		case <-s.stop:
			return
		default:
		}
		if err := s.countShard(i); err != nil {
			s.log.Warn("content: counting local bytes", "dir", s.dir, "shard", i, "err", err)
		}
	}
}

func (s *Store) countShard(i int) error {
	fd, err := s.shard(ID{Ino: vfolder.Ino(i)}, false)
	sh := &s.shards[i]
	// The lock keeps creations and removals of this shard from being counted
	// twice or never.
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.counted = true
	if err == unix.ENOENT && sh.fd < 0 {
		return nil
	}
	if sh.fd >= 0 {
		fd, err = sh.fd, nil
	}
	if err != nil {
		return err
	}
	names, err := readNames(fd)
	for _, name := range names {
		var st unix.Stat_t
		if _, ok := parseID(name); ok && unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			sh.bytes += st.Blocks * 512
			sh.file++
		}
	}
	return err
}

// List yields every data file, in no order, until yield says false. Files that
// come or go meanwhile may or may not be among them; yield may Remove.
func (s *Store) List(yield func(ID) bool) error {
	for i := range s.shards {
		fd, err := s.shard(ID{Ino: vfolder.Ino(i)}, false)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return fail("list", s.dir, err)
		}
		names, err := readNames(fd)
		if err != nil {
			return fail("list", s.dir, err)
		}
		for _, name := range names {
			if id, ok := parseID(name); ok && shardOf(id) == i && !yield(id) {
				return nil
			}
		}
	}
	return nil
}

// parseID is the inverse of ID.String; it takes only what String makes.
func parseID(name string) (ID, bool) {
	ino, gen, ok := strings.Cut(name, ".")
	if !ok {
		return ID{}, false
	}
	i, err1 := strconv.ParseUint(ino, 16, 64)
	g, err2 := strconv.ParseUint(gen, 10, 32)
	id := ID{Ino: vfolder.Ino(i), Gen: uint32(g)}
	return id, err1 == nil && err2 == nil && id.String() == name
}

// readNames reads a directory through a descriptor of its own, because the
// cached ones share their position.
func readNames(dirfd int) ([]string, error) {
	fd, err := unix.Openat(dirfd, ".", unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var names []string
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}
