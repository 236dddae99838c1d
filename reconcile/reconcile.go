package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/content"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/objstore"
)

// Config of a Reconciler. Zero durations and counts take the defaults named.
type Config struct {
	DB      *meta.DB
	Content *content.Store
	Store   objstore.Store
	// HostID names this host in leases; it must not change between starts.
	HostID string
	Log    *slog.Logger
	Now    func() time.Time
	// Clock counts on while the machine sleeps (CLOCK_BOOTTIME).
	Clock func() time.Duration

	Settle     time.Duration // after the last close: 1 s
	OpenSettle time.Duration // a file held open: 30 s
	DirSettle  time.Duration // attributes of a directory that is there: 60 s
	Workers    int           // requests of the publishing side at once: 16

	RefreshEvery  time.Duration // re-listing of directories in use: 2 s
	RescanEvery   time.Duration // re-listing of a whole folder in use: 60 s
	RegistryEvery time.Duration // 30 s
	SegmentEvery  time.Duration // attribute segments: 60 s
	LeaseTTL      time.Duration // 30 s
	LeaseIdle     time.Duration // release after being drained so long: 60 s
}

func (c *Config) defaults() error {
	if c.DB == nil || c.Content == nil || c.Store == nil || c.HostID == "" {
		return vfolder.Errorf(vfolder.KindInvalid, "reconciler", "", "an index, a content store, an object store and a host id are needed")
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Clock == nil {
		c.Clock = bootTime
	}
	for _, d := range []struct {
		at  *time.Duration
		def time.Duration
	}{
		{&c.Settle, time.Second},
		{&c.OpenSettle, 30 * time.Second},
		{&c.DirSettle, time.Minute},
		{&c.RefreshEvery, 2 * time.Second},
		{&c.RescanEvery, time.Minute},
		{&c.RegistryEvery, 30 * time.Second},
		{&c.SegmentEvery, time.Minute},
		{&c.LeaseTTL, 30 * time.Second},
		{&c.LeaseIdle, time.Minute},
	} {
		if *d.at <= 0 {
			*d.at = d.def
		}
	}
	if c.Workers <= 0 {
		c.Workers = 16
	}
	return nil
}

func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Duration(time.Now().UnixNano())
	}
	return time.Duration(ts.Nano())
}

// Reconciler keeps the bucket and the index alike. Make it with New, give it
// the serving side with SetLocal, then Start it; Close ends it. Everything is
// safe for concurrent use.
//
// Lock order: Reconciler.mu, folder.mu, then leaves; none is held during a
// request, an index transaction or a call of Local.
type Reconciler struct {
	cfg   Config
	db    *meta.DB
	store objstore.Store
	codec objstore.Codec
	log   *slog.Logger
	local Local

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	slots  chan struct{} // one for each request of the publishing side
	heads  chan struct{} // one for each HEAD of the reading side

	flights  singleflight.Group
	registry registry
	outage   outage
	watch    watchlist

	mu      sync.Mutex
	folders map[vfolder.Ino]*folder
	started bool
	closed  bool
}

// headParallel is how many HEADs the reading side has under way at once.
const headParallel = 32

