package reconcile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/content"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/objstore"
)

// job is one attempt to bring an entry to the bucket: what the index says when
// it begins, and then what is to be sent.
type job struct {
	it     meta.Item
	p      place
	e      meta.Entry
	n      *meta.Inode
	xattrs map[string][]byte
	at     *meta.Row // at the desired key: own, without owner, or nil
	own    *meta.Row // of the entry, wherever it is
	src    *meta.Row // object with the bytes of n.Gen, nil for none
	srcKey string
	keep   kept

	frozen *Frozen
	vid    string
	meta   map[string]string
	size   int64
	body   objstore.Body
	began  time.Time
}

// smallBytes is up to where sending local bytes again is preferred to copying
// on the server: one request, and the only one that publishes conditionally
// without a multipart upload.
const smallBytes = 1 << 20

// publish makes the bucket carry an entry.
func (f *folder) publish(ctx context.Context, it meta.Item) error {
	j := &job{it: it, began: time.Now()}
	todo, err := f.load(j)
	if err != nil || !todo {
		return err
	}
	names := []string{lockIno(j.n.Ino), lockKey(j.p.key)}
	if !f.lock(names...) {
		return errBlocked
	}
	defer f.unlock(names...)
	for {
		if todo, err = f.load(j); err != nil || !todo {
			return err
		}
		if names[0] != lockIno(j.n.Ino) || names[1] != lockKey(j.p.key) {
			return errBlocked // renamed or replaced meanwhile
		}
		if j.at == nil || j.at.Pending == "" {
			break
		}
		if err := f.settleWrite(ctx, j.p.key, j.p.k); err != nil {
			return err
		}
	}
	if j.n.Unhydrated {
		return f.hydrateFirst(ctx, j)
	}
	if err := f.clear(ctx, j); err != nil {
		return err
	}
	if err := f.freeze(ctx, j); err != nil {
		return err
	}
	if j.frozen != nil {
		defer j.frozen.Close()
	}
	if err := f.prepare(ctx, j); err != nil {
		return err
	}
	return f.send(ctx, j)
}

// load reads what the index says of the item now. It reports false when there
// is nothing to do, and has marked the item done then.
func (f *folder) load(j *job) (bool, error) {
	todo := false
	err := f.r.db.Update(func(tx *meta.Tx) error {
		todo = false
		e, err := tx.Entry(j.it.Parent, j.it.Name)
		if err == nil && e.Item != j.it.Seq {
			err = vfolder.KindNotFound
		}
		var n *meta.Inode
		if err == nil {
			n, err = tx.Inode(e.Ino)
		}
		if errors.Is(err, vfolder.KindNotFound) || errors.Is(err, vfolder.KindStale) {
			_, err = tx.Done(j.it)
			return err
		}
		if err != nil {
			return err
		}
		if n.IsDir() {
			if _, err := f.dirPrefix(tx, n, true); err != nil { // its object tells its long id
				return err
			}
		}
		j.e, j.n = e, n
		if j.p, err = f.place(tx, j.it.Parent, j.it.Name, n, true); err != nil {
			return err
		}
		if j.at, err = tx.Row(j.p.k); err != nil {
			return err
		}
		if j.own, err = tx.Row(e.Row); err != nil {
			return err
		}
		if upToDate(j) {
			_, err = tx.Done(j.it)
			return err
		}
		todo = true
		return f.source(tx, j)
	})
	return todo, err
}

func upToDate(j *job) bool {
	return j.own != nil && j.e.Row == j.p.k && j.own.Pending == "" && !j.own.Absent && j.own.Ino == j.n.Ino &&
		j.own.Gen == j.n.Gen && j.own.AttrGen == j.n.AttrGen
}

// source finds an object that holds the bytes of this generation, and what of
// the replaced object is kept.
func (f *folder) source(tx *meta.Tx, j *job) error {
	j.src, j.srcKey = nil, ""
	var err error
	if j.keep, err = readKept(tx, f.root, j.n.Ino); err != nil {
		return err
	}
	if !j.n.IsRegular() {
		return nil
	}
	try := func(k meta.RowKey) error {
		if j.src != nil || k.IsZero() {
			return nil
		}
		o, err := tx.Row(k)
		if err != nil || o == nil || o.Absent || o.Ino != j.n.Ino || o.Gen != j.n.Gen || o.Pending != "" {
			return err
		}
		j.src = o
		j.srcKey, err = keyOf(tx, k)
		return err
	}
	if err := try(j.e.Row); err != nil {
		return err
	}
	if err := try(j.n.Base); err != nil {
		return err
	}
	if j.n.Link == "" {
		return nil
	}
	names, err := tx.Names(j.n)
	if err != nil {
		return err
	}
	for _, p := range names {
		e, err := tx.Entry(p.Parent, p.Name)
		if err != nil {
			return err
		}
		if err := try(e.Row); err != nil {
			return err
		}
	}
	return nil
}

