package reconcile

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/objstore"
)

// share runs fn once for all who want key at the same time. It goes on when one
// of them gives up.
func (r *Reconciler) share(ctx context.Context, key string, fn func(context.Context) error) error {
	ch := r.flights.DoChan(key, func() (any, error) { return nil, fn(r.ctx) })
	select {
	case res := <-ch:
		return res.Err
	case <-ctx.Done():
		return &vfolder.Error{Op: "wait for the store", Kind: vfolder.KindInterrupted, Err: ctx.Err()}
	}
}

// List implements vfs.Remote.
func (r *Reconciler) List(ctx context.Context, dir vfolder.Ino) error {
	n, err := r.inode(dir)
	if err != nil {
		return err
	}
	if !n.IsDir() {
		return vfolder.Errorf(vfolder.KindNotDir, "list", n.Name, "is not a directory")
	}
	if dir == vfolder.RootIno {
		return nil
	}
	r.Touch(dir)
	if n.Listed {
		return nil
	}
	f, err := r.of(n)
	if err != nil {
		return err
	}
	f.use()
	return r.share(ctx, fmt.Sprintf("list %d", dir), func(ctx context.Context) error { return f.list(ctx, dir) })
}

// listing is what lies directly below a prefix.
type listing struct {
	prefix string
	objs   []objstore.Info
	subs   []string // segments, each with its slash
}

// readListing lists one directory.
func (r *Reconciler) readListing(ctx context.Context, prefix string) (listing, error) {
	l := listing{prefix: prefix}
	for in, err := range r.store.List(ctx, prefix, "", true) {
		if err != nil {
			return l, err
		}
		l.add(in)
	}
	return l, nil
}

func (l *listing) add(in objstore.Info) {
	seg := strings.TrimPrefix(in.Key, l.prefix)
	switch {
	case seg == "" || strings.HasPrefix(in.Key, vfolder.ReservedPrefix) && !strings.HasPrefix(l.prefix, vfolder.ReservedPrefix):
	case in.IsPrefix:
		l.subs = append(l.subs, seg)
	default:
		l.objs = append(l.objs, in)
	}
}

// dirNameSuffix is put behind the name of a directory whose name a file has.
const dirNameSuffix = "~dir"

// fileNameSuffix is put behind the name of a file that comes where a directory
// of that name is.
const fileNameSuffix = "~file"

// bodyNameSuffix is put behind a directory's name to show the bytes of an
// object whose key ends in a slash.
const bodyNameSuffix = "~body"

// names finds the names of what is listed, by segment (directories with their
// slash). Names that are too long for a key are asked of their objects.
func (f *folder) names(ctx context.Context, l listing) (map[string]string, error) {
	segs := make([]string, 0, len(l.objs)+len(l.subs))
	out := make(map[string]string, len(l.objs)+len(l.subs))
	for _, in := range l.objs {
		segs = append(segs, in.Key[len(l.prefix):])
	}
	for _, s := range l.subs {
		segs = append(segs, strings.TrimSuffix(s, "/"))
	}
	plain := f.r.codec.Resolve(segs)
	taken := map[string]bool{}
	place := func(seg, name string) {
		for taken[name] {
			name += "~"
		}
		taken[name], out[seg] = true, name
	}
	var hashed []string
	for _, in := range l.objs {
		seg := in.Key[len(l.prefix):]
		if name, ok := plain[seg]; ok {
			place(seg, name)
		} else {
			hashed = append(hashed, seg)
		}
	}
	for _, s := range l.subs {
		name, ok := plain[strings.TrimSuffix(s, "/")]
		switch {
		case !ok:
			hashed = append(hashed, s)
		case taken[name]:
			place(s, name+dirNameSuffix)
		default:
			place(s, name)
		}
	}
	if len(hashed) == 0 {
		return out, nil
	}
	infos, err := f.r.headAll(ctx, l.prefix, hashed)
	if err != nil {
		return nil, err
	}
	for _, seg := range hashed {
		name := strings.TrimSuffix(seg, "/")
		if in, ok := infos[seg]; ok {
			if a := objstore.DecodeMeta(in.Meta); a.Name != "" && len(a.Name) <= vfolder.MaxNameBytes && !strings.Contains(a.Name, "/") {
				name = a.Name
			}
		}
		place(seg, name)
	}
	return out, nil
}

