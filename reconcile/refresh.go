package reconcile

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/objstore"
)

// watchlist holds the directories that were used lately. They are listed again
// and again, ever more rarely the longer they are not used.
type watchlist struct {
	mu   sync.Mutex
	dirs map[vfolder.Ino]*watched
	wake chan struct{}
}

type watched struct {
	used, listed time.Duration // Config.Clock
	soon         bool
}

const (
	watchMost = 256
	watchIdle = time.Minute // not used for so long: no longer watched
)

func (w *watchlist) init() {
	w.dirs, w.wake = map[vfolder.Ino]*watched{}, make(chan struct{}, 1)
}

// Touch tells that a directory is being used: it is watched for changes that
// others make in the bucket.
func (r *Reconciler) Touch(dir vfolder.Ino) { r.touch(dir, false) }

// lookAgain has a directory listed at once.
func (r *Reconciler) lookAgain(dir vfolder.Ino) { r.touch(dir, true) }

func (r *Reconciler) touch(dir vfolder.Ino, soon bool) {
	if dir == vfolder.RootIno {
		return
	}
	w := &r.watch
	now := r.cfg.Clock()
	w.mu.Lock()
	d := w.dirs[dir]
	wake := d == nil || soon
	if d == nil {
		if len(w.dirs) >= watchMost {
			w.dropOldest()
		}
		d = &watched{listed: now}
		w.dirs[dir] = d
	}
	d.used = now
	d.soon = d.soon || soon
	w.mu.Unlock()
	if wake {
		w.rouse()
	}
}

func (w *watchlist) rouse() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watchlist) dropOldest() {
	var oldest vfolder.Ino
	for ino, d := range w.dirs {
		if oldest == 0 || d.used < w.dirs[oldest].used {
			oldest = ino
		}
	}
	delete(w.dirs, oldest)
}

// due takes the directories that are to be listed now, and says when the next
// one is.
func (w *watchlist) due(now, every time.Duration) (dirs []vfolder.Ino, wait time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	wait = time.Hour
	for ino, d := range w.dirs {
		idle := now - d.used
		if idle > watchIdle {
			delete(w.dirs, ino)
			continue
		}
		next := d.listed + every
		if idle > 10*time.Second {
			next = d.listed + 5*every
		}
		if d.soon || next <= now {
			dirs = append(dirs, ino)
			d.listed, d.soon = now, false
			next = now + every
		}
		wait = min(wait, next-now)
	}
	return dirs, wait
}

// A folder is in use for so long after the serving side last asked for
// something. The kernel answers much by itself, so that this is generous.
const activeFor = 10 * time.Minute

// How much of the time goes into listing whole folders, as one part in so many:
// what a listing costs grows with the folder.
const (
	scanShare     = 30
	scanShareIdle = 100
	// scanBusy is how many pending changes put a listing off: the changes ask
	// for the keys that matter by themselves.
	scanBusy = 500
)

// use notes that something of a folder was asked for.
func (f *folder) use() {
	now := int64(f.r.cfg.Clock())
	if was := f.used.Swap(now); now-was > int64(activeFor) {
		f.r.watch.rouse()
	}
}

// scanDue says how long it is until the whole folder is to be listed again.
func (f *folder) scanDue(now time.Duration) time.Duration {
	every := max(f.r.cfg.RescanEvery, scanShareIdle*f.scanTook)
	if now-time.Duration(f.used.Load()) <= activeFor {
		every = min(every, max(f.r.cfg.RefreshEvery, scanShare*f.scanTook))
	}
	return f.scannedAt + every - now
}

// scan lists a whole folder, unless much is pending.
func (f *folder) scan(ctx context.Context) error {
	start := f.r.cfg.Clock()
	f.scannedAt = start
	pending := 0
	err := f.r.db.View(func(tx *meta.Tx) (err error) { pending, err = tx.CountItems(f.root, scanBusy); return err })
	if err != nil || pending >= scanBusy {
		return err
	}
	err = f.rescanAll(ctx)
	f.scannedAt = f.r.cfg.Clock()
	f.scanTook = f.scannedAt - start
	return err
}