// hydrateFirst learns the attributes of an entry that was only listed; the
// item is then looked at anew.
func (f *folder) hydrateFirst(ctx context.Context, j *job) error {
	f.unlock(lockIno(j.n.Ino))
	err := f.r.Hydrate(ctx, j.it.Parent, j.it.Name)
	f.lock(lockIno(j.n.Ino))
	if err != nil {
		return err
	}
	return errBlocked
}

// freeze takes the bytes at one point in time.
func (f *folder) freeze(ctx context.Context, j *job) error {
	j.size = 0
	if !j.n.IsRegular() {
		return f.r.db.View(func(tx *meta.Tx) (err error) {
			j.xattrs, err = tx.Xattrs(j.n.Ino)
			return err
		})
	}
	f.mu.Lock()
	z := f.frozen[j.n.Ino]
	delete(f.frozen, j.n.Ino)
	f.mu.Unlock()
	if z == nil {
		var err error
		z, err = f.r.local.Freeze(ctx, j.n.Ino)
		switch vfolder.KindOf(err) {
		case vfolder.KindBusy, vfolder.KindStale, vfolder.KindNotFound:
			if err != nil {
				return errBlocked
			}
		}
		if err != nil {
			return err
		}
	}
	j.frozen, j.n, j.xattrs, j.size = z, z.Inode, z.Xattrs, z.Inode.Size
	if j.src != nil && j.src.Gen != j.n.Gen {
		j.src = nil // a period ended with this freeze
	}
	if j.src == nil && z.View == nil && j.n.Data != meta.DataComplete && j.size > 0 {
		// Nothing is here and no object has this generation.
		return vfolder.Errorf(vfolder.KindStale, "publish", f.path(j.p.key), "the bytes that only the bucket had were replaced or deleted there")
	}
	return nil
}

// prepare decides on metadata and body.
func (f *folder) prepare(ctx context.Context, j *job) error {
	if err := f.keepForeign(ctx, j); err != nil {
		return err
	}
	j.vid = f.newVID(j.n)
	a := attrsOf(j.n, j.xattrs)
	a.VID, a.Foreign = j.vid, j.keep.Meta
	if j.p.hashed {
		a.Name = j.it.Name
	}
	if j.n.Link != "" {
		if err := f.announceLink(ctx, j.n, j.p.key); err != nil {
			return err
		}
		a.Link = j.n.Link
	}
	var err error
	if j.meta, err = f.encodeAttrs(ctx, a); err != nil {
		return err
	}
	switch {
	case j.n.Mode&unix.S_IFMT == unix.S_IFLNK:
		j.body, j.size = strings.NewReader(j.n.Target), int64(len(j.n.Target))
	case !j.n.IsRegular() || j.size == 0:
		j.body, j.size = bytes.NewReader(nil), 0
	case j.frozen != nil && j.frozen.View != nil && (j.src == nil || j.size <= smallBytes && j.frozen.View.Complete()):
		j.body = j.frozen.View
		if j.src == nil {
			return f.complete(ctx, j)
		}
	}
	return nil
}

// newVID names the version about to be written. The nonce carries the
// attribute generation behind its random half, so that a write whose answer was
// lost can be told exactly.
func (f *folder) newVID(n *meta.Inode) string {
	v := objstore.VID{Ino: uint64(n.Ino), Epoch: f.lease.epoch(), Gen: n.Gen, Nonce: objstore.NewNonce() + fmt.Sprintf("%016x", n.AttrGen)}
	return v.String()
}

// complete fetches the bytes of a partly local file that the upload needs.
func (f *folder) complete(ctx context.Context, j *job) error {
	missing := j.frozen.View.Missing()
	if len(missing) == 0 {
		return nil
	}
	file := f.r.cfg.Content.File(content.ID{Ino: j.n.Ino, Gen: j.n.DataGen})
	defer file.Close()
	for _, m := range missing {
		if err := f.r.Fetch(ctx, j.n.Ino, m.Off, m.Len, file.Fill); err != nil {
			return err
		}
	}
	if !j.frozen.View.Complete() {
		return errBlocked
	}
	return nil
}