// headAll asks for many objects at once; those that are missing are left out.
func (r *Reconciler) headAll(ctx context.Context, prefix string, segs []string) (map[string]objstore.Info, error) {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex // guards out and first
		first error
		out   = make(map[string]objstore.Info, len(segs))
	)
	for _, seg := range segs {
		select {
		case r.heads <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			in, err := r.store.Head(ctx, prefix+seg)
			<-r.heads
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				out[seg] = in
			case vfolder.KindOf(err) == vfolder.KindNotFound, vfolder.KindOf(err) == vfolder.KindInvalid:
			case first == nil:
				first = err
			}
		}()
	}
	wg.Wait()
	if first == nil && ctx.Err() != nil {
		first = &vfolder.Error{Op: "head", Kind: vfolder.KindInterrupted, Path: prefix, Err: ctx.Err()}
	}
	return out, first
}

// list takes a directory's entries into the index for the first time.
func (f *folder) list(ctx context.Context, dir vfolder.Ino) error {
	n, err := f.inode(dir)
	if err != nil || n.Listed {
		return err
	}
	if n.Unhydrated && n.Parent != 0 {
		if err := f.r.Hydrate(ctx, n.Parent, n.Name); err != nil {
			return err
		}
		if n, err = f.inode(dir); err != nil || n.Listed {
			return err
		}
	}
	f.readSegments(ctx)
	prefix, err := f.listedPrefix(n)
	if err != nil {
		return err
	}
	at := f.r.now()
	l, err := f.r.readListing(ctx, prefix)
	if err != nil {
		return err
	}
	names, err := f.names(ctx, l)
	if err != nil {
		return err
	}
	return f.adoptListing(dir, l, names, at)
}

// listedPrefix is where the entries of a directory are to be found now.
func (f *folder) listedPrefix(n *meta.Inode) (prefix string, err error) {
	err = f.r.db.View(func(tx *meta.Tx) error {
		if n.Prefix != 0 {
			prefix, err = tx.Prefix(n.Prefix)
			return err
		}
		prefix, err = f.dirPrefix(tx, n, false)
		return err
	})
	return prefix, err
}

const adoptBatch = 500

