package reconcile

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"strings"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/meta"
)

// longPrefixBytes is the longest prefix, in bytes, below which children are put:
// with a segment of 255 bytes and a slash their keys stay within 1,024.
const longPrefixBytes = vfolder.MaxKeyBytes - vfolder.MaxNameBytes - 1

// own returns a key among the folder's own objects.
func (f *folder) own(rest string) string { return vfolder.ReservedPrefix + f.id + "/" + rest }

func (f *folder) longPrefix(id string) string { return f.own("long/" + id + "/") }

const parkedDir = "parked/"

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// dirPrefix is the key prefix under which the entries of directory dir are to
// lie. With write set, in an Update, a directory whose prefix grows too long is
// given its own prefix; without, it is returned as it would be.
func (f *folder) dirPrefix(tx *meta.Tx, dir *meta.Inode, write bool) (string, error) {
	if dir.Ino == dir.Folder {
		return f.prefix, nil
	}
	if dir.LongID != "" {
		return f.longPrefix(dir.LongID), nil
	}
	if dir.Parent == 0 {
		return "", vfolder.Errorf(vfolder.KindNotFound, "key", dir.Name, "the directory was removed")
	}
	up, err := tx.Inode(dir.Parent)
	if err != nil {
		return "", err
	}
	p, err := f.dirPrefix(tx, up, write)
	if err != nil {
		return "", err
	}
	seg, _ := f.r.codec.Encode(dir.Name)
	p += seg + "/"
	if len(p) <= longPrefixBytes || !write {
		return p, nil
	}
	dir.LongID = randomHex(8)
	if err := tx.PutInode(dir); err != nil {
		return "", err
	}
	return f.longPrefix(dir.LongID), nil
}

// place is where the object of entry (parent, name) -> n belongs.
type place struct {
	key    string
	k      meta.RowKey // Dir is 0 when the prefix has no id yet, in a View
	seg    string
	prefix string
	hashed bool
}

func (f *folder) place(tx *meta.Tx, parent vfolder.Ino, name string, n *meta.Inode, write bool) (place, error) {
	var p place
	if n.Ino == n.Folder {
		p.key, p.prefix = f.prefix, f.prefix
	} else {
		dir, err := tx.Inode(parent)
		if err != nil {
			return p, err
		}
		if p.prefix, err = f.dirPrefix(tx, dir, write); err != nil {
			return p, err
		}
		f.segment(&p, name, n.IsDir())
	}
	return p, f.number(tx, &p, write)
}

func (f *folder) segment(p *place, name string, isDir bool) {
	p.seg, p.hashed = f.r.codec.Encode(name)
	if isDir {
		p.seg += "/"
	}
	p.key = p.prefix + p.seg
}

func (f *folder) number(tx *meta.Tx, p *place, write bool) (err error) {
	p.k.Name = p.seg
	if write {
		p.k.Dir, err = tx.MakePrefix(p.prefix)
	} else {
		p.k.Dir, err = tx.PrefixID(p.prefix)
	}
	return err
}

// rowKeyOf splits a key into a row's key, whose prefix must be known.
func rowKeyOf(tx *meta.Tx, key string) (meta.RowKey, error) {
	prefix, seg := splitKey(key)
	id, err := tx.PrefixID(prefix)
	return meta.RowKey{Dir: id, Name: seg}, err
}

// splitKey cuts a key before its last segment, with the slash that it may end in.
func splitKey(key string) (prefix, seg string) {
	i := strings.LastIndexByte(strings.TrimSuffix(key, "/"), '/')
	return key[:i+1], key[i+1:]
}

func keyOf(tx *meta.Tx, k meta.RowKey) (string, error) {
	p, err := tx.Prefix(k.Dir)
	return p + k.Name, err
}

// blocker is a row whose key cannot be in the bucket together with another.
type blocker struct {
	k   meta.RowKey
	row *meta.Row
	// below says that the row lies below the key, so that it is of a directory
	// that has to go; otherwise it is at the key or above.
	below bool
}

