// Package vfs gives the folder tree its POSIX semantics: it implements
// fusefs.FS on the index (meta) and the local bytes (content), and asks Remote
// for what is only in the bucket.
package vfs

import (
	"context"

	"github.com/vfolder/vfolder"
)

// Remote is what vfs needs of the bucket; the reconciler implements it. Calls
// may wait for the network and end with ctx. Every method is safe for
// concurrent use, and concurrent calls for one thing share the work.
type Remote interface {
	// List makes sure that a directory's entries are in the index
	// (meta.Inode.Listed), e.g. on a host that sees the folder for the first time.
	List(ctx context.Context, dir vfolder.Ino) error
	// Hydrate makes sure that the entry's inode has its attributes
	// (meta.Inode.Unhydrated is false); the entry may name another inode then.
	Hydrate(ctx context.Context, parent vfolder.Ino, names ...string) error
	// Fetch reads [off, off+length) of an inode's remote bytes
	// (meta.Inode.Base) and gives it to fill in pieces, in any order.
	// KindStale: that version is gone from the bucket.
	Fetch(ctx context.Context, ino vfolder.Ino, off, length int64, fill func(off int64, data []byte) error) error
	// Writable makes sure that this host may change the folder (the lease).
	// KindLocked or KindReadOnly: it may not. Fast when it already may; a call
	// that is going to wait asks ctx for Done before.
	Writable(ctx context.Context, folder vfolder.Ino) error
	// Touch tells that a directory was read or something in it opened, so that it
	// is watched for what others write. It does not wait.
	Touch(dir vfolder.Ino)
	// Settle tells that a file was closed or flushed, or that work was queued.
	Settle(folder vfolder.Ino)
}
