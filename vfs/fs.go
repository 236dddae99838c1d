package vfs

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/content"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/reconcile"
)

// Config of New. DB and Content are required and stay the caller's to close,
// after FS.Close.
type Config struct {
	DB      *meta.DB
	Content *content.Store
	Remote  Remote // may come later by SetRemote
	// RecoveryDir is where bytes go that a power loss made unfit to serve, as
	// RecoveryDir/FOLDER/PATH.INODE. It is made when first needed.
	RecoveryDir string
	// MaxNodes bounds the inodes kept in memory; 0 is 32,768. Those in use at
	// the same time may go beyond it.
	MaxNodes int
	Log      *slog.Logger     // nil: slog.Default
	Now      func() time.Time // nil: time.Now
}

const defaultMaxNodes = 32 << 10

// FS implements fusefs.FS and reconcile.Local. All methods are safe for
// concurrent use.
//
// Locks, in the order in which they are taken: node.mu, the index's writer,
// nodeTable.mu. No lock is held while Remote is called.
type FS struct {
	db       *meta.DB
	content  *content.Store
	log      *slog.Logger
	now      func() time.Time
	recovery string

	remote atomic.Pointer[Remote]
	kernel atomic.Pointer[fusefs.Invalidator]
	probe  atomic.Pointer[func(vfolder.Ino) bool]

	nodes   nodeTable
	orphans orphanSet
	flushed map[uint64]bool // former boots that ended with every byte flushed
	ahead   chan struct{}   // slots of background fetches

	ctx    context.Context // of background work; ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup
}

var (
	_ fusefs.FS       = (*FS)(nil)
	_ reconcile.Local = (*FS)(nil)
)

// New prepares to serve an index. It reads little: inodes are looked at, and
// recovered, when they are first touched.
func New(c Config) (*FS, error) {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.MaxNodes <= 0 {
		c.MaxNodes = defaultMaxNodes
	}
	fs := &FS{db: c.DB, content: c.Content, log: c.Log, now: c.Now, recovery: c.RecoveryDir, ahead: make(chan struct{}, maxAhead)}
	fs.ctx, fs.cancel = context.WithCancel(context.Background())
	fs.nodes.init(c.MaxNodes)
	if c.Remote != nil {
		fs.SetRemote(c.Remote)
	}
	if err := fs.beginBoot(); err != nil {
		fs.cancel()
		return nil, err
	}
	if err := fs.loadOrphans(); err != nil {
		fs.cancel()
		return nil, err
	}
	fs.tasks.Go(fs.reap)
	return fs, nil
}

// SetRemote tells where the bucket's side is; requests that need it fail with
// KindUnreachable before.
func (fs *FS) SetRemote(r Remote) { fs.remote.Store(&r) }

// SetInvalidator tells who forwards changes that the kernel does not know of.
func (fs *FS) SetInvalidator(i fusefs.Invalidator) { fs.kernel.Store(&i) }

// SetProbe tells how to find out whether the kernel knows an inode; without it
// orphans that the kernel never saw are freed at the next start.
func (fs *FS) SetProbe(known func(vfolder.Ino) bool) { fs.probe.Store(&known) }

// Close ends background work, stores what memory knows better than the index,
// and flushes local bytes and index to disk, so that the next boot trusts them.
// No request may be running or come.
func (fs *FS) Close() error {
	fs.cancel()
	fs.tasks.Wait()
	err := fs.nodes.drain(fs.retire)
	return errors.Join(err, fs.endBoot())
}

// Abandon ends background work and stores nothing, like the death of the
// process: the next FS recovers what it needs.
func (fs *FS) Abandon() {
	fs.cancel()
	fs.tasks.Wait()
}

func (fs *FS) reach() (Remote, error) {
	if r := fs.remote.Load(); r != nil {
		return *r, nil
	}
	return nil, &vfolder.Error{Op: "bucket", Kind: vfolder.KindUnreachable, Err: errors.New("the store is not connected yet")}
}

// lazyContext gives the reader slot away when somebody is about to wait: who
// waits for an end of the context asks for Done first.
type lazyContext struct {
	context.Context
	req *fusefs.Request
}

func (c lazyContext) Done() <-chan struct{} {
	c.req.Blocking()
	return c.Context.Done()
}

// writable makes sure that the folder may be changed by this host.
func (fs *FS) writable(req *fusefs.Request, folder vfolder.Ino) error {
	r, err := fs.reach()
	if err != nil {
		return err
	}
	return r.Writable(lazyContext{req.Context, req}, folder)
}

func (fs *FS) settleRemote(folder vfolder.Ino) {
	if r := fs.remote.Load(); r != nil {
		(*r).Settle(folder)
	}
}

func (fs *FS) touchRemote(dir vfolder.Ino) {
	if r := fs.remote.Load(); r != nil && dir != 0 {
		(*r).Touch(dir)
	}
}

// tellEntry and tellInode tell the kernel of a change that it did not ask for
// itself. Requests without a Unique come from this program.
func (fs *FS) tellEntry(req *fusefs.Request, parent vfolder.Ino, name string) {
	if req.Unique == 0 {
		fs.invalidateEntry(parent, name)
	}
}

func (fs *FS) tellInode(req *fusefs.Request, ino vfolder.Ino) {
	if req.Unique == 0 {
		fs.invalidateInode(ino)
	}
}

func (fs *FS) invalidateEntry(parent vfolder.Ino, name string) {
	if k := fs.kernel.Load(); k != nil {
		(*k).Entry(parent, name)
		(*k).Inode(parent)
	}
}

func (fs *FS) invalidateInode(ino vfolder.Ino) {
	if k := fs.kernel.Load(); k != nil {
		(*k).Inode(ino)
	}
}

func fail(kind vfolder.Kind, op, name, format string, args ...any) error {
	return vfolder.Errorf(kind, op, name, format, args...)
}