// send notes the intent, writes, and commits the result.
func (f *folder) send(ctx context.Context, j *job) error {
	cond := objstore.Condition{IfAbsent: true}
	if j.at != nil && !j.at.Absent {
		cond = objstore.Condition{IfMatch: j.at.ETag}
	}
	err := f.r.db.Update(func(tx *meta.Tx) error { return tx.BeginWrite(f.root, j.p.k, j.vid) })
	if err != nil {
		return err
	}
	in, err := f.transfer(ctx, j, cond)
	if err == nil {
		return f.commit(j, in)
	}
	switch vfolder.KindOf(err) {
	case vfolder.KindConflict:
		return f.contested(ctx, j, err)
	case vfolder.KindUnreachable, vfolder.KindInterrupted:
		return err // the note stays: the next attempt finds out
	case vfolder.KindNotFound:
		// A part of it is gone: the source of a copy, or an upload that was
		// completed and whose answer was lost.
		if serr := f.settleWrite(ctx, j.p.key, j.p.k); serr != nil {
			return serr
		}
		if j.body == nil {
			return f.sourceGone(ctx, j, err)
		}
		return errBlocked
	}
	if eerr := f.r.db.Update(func(tx *meta.Tx) error { return tx.EndWrite(f.root, j.p.k) }); eerr != nil {
		return eerr
	}
	if vfolder.KindOf(err) == vfolder.KindExists {
		return f.obstructed(ctx, j, err)
	}
	return err
}

// transfer sends the object in the way that is cheapest.
func (f *folder) transfer(ctx context.Context, j *job, cond objstore.Condition) (objstore.Info, error) {
	ctx, cancel, err := f.lease.during(ctx)
	if err != nil {
		return objstore.Info{}, err
	}
	defer cancel()
	ct := contentType(j.n, j.keep)
	if j.body != nil {
		in, err := f.r.put(ctx, j.p.key, j.body, j.size, objstore.PutOptions{Meta: j.meta, ContentType: ct, StorageClass: j.keep.Class, Condition: cond})
		if err == nil && j.n.IsRegular() {
			f.mu.Lock()
			f.uploads[j.n.Ino] = time.Since(j.began)
			f.mu.Unlock()
		}
		return in, err
	}
	o := objstore.CopyOptions{SourceIfMatch: j.src.ETag, Meta: j.meta, ContentType: ct}
	if j.srcKey == j.p.key {
		in, err := f.r.store.Copy(ctx, j.p.key, j.p.key, o)
		in.Size = j.size
		return in, err
	}
	return f.r.copy(ctx, j.p.key, j.srcKey, j.size, o, cond)
}

// put is objstore.Upload under a condition that may have to be checked here,
// where the store does not know it: the lease then is what keeps others away.
func (r *Reconciler) put(ctx context.Context, key string, body objstore.Body, size int64, o objstore.PutOptions) (objstore.Info, error) {
	c := r.store.Capabilities()
	absent, match := c.PutIfAbsent, c.PutIfMatch
	if size > objstore.PutThreshold {
		absent, match = c.CompleteIfAbsent, c.CompleteIfMatch
	}
	if o.IfAbsent && !absent || o.IfMatch != "" && !match {
		if err := r.check(ctx, key, o.Condition); err != nil {
			return objstore.Info{}, err
		}
		o.Condition = objstore.Condition{}
	}
	return objstore.Upload(ctx, r.store, key, body, size, o)
}

func (r *Reconciler) copy(ctx context.Context, dst, src string, size int64, o objstore.CopyOptions, cond objstore.Condition) (objstore.Info, error) {
	c := r.store.Capabilities()
	if size == 0 {
		c.CompleteIfAbsent, c.CompleteIfMatch = c.PutIfAbsent, c.PutIfMatch
	}
	if cond.IfAbsent && !c.CompleteIfAbsent || cond.IfMatch != "" && !c.CompleteIfMatch {
		if err := r.check(ctx, dst, cond); err != nil {
			return objstore.Info{}, err
		}
		cond = objstore.Condition{}
	}
	return objstore.CopyConditional(ctx, r.store, dst, src, size, o, cond)
}

// check holds a condition against the object just before a write.
func (r *Reconciler) check(ctx context.Context, key string, c objstore.Condition) error {
	in, err := r.store.Head(ctx, key)
	missing := err != nil && vfolder.KindOf(err) == vfolder.KindNotFound
	switch {
	case err != nil && !missing:
		return err
	case c.IfAbsent && !missing, c.IfMatch != "" && (missing || in.ETag != c.IfMatch):
		return vfolder.Errorf(vfolder.KindConflict, "put", key, "the object is another than expected")
	}
	return nil
}

