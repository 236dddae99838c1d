// Package fusefs turns the FUSE protocol into operations on a folder tree. It
// owns the read loop, request decoding, owner translation, errno and the
// kernel's caches; what the operations mean is behind FS.
package fusefs

import (
	"context"

	"github.com/vfolder/vfolder"
)

// Attr is what the kernel is told of an inode. Times are Unix nanoseconds;
// UID and GID are ids as stored (session view): fusefs translates them.
type Attr struct {
	Ino                        vfolder.Ino
	Mode                       uint32 // type and permissions, as in stat(2)
	UID, GID                   uint32
	Rdev                       uint32
	Nlink                      uint32
	Size                       int64
	Blocks                     int64 // of 512 bytes
	Atime, Mtime, Ctime, Btime int64
}

// Request identifies one request and its caller. Unique is the kernel's id
// without the resend bit; Resent says that an earlier worker may have carried
// it out already, in which case FS answers from its record of replies. A Request
// is reused: it must not be kept after the handler returns.
type Request struct {
	context.Context
	Unique   uint64
	Resent   bool
	UID, GID uint32 // of the caller, as stored ids
	PID      uint32
	// Block gives the reader slot away before a wait for network, disk flush or
	// lock. It must be called at most once, before the wait; nil-safe via
	// Blocking.
	Block func()
}

// Blocking announces that the handler is about to wait.
func (r *Request) Blocking() {
	if r != nil && r.Block != nil {
		r.Block()
		r.Block = nil
	}
}

// SetAttr lists the attributes to change; nil pointers are kept.
type SetAttr struct {
	Mode         *uint32 // permission bits only
	UID, GID     *uint32
	Size         *int64
	Atime, Mtime *int64 // Unix nanoseconds
	Ctime        *int64
	// KillPriv asks to drop setuid and setgid as write and truncate do.
	KillPriv bool
}

// DirEntry is one entry of a directory. Cookie is where the next READDIR
// continues: it stays valid while entries come and go. Cookies 1 and 2 are
// "." and "..", which fusefs adds itself: FS's cookies are above 2.
type DirEntry struct {
	Ino    vfolder.Ino
	Name   string
	Type   uint32 // S_IFMT bits; 0 when not known yet
	Cookie uint64
}

// Statfs is what df shows, in units of BlockSize bytes.
type Statfs struct {
	BlockSize           uint32
	Blocks, Free, Avail uint64
	Files, FilesFree    uint64
}

// FS is the tree that is served. All methods may be called concurrently. An
// error becomes an errno through vfolder.KindOf. Handlers that may wait call
// req.Blocking first. There are no handles: every operation names the inode.
type FS interface {
	Lookup(req *Request, parent vfolder.Ino, name string) (Attr, error)
	GetAttr(req *Request, ino vfolder.Ino) (Attr, error)
	SetAttr(req *Request, ino vfolder.Ino, set SetAttr) (Attr, error)
	ReadLink(req *Request, ino vfolder.Ino) (string, error)

	// Mknod makes any non-directory by mode's type; Create additionally opens.
	// Modes of new inodes have their type and are already reduced by umask.
	Mknod(req *Request, parent vfolder.Ino, name string, mode, umask, rdev uint32) (Attr, error)
	Mkdir(req *Request, parent vfolder.Ino, name string, mode, umask uint32) (Attr, error)
	Symlink(req *Request, parent vfolder.Ino, name, target string) (Attr, error)
	Link(req *Request, ino, parent vfolder.Ino, name string) (Attr, error)
	Unlink(req *Request, parent vfolder.Ino, name string) error
	Rmdir(req *Request, parent vfolder.Ino, name string) error
	// Rename takes the flags of renameat2(2); others than NOREPLACE and
	// EXCHANGE are KindInvalid.
	Rename(req *Request, parent vfolder.Ino, name string, newParent vfolder.Ino, newName string, flags uint32) error

	// Create is open(O_CREAT): exclusive when flags has O_EXCL.
	Create(req *Request, parent vfolder.Ino, name string, mode, umask, flags uint32) (Attr, error)
	// Tmpfile makes a nameless file in parent's folder.
	Tmpfile(req *Request, parent vfolder.Ino, mode, umask, flags uint32) (Attr, error)
	// Open checks and prepares; O_TRUNC in flags truncates. Directories are opened
	// too (O_DIRECTORY), and not released.
	Open(req *Request, ino vfolder.Ino, flags uint32) error
	// Read fills buf from off and returns how much there was before the end.
	Read(req *Request, ino vfolder.Ino, buf []byte, off int64) (int, error)
	// Write stores data; killPriv as in SetAttr.
	Write(req *Request, ino vfolder.Ino, data []byte, off int64, killPriv bool) (int, error)
	Flush(req *Request, ino vfolder.Ino) error
	// Release ends one open file description; flags are those of Open.
	Release(ino vfolder.Ino, flags uint32)
	Fsync(req *Request, ino vfolder.Ino, dataOnly bool) error
	FsyncDir(req *Request, ino vfolder.Ino) error
	Fallocate(req *Request, ino vfolder.Ino, mode uint32, off, length int64) error
	// Seek implements SEEK_DATA and SEEK_HOLE; KindNoData is ENXIO.
	Seek(req *Request, ino vfolder.Ino, off int64, whence uint32) (int64, error)
	CopyRange(req *Request, in vfolder.Ino, inOff int64, out vfolder.Ino, outOff, length int64) (int64, error)

	// ReadDir yields entries whose cookie is above after until yield says stop.
	ReadDir(req *Request, ino vfolder.Ino, after uint64, yield func(DirEntry) bool) error
	// ReadDirPlus is ReadDir with attributes known for every entry.
	ReadDirPlus(req *Request, ino vfolder.Ino, after uint64, yield func(DirEntry, Attr) bool) error

	GetXattr(req *Request, ino vfolder.Ino, name string) ([]byte, error)
	SetXattr(req *Request, ino vfolder.Ino, name string, value []byte, flags uint32) error
	ListXattr(req *Request, ino vfolder.Ino) ([]string, error)
	RemoveXattr(req *Request, ino vfolder.Ino, name string) error

	StatFS(req *Request, ino vfolder.Ino) (Statfs, error)
	// Forget says that the kernel holds an inode no longer: one without a name
	// is gone for good. It may come twice, or for an unknown inode, and must not
	// wait.
	Forget(ino vfolder.Ino)
	// Orphans lists nameless inodes that a former worker's kernel references
	// may keep: a new Server probes each and calls Forget for those gone.
	Orphans() []vfolder.Ino
}

// Invalidator drops what the kernel has cached. Calls only queue: they return
// at once and may be made with locks held; the order of calls is kept.
type Invalidator interface {
	// Entry forgets a name (also a negative one) in a directory.
	Entry(parent vfolder.Ino, name string)
	// Inode forgets attributes and data of an inode.
	Inode(ino vfolder.Ino)
}
