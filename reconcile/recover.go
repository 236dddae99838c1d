package reconcile

import (
	"context"
	"strconv"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/objstore"
)

// recover settles what a former worker left unfinished. What fails here is
// settled when its key is next written.
func (f *folder) recover(ctx context.Context) {
	var keys []meta.RowKey
	err := f.r.db.View(func(tx *meta.Tx) (err error) { keys, err = tx.Writes(f.root); return err })
	if err != nil {
		f.r.log.Error("unfinished writes cannot be read", "folder", f.name, "err", err)
		return
	}
	for _, k := range keys {
		var key string
		if err := f.r.db.View(func(tx *meta.Tx) (err error) { key, err = keyOf(tx, k); return err }); err != nil {
			f.r.log.Error("an unfinished write has no key", "folder", f.name, "err", err)
			continue
		}
		if !f.lock(lockKey(key)) {
			continue
		}
		err := f.settleWrite(ctx, key, k)
		f.unlock(lockKey(key))
		if err != nil {
			f.r.log.Info("the outcome of a write is not known yet", "folder", f.name, "key", key, "err", err)
			f.r.outage.note(f.r.now(), err)
			break
		}
	}
	f.abortUploads(ctx)
	if err := f.sweepParked(); err != nil {
		f.r.log.Warn("parked objects were not looked at", "folder", f.name, "err", err)
	}
	f.rescan()
}

// uploadLister is what a Store may be able to do besides: list the multipart
// uploads below a prefix that were neither completed nor aborted.
type uploadLister interface {
	ListUploads(ctx context.Context, prefix string, yield func(key, upload string) bool) error
}

// abortUploads ends the uploads of a former worker of this folder: the parts
// cost money and nobody completes them. Only the lease's holder does it.
func (f *folder) abortUploads(ctx context.Context) {
	l, ok := f.r.store.(uploadLister)
	if !ok || !f.lease.held() {
		return
	}
	type upload struct{ key, id string }
	var left []upload
	err := l.ListUploads(ctx, f.prefix, func(key, id string) bool {
		left = append(left, upload{key, id})
		return len(left) < 1000
	})
	for _, u := range left {
		if err == nil {
			err = f.r.store.AbortUpload(ctx, u.key, u.id)
		}
	}
	if err != nil {
		f.r.log.Info("left over uploads are not all aborted", "folder", f.name, "err", err)
	}
}

// settleWrite finds out what became of the write noted in the row at k. The
// key is locked by the caller. An error means that it is still not known.
func (f *folder) settleWrite(ctx context.Context, key string, k meta.RowKey) error {
	var row *meta.Row
	if err := f.r.db.View(func(tx *meta.Tx) (err error) { row, err = tx.Row(k); return err }); err != nil || row == nil || row.Pending == "" {
		return err
	}
	in, err := f.r.store.Head(ctx, key)
	missing := err != nil && vfolder.KindOf(err) == vfolder.KindNotFound
	if err != nil && !missing {
		return err
	}
	return f.r.db.Update(func(tx *meta.Tx) error {
		now, err := tx.Row(k)
		if err != nil || now == nil || now.Pending != row.Pending {
			return err
		}
		if !missing {
			if vid := objstore.DecodeMeta(in.Meta).VID; vid == row.Pending {
				if w, ok := landed(in, vid); ok {
					return f.take(tx, k, w, meta.Item{})
				}
			}
			return tx.EndWrite(f.root, k) // it was not carried out; what else is there is seen by its ETag
		}
		if err := tx.EndWrite(f.root, k); err != nil || now.Absent {
			return err
		}
		return tx.DropRow(f.root, k)
	})
}

// landed is a write of ours as HEAD shows it.
func landed(in objstore.Info, vid string) (written, bool) {
	v, err := objstore.ParseVID(vid)
	if err != nil {
		return written{}, false
	}
	w := written{info: in, vid: vid, ino: vfolder.Ino(v.Ino), gen: v.Gen, size: in.Size}
	if len(v.Nonce) == 32 {
		w.attrGen, _ = strconv.ParseUint(v.Nonce[16:], 16, 64)
	}
	return w, true
}
