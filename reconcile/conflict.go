package reconcile

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/objstore"
)

// Conflict tells that a file was changed here and by another program. Both
// versions are kept.
type Conflict struct {
	Path string    // of the file, which has what was written here
	Copy string    // of the file that has what the other program wrote
	At   time.Time // when it was noticed
}

// conflictsKept bounds how many conflicts Status tells.
const conflictsKept = 100

// contested is called when a condition did not hold. Our own write whose answer
// came late is told by its id; what another program put there is kept.
func (f *folder) contested(ctx context.Context, j *job, cause error) error {
	in, err := f.r.store.Head(ctx, j.p.key)
	if err != nil && vfolder.KindOf(err) == vfolder.KindNotFound {
		// It was expected to be there: another program deleted it. Our bytes
		// are newer; they go up as a new object.
		return f.forget(ctx, j, cause)
	}
	if err != nil {
		return err
	}
	a := objstore.DecodeMeta(in.Meta)
	if a.VID == j.vid {
		in.Size = j.size
		return f.commit(j, in)
	}
	if j.at != nil && !j.at.Absent && in.ETag == j.at.ETag {
		if j.src != nil && j.body == nil {
			return f.sourceGone(ctx, j, cause)
		}
		return f.again(j, nil) // two requests crossed
	}
	if j.at != nil && !j.at.Absent && j.e.Row == j.p.k && j.n.IsRegular() && j.at.Gen == j.n.Gen && !j.n.Dirty {
		// Only attributes changed here: what the other program wrote is taken.
		return f.follow(ctx, j, in, j.p.key)
	}
	same, err := f.sameBytes(j, in)
	if err != nil {
		return err
	}
	if !same && !j.n.IsDir() {
		if err := f.keepBoth(ctx, j, in, a); err != nil {
			return err
		}
	}
	return f.again(j, func(tx *meta.Tx) error { return f.overwriteNext(tx, j, in, a.VID) })
}

// again clears the note of a write that did not happen; the item stays.
func (f *folder) again(j *job, also func(*meta.Tx) error) error {
	err := f.r.db.Update(func(tx *meta.Tx) error {
		if err := tx.EndWrite(f.root, j.p.k); err != nil || also == nil {
			return err
		}
		return also(tx)
	})
	if err != nil {
		return err
	}
	return errBlocked
}

// forget drops a row whose object is gone.
func (f *folder) forget(ctx context.Context, j *job, cause error) error {
	if j.at == nil || j.at.Absent {
		if j.src != nil && j.body == nil {
			return f.sourceGone(ctx, j, cause)
		}
		return f.again(j, nil)
	}
	if j.e.Row == j.p.k && j.n.IsRegular() && j.n.Data != meta.DataComplete && j.body == nil {
		return f.lost(ctx, j)
	}
	return f.again(j, func(tx *meta.Tx) error { return tx.DropRow(f.root, j.p.k) })
}

// follow takes the bytes that another program put where the entry's object
// lies, whose bytes were not changed here.
func (f *folder) follow(ctx context.Context, j *job, in objstore.Info, key string) error {
	if err := f.again(j, nil); !errors.Is(err, errBlocked) {
		return err
	}
	_, seg := splitKey(key)
	if err := f.replaced(ctx, j.it.Parent, change{seg, j.e.Row, j.own, j.it.Name, true}, key, in); err != nil {
		return err
	}
	return f.requeue(j)
}

// requeue queues an entry that may have become another one.
func (f *folder) requeue(j *job) error {
	err := f.r.db.Update(func(tx *meta.Tx) error {
		e, err := tx.Entry(j.it.Parent, j.it.Name)
		if err != nil {
			return err
		}
		n, err := tx.Inode(e.Ino)
		if err != nil {
			return err
		}
		p, err := f.place(tx, j.it.Parent, j.it.Name, n, true)
		if err != nil || e.Row == p.k {
			return err
		}
		return tx.QueuePut(j.it.Parent, j.it.Name)
	})
	if err := ignoreGone(err); err != nil {
		return err
	}
	return errBlocked
}

// lost is called when the entry's own object is gone from the bucket. What is
// here goes up again; a file whose bytes were only there goes too.
func (f *folder) lost(ctx context.Context, j *job) error {
	if err := f.again(j, nil); !errors.Is(err, errBlocked) {
		return err
	}
	if !j.n.IsRegular() {
		if err := f.r.db.Update(func(tx *meta.Tx) error { return tx.DropRow(f.root, j.e.Row) }); err != nil {
			return err
		}
		return errBlocked
	}
	if err := f.vanished(ctx, j.it.Parent, change{"", j.e.Row, j.own, j.it.Name, false}, j.p.key); err != nil {
		return err
	}
	return errBlocked
}

// sourceGone is called when the object to be copied from is not there any more
// in the version known. Without it the bytes come from here, if they are here.
func (f *folder) sourceGone(ctx context.Context, j *job, cause error) error {
	in, err := f.r.store.Head(ctx, j.srcKey)
	missing := err != nil && vfolder.KindOf(err) == vfolder.KindNotFound
	if err != nil && !missing {
		return err
	}
	if !missing && in.ETag == j.src.ETag {
		return f.again(j, nil)
	}
	if j.own != nil && j.own.ETag == j.src.ETag && !j.n.Dirty {
		if missing {
			return f.lost(ctx, j)
		}
		return f.follow(ctx, j, in, j.srcKey)
	}
	if j.n.Data == meta.DataComplete {
		return f.again(j, func(tx *meta.Tx) error { // the row promises what the bucket does not have
			k, err := rowKeyOf(tx, j.srcKey)
			if err != nil {
				return err
			}
			o, err := tx.Row(k)
			if err != nil || o == nil {
				return err
			}
			if missing {
				return tx.DropRow(f.root, k)
			}
			o.ETag, o.VID, o.Gen, o.AttrGen, o.Size = in.ETag, objstore.DecodeMeta(in.Meta).VID, 0, 0, in.Size
			return tx.PutRow(k, o)
		})
	}
	if err := f.again(j, nil); !errors.Is(err, errBlocked) {
		return err
	}
	return &vfolder.Error{
		Op: "publish", Kind: vfolder.KindStale, Path: f.path(j.p.key),
		Err: fmt.Errorf("another program replaced or deleted the object that held its bytes: %w", cause),
	}
}

