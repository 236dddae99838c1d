package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/vfolder/vfolder"
)

func sprint(f string, a []any) string { return strings.TrimSpace(fmt.Sprintf(f, a...)) }

// Tx is a transaction. Records that its methods return belong to the caller:
// changing one changes nothing until it is put back. Never put a record that
// was read outside the transaction.
type Tx struct {
	db      *DB
	txn     *badger.Txn
	write   bool
	touched []vfolder.Ino
}

// Now is the clock of the index, in Unix nanoseconds.
func (tx *Tx) Now() int64 { return tx.db.now().UnixNano() }

func (tx *Tx) get(key []byte, fn func([]byte) error) error {
	it, err := tx.txn.Get(key)
	if err != nil {
		return err
	}
	return it.Value(fn)
}

func (tx *Tx) has(key []byte) (bool, error) {
	_, err := tx.txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return false, nil
	}
	if err != nil {
		return false, wrap("read", err)
	}
	return true, nil
}

func (tx *Tx) put(key, val []byte) error {
	if err := tx.txn.Set(key, val); err != nil {
		return wrap("write", err)
	}
	return nil
}

func (tx *Tx) del(key []byte) error {
	if err := tx.txn.Delete(key); err != nil {
		return wrap("delete", err)
	}
	return nil
}

// scan calls fn for the keys with prefix, from start on (nil: the first), until
// it returns false. Key and value are valid only during the call.
func (tx *Tx) scan(prefix, start []byte, values bool, fn func(key, val []byte) (bool, error)) error {
	o := badger.DefaultIteratorOptions
	o.Prefix = prefix
	o.PrefetchValues = false // small values lie beside their keys
	it := tx.txn.NewIterator(o)
	defer it.Close()
	if start == nil {
		start = prefix
	}
	for it.Seek(start); it.ValidForPrefix(prefix); it.Next() {
		item := it.Item()
		more := true
		var err error
		if values {
			err = item.Value(func(v []byte) error {
				more, err = fn(item.Key(), v)
				return err
			})
		} else {
			more, err = fn(item.Key(), nil)
		}
		if err != nil {
			return wrap("scan", err)
		}
		if !more {
			return nil
		}
	}
	return nil
}

// number hands out the next unused number; inodes, prefixes and queue
// positions share one sequence that never goes back.
func (tx *Tx) number() (uint64, error) {
	db := tx.db
	if db.next >= db.nextLimit {
		db.nextLimit = db.next + reserveNumbers
		v := binary.BigEndian.AppendUint64(nil, schemaVersion)
		v = binary.BigEndian.AppendUint64(v, db.seed)
		v = binary.BigEndian.AppendUint64(v, db.nextLimit)
		if err := tx.put(valueKey("schema"), v); err != nil {
			return 0, err
		}
	}
	db.next++
	return db.next - 1, nil
}

// Value reads a one-off value; nil when there is none.
func (tx *Tx) Value(name string) ([]byte, error) {
	var out []byte
	err := tx.get(valueKey(name), func(v []byte) error { out = append([]byte{}, v...); return nil })
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, wrap("read", err)
	}
	return out, nil
}

// PutValue stores a one-off value.
func (tx *Tx) PutValue(name string, v []byte) error { return tx.put(valueKey(name), v) }