// commit takes a finished write into the index.
func (f *folder) commit(j *job, in objstore.Info) error {
	w := written{info: in, vid: j.vid, ino: j.n.Ino, gen: j.n.Gen, attrGen: j.n.AttrGen, size: j.size}
	err := f.r.db.Update(func(tx *meta.Tx) error { return f.take(tx, j.p.k, w, j.it) })
	if err != nil {
		return err
	}
	f.seg.wrote(f)
	if j.n.Link != "" {
		f.links.changed(j.n.Link)
	}
	return nil
}

// written is an object as it was put.
type written struct {
	info         objstore.Info
	vid          string
	ino          vfolder.Ino
	gen, attrGen uint64
	size         int64
}

// take binds the object at k to the entry that it was written for if that
// still belongs there, and finishes item it where nothing newer is to be sent.
func (f *folder) take(tx *meta.Tx, k meta.RowKey, w written, it meta.Item) error {
	if err := tx.EndWrite(f.root, k); err != nil {
		return err
	}
	row := &meta.Row{
		Ino: w.ino, ETag: w.info.ETag, Size: w.size, VersionID: w.info.VersionID, VID: w.vid, Gen: w.gen, AttrGen: w.attrGen,
	}
	n, err := tx.Inode(w.ino)
	if errors.Is(err, vfolder.KindStale) {
		n = nil
	} else if err != nil {
		return err
	}
	bound, err := f.bind(tx, k, row, n)
	if err != nil {
		return err
	}
	if n != nil {
		if err := f.published(tx, k, row, n); err != nil {
			return err
		}
	}
	if it.Seq == 0 {
		return nil
	}
	if was, err := tx.Done(it); err != nil || !was {
		return err
	}
	if bound.Parent == it.Parent && bound.Name == it.Name && n.Gen == w.gen && n.AttrGen == w.attrGen {
		return nil
	}
	// Changed since: what it says now may rely on younger keys, so that it
	// goes to the end.
	err = tx.QueuePut(it.Parent, it.Name)
	if errors.Is(err, vfolder.KindNotFound) {
		return nil
	}
	return err
}

// bind finds the owner of a written object: the name of n whose key it is, else
// a name of n that has no object yet, whose source it becomes. Without one it
// is queued for deletion.
func (f *folder) bind(tx *meta.Tx, k meta.RowKey, row *meta.Row, n *meta.Inode) (meta.Place, error) {
	var names []meta.Place
	var err error
	if n != nil {
		if names, err = tx.Names(n); err != nil {
			return meta.Place{}, err
		}
	}
	was, err := tx.Row(k)
	if err != nil {
		return meta.Place{}, err
	}
	var spare meta.Place
	for _, p := range names {
		pl, err := f.place(tx, p.Parent, p.Name, n, true)
		if errors.Is(err, vfolder.KindNotFound) {
			continue
		}
		if err != nil {
			return meta.Place{}, err
		}
		if pl.k == k {
			return p, tx.BindRow(f.root, p.Parent, p.Name, k, row)
		}
		e, err := tx.Entry(p.Parent, p.Name)
		if err != nil {
			return meta.Place{}, err
		}
		if e.Row.IsZero() || e.Row == k {
			spare = p
		}
	}
	if was != nil && was.Parent != 0 {
		// Renamed while its object was overwritten in place.
		row.Parent, row.Name, row.Item = was.Parent, was.Name, was.Item
		return meta.Place{Parent: was.Parent, Name: was.Name}, tx.PutRow(k, row)
	}
	if spare.Parent != 0 {
		return spare, tx.BindRow(f.root, spare.Parent, spare.Name, k, row)
	}
	if was != nil {
		row.Item = was.Item
	}
	if err := tx.PutRow(k, row); err != nil {
		return meta.Place{}, err
	}
	return meta.Place{}, tx.QueueDelete(f.root, k)
}

// published records in the inode that an object holds its bytes.
func (f *folder) published(tx *meta.Tx, k meta.RowKey, row *meta.Row, n *meta.Inode) error {
	if !n.IsRegular() {
		return nil
	}
	change := false
	if n.Base != k {
		base, err := tx.Row(n.Base)
		if err != nil {
			return err
		}
		if base == nil || base.Absent || base.Ino != n.Ino || base.Parent == 0 || base.Gen < row.Gen {
			n.Base, change = k, true
		}
	}
	if n.Dirty && n.Gen == row.Gen {
		n.Dirty, change = false, true
	}
	if !change {
		return nil
	}
	return tx.PutInode(n)
}