// New makes a Reconciler and takes over DB.OnItem. Nothing runs until Start.
func New(cfg Config) (*Reconciler, error) {
	if err := cfg.defaults(); err != nil {
		return nil, err
	}
	r := &Reconciler{
		cfg: cfg, db: cfg.DB, store: cfg.Store, codec: objstore.NewCodec(cfg.Store.Capabilities()), log: cfg.Log,
		slots: make(chan struct{}, cfg.Workers), heads: make(chan struct{}, headParallel),
		folders: map[vfolder.Ino]*folder{},
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.watch.init()
	cfg.DB.OnItem(r.onItem)
	return r, nil
}

// SetLocal sets the serving side. Call it once, before Start.
func (r *Reconciler) SetLocal(l Local) { r.local = l }

// Start takes up the folders of the index and begins to work. It does not wait
// for the store: what an outage keeps from being done is done after it. The
// error is KindUnsupported when the bucket is of a newer format.
func (r *Reconciler) Start(ctx context.Context) error {
	if r.local == nil {
		return vfolder.Errorf(vfolder.KindInvalid, "start reconciler", "", "the serving side is not set")
	}
	if err := r.checkFormat(ctx); err != nil {
		return err
	}
	var known []*meta.Folder
	err := r.db.View(func(tx *meta.Tx) (err error) {
		known, err = tx.Folders()
		return err
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.started = true
	r.mu.Unlock()
	for _, f := range known {
		if f.Record.State == vfolder.FolderReady {
			r.attach(f)
			continue
		}
		if err := r.db.DropTree(f.Root, r.local.Freed); err != nil { // a removal that a crash cut short
			return err
		}
	}
	if err := r.SyncRegistry(ctx); err != nil {
		r.log.Warn("the registry of folders could not be read; folders known here go on", "err", err)
	}
	r.wg.Add(2)
	go r.registryLoop()
	go r.refreshLoop()
	return nil
}

// Close stops the work, releases the leases of folders that are drained, and
// waits for its goroutines. What is pending stays pending in the index.
func (r *Reconciler) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	all := r.list()
	r.mu.Unlock()
	for _, f := range all {
		f.stop()
	}
	ctx, cancel := context.WithTimeout(r.ctx, closeTimeout)
	for _, f := range all {
		f.flushSegments(ctx)
		f.releaseIfDrained(ctx)
	}
	cancel()
	r.cancel()
	r.wg.Wait()
	return nil
}

// closeTimeout bounds what Close still sends.
const closeTimeout = 10 * time.Second

// list needs mu.
func (r *Reconciler) list() []*folder {
	all := make([]*folder, 0, len(r.folders))
	for _, f := range r.folders {
		all = append(all, f)
	}
	return all
}

func (r *Reconciler) all() []*folder {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.list()
}

// attach begins the work on a folder; attaching again does nothing.
func (r *Reconciler) attach(m *meta.Folder) *folder {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.folders[m.Root]; f != nil {
		return f
	}
	f := newFolder(r, m)
	r.folders[m.Root] = f
	if r.started && !r.closed {
		r.wg.Add(1)
		go f.run()
	}
	return f
}

// detach ends the work on a folder and waits for it.
func (r *Reconciler) detach(root vfolder.Ino) {
	r.mu.Lock()
	f := r.folders[root]
	delete(r.folders, root)
	r.mu.Unlock()
	if f != nil {
		f.stop()
	}
}

func (r *Reconciler) folder(root vfolder.Ino) *folder {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.folders[root]
}

// need is folder, or an error.
func (r *Reconciler) need(root vfolder.Ino) (*folder, error) {
	if f := r.folder(root); f != nil {
		return f, nil
	}
	return nil, vfolder.Errorf(vfolder.KindNotFound, "folder", "", "inode %d is not the root of a folder", root)
}

// of finds the folder of an inode.
func (r *Reconciler) of(n *meta.Inode) (*folder, error) { return r.need(n.Folder) }

func (r *Reconciler) onItem(root vfolder.Ino) {
	if f := r.folder(root); f != nil {
		f.rescan()
	}
}

// Settle implements vfs.Remote: something may have become ready to publish.
func (r *Reconciler) Settle(root vfolder.Ino) {
	if f := r.folder(root); f != nil {
		f.use()
		f.rescan()
	}
}

func (r *Reconciler) now() time.Time { return r.cfg.Now() }

// outage makes everybody wait when the store does not answer: one request at a
// time finds out whether it is back.
type outage struct {
	mu    sync.Mutex
	until time.Time
	wait  time.Duration
	err   error
}

const (
	outageFirst = 500 * time.Millisecond
	outageMost  = 15 * time.Second
)

// note takes the result of a request and reports whether it shows an outage.
func (o *outage) note(now time.Time, err error) bool {
	if err != nil && errors.Is(err, context.Canceled) {
		return false
	}
	down := err != nil && vfolder.KindOf(err) == vfolder.KindUnreachable
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case !down:
		if err == nil {
			o.wait, o.until, o.err = 0, time.Time{}, nil
		}
	case now.After(o.until):
		o.wait = min(max(2*o.wait, outageFirst), outageMost)
		o.until, o.err = now.Add(o.wait), err
	}
	return down
}

// rest is how long to wait before the store is asked again.
func (o *outage) rest(now time.Time) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	return max(o.until.Sub(now), 0)
}

func (o *outage) cause() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}
