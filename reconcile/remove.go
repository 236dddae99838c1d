package reconcile

import (
	"context"
	"strings"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/objstore"
)

// remove deletes the object of a row without an owner.
func (f *folder) remove(ctx context.Context, it meta.Item) error {
	key, row, err := f.condemned(it)
	if err != nil || row == nil {
		return err
	}
	if !f.lock(lockKey(key)) {
		return errBlocked
	}
	defer f.unlock(lockKey(key))
	for {
		if key, row, err = f.condemned(it); err != nil || row == nil {
			return err
		}
		if row.Pending == "" {
			break
		}
		if err := f.settleWrite(ctx, key, it.Row); err != nil {
			return err
		}
	}
	if strings.HasSuffix(key, "/") {
		full, err := f.hasRowsBelow(key, it.Row)
		if err != nil {
			return err
		}
		if full {
			return errBlocked
		}
	}
	if err := f.rescue(ctx, it.Row, row, 0); err != nil {
		return err
	}
	if err := f.erase(ctx, key, row); err != nil {
		return err
	}
	return f.r.db.Update(func(tx *meta.Tx) error {
		now, err := tx.Row(it.Row)
		if err != nil {
			return err
		}
		if now != nil && now.Parent == 0 {
			if err := tx.DropRow(f.root, it.Row); err != nil {
				return err
			}
		}
		_, err = tx.Done(it)
		return err
	})
}

// erase deletes an object in the version that the row tells. That another
// program put something else there is no failure: that is theirs, and is
// adopted when the directory is listed.
func (f *folder) erase(ctx context.Context, key string, row *meta.Row) error {
	if row.Absent {
		return nil
	}
	ctx, cancel, err := f.lease.during(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	if row.Size == 0 && row.VID != "" {
		// All empty objects have one ETag: only the id tells them apart.
		in, err := f.r.store.Head(ctx, key)
		if err != nil && vfolder.KindOf(err) == vfolder.KindNotFound {
			return nil
		}
		if err != nil {
			return err
		}
		if in.ETag != row.ETag || objstore.DecodeMeta(in.Meta).VID != row.VID {
			return nil
		}
	}
	err = f.r.store.Delete(ctx, key, objstore.Condition{IfMatch: row.ETag})
	if err == nil {
		return nil
	}
	switch vfolder.KindOf(err) {
	case vfolder.KindNotFound, vfolder.KindConflict:
		return nil
	case vfolder.KindExists, vfolder.KindNotEmpty:
		if strings.HasSuffix(key, "/") {
			return nil // another program's objects lie below
		}
	}
	return err
}

// condemned reads the row of an ItemDelete; nil when nothing is to be deleted,
// and the item is done then.
func (f *folder) condemned(it meta.Item) (key string, row *meta.Row, err error) {
	err = f.r.db.Update(func(tx *meta.Tx) error {
		o, err := tx.Row(it.Row)
		if err != nil {
			return err
		}
		if o == nil || o.Parent != 0 || o.Item != it.Seq {
			row = nil
			_, err = tx.Done(it)
			return err
		}
		row = o
		key, err = keyOf(tx, it.Row)
		return err
	})
	return key, row, err
}

// hasRowsBelow reports whether objects are known below a directory's key: some
// stores are file systems and keep a directory that is full.
func (f *folder) hasRowsBelow(key string, self meta.RowKey) (bool, error) {
	found := false
	err := f.r.db.View(func(tx *meta.Tx) error {
		var ids []uint64
		if err := tx.PrefixesUnder(key, func(id uint64, _ string) bool { ids = append(ids, id); return true }); err != nil {
			return err
		}
		for _, id := range ids {
			err := tx.Rows(id, func(k meta.RowKey, o *meta.Row) bool {
				found = k != self && (!o.Absent || o.Pending != "")
				return !found
			})
			if err != nil || found {
				return err
			}
		}
		return nil
	})
	return found, err
}