// maxBlockers bounds how many blockers of one key are looked at at a time.
const maxBlockers = 32

// blockers finds the rows that must go before an object can appear at p: one at
// the key that belongs to another entry, files at its ancestors, and, for a
// file, everything below the key.
func (f *folder) blockers(tx *meta.Tx, p place, parent vfolder.Ino, name string, isDir bool) ([]blocker, error) {
	var out []blocker
	at, err := tx.Row(p.k)
	if err != nil {
		return nil, err
	}
	if at != nil && !at.Absent && at.Parent != 0 && (at.Parent != parent || at.Name != name) {
		out = append(out, blocker{p.k, at, false})
	}
	inWay := func(o *meta.Row) bool { return o != nil && (!o.Absent || o.Pending != "") }
	check := func(k meta.RowKey, below bool) error {
		if k.Dir == 0 {
			return nil
		}
		o, err := tx.Row(k)
		if err == nil && inWay(o) {
			out = append(out, blocker{k, o, below})
		}
		return err
	}
	if isDir {
		if p.seg != "" {
			if err := check(meta.RowKey{Dir: p.k.Dir, Name: strings.TrimSuffix(p.seg, "/")}, false); err != nil {
				return nil, err
			}
		}
	} else {
		if err := check(meta.RowKey{Dir: p.k.Dir, Name: p.seg + "/"}, true); err != nil {
			return nil, err
		}
		var ids []uint64
		if err := tx.PrefixesUnder(p.key+"/", func(id uint64, _ string) bool { ids = append(ids, id); return true }); err != nil {
			return nil, err
		}
		for _, id := range ids {
			err := tx.Rows(id, func(k meta.RowKey, o *meta.Row) bool {
				if inWay(o) {
					out = append(out, blocker{k, o, true})
				}
				return len(out) < maxBlockers
			})
			if err != nil || len(out) >= maxBlockers {
				return out, err
			}
		}
	}
	for up := p.prefix; len(up) > len(f.prefix) && strings.HasPrefix(up, f.prefix); {
		parentPrefix, seg := splitKey(up)
		id, err := tx.PrefixID(parentPrefix)
		if err != nil {
			return nil, err
		}
		if err := check(meta.RowKey{Dir: id, Name: strings.TrimSuffix(seg, "/")}, false); err != nil {
			return nil, err
		}
		up = parentPrefix
	}
	return out, nil
}

// inTheWay takes the first owned blocker of an entry, looked at from outside;
// ok is false when there is none.
func (f *folder) inTheWay(tx *meta.Tx, parent vfolder.Ino, name string) (b blocker, ok bool, err error) {
	e, err := tx.Entry(parent, name)
	if err != nil {
		return b, false, err
	}
	n, err := tx.Inode(e.Ino)
	if err != nil {
		return b, false, err
	}
	p, err := f.place(tx, parent, name, n, false)
	if err != nil || e.Row == p.k && p.k.Dir != 0 {
		return b, false, err
	}
	all, err := f.blockers(tx, p, parent, name, n.IsDir())
	if err != nil {
		return b, false, err
	}
	for _, c := range all {
		if c.row.Parent != 0 {
			return c, true, nil
		}
	}
	return b, false, nil
}

// maxCycle bounds how long a cycle of entries that wait for each other's keys
// may be to be noticed from one of its members in one look.
const maxCycle = 64

// inCycle reports whether entry (parent, name), which waits for first to go,
// is itself what first waits for in the end.
func (f *folder) inCycle(tx *meta.Tx, parent vfolder.Ino, name string, first blocker) (bool, error) {
	at := first
	for range maxCycle {
		if at.row.Parent == parent && at.row.Name == name {
			return true, nil
		}
		next, ok, err := f.inTheWay(tx, at.row.Parent, at.row.Name)
		if errors.Is(err, vfolder.KindNotFound) || errors.Is(err, vfolder.KindStale) {
			return false, nil
		}
		if err != nil || !ok {
			return false, err
		}
		at = next
	}
	return false, nil
}
