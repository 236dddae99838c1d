package reconcile

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/meta"
)

const (
	// fetchPiece is how much of a body is given to fill at a time; whole blocks.
	fetchPiece = 1 << 20
	// verifyBytes is up to which size a whole file is verified before any of it
	// is used; above, after it was read.
	verifyBytes = 8 << 20
	fetchTries  = 6
	fetchPause  = 50 * time.Millisecond
)

// Fetch implements vfs.Remote. The object is read in the version that the index
// names; when it was moved meanwhile, the index is asked again. A whole file
// with a plain MD5 as its ETag is verified against it.
func (r *Reconciler) Fetch(ctx context.Context, ino vfolder.Ino, off, length int64, fill func(off int64, data []byte) error) error {
	if length <= 0 {
		return nil
	}
	at, end := off, off+length
	var last error
	var seen, before string
	for try := range fetchTries {
		if try > 0 {
			if err := pause(ctx, fetchPause<<try); err != nil {
				return err
			}
		}
		key, row, size, err := r.base(ino)
		if err != nil {
			return err
		}
		end = min(end, size)
		if at >= end {
			return nil
		}
		if seen = key + "\x00" + row.ETag; last != nil && seen == before && gone(last) {
			break // nothing moved: it is really gone
		}
		before = seen
		n, err := r.fetchRange(ctx, key, row, at, end, fill)
		at += n
		if err == nil {
			return nil
		}
		last = err
		var fe fillError
		switch {
		case errors.As(err, &fe):
			return fe.err
		case ctx.Err() != nil:
			return &vfolder.Error{Op: "fetch", Kind: vfolder.KindInterrupted, Path: key, Err: ctx.Err()}
		case vfolder.KindOf(err) == vfolder.KindUnreachable, gone(err):
		default:
			return err
		}
	}
	if gone(last) {
		if n, err := r.inode(ino); err == nil && n.Parent != 0 {
			r.lookAgain(n.Parent)
		}
		return &vfolder.Error{Op: "fetch", Kind: vfolder.KindStale, Err: fmt.Errorf("this version of inode %d is gone from the bucket: %w", ino, last)}
	}
	return last
}

// gone says that an object is not there in the version asked for. KindNoData is
// a range beyond its end.
func gone(err error) bool {
	switch vfolder.KindOf(err) {
	case vfolder.KindNotFound, vfolder.KindConflict, vfolder.KindNoData:
		return err != nil
	}
	return false
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return &vfolder.Error{Op: "wait", Kind: vfolder.KindInterrupted, Err: ctx.Err()}
	}
}

func (r *Reconciler) inode(ino vfolder.Ino) (n *meta.Inode, err error) {
	err = r.db.View(func(tx *meta.Tx) error { n, err = tx.Inode(ino); return err })
	return n, err
}

// base finds the object that holds an inode's remote bytes.
func (r *Reconciler) base(ino vfolder.Ino) (key string, row *meta.Row, size int64, err error) {
	err = r.db.View(func(tx *meta.Tx) error {
		n, err := tx.Inode(ino)
		if err != nil {
			return err
		}
		if row, err = tx.Row(n.Base); err != nil {
			return err
		}
		if row == nil || row.Absent || row.Ino != ino || row.ETag == "" {
			return vfolder.Errorf(vfolder.KindStale, "fetch", n.Name, "the bucket does not hold this version any more")
		}
		if f := r.folder(n.Folder); f != nil {
			f.use()
		}
		size = row.Size
		key, err = keyOf(tx, n.Base)
		return err
	})
	return key, row, size, err
}

// fillError sets apart what the receiver of the bytes said.
type fillError struct{ err error }

func (e fillError) Error() string { return e.err.Error() }

// fetchRange reads [at, end) once and returns how much of it was filled.
func (r *Reconciler) fetchRange(ctx context.Context, key string, row *meta.Row, at, end int64, fill func(int64, []byte) error) (int64, error) {
	rc, _, err := r.store.Get(ctx, key, at, end-at, row.ETag)
	if err != nil {
		return 0, err
	}
	defer rc.Close()
	whole := at == 0 && end == row.Size && plainETag(row.ETag)
	piece := int64(fetchPiece)
	if whole && end <= verifyBytes {
		piece = end
	}
	h := md5.New()
	buf := make([]byte, min(piece, end-at))
	done := int64(0)
	for at+done < end {
		p := buf[:min(int64(len(buf)), end-at-done)]
		n, err := io.ReadFull(rc, p)
		if err != nil {
			// Whole blocks of what came are good, unless they are to be verified.
			n -= n % vfolder.BlockBytes
			if n > 0 && !whole {
				if ferr := fill(at+done, p[:n]); ferr != nil {
					return done, fillError{ferr}
				}
				done += int64(n)
			}
			if vfolder.KindOf(err) != vfolder.KindUnreachable {
				err = &vfolder.Error{Op: "fetch", Kind: vfolder.KindUnreachable, Path: key, Err: err}
			}
			if whole {
				return 0, err
			}
			return done, err
		}
		h.Write(p)
		if whole && at+done+int64(n) == end && hex.EncodeToString(h.Sum(nil)) != row.ETag {
			return 0, vfolder.Errorf(vfolder.KindCorrupt, "fetch", key, "the bytes do not have the checksum that the store tells")
		}
		if err := fill(at+done, p); err != nil {
			return done, fillError{err}
		}
		done += int64(n)
	}
	return done, nil
}