// refreshLoop lists directories and folders in use again and again.
func (r *Reconciler) refreshLoop() {
	defer r.wg.Done()
	wait := r.cfg.RefreshEvery
	t := time.NewTimer(wait)
	defer t.Stop()
	for {
		t.Reset(wait)
		select {
		case <-r.ctx.Done():
			return
		case <-r.watch.wake:
		case <-t.C:
		}
		if d := r.outage.rest(r.now()); d > 0 {
			wait = d
			continue
		}
		now := r.cfg.Clock()
		var dirs []vfolder.Ino
		dirs, wait = r.watch.due(now, r.cfg.RefreshEvery)
		for _, dir := range dirs {
			if err := r.refresh(r.ctx, dir); err != nil {
				r.outage.note(r.now(), err)
				r.log.Debug("a directory was not listed again", "dir", dir, "err", err)
			}
		}
		for _, f := range r.all() {
			if f.scanDue(now) <= 0 {
				if err := f.scan(r.ctx); err != nil && r.ctx.Err() == nil {
					r.outage.note(r.now(), err)
					r.log.Info("a folder was not listed again", "folder", f.name, "err", err)
				}
			}
			wait = min(wait, f.scanDue(r.cfg.Clock()))
		}
		wait = max(wait, 10*time.Millisecond)
	}
}

// refresh lists one directory and takes what others changed into the index.
func (r *Reconciler) refresh(ctx context.Context, dir vfolder.Ino) error {
	n, err := r.inode(dir)
	if errors.Is(err, vfolder.KindStale) || err == nil && (!n.Listed || n.Nlink == 0) {
		return nil
	}
	if err != nil {
		return err
	}
	f, err := r.of(n)
	if err != nil {
		return nil
	}
	var prefix string
	err = r.db.View(func(tx *meta.Tx) (err error) { prefix, err = f.dirPrefix(tx, n, false); return err })
	if err != nil {
		return ignoreGone(err)
	}
	l, err := r.readListing(ctx, prefix)
	if err != nil {
		return err
	}
	return f.compare(ctx, dir, l)
}

// change is a difference between a listing and the index, as it was when it was
// seen. It is checked again before anything is done.
type change struct {
	seg  string
	k    meta.RowKey
	row  *meta.Row // nil for a new key
	name string    // of the entry; "" for a new key
	isIn bool      // the key was listed
}