func (f *folder) adoptListing(dir vfolder.Ino, l listing, names map[string]string, at time.Time) error {
	type found struct {
		seg string
		in  objstore.Info
	}
	all := make([]found, 0, len(l.objs)+len(l.subs))
	for _, in := range l.objs {
		all = append(all, found{in.Key[len(l.prefix):], in})
	}
	for _, s := range l.subs {
		all = append(all, found{seg: s, in: objstore.Info{IsPrefix: true, Key: l.prefix + s}})
	}
	for done := false; !done; {
		batch := all[:min(len(all), adoptBatch)]
		all = all[len(batch):]
		done = len(all) == 0
		err := f.r.db.Update(func(tx *meta.Tx) error {
			d, err := tx.Inode(dir)
			if err != nil {
				return err
			}
			id, err := tx.MakePrefix(l.prefix)
			if err != nil {
				return err
			}
			for _, x := range batch {
				if err := f.adoptListed(tx, dir, names[x.seg], meta.RowKey{Dir: id, Name: x.seg}, x.in, at); err != nil {
					return err
				}
			}
			// Listing is not changing: the times stay what they were.
			after, err := tx.Inode(dir)
			if err != nil {
				return err
			}
			after.Mtime, after.Ctime = d.Mtime, d.Ctime
			if done {
				after.Listed = true
				if after.Prefix == 0 {
					after.Prefix = id
				}
			}
			return tx.PutInode(after)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// adoptListed inserts one listed key unless it is known already.
func (f *folder) adoptListed(tx *meta.Tx, dir vfolder.Ino, name string, k meta.RowKey, in objstore.Info, at time.Time) error {
	known, err := tx.Row(k)
	if err != nil || known != nil {
		return err
	}
	if _, err := tx.Entry(dir, name); err == nil {
		return nil // made here meanwhile: publishing it finds the object
	} else if !errors.Is(err, vfolder.KindNotFound) {
		return err
	}
	if in.IsPrefix {
		id, err := tx.MakePrefix(in.Key)
		if err != nil {
			return err
		}
		n := &meta.Inode{Unhydrated: true, Prefix: id}
		applyAttrs(n, objstore.Attrs{}, true, 0, at)
		return tx.Adopt(dir, name, n, meta.RowKey{}, nil)
	}
	n := &meta.Inode{Unhydrated: true, Listed: true, Base: k}
	applyAttrs(n, objstore.Attrs{}, false, in.Size, in.LastModified)
	row := &meta.Row{ETag: in.ETag, Size: in.Size, LastModified: in.LastModified.UnixNano(), Gen: 1, AttrGen: 1}
	xattrs, err := f.applyHint(tx, n, row, strings.TrimPrefix(in.Key, f.prefix), at)
	if err != nil {
		return err
	}
	if err := tx.Adopt(dir, name, n, k, row); err != nil {
		return err
	}
	for x, v := range xattrs {
		if err := tx.PutXattr(n.Ino, x, v); err != nil {
			return err
		}
	}
	return nil
}

// Hydrate implements vfs.Remote.
func (r *Reconciler) Hydrate(ctx context.Context, parent vfolder.Ino, names ...string) error {
	r.Touch(parent)
	var todo []string
	err := r.db.View(func(tx *meta.Tx) error {
		for _, name := range names {
			e, err := tx.Entry(parent, name)
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
			if n.Unhydrated {
				todo = append(todo, name)
			}
		}
		return nil
	})
	if err != nil || len(todo) == 0 {
		return err
	}
	n, err := r.inode(parent)
	if err != nil {
		return err
	}
	f, err := r.of(n)
	if err != nil {
		return err
	}
	f.use()
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex // guards first
		first error
		slots = make(chan struct{}, headParallel)
	)
	for _, name := range todo {
		slots <- struct{}{}
		wg.Add(1)
		go func() {
			defer wg.Done()
			err := r.share(ctx, fmt.Sprintf("hydrate %d/%s", parent, name), func(ctx context.Context) error { return f.hydrate(ctx, parent, name) })
			<-slots
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				if first == nil {
					first = err
				}
			}
		}()
	}
	wg.Wait()
	return first
}

// hydrateTries bounds how often an entry that changes meanwhile is looked at.
const hydrateTries = 5

func (f *folder) hydrate(ctx context.Context, parent vfolder.Ino, name string) error {
	for range hydrateTries {
		k, key, isDir, ok, err := f.hydrateKey(parent, name)
		if err != nil || !ok {
			return err
		}
		in, err := f.r.store.Head(ctx, key)
		missing := err != nil && (vfolder.KindOf(err) == vfolder.KindNotFound || isDir && vfolder.KindOf(err) == vfolder.KindInvalid)
		if err != nil && !missing {
			return err
		}
		if missing && !isDir {
			f.r.lookAgain(parent)
			return vfolder.Errorf(vfolder.KindNotFound, "look up", f.path(key), "the object was deleted by another program just now")
		}
		again, err := f.applyHead(ctx, parent, name, k, key, in, missing)
		if err != nil || !again {
			return err
		}
	}
	return vfolder.Errorf(vfolder.KindBusy, "look up", name, "it keeps changing in the bucket")
}

// hydrateKey finds the object that tells the attributes of an entry.
func (f *folder) hydrateKey(parent vfolder.Ino, name string) (k meta.RowKey, key string, isDir, ok bool, err error) {
	err = f.r.db.View(func(tx *meta.Tx) error {
		e, err := tx.Entry(parent, name)
		if err != nil {
			return err
		}
		n, err := tx.Inode(e.Ino)
		if err != nil || !n.Unhydrated {
			return err
		}
		ok, isDir, k = true, n.IsDir(), e.Row
		if !k.IsZero() {
			key, err = keyOf(tx, k)
			return err
		}
		if !isDir || n.Prefix == 0 {
			return vfolder.Errorf(vfolder.KindCorrupt, "look up", name, "an entry that was listed has no object")
		}
		if key, err = tx.Prefix(n.Prefix); err != nil {
			return err
		}
		k, err = rowKeyOf(tx, key)
		return err
	})
	if errors.Is(err, vfolder.KindNotFound) {
		return k, key, isDir, false, nil
	}
	return k, key, isDir, ok, err
}

// applyHead gives an entry the attributes of its object, and reports whether
// that has to be done again since either changed meanwhile.
func (f *folder) applyHead(ctx context.Context, parent vfolder.Ino, name string, k meta.RowKey, key string, in objstore.Info, missing bool) (again bool, err error) {
	a := objstore.DecodeMeta(in.Meta)
	xattrs, err := f.r.readXattrs(ctx, a)
	if err != nil {
		return false, err
	}
	target := ""
	if a.HasMode && a.Mode&unix.S_IFMT == unix.S_IFLNK && !strings.HasSuffix(key, "/") {
		if target, err = f.r.readTarget(ctx, key, in); err != nil {
			return gone(err), ignoreGone(err)
		}
	}
	linked := false
	err = f.r.db.Update(func(tx *meta.Tx) error {
		again, linked = false, false
		e, err := tx.Entry(parent, name)
		if errors.Is(err, vfolder.KindNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		n, err := tx.Inode(e.Ino)
		if err != nil || !n.Unhydrated {
			return err
		}
		if !e.Row.IsZero() && e.Row != k {
			again = true
			return nil
		}
		if n.IsDir() {
			return f.applyDirHead(tx, parent, name, n, k, in, a, xattrs, missing)
		}
		row, err := tx.Row(k)
		if err != nil {
			return err
		}
		if row == nil {
			again = true
			return nil
		}
		row.ETag, row.Size, row.LastModified, row.VID, row.VersionID = in.ETag, in.Size, in.LastModified.UnixNano(), a.VID, in.VersionID
		n.Target, n.Unhydrated = target, false
		applyAttrs(n, a, false, in.Size, in.LastModified)
		if err := f.storeHydrated(tx, parent, name, n, row, k, in, a, xattrs); err != nil {
			return err
		}
		linked = a.Link != ""
		return nil
	})
	if err != nil || again || !linked {
		return again, err
	}
	return false, f.joinGroup(ctx, parent, name, a.Link)
}

func ignoreGone(err error) error {
	if gone(err) {
		return nil
	}
	return err
}

func (f *folder) storeHydrated(tx *meta.Tx, parent vfolder.Ino, name string, n *meta.Inode, row *meta.Row, k meta.RowKey, in objstore.Info, a objstore.Attrs, xattrs map[string][]byte) error {
	if row != nil {
		if err := tx.PutRow(k, row); err != nil {
			return err
		}
	}
	if err := tx.PutInode(n); err != nil {
		return err
	}
	for x, v := range xattrs {
		if err := tx.PutXattr(n.Ino, x, v); err != nil {
			return err
		}
	}
	if keep, ok := keptOf(in, a); ok && row != nil {
		if err := putKept(tx, f.root, n.Ino, keep); err != nil {
			return err
		}
	}
	return tx.SetEntry(parent, name, n.Ino, n.Mode&unix.S_IFMT)
}

// applyDirHead does so for a directory, whose object may be missing, and may
// have bytes, which are then shown as a file beside it.
func (f *folder) applyDirHead(tx *meta.Tx, parent vfolder.Ino, name string, n *meta.Inode, k meta.RowKey, in objstore.Info, a objstore.Attrs, xattrs map[string][]byte, missing bool) error {
	n.Unhydrated = false
	if missing {
		return tx.PutInode(n)
	}
	row := &meta.Row{
		Ino: n.Ino, ETag: in.ETag, Size: in.Size, LastModified: in.LastModified.UnixNano(), VersionID: in.VersionID, VID: a.VID,
		Gen: n.Gen, AttrGen: n.AttrGen,
	}
	if k.Dir == 0 {
		prefix, _ := splitKey(in.Key)
		id, err := tx.MakePrefix(prefix)
		if err != nil {
			return err
		}
		k.Dir = id
	}
	known, err := tx.Row(k)
	if err != nil {
		return err
	}
	if in.Size > 0 {
		if known == nil {
			if err := f.adoptBody(tx, parent, name, k, row, in, a); err != nil {
				return err
			}
		}
		return tx.PutInode(n)
	}
	applyAttrs(n, a, true, 0, in.LastModified)
	if n.LongID != "" {
		if n.Prefix, err = tx.MakePrefix(f.longPrefix(n.LongID)); err != nil {
			return err
		}
	}
	if known != nil && (known.Parent != parent || known.Name != name) {
		return tx.PutInode(n) // another directory of that name has come since
	}
	if err := f.storeHydrated(tx, parent, name, n, nil, k, in, a, xattrs); err != nil {
		return err
	}
	return tx.BindRow(f.root, parent, name, k, row)
}

func (f *folder) adoptBody(tx *meta.Tx, parent vfolder.Ino, name string, k meta.RowKey, row *meta.Row, in objstore.Info, a objstore.Attrs) error {
	shown, err := freeName(tx, parent, name+bodyNameSuffix)
	if err != nil {
		return err
	}
	body := &meta.Inode{Listed: true, Base: k}
	a.Mode = a.Mode&0o7777 | unix.S_IFREG
	applyAttrs(body, a, false, in.Size, in.LastModified)
	row.Gen, row.AttrGen = 1, 1
	return tx.Adopt(parent, shown, body, k, row)
}

// readXattrs reads the extended attributes that lie elsewhere. When they are
// lost the file is shown without them.
func (r *Reconciler) readXattrs(ctx context.Context, a objstore.Attrs) (map[string][]byte, error) {
	if a.XattrRef == "" {
		return a.Xattrs, nil
	}
	body, _, err := r.readSmall(ctx, objstore.XattrKey(a.XattrRef), maxXattrObject)
	if err == nil {
		var x map[string][]byte
		if x, err = objstore.DecodeXattrs(body, a.XattrRef); err == nil {
			return x, nil
		}
	}
	switch vfolder.KindOf(err) {
	case vfolder.KindNotFound, vfolder.KindCorrupt:
		r.log.Warn("extended attributes are lost", "object", objstore.XattrKey(a.XattrRef), "err", err)
		return nil, nil
	}
	return nil, err
}

// readTarget reads a symbolic link's target.
func (r *Reconciler) readTarget(ctx context.Context, key string, in objstore.Info) (string, error) {
	if in.Size >= vfolder.MaxPathBytes {
		return "", vfolder.Errorf(vfolder.KindCorrupt, "symlink", key, "its target has %d bytes", in.Size)
	}
	if in.Size == 0 {
		return "", nil
	}
	rc, _, err := r.store.Get(ctx, key, 0, -1, in.ETag)
	if err != nil {
		return "", err
	}
	defer rc.Close()
	b := make([]byte, in.Size)
	if _, err := readFull(rc, b); err != nil {
		return "", &vfolder.Error{Op: "symlink", Kind: vfolder.KindUnreachable, Path: key, Err: err}
	}
	return string(b), nil
}