// Inode reads an inode; KindStale when there is none (its number was handed out
// once, and is never used again).
func (tx *Tx) Inode(ino vfolder.Ino) (*Inode, error) {
	var n *Inode
	key := inodeKey(ino)
	err := tx.get(key, func(v []byte) error {
		var ok bool
		if n, ok = decodeInode(ino, v); !ok {
			return corrupt("inode", key)
		}
		return nil
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, &vfolder.Error{Op: "inode", Kind: vfolder.KindStale, Err: fmt.Errorf("inode %d is gone", ino)}
	}
	if err != nil {
		return nil, wrap("read", err)
	}
	return n, nil
}

// PutInode stores an inode as it is.
func (tx *Tx) PutInode(n *Inode) error { return tx.put(inodeKey(n.Ino), n.encode()) }

// Entry looks a name up; KindNotFound when there is none.
func (tx *Tx) Entry(parent vfolder.Ino, name string) (Entry, error) {
	var e Entry
	key := tx.db.entryKey(parent, name)
	err := tx.get(key, func(v []byte) error {
		var ok bool
		if e, ok = decodeEntry(v); !ok {
			return corrupt("entry", key)
		}
		return nil
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		return e, &vfolder.Error{Op: "lookup", Kind: vfolder.KindNotFound, Path: name}
	}
	if err != nil {
		return e, wrap("read", err)
	}
	return e, nil
}

func (tx *Tx) putEntry(parent vfolder.Ino, name string, e Entry) error {
	return tx.put(tx.db.entryKey(parent, name), e.encode())
}

// DirEntry is an entry as Entries yields it.
type DirEntry struct {
	Name   string
	Cookie uint64
	Entry
}

// Entries yields the entries of a directory whose cookie is above after, in
// the order of cookies. All entries that share a cookie come together.
func (tx *Tx) Entries(parent vfolder.Ino, after uint64, yield func(DirEntry) bool) error {
	prefix := key8(kEntry, uint64(parent), 0)
	start := binary.BigEndian.AppendUint64(key8(kEntry, uint64(parent), 8), after+1)
	return tx.scan(prefix, start, true, func(k, v []byte) (bool, error) {
		e, ok := decodeEntry(v)
		if !ok || len(k) < 17 {
			return false, corrupt("entry", k)
		}
		return yield(DirEntry{Name: string(k[17:]), Cookie: binary.BigEndian.Uint64(k[9:]), Entry: e}), nil
	})
}

// HasEntries reports whether a directory has any entry.
func (tx *Tx) HasEntries(parent vfolder.Ino) (bool, error) {
	found := false
	err := tx.scan(key8(kEntry, uint64(parent), 0), nil, false, func(_, _ []byte) (bool, error) {
		found = true
		return false, nil
	})
	return found, err
}

// Place is one name of an inode.
type Place struct {
	Parent vfolder.Ino
	Name   string
}

// Names lists all names of an inode; none for an orphan.
func (tx *Tx) Names(n *Inode) ([]Place, error) {
	if n.Parent == 0 {
		return nil, nil
	}
	if n.Link == "" {
		return []Place{{n.Parent, n.Name}}, nil
	}
	var out []Place
	err := tx.scan(key8(kName, uint64(n.Ino), 0), nil, false, func(k, _ []byte) (bool, error) {
		out = append(out, Place{vfolder.Ino(binary.BigEndian.Uint64(k[9:])), string(k[17:])})
		return true, nil
	})
	return out, err
}

// Xattr reads one extended attribute; KindNoAttr when there is none.
func (tx *Tx) Xattr(ino vfolder.Ino, name string) ([]byte, error) {
	var out []byte
	err := tx.get(xattrKey(ino, name), func(v []byte) error { out = append([]byte{}, v...); return nil })
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, &vfolder.Error{Op: "xattr", Kind: vfolder.KindNoAttr, Path: name}
	}
	if err != nil {
		return nil, wrap("read", err)
	}
	return out, nil
}

// Xattrs reads all extended attributes of an inode; nil for none.
func (tx *Tx) Xattrs(ino vfolder.Ino) (map[string][]byte, error) {
	var out map[string][]byte
	err := tx.scan(key8(kXattr, uint64(ino), 0), nil, true, func(k, v []byte) (bool, error) {
		if out == nil {
			out = map[string][]byte{}
		}
		out[string(k[9:])] = append([]byte{}, v...)
		return true, nil
	})
	return out, err
}

// PutXattr stores an extended attribute; the caller touches the inode.
func (tx *Tx) PutXattr(ino vfolder.Ino, name string, v []byte) error {
	return tx.put(xattrKey(ino, name), v)
}

// DeleteXattr removes an extended attribute; the caller touches the inode.
func (tx *Tx) DeleteXattr(ino vfolder.Ino, name string) error { return tx.del(xattrKey(ino, name)) }

// Orphans lists the inodes without a name.
func (tx *Tx) Orphans() ([]vfolder.Ino, error) {
	var out []vfolder.Ino
	err := tx.scan([]byte{kOrphan}, nil, false, func(k, _ []byte) (bool, error) {
		out = append(out, vfolder.Ino(binary.BigEndian.Uint64(k[1:])))
		return true, nil
	})
	return out, err
}

// Reply finds the inode that an earlier worker answered request unique with,
// when it had carried the request out (ino 0 for operations without one).
func (tx *Tx) Reply(unique uint64) (ino vfolder.Ino, done bool, err error) {
	err = tx.get(replyKey(unique), func(v []byte) error {
		if len(v) == 16 && binary.BigEndian.Uint64(v) == unique {
			ino, done = vfolder.Ino(binary.BigEndian.Uint64(v[8:])), true
		}
		return nil
	})
	if err != nil && !errors.Is(err, badger.ErrKeyNotFound) {
		return 0, false, wrap("read", err)
	}
	return ino, done, nil
}

// PutReply records, in the transaction of an operation that must not be done
// twice, that it was done. unique 0 records nothing.
func (tx *Tx) PutReply(unique uint64, ino vfolder.Ino) error {
	if unique == 0 {
		return nil
	}
	v := binary.BigEndian.AppendUint64(nil, unique)
	return tx.put(replyKey(unique), binary.BigEndian.AppendUint64(v, uint64(ino)))
}