// compare takes the differences between a listing and the index into the index.
func (f *folder) compare(ctx context.Context, dir vfolder.Ino, l listing) error {
	changes, err := f.differences(dir, l)
	if err != nil || len(changes) == 0 {
		return err
	}
	segs := make([]string, 0, len(changes))
	for _, c := range changes {
		segs = append(segs, c.seg)
	}
	infos, err := f.r.headAll(ctx, l.prefix, segs)
	if err != nil {
		return err
	}
	names, err := f.names(ctx, l)
	if err != nil {
		return err
	}
	for _, c := range changes {
		in, there := infos[c.seg]
		key := l.prefix + c.seg
		if f.busyKey(key) {
			continue
		}
		switch {
		case c.name == "" && c.row == nil && (there || strings.HasSuffix(c.seg, "/")):
			err = f.appeared(ctx, dir, names[c.seg], c, key, in, there)
		case there:
			err = f.replaced(ctx, dir, c, key, in)
		case c.name != "":
			err = f.vanished(ctx, dir, c, key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// differences finds the keys that are new, changed or gone, and remembers the
// times of those that are as they should be.
func (f *folder) differences(dir vfolder.Ino, l listing) ([]change, error) {
	var out []change
	stamped := map[meta.RowKey]int64{}
	err := f.r.db.View(func(tx *meta.Tx) error {
		guarded, err := f.guarded(tx, l.prefix, dir)
		if err != nil || guarded {
			return err
		}
		id, err := tx.PrefixID(l.prefix)
		if err != nil {
			return err
		}
		rows := map[string]*meta.Row{}
		if id != 0 {
			if err := tx.Rows(id, func(k meta.RowKey, o *meta.Row) bool { rows[k.Name] = o; return true }); err != nil {
				return err
			}
		}
		seen := make(map[string]bool, len(l.objs)+len(l.subs))
		for _, in := range l.objs {
			seg := in.Key[len(l.prefix):]
			seen[seg] = true
			k := meta.RowKey{Dir: id, Name: seg}
			switch o := rows[seg]; {
			case o == nil:
				out = append(out, change{seg: seg, k: k, isIn: true})
			case o.Absent, o.Pending != "", o.Parent != dir:
			case o.ETag != in.ETag || o.Size != in.Size || o.LastModified != 0 && o.LastModified != in.LastModified.UnixNano():
				out = append(out, change{seg, k, o, o.Name, true})
			case o.LastModified == 0:
				stamped[k] = in.LastModified.UnixNano()
			}
		}
		subs := make(map[string]bool, len(l.subs))
		for _, s := range l.subs {
			subs[s] = true
			k := meta.RowKey{Dir: id, Name: s}
			if rows[s] != nil {
				continue
			}
			known, err := f.knownBelow(tx, l.prefix+s, dir)
			if err != nil {
				return err
			}
			if !known {
				out = append(out, change{seg: s, k: k, isIn: true})
			}
		}
		for seg, o := range rows {
			if seg != "" && o.Parent == dir && !o.Absent && o.Pending == "" && !seen[seg] && !subs[seg] {
				out = append(out, change{seg, meta.RowKey{Dir: id, Name: seg}, o, o.Name, false})
			}
		}
		return f.bareGone(tx, dir, l.prefix, subs, &out)
	})
	if err != nil {
		return nil, err
	}
	return out, f.stamp(stamped)
}

// bareGone adds the directories without an object of which nothing is listed
// any more.
func (f *folder) bareGone(tx *meta.Tx, dir vfolder.Ino, prefix string, subs map[string]bool, out *[]change) error {
	var failed error
	err := tx.Entries(dir, 0, func(e meta.DirEntry) bool {
		if e.Type != unix.S_IFDIR || !e.Row.IsZero() || e.Item != 0 {
			return true
		}
		n, err := tx.Inode(e.Ino)
		if err != nil {
			failed = err
			return false
		}
		at, err := tx.Prefix(n.Prefix)
		if err != nil {
			return true
		}
		if seg, ok := strings.CutPrefix(at, prefix); ok && !subs[seg] {
			*out = append(*out, change{seg: seg, name: e.Name})
		}
		return true
	})
	return errors.Join(err, failed)
}

// guarded reports whether keys below a prefix may be those of directories that
// were renamed and whose objects are still on their way, or were not listed yet.
func (f *folder) guarded(tx *meta.Tx, prefix string, dir vfolder.Ino) (bool, error) {
	guard := false
	var failed error
	err := tx.Items(f.root, 0, func(it meta.Item) bool {
		if it.Kind != meta.ItemTree {
			return true
		}
		n, err := tx.Inode(it.Ino)
		if err != nil || n.Prefix == 0 {
			guard = guard || err == nil // made here: where its objects were is not known
			return !guard
		}
		from, err := tx.Prefix(n.Prefix)
		if err != nil {
			failed = err
			return false
		}
		guard = strings.HasPrefix(prefix, from) || strings.HasPrefix(from, prefix)
		return !guard
	})
	return guard, errors.Join(err, failed)
}

// knownBelow reports whether what is listed as a common prefix is ours: rows
// below it, or a directory of this one that lies there.
func (f *folder) knownBelow(tx *meta.Tx, prefix string, dir vfolder.Ino) (bool, error) {
	var ids []uint64
	if err := tx.PrefixesUnder(prefix, func(id uint64, _ string) bool { ids = append(ids, id); return len(ids) < windowMost }); err != nil {
		return false, err
	}
	for _, id := range ids {
		any := false
		if err := tx.Rows(id, func(meta.RowKey, *meta.Row) bool { any = true; return false }); err != nil || any {
			return any, err
		}
	}
	at, err := tx.PrefixID(prefix)
	if err != nil || at == 0 {
		return false, err
	}
	known := false
	var failed error
	err = tx.Entries(dir, 0, func(e meta.DirEntry) bool {
		if e.Type != unix.S_IFDIR {
			return true
		}
		n, err := tx.Inode(e.Ino)
		if err != nil {
			failed = err
			return false
		}
		known = n.Prefix == at
		return !known
	})
	return known, errors.Join(err, failed)
}

// stamp stores the times that the store gave to objects written here.
func (f *folder) stamp(times map[meta.RowKey]int64) error {
	keys := make([]meta.RowKey, 0, len(times))
	for k := range times {
		keys = append(keys, k)
	}
	for len(keys) > 0 {
		batch := keys[:min(len(keys), adoptBatch)]
		keys = keys[len(batch):]
		err := f.r.db.Update(func(tx *meta.Tx) error {
			for _, k := range batch {
				o, err := tx.Row(k)
				if err != nil {
					return err
				}
				if o == nil || o.LastModified != 0 || o.Pending != "" {
					continue
				}
				o.LastModified = times[k]
				if err := tx.PutRow(k, o); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// appeared adopts a key that another program made.
func (f *folder) appeared(ctx context.Context, dir vfolder.Ino, name string, c change, key string, in objstore.Info, there bool) error {
	isDir := strings.HasSuffix(c.seg, "/")
	if isDir && !there {
		any := false // the listing may be older than our own removals
		for _, err := range f.r.store.List(ctx, key, "", false) {
			if err != nil {
				return err
			}
			any = true
			break
		}
		if !any {
			return nil
		}
	}
	adopted, was := false, name
	err := f.r.db.Update(func(tx *meta.Tx) error {
		adopted, name = false, was
		prefix, seg := splitKey(key)
		id, err := tx.MakePrefix(prefix)
		if err != nil {
			return err
		}
		k := meta.RowKey{Dir: id, Name: seg}
		if o, err := tx.Row(k); err != nil || o != nil {
			return err
		}
		e, err := tx.Entry(dir, name)
		switch {
		case err == nil && isDir:
			n, err := tx.Inode(e.Ino)
			if err != nil || n.IsDir() {
				return err // made here too; publishing it finds the object
			}
			if name, err = freeName(tx, dir, name+dirNameSuffix); err != nil {
				return err
			}
		case err == nil && e.Type == unix.S_IFDIR:
			if name, err = freeName(tx, dir, name+fileNameSuffix); err != nil {
				return err
			}
		case err == nil:
			return nil // made here too, or on its way: publishing it keeps both
		case !errors.Is(err, vfolder.KindNotFound):
			return err
		}
		listed := in
		listed.Key, listed.IsPrefix = key, isDir
		adopted = true
		if err := f.adoptListed(tx, dir, name, k, listed, f.r.now()); err != nil || name == was {
			return err
		}
		// The name is ours: what came moves to the name that it is shown under.
		if err := tx.QueuePut(dir, name); err != nil || !isDir {
			return err
		}
		if e, err = tx.Entry(dir, name); err != nil {
			return err
		}
		n, err := tx.Inode(e.Ino)
		if err != nil {
			return err
		}
		return tx.QueueTree(n)
	})
	if err != nil || !adopted {
		return ignoreGone(err)
	}
	if err := f.r.Hydrate(ctx, dir, name); err != nil {
		return ignoreGone(err)
	}
	f.r.local.EntryChanged(dir, name)
	return nil
}

// forgetName removes a name whose object is gone. When it held the bytes of a
// file that has other names, one of their objects does from now on.
func (f *folder) forgetName(tx *meta.Tx, dir vfolder.Ino, name string) (*meta.Inode, error) {
	n, err := tx.Forget(dir, name)
	if err != nil || n.Nlink == 0 || !n.IsRegular() {
		return n, err
	}
	if o, err := tx.Row(n.Base); err != nil || o != nil && o.Ino == n.Ino {
		return n, err
	}
	names, err := tx.Names(n)
	if err != nil {
		return n, err
	}
	for _, p := range names {
		e, err := tx.Entry(p.Parent, p.Name)
		if err != nil {
			return n, err
		}
		o, err := tx.Row(e.Row)
		if err != nil {
			return n, err
		}
		if o != nil && !o.Absent && o.Ino == n.Ino && o.Gen == n.Gen {
			n.Base = e.Row
			return n, tx.PutInode(n)
		}
	}
	return n, nil
}

// freeName puts "~" behind a name until no entry has it.
func freeName(tx *meta.Tx, dir vfolder.Ino, name string) (string, error) {
	for {
		_, err := tx.Entry(dir, name)
		if errors.Is(err, vfolder.KindNotFound) {
			return name, nil
		}
		if err != nil {
			return "", err
		}
		name += "~"
	}
}

// replaced takes up an object that another program overwrote.
func (f *folder) replaced(ctx context.Context, dir vfolder.Ino, c change, key string, in objstore.Info) error {
	if c.row == nil {
		return nil
	}
	a := objstore.DecodeMeta(in.Meta)
	if in.ETag == c.row.ETag && in.Size == c.row.Size && a.VID == c.row.VID {
		return f.restamp(c, in) // the listing was older than our own write
	}
	var old *meta.Inode
	var marker vfolder.Ino
	ours, adopted := false, false
	err := f.r.db.Update(func(tx *meta.Tx) error {
		old, ours, adopted = nil, false, false
		o, err := tx.Row(c.k)
		if err != nil || o == nil || o.Pending != "" || o.ETag != c.row.ETag || o.VID != c.row.VID || o.Parent != dir {
			return err
		}
		e, err := tx.Entry(o.Parent, o.Name)
		if err != nil {
			return err
		}
		n, err := tx.Inode(e.Ino)
		if err != nil {
			return err
		}
		if n.IsDir() {
			marker = n.Ino
			return f.markerReplaced(tx, o, c.k, e, n, in, a)
		}
		stale := false
		if v, err := objstore.ParseVID(a.VID); err == nil && f.lease.held() && v.Epoch < f.lease.epoch() && n.Data == meta.DataComplete && n.IsRegular() {
			stale = true // a former holder of the lease wrote after it had lost it
		}
		if n.Dirty || o.Gen != n.Gen || stale {
			ours = true
			if stale {
				o.Gen, o.AttrGen = 0, 0
				if err := tx.PutRow(c.k, o); err != nil {
					return err
				}
			}
			return tx.QueuePut(dir, c.name) // publishing it finds both and keeps both
		}
		if old, err = f.forgetName(tx, dir, c.name); err != nil {
			return err
		}
		adopted = true
		listed := in
		listed.Key, listed.IsPrefix = key, false
		return f.adoptListed(tx, dir, c.name, c.k, listed, f.r.now())
	})
	if marker != 0 {
		f.r.local.Changed(marker)
	}
	if err != nil || ours || !adopted {
		return ignoreGone(err)
	}
	if err := f.r.Hydrate(ctx, dir, c.name); err != nil {
		f.r.log.Debug("a replaced file was not looked at yet", "path", f.path(key), "err", err)
	}
	if old.Nlink == 0 {
		f.r.local.Freed(old)
	}
	f.r.local.Changed(old.Ino)
	f.r.local.EntryChanged(dir, c.name)
	return nil
}

func (f *folder) restamp(c change, in objstore.Info) error {
	return f.r.db.Update(func(tx *meta.Tx) error {
		o, err := tx.Row(c.k)
		if err != nil || o == nil || o.Pending != "" || o.ETag != in.ETag || o.VID != c.row.VID {
			return err
		}
		o.LastModified = in.LastModified.UnixNano()
		return tx.PutRow(c.k, o)
	})
}

// markerReplaced takes the attributes of a directory's object that another
// program wrote, unless they changed here too.
func (f *folder) markerReplaced(tx *meta.Tx, o *meta.Row, k meta.RowKey, e meta.Entry, n *meta.Inode, in objstore.Info, a objstore.Attrs) error {
	o.ETag, o.Size, o.VID, o.VersionID, o.LastModified = in.ETag, in.Size, a.VID, in.VersionID, in.LastModified.UnixNano()
	if e.Item == 0 {
		long := n.LongID
		applyAttrs(n, a, true, 0, in.LastModified)
		n.LongID = long
		if err := tx.PutInode(n); err != nil {
			return err
		}
	}
	return tx.PutRow(k, o)
}

// vanished removes a name whose object another program deleted. What was
// changed here since goes up again.
func (f *folder) vanished(ctx context.Context, dir vfolder.Ino, c change, key string) error {
	if strings.HasSuffix(c.seg, "/") {
		if err := f.emptied(ctx, dir, c, key); err != nil {
			return err
		}
	}
	var old *meta.Inode
	err := f.r.db.Update(func(tx *meta.Tx) error {
		old = nil
		e, err := tx.Entry(dir, c.name)
		if err != nil {
			return err
		}
		n, err := tx.Inode(e.Ino)
		if err != nil {
			return err
		}
		o, err := tx.Row(e.Row)
		if err != nil {
			return err
		}
		switch {
		case c.row == nil && (o != nil || e.Item != 0):
			return nil
		case c.row != nil && (o == nil || e.Row != c.k || o.Pending != "" || o.ETag != c.row.ETag || o.VID != c.row.VID):
			return nil
		}
		full := false
		if n.IsDir() {
			if full, err = tx.HasEntries(n.Ino); err != nil {
				return err
			}
		}
		p, err := f.place(tx, dir, c.name, n, true)
		if err != nil {
			return err
		}
		moved := o != nil && p.k != e.Row && n.Data == meta.DataComplete
		if full || n.Dirty || o != nil && !n.IsDir() && o.Gen != n.Gen || moved {
			if o != nil {
				if err := tx.DropRow(f.root, e.Row); err != nil {
					return err
				}
			}
			return tx.QueuePut(dir, c.name)
		}
		old, err = f.forgetName(tx, dir, c.name)
		return err
	})
	if err != nil || old == nil {
		return ignoreGone(err)
	}
	if old.Nlink == 0 {
		f.r.local.Freed(old)
	}
	f.r.local.EntryChanged(dir, c.name)
	return nil
}

// emptied removes what lay in a directory that is gone from the bucket.
func (f *folder) emptied(ctx context.Context, dir vfolder.Ino, c change, key string) error {
	for _, err := range f.r.store.List(ctx, key, "", false) {
		return err // something is there: only its own object is missing
	}
	var sub *meta.Inode
	var prefix string
	err := f.r.db.View(func(tx *meta.Tx) error {
		e, err := tx.Entry(dir, c.name)
		if err != nil {
			return err
		}
		if sub, err = tx.Inode(e.Ino); err != nil {
			return err
		}
		prefix, err = f.dirPrefix(tx, sub, false)
		return err
	})
	if err != nil || !sub.IsDir() || !sub.Listed {
		return ignoreGone(err)
	}
	return f.compare(ctx, sub.Ino, listing{prefix: prefix})
}
