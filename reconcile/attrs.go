package reconcile

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/objstore"
)

// homeMeta is the metadata key in which a parked object carries, escaped as in
// a URL, the key that it came from.
const homeMeta = "vfolder-home"

func escapeMeta(s string) string { return url.PathEscape(s) }

// attrsOf is what the object of an inode carries.
func attrsOf(n *meta.Inode, xattrs map[string][]byte) objstore.Attrs {
	return objstore.Attrs{
		Mode: n.Mode, UID: n.UID, GID: n.GID, Rdev: n.Rdev, Atime: n.Atime, Mtime: n.Mtime, Ctime: n.Ctime, Btime: n.Btime,
		LongID: n.LongID, Xattrs: xattrs, HasMode: true, HasOwner: true, HasMtime: true,
	}
}

// encodeAttrs writes metadata; extended attributes that do not fit are put
// first, as an object of their own.
func (f *folder) encodeAttrs(ctx context.Context, a objstore.Attrs) (map[string]string, error) {
	m, overflow, err := objstore.EncodeMeta(a)
	if err != nil || overflow == nil {
		return m, err
	}
	body, ref, err := objstore.EncodeXattrs(overflow)
	if err != nil {
		return nil, err
	}
	key := objstore.XattrKey(ref)
	if _, err := f.r.store.Head(ctx, key); err != nil {
		if vfolder.KindOf(err) != vfolder.KindNotFound {
			return nil, err
		}
		if _, err := f.r.store.Put(ctx, key, bytes.NewReader(body), int64(len(body)), objstore.PutOptions{ContentType: "application/json"}); err != nil {
			return nil, err
		}
	}
	a.XattrRef = ref
	m, _, err = objstore.EncodeMeta(a)
	return m, err
}

// maxXattrObject bounds what is read of an object under objstore.XattrPrefix.
const maxXattrObject = 16 << 20

func (r *Reconciler) readSmall(ctx context.Context, key string, most int64) ([]byte, objstore.Info, error) {
	rc, in, err := r.store.Get(ctx, key, 0, -1, "")
	if err != nil {
		return nil, in, err
	}
	defer rc.Close()
	if in.Size > most {
		return nil, in, vfolder.Errorf(vfolder.KindCorrupt, "read", key, "%d bytes, more than it can have", in.Size)
	}
	b, err := io.ReadAll(io.LimitReader(rc, most+1))
	return b, in, err
}

// kept is what of an object another program made, or rewrote, stays when it is
// rewritten here.
type kept struct {
	Meta  map[string]string `json:"m,omitempty"`
	Type  string            `json:"ct,omitempty"`
	Class string            `json:"sc,omitempty"`
	Seen  bool              `json:"seen,omitempty"` // a HEAD was made of the foreign object
}

func keptName(ino vfolder.Ino) string { return fmt.Sprintf("\x00kept/%d", ino) }

func readKept(tx *meta.Tx, folder, ino vfolder.Ino) (k kept, err error) {
	b, err := tx.Hint(folder, keptName(ino))
	if err == nil && b != nil {
		err = json.Unmarshal(b, &k)
	}
	return k, err
}

func putKept(tx *meta.Tx, folder, ino vfolder.Ino, k kept) error {
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return tx.PutHint(folder, keptName(ino), b)
}

// keptOf is what is to be kept of an object; ok is false when that is nothing
// but the defaults.
func keptOf(in objstore.Info, a objstore.Attrs) (k kept, ok bool) {
	k = kept{Meta: a.Foreign, Seen: true}
	delete(k.Meta, homeMeta)
	switch in.ContentType {
	case "", objstore.DefaultContentType, objstore.DirContentType, "binary/octet-stream":
	default:
		k.Type = in.ContentType
	}
	if in.StorageClass != "STANDARD" {
		k.Class = in.StorageClass
	}
	return k, len(k.Meta) > 0 || k.Type != "" || k.Class != ""
}

// keepForeign looks, before an object of another program is overwritten for
// the first time, at what of it is to be kept.
func (f *folder) keepForeign(ctx context.Context, j *job) error {
	if j.at == nil || j.at.Absent || j.at.VID != "" || j.keep.Seen || j.at.Ino != j.n.Ino {
		return nil
	}
	in, err := f.r.store.Head(ctx, j.p.key)
	if err != nil {
		if vfolder.KindOf(err) == vfolder.KindNotFound {
			return nil // the write's condition will show it
		}
		return err
	}
	j.keep, _ = keptOf(in, objstore.DecodeMeta(in.Meta))
	return f.r.db.Update(func(tx *meta.Tx) error { return putKept(tx, f.root, j.n.Ino, j.keep) })
}

func contentType(n *meta.Inode, k kept) string {
	switch {
	case n.IsDir():
		return objstore.DirContentType
	case k.Type != "":
		return k.Type
	}
	return objstore.DefaultContentType
}

// Modes and owner of what another program made.
const (
	foreignFile = unix.S_IFREG | 0o644
	foreignDir  = unix.S_IFDIR | 0o755
)

// applyAttrs fills an inode from an object. Type bits that do not fit the key
// (a directory's ends in a slash) are not believed.
func applyAttrs(n *meta.Inode, a objstore.Attrs, isDir bool, size int64, modified time.Time) {
	n.Mode, n.UID, n.GID = foreignFile, vfolder.SessionUID, vfolder.SessionGID
	if isDir {
		n.Mode = foreignDir
	}
	if a.HasMode {
		typ := a.Mode & unix.S_IFMT
		if isDir || typ == 0 || typ == unix.S_IFDIR {
			typ = n.Mode & unix.S_IFMT
		}
		n.Mode = typ | a.Mode&0o7777
	}
	if a.HasOwner {
		n.UID, n.GID = a.UID, a.GID
	}
	n.Rdev = a.Rdev
	n.Mtime = modified.UnixNano()
	if a.HasMtime {
		n.Mtime = a.Mtime
	}
	n.Atime, n.Ctime, n.Btime = a.Atime, a.Ctime, a.Btime
	if n.Atime == 0 {
		n.Atime = n.Mtime
	}
	if n.Ctime == 0 {
		n.Ctime = max(n.Mtime, modified.UnixNano())
	}
	if n.Btime == 0 {
		n.Btime = n.Mtime
	}
	n.LongID = a.LongID
	if !isDir {
		n.LongID = ""
	}
	n.Size = 0
	if n.Mode&unix.S_IFMT == unix.S_IFREG {
		n.Size = size
	}
}
