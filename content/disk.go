package content

import (
	"golang.org/x/sys/unix"
)

// Disk describes the file system that holds the store.
type Disk struct {
	Total, Free, Avail int64 // bytes; Avail is less the reserve
	Files, FilesFree   uint64
}

// Disk asks the file system.
func (s *Store) Disk() (Disk, error) {
	var fs unix.Statfs_t
	if err := again(func() error { return unix.Fstatfs(s.dirfd, &fs) }); err != nil {
		return Disk{}, fail("disk", s.dir, err)
	}
	return Disk{
		Total: int64(fs.Blocks) * fs.Bsize, Free: int64(fs.Bfree) * fs.Bsize,
		Avail: max(int64(fs.Bavail)*fs.Bsize-s.reserve, 0),
		Files: fs.Files, FilesFree: fs.Ffree,
	}, nil
}

// SyncAll makes every byte and name of the store durable, with all that the
// file system holds besides.
func (s *Store) SyncAll() error {
	return fail("sync", s.dir, again(func() error { return unix.Syncfs(s.dirfd) }))
}
