// Package reconcile makes the bucket match the index and takes what others
// wrote to the bucket into the index. It owns the registry of folders, leases,
// attribute segments and link records.
package reconcile

import (
	"context"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/content"
	"github.com/vfolder/vfolder/meta"
)

// Local is what the reconciler needs of the serving side; vfs implements it.
// No method may be called with an index transaction open.
type Local interface {
	// Freeze ends the inode's dirty period at one point in time: size and times
	// are stored in the index, later writes begin a new generation and leave the
	// view alone. View is nil for inodes without local bytes. Close the Frozen.
	Freeze(ctx context.Context, ino vfolder.Ino) (*Frozen, error)
	// Activity tells how a file is being used, to decide when it has settled.
	Activity(ino vfolder.Ino) Activity
	// Changed drops what the serving side and the kernel cache of an inode
	// whose record or bytes the reconciler changed.
	Changed(ino vfolder.Ino)
	// EntryChanged does so for a name that came, went or names another inode.
	EntryChanged(parent vfolder.Ino, name string)
	// Freed removes the local bytes of an inode that the reconciler made an
	// orphan or dropped, once nothing uses them.
	Freed(n *meta.Inode)
}

// Frozen is one point in time of an inode.
type Frozen struct {
	Inode  *meta.Inode
	Xattrs map[string][]byte
	View   *content.View
	Close  func()
}

// Activity of a file. Zero times mean never since the worker started.
type Activity struct {
	Open       bool      // written to since the last close or flush
	LastChange time.Time // last write, truncate or close
	DirtySince time.Time // begin of the dirty period
}