// sameBytes reports whether a foreign object has exactly what is to be put.
func (f *folder) sameBytes(j *job, in objstore.Info) (bool, error) {
	if in.Size != j.size || j.n.IsDir() {
		return false, nil
	}
	if j.body == nil {
		return j.src != nil && plainETag(in.ETag) && in.ETag == j.src.ETag, nil
	}
	if !plainETag(in.ETag) || j.size > objstore.PutThreshold {
		return false, nil
	}
	h := md5.New()
	if _, err := io.Copy(h, io.NewSectionReader(j.body, 0, j.size)); err != nil {
		return false, err
	}
	return hex.EncodeToString(h.Sum(nil)) == in.ETag, nil
}

// plainETag says that an ETag is the MD5 of the body.
func plainETag(e string) bool {
	if len(e) != 2*md5.Size {
		return false
	}
	_, err := hex.DecodeString(e)
	return err == nil
}

// overwriteNext notes the version of a foreign object whose bytes are kept
// elsewhere, so that the next attempt replaces exactly it.
func (f *folder) overwriteNext(tx *meta.Tx, j *job, in objstore.Info, vid string) error {
	o, err := tx.Row(j.p.k)
	if err != nil {
		return err
	}
	if o == nil {
		o = &meta.Row{}
	}
	o.ETag, o.Size, o.VersionID, o.VID, o.Gen, o.AttrGen, o.Absent = in.ETag, in.Size, in.VersionID, vid, 0, 0, false
	if o.Parent == 0 {
		o.Ino = 0
	}
	return tx.PutRow(j.p.k, o)
}

// keepBoth copies a foreign object to a name of its own beside the file that is
// about to replace it, and makes that name visible.
func (f *folder) keepBoth(ctx context.Context, j *job, in objstore.Info, a objstore.Attrs) error {
	now := f.r.now()
	name := conflictName(j.it.Name, now)
	n := &meta.Inode{Folder: f.root, Gen: 1, AttrGen: 1, Listed: true}
	applyAttrs(n, a, false, in.Size, in.LastModified)
	xattrs, err := f.r.readXattrs(ctx, a)
	if err != nil {
		return err
	}
	if n.Mode&unix.S_IFMT == unix.S_IFLNK {
		if n.Target, err = f.r.readTarget(ctx, j.p.key, in); err != nil {
			return err
		}
	}
	var p place
	err = f.r.db.Update(func(tx *meta.Tx) (err error) {
		p, err = f.place(tx, j.it.Parent, name, n, true)
		return err
	})
	if err != nil {
		return err
	}
	vid := objstore.VID{Epoch: f.lease.epoch(), Gen: 1, Nonce: objstore.NewNonce()}.String()
	a.Link, a.LongID, a.Name, a.VID = "", "", "", vid
	if p.hashed {
		a.Name = name
	}
	m, _, err := objstore.EncodeMeta(a)
	if err != nil {
		return err
	}
	var out objstore.Info
	if in.Size == 0 {
		out, err = f.r.put(ctx, p.key, bytes.NewReader(nil), 0, objstore.PutOptions{Meta: m, ContentType: in.ContentType, Condition: objstore.Condition{IfAbsent: true}})
	} else {
		out, err = f.r.copy(ctx, p.key, j.p.key, in.Size, objstore.CopyOptions{SourceIfMatch: in.ETag, Meta: m, ContentType: in.ContentType}, objstore.Condition{IfAbsent: true})
	}
	if err != nil {
		return err
	}
	row := &meta.Row{ETag: out.ETag, Size: in.Size, VersionID: out.VersionID, VID: vid, Gen: 1, AttrGen: 1}
	err = f.r.db.Update(func(tx *meta.Tx) error {
		if n.IsRegular() {
			n.Base = p.k
		}
		n.Ino = 0
		if err := tx.Adopt(j.it.Parent, name, n, p.k, row); err != nil {
			return err
		}
		for x, v := range xattrs {
			if err := tx.PutXattr(n.Ino, x, v); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	f.note(Conflict{Path: f.path(j.p.key), Copy: f.path(p.key), At: now})
	f.r.local.EntryChanged(j.it.Parent, name)
	return nil
}

func (f *folder) note(c Conflict) {
	f.r.log.Warn("a file was changed here and by another program; both versions are kept", "path", c.Path, "other", c.Copy)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.notes = append(f.notes, c)
	if len(f.notes) > conflictsKept {
		f.notes = f.notes[1:]
	}
}

// conflictName names the other version of a file, within the limit of a name.
func conflictName(name string, now time.Time) string {
	suffix := ".conflict-" + now.UTC().Format("20060102-150405") + "-" + randomHex(2)
	if most := vfolder.MaxNameBytes - len(suffix); len(name) > most {
		name = name[:most]
	}
	return name + suffix
}
