package reconcile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/objstore"
)

func readFull(r io.Reader, b []byte) (int, error) { return io.ReadFull(r, b) }

// A link record lists the keys of a hard link group, relative to the folder. A
// name is in the group only if the record lists its key and its object carries
// the group's id, so that a copy made by another program does not join.
type linkRecord struct {
	Keys []string `json:"keys"`
}

// maxLinkRecord bounds what is read as a link record.
const maxLinkRecord = vfolder.MaxLinks * (vfolder.MaxKeyBytes + 8)

// linkCache remembers the link records as last written here.
type linkCache struct {
	mu   sync.Mutex
	keys map[string][]string
}

// linkCacheMost bounds the cache; what falls out is written once more.
const linkCacheMost = 10000

func (c *linkCache) init() { c.keys = map[string][]string{} }

func (c *linkCache) get(link string) ([]string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.keys[link]
	return k, ok
}

func (c *linkCache) put(link string, keys []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.keys) >= linkCacheMost {
		clear(c.keys)
	}
	c.keys[link] = keys
}

// changed makes the next write of a name look at the record again.
func (c *linkCache) changed(string) {}

func (f *folder) linkKey(link string) string { return f.own("links/" + link) }

// announceLink lists the keys of n's names in its link record, before an object
// that carries the group's id appears. Keys that names still lie at stay until
// all names are in place.
func (f *folder) announceLink(ctx context.Context, n *meta.Inode, key string) error {
	want := map[string]bool{strings.TrimPrefix(key, f.prefix): true}
	err := f.r.db.View(func(tx *meta.Tx) error {
		names, err := tx.Names(n)
		if err != nil {
			return err
		}
		for _, p := range names {
			pl, err := f.place(tx, p.Parent, p.Name, n, false)
			if errors.Is(err, vfolder.KindNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			want[strings.TrimPrefix(pl.key, f.prefix)] = true
			e, err := tx.Entry(p.Parent, p.Name)
			if err != nil {
				return err
			}
			if !e.Row.IsZero() {
				at, err := keyOf(tx, e.Row)
				if err != nil {
					return err
				}
				want[strings.TrimPrefix(at, f.prefix)] = true
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	keys := slices.Sorted(maps.Keys(want))
	if was, ok := f.links.get(n.Link); ok && slices.Equal(was, keys) {
		return nil
	}
	body, err := json.Marshal(linkRecord{keys})
	if err != nil {
		return err
	}
	if _, err := f.r.store.Put(ctx, f.linkKey(n.Link), bytes.NewReader(body), int64(len(body)), objstore.PutOptions{ContentType: "application/json"}); err != nil {
		return err
	}
	f.links.put(n.Link, keys)
	return nil
}

// member is a verified name of a link group.
type member struct {
	p   meta.Place
	k   meta.RowKey
	in  objstore.Info
	vid objstore.VID
}

// joinGroup makes a hydrated name one of its link group. All names of the group
// are looked up first, so that the link count is that of names that exist.
func (f *folder) joinGroup(ctx context.Context, parent vfolder.Ino, name, link string) error {
	return f.r.share(ctx, "link "+f.id+" "+link, func(ctx context.Context) error { return f.join(ctx, link) })
}

func (f *folder) join(ctx context.Context, link string) error {
	body, _, err := f.r.readSmall(ctx, f.linkKey(link), maxLinkRecord)
	if err != nil {
		if vfolder.KindOf(err) == vfolder.KindNotFound {
			return nil // no group: each name is a file of its own
		}
		return err
	}
	var rec linkRecord
	if json.Unmarshal(body, &rec) != nil || len(rec.Keys) > vfolder.MaxLinks {
		f.r.log.Warn("a link record cannot be read; its names are files of their own", "key", f.linkKey(link))
		return nil
	}
	var members []member
	for _, key := range rec.Keys {
		m, ok, err := f.findMember(ctx, key, link)
		if err != nil {
			return err
		}
		if ok {
			members = append(members, m)
		}
	}
	if len(members) < 2 {
		return nil
	}
	best := members[0]
	for _, m := range members[1:] {
		if m.vid.Compare(best.vid) > 0 {
			best = m
		}
	}
	a := objstore.DecodeMeta(best.in.Meta)
	if a.Xattrs, err = f.r.readXattrs(ctx, a); err != nil {
		return err
	}
	target := ""
	if a.HasMode && a.Mode&unix.S_IFMT == unix.S_IFLNK {
		if target, err = f.r.readTarget(ctx, best.in.Key, best.in); err != nil {
			return ignoreGone(err)
		}
	}
	var dropped []*meta.Inode
	err = f.r.db.Update(func(tx *meta.Tx) error {
		dropped = nil
		return f.merge(tx, link, members, best, a, target, &dropped)
	})
	if err != nil {
		return err
	}
	for _, m := range members {
		f.r.local.EntryChanged(m.p.Parent, m.p.Name)
	}
	for _, n := range dropped {
		f.r.local.Freed(n)
	}
	return nil
}

// findMember looks a listed key up; ok is false when it is not of the group.
func (f *folder) findMember(ctx context.Context, rel, link string) (m member, ok bool, err error) {
	key := f.prefix + rel
	long := strings.HasPrefix(rel, vfolder.ReservedPrefix)
	if long {
		key = rel
	}
	in, err := f.r.store.Head(ctx, key)
	if err != nil {
		if k := vfolder.KindOf(err); k == vfolder.KindNotFound || k == vfolder.KindInvalid {
			return m, false, nil
		}
		return m, false, err
	}
	a := objstore.DecodeMeta(in.Meta)
	if a.Link != link {
		return m, false, nil
	}
	m.in = in
	m.in.Key = key
	if m.vid, err = objstore.ParseVID(a.VID); err != nil {
		return m, false, nil
	}
	prefix, seg := splitKey(key)
	if !long {
		if dir, err := f.dirAt(ctx, prefix); err != nil || dir == 0 {
			return m, false, err
		}
	}
	err = f.r.db.View(func(tx *meta.Tx) error {
		id, err := tx.PrefixID(prefix)
		if err != nil || id == 0 {
			return err
		}
		m.k = meta.RowKey{Dir: id, Name: seg}
		o, err := tx.Row(m.k)
		if err != nil || o == nil || o.Parent == 0 {
			return err
		}
		m.p, ok = meta.Place{Parent: o.Parent, Name: o.Name}, true
		return nil
	})
	return m, ok, err
}

// dirAt finds the directory whose entries lie under a prefix, listing those on
// the way; 0 for none.
func (f *folder) dirAt(ctx context.Context, prefix string) (vfolder.Ino, error) {
	rest, ok := strings.CutPrefix(prefix, f.prefix)
	if !ok {
		return 0, nil
	}
	dir := f.root
	if err := f.r.List(ctx, dir); err != nil {
		return 0, err
	}
	for at := f.prefix; rest != ""; {
		seg, more, _ := strings.Cut(rest, "/")
		at, rest = at+seg+"/", more
		next := vfolder.Ino(0)
		err := f.r.db.View(func(tx *meta.Tx) error {
			name, _ := f.r.codec.Decode(seg)
			e, err := tx.Entry(dir, name)
			if errors.Is(err, vfolder.KindNotFound) {
				return nil
			}
			next = e.Ino
			return err
		})
		if err != nil || next == 0 {
			return 0, err
		}
		if err := f.r.List(ctx, next); err != nil {
			if vfolder.KindOf(err) == vfolder.KindNotDir {
				return 0, nil
			}
			return 0, err
		}
		dir = next
	}
	return dir, nil
}

// merge makes all members names of one inode. The bytes and attributes are
// those of the highest version.
func (f *folder) merge(tx *meta.Tx, link string, members []member, best member, a objstore.Attrs, target string, dropped *[]*meta.Inode) error {
	ino, err := tx.Group(f.root, link)
	if err != nil {
		return err
	}
	e, err := tx.Entry(best.p.Parent, best.p.Name)
	if err != nil {
		return err
	}
	if ino == 0 {
		ino = e.Ino
	}
	n, err := tx.Inode(ino)
	if err != nil {
		return err
	}
	if n.Unhydrated || n.Link == "" && !n.Dirty {
		applyAttrs(n, a, false, best.in.Size, best.in.LastModified)
		n.Base, n.Target = best.k, target
		for x, v := range a.Xattrs {
			if err := tx.PutXattr(ino, x, v); err != nil {
				return err
			}
		}
	}
	n.Link, n.Unhydrated, n.Nlink = link, false, 0
	n.Parent, n.Name = best.p.Parent, best.p.Name
	for _, m := range members {
		e, err := tx.Entry(m.p.Parent, m.p.Name)
		if errors.Is(err, vfolder.KindNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if e.Ino != ino {
			old, err := tx.Inode(e.Ino)
			if err != nil {
				return err
			}
			if old.Dirty || old.Nlink > 1 || e.Item != 0 {
				continue // it was changed here: it stays a file of its own
			}
			*dropped = append(*dropped, old)
			if err := tx.DropInode(e.Ino); err != nil {
				return err
			}
		}
		if err := tx.SetEntry(m.p.Parent, m.p.Name, ino, n.Mode&0o170000); err != nil {
			return err
		}
		if err := tx.AddName(ino, m.p.Parent, m.p.Name); err != nil {
			return err
		}
		if err := f.memberRow(tx, m, n, best.vid); err != nil {
			return err
		}
		n.Nlink++
	}
	if err := tx.PutGroup(f.root, link, ino); err != nil {
		return err
	}
	return tx.PutInode(n)
}

// memberRow gives the row of a name to the group's inode; an older body counts
// as an older generation.
func (f *folder) memberRow(tx *meta.Tx, m member, n *meta.Inode, best objstore.VID) error {
	row, err := tx.Row(m.k)
	if err != nil || row == nil {
		return err
	}
	row.Ino, row.ETag, row.Size, row.VID = n.Ino, m.in.ETag, m.in.Size, m.vid.String()
	row.LastModified = m.in.LastModified.UnixNano()
	row.Gen, row.AttrGen = n.Gen, n.AttrGen
	if m.vid.Compare(best) >= 0 {
		return tx.PutRow(m.k, row)
	}
	row.Gen = 0
	if err := tx.PutRow(m.k, row); err != nil {
		return err
	}
	return tx.QueuePut(m.p.Parent, m.p.Name) // a writer of the group died between its names
}
