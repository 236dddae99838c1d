package reconcile

import (
	"bytes"
	"context"
	"errors"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/objstore"
)

// clear makes the desired key free: nil when it is. Otherwise what is in the
// way is told to go, and errBlocked says to come back.
func (f *folder) clear(ctx context.Context, j *job) error {
	var all []blocker
	cycle := false
	err := f.r.db.View(func(tx *meta.Tx) (err error) {
		if all, err = f.blockers(tx, j.p, j.it.Parent, j.it.Name, j.n.IsDir()); err != nil {
			return err
		}
		for _, b := range all {
			if b.row.Parent != 0 && j.own != nil {
				cycle, err = f.inCycle(tx, j.it.Parent, j.it.Name, b)
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if cycle {
		err := f.park(ctx, j.e.Row, j.own)
		switch {
		case err == nil:
			return errBlocked
		case vfolder.KindOf(err) == vfolder.KindNotFound:
			return f.lost(ctx, j)
		case vfolder.KindOf(err) == vfolder.KindConflict:
			return f.overtaken(ctx, j)
		}
		return err
	}
	for _, b := range all {
		if err := f.evict(b, j); err != nil {
			return err
		}
	}
	if len(all) > 0 {
		return errBlocked
	}
	if j.at == nil || j.at.Absent || j.e.Row == j.p.k {
		return nil
	}
	// What is overwritten may be the only place of bytes that somebody reads.
	return f.rescue(ctx, j.p.k, j.at, j.n.Ino)
}

// overtaken is called when another program changed the entry's own object,
// which was to be moved.
func (f *folder) overtaken(ctx context.Context, j *job) error {
	var key string
	if err := f.r.db.View(func(tx *meta.Tx) (err error) { key, err = keyOf(tx, j.e.Row); return err }); err != nil {
		return err
	}
	in, err := f.r.store.Head(ctx, key)
	if err != nil {
		return err
	}
	if j.n.IsRegular() && !j.n.Dirty && j.own.Gen == j.n.Gen {
		return f.follow(ctx, j, in, key)
	}
	// It goes up from here in any case: what the other program wrote is not in
	// our way any more once its key is not ours.
	return f.again(j, func(tx *meta.Tx) error { return tx.DropRow(f.root, j.e.Row) })
}

// evict asks one blocker to go.
func (f *folder) evict(b blocker, j *job) error {
	return f.r.db.Update(func(tx *meta.Tx) error {
		o, err := tx.Row(b.k)
		if err != nil || o == nil {
			return err
		}
		if o.Parent == 0 {
			if o.Item == 0 {
				if o.Absent {
					return nil // a write under way, or to be settled
				}
				if err := tx.QueueDelete(f.root, b.k); err != nil {
					return err
				}
				if o, err = tx.Row(b.k); err != nil {
					return err
				}
			}
			if o.Item > j.it.Seq {
				f.want(b.k) // else its turn comes before ours anyway
			}
			return nil
		}
		return f.expel(tx, b, o)
	})
}

// expel queues what makes an owned row leave its key.
func (f *folder) expel(tx *meta.Tx, b blocker, o *meta.Row) error {
	e, err := tx.Entry(o.Parent, o.Name)
	if err != nil {
		return err
	}
	n, err := tx.Inode(e.Ino)
	if err != nil {
		return err
	}
	p, err := f.place(tx, o.Parent, o.Name, n, true)
	if err != nil {
		return err
	}
	if p.k == b.k {
		key, _ := keyOf(tx, b.k)
		return vfolder.Errorf(vfolder.KindExists, "publish", f.path(key), "two files need keys that cannot be in the bucket together")
	}
	if e.Item != 0 {
		return nil
	}
	return tx.QueuePut(o.Parent, o.Name)
}

// obstructed is called when the store refuses a key because of another one: a
// file where a directory is needed, or the reverse. What another program put
// there is adopted under a name beside ours and moves there.
func (f *folder) obstructed(ctx context.Context, j *job, cause error) error {
	var dirs []vfolder.Ino
	err := f.r.db.View(func(tx *meta.Tx) error {
		for at := j.it.Parent; at != vfolder.RootIno; {
			dirs = append(dirs, at)
			n, err := tx.Inode(at)
			if err != nil {
				return err
			}
			at = n.Parent
			if n.Ino == n.Folder || at == 0 {
				break
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := f.r.refresh(ctx, dir); err != nil {
			return err
		}
	}
	found := false
	err = f.r.db.Update(func(tx *meta.Tx) error {
		found = false
		all, err := f.blockers(tx, j.p, j.it.Parent, j.it.Name, j.n.IsDir())
		if err != nil || len(all) > 0 {
			found = true
			return err
		}
		id, err := tx.PrefixID(j.p.key + "/")
		if err != nil || id == 0 {
			return err
		}
		var name string
		var failed error
		err = tx.Entries(j.it.Parent, 0, func(e meta.DirEntry) bool {
			if e.Ino == j.n.Ino {
				return true
			}
			n, err := tx.Inode(e.Ino)
			if err != nil {
				failed = err
				return false
			}
			if n.IsDir() && n.Prefix == id {
				name = e.Name
			}
			return name == ""
		})
		if err := errors.Join(err, failed); err != nil || name == "" {
			return err
		}
		found = true
		e, err := tx.Entry(j.it.Parent, name)
		if err != nil {
			return err
		}
		n, err := tx.Inode(e.Ino)
		if err != nil {
			return err
		}
		if err := tx.QueuePut(j.it.Parent, name); err != nil {
			return err
		}
		return tx.QueueTree(n)
	})
	if err != nil {
		return err
	}
	if !found && f.stuck(j.it) {
		return cause
	}
	return errBlocked
}

// stuckAfter is how often a key may be refused without a reason to be seen
// before that is a failure: what was in the way may just have gone.
const stuckAfter = 3

func (f *folder) stuck(it meta.Item) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := failureKey(it)
	f.refused[name]++
	if f.refused[name] < stuckAfter {
		return false
	}
	delete(f.refused, name)
	return true
}

// park moves the object of an owned row out of the way, under the folder's own
// prefix, to where nothing else wants to be. The order is copy, commit, delete.
func (f *folder) park(ctx context.Context, k meta.RowKey, o *meta.Row) error {
	var from string
	if err := f.r.db.View(func(tx *meta.Tx) (err error) { from, err = keyOf(tx, k); return err }); err != nil {
		return err
	}
	if o.Pending != "" {
		return errBlocked
	}
	to := f.own(parkedDir + randomHex(8))
	in, err := f.copyAside(ctx, from, to, o)
	if err != nil {
		return err
	}
	return f.r.db.Update(func(tx *meta.Tx) error {
		id, err := tx.MakePrefix(f.own(parkedDir))
		if err != nil {
			return err
		}
		toK := meta.RowKey{Dir: id, Name: to[len(f.own(parkedDir)):]}
		parked := &meta.Row{ETag: in.ETag, Size: o.Size, VersionID: in.VersionID, VID: o.VID, Gen: o.Gen, AttrGen: o.AttrGen}
		now, err := tx.Row(k)
		if err != nil {
			return err
		}
		if now == nil || now.ETag != o.ETag || now.Ino != o.Ino {
			parked.Ino = o.Ino
			if err := tx.PutRow(toK, parked); err != nil {
				return err
			}
			return tx.QueueDelete(f.root, toK) // it changed meanwhile: the copy is of no use
		}
		if err := tx.MoveRow(f.root, k, toK, parked); err != nil {
			return err
		}
		return f.rebase(tx, o.Ino, k, toK)
	})
}

// copyAside copies an object as it is, with the key it came from. An object of
// which the row knows the version is copied in that version only.
func (f *folder) copyAside(ctx context.Context, from, to string, o *meta.Row) (objstore.Info, error) {
	ctx, cancel, err := f.lease.during(ctx)
	if err != nil {
		return objstore.Info{}, err
	}
	defer cancel()
	in, err := f.r.store.Head(ctx, from)
	if err == nil && o.ETag != "" && in.ETag != o.ETag {
		err = vfolder.Errorf(vfolder.KindConflict, "park", f.path(from), "the object was changed by another program")
	}
	if err != nil {
		return in, err
	}
	m := map[string]string{}
	for k, v := range in.Meta {
		m[k] = v
	}
	m[homeMeta] = escapeMeta(from)
	if objstore.MetaBytes(m) >= objstore.MaxMetaBytes {
		delete(m, homeMeta)
	}
	put := objstore.PutOptions{Meta: m, ContentType: in.ContentType}
	if in.Size == 0 {
		return f.r.store.Put(ctx, to, bytes.NewReader(nil), 0, put)
	}
	return f.r.store.Copy(ctx, to, from, objstore.CopyOptions{SourceIfMatch: in.ETag, Meta: m, ContentType: in.ContentType})
}

// rebase makes an inode whose remote bytes were at from have them at to.
func (f *folder) rebase(tx *meta.Tx, ino vfolder.Ino, from, to meta.RowKey) error {
	n, err := tx.Inode(ino)
	if errors.Is(err, vfolder.KindStale) {
		return nil
	}
	if err != nil || n.Base != from {
		return err
	}
	n.Base = to
	return tx.PutInode(n)
}

// rescue sees to it that the object of row o at k may be deleted or
// overwritten, for the sake of an inode other than but, whose bytes are there
// and not all here.
func (f *folder) rescue(ctx context.Context, k meta.RowKey, o *meta.Row, but vfolder.Ino) error {
	needed := false
	err := f.r.db.Update(func(tx *meta.Tx) error {
		needed = false
		n, err := tx.Inode(o.Ino)
		if errors.Is(err, vfolder.KindStale) {
			return nil
		}
		if err != nil || !n.IsRegular() || n.Base != k || n.Ino == but || n.Size == 0 || n.Data == meta.DataComplete {
			return err
		}
		// Another name of the file may have the same bytes.
		names, err := tx.Names(n)
		if err != nil {
			return err
		}
		for _, p := range names {
			e, err := tx.Entry(p.Parent, p.Name)
			if err != nil {
				return err
			}
			other, err := tx.Row(e.Row)
			if err != nil {
				return err
			}
			if other != nil && e.Row != k && !other.Absent && other.Ino == n.Ino && other.Gen == o.Gen {
				n.Base = e.Row
				return tx.PutInode(n)
			}
		}
		needed = true
		return nil
	})
	if err != nil || !needed {
		return err
	}
	if err := f.park(ctx, k, o); err != nil {
		switch vfolder.KindOf(err) {
		case vfolder.KindNotFound, vfolder.KindConflict:
			return nil // another program took that version away: there is nothing left to save
		}
		return err
	}
	return nil
}

// sweepParked queues the deletion of parked objects that no inode needs any
// more: its file was freed, or all its bytes are here.
func (f *folder) sweepParked() error {
	return f.r.db.Update(func(tx *meta.Tx) error {
		id, err := tx.PrefixID(f.own(parkedDir))
		if err != nil || id == 0 {
			return err
		}
		var idle []meta.RowKey
		var failed error
		err = tx.Rows(id, func(k meta.RowKey, o *meta.Row) bool {
			if o.Parent != 0 || o.Item != 0 || o.Absent {
				return true
			}
			n, err := tx.Inode(o.Ino)
			if errors.Is(err, vfolder.KindStale) || err == nil && n.Base != k {
				idle = append(idle, k)
			} else if err != nil {
				failed = err
			}
			return failed == nil
		})
		if err := errors.Join(err, failed); err != nil {
			return err
		}
		for _, k := range idle {
			if err := tx.QueueDelete(f.root, k); err != nil {
				return err
			}
		}
		return nil
	})
}

// treeBatch is how many entries one transaction of a walk looks at.
const treeBatch = 500

// tree walks below a directory that moved and queues every entry that is out
// of place. Directories that were never listed are listed first, from where
// they were. Doing it again changes nothing.
func (f *folder) tree(ctx context.Context, it meta.Item) error {
	if err := f.walk(ctx, it.Ino); err != nil {
		return err
	}
	return f.done(it)
}

func (f *folder) walk(ctx context.Context, dir vfolder.Ino) error {
	n, err := f.inode(dir)
	if errors.Is(err, vfolder.KindStale) || err == nil && n.Nlink == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	if !n.Listed {
		if err := f.r.List(ctx, dir); err != nil {
			return err
		}
	}
	var subs []vfolder.Ino
	for after := uint64(0); ; {
		var batch []meta.DirEntry
		err := f.r.db.View(func(tx *meta.Tx) error {
			batch = batch[:0]
			return tx.Entries(dir, after, func(e meta.DirEntry) bool {
				// Entries that share a cookie must come together.
				if len(batch) >= treeBatch && e.Cookie != batch[len(batch)-1].Cookie {
					return false
				}
				batch = append(batch, e)
				return true
			})
		})
		if err != nil {
			return err
		}
		if len(batch) == 0 {
			break
		}
		after = batch[len(batch)-1].Cookie
		if err := f.outOfPlace(ctx, dir, batch, &subs); err != nil {
			return err
		}
	}
	for _, sub := range subs {
		if err := f.walk(ctx, sub); err != nil {
			return err
		}
	}
	return f.r.db.Update(func(tx *meta.Tx) error {
		n, err := tx.Inode(dir)
		if errors.Is(err, vfolder.KindStale) {
			return nil
		}
		if err != nil {
			return err
		}
		p, err := f.dirPrefix(tx, n, true)
		if errors.Is(err, vfolder.KindNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		id, err := tx.MakePrefix(p)
		if err != nil || n.Prefix == id {
			return err
		}
		n.Prefix = id
		return tx.PutInode(n)
	})
}

func (f *folder) inode(ino vfolder.Ino) (*meta.Inode, error) {
	var n *meta.Inode
	err := f.r.db.View(func(tx *meta.Tx) (err error) { n, err = tx.Inode(ino); return err })
	return n, err
}

// outOfPlace queues those of a batch of entries whose object is elsewhere.
func (f *folder) outOfPlace(ctx context.Context, dir vfolder.Ino, batch []meta.DirEntry, subs *[]vfolder.Ino) error {
	var fresh []string
	err := f.r.db.View(func(tx *meta.Tx) error {
		for _, e := range batch {
			if !e.Row.IsZero() || e.Item != 0 {
				continue
			}
			n, err := tx.Inode(e.Ino)
			if err != nil {
				return err
			}
			if n.Unhydrated {
				fresh = append(fresh, e.Name) // a directory, whose object was not looked at yet
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(fresh) > 0 {
		if err := f.r.Hydrate(ctx, dir, fresh...); err != nil {
			return err
		}
	}
	return f.r.db.Update(func(tx *meta.Tx) error {
		for _, b := range batch {
			e, err := tx.Entry(dir, b.Name)
			if errors.Is(err, vfolder.KindNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			n, err := tx.Inode(e.Ino)
			if err != nil {
				return err
			}
			p, err := f.place(tx, dir, b.Name, n, true)
			if err != nil {
				return err
			}
			if n.IsDir() {
				prefix, err := f.dirPrefix(tx, n, true)
				if err != nil {
					return err
				}
				id, err := tx.PrefixID(prefix)
				if err != nil {
					return err
				}
				if n.LongID == "" || id == 0 || n.Prefix != id { // below a long id nothing moves
					*subs = append(*subs, n.Ino)
				}
			}
			if e.Item != 0 || e.Row == p.k || e.Row.IsZero() && !n.IsDir() {
				continue
			}
			if err := tx.QueuePut(dir, b.Name); err != nil {
				return err
			}
		}
		return nil
	})
}
