package meta

import (
	"encoding/binary"
	"errors"

	"github.com/dgraph-io/badger/v4"
	"github.com/vfolder/vfolder"
)

// The actual state: prefixes, rows, and the queue of work between the desired
// and the actual state.

// Prefix returns the key prefix of an id; KindNotFound when there is none.
func (tx *Tx) Prefix(id uint64) (string, error) {
	var s string
	err := tx.get(prefixKey(id), func(v []byte) error { s = string(v); return nil })
	if err != nil {
		return "", wrap("read prefix", err)
	}
	return s, nil
}

// PrefixID returns the id of a key prefix, 0 when it has none.
func (tx *Tx) PrefixID(prefix string) (uint64, error) {
	var id uint64
	err := tx.get(prefixIDKey(prefix), func(v []byte) error { id = binary.BigEndian.Uint64(v); return nil })
	if errors.Is(err, badger.ErrKeyNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, wrap("read prefix", err)
	}
	return id, nil
}

// MakePrefix returns the id of a key prefix, making one when there is none.
func (tx *Tx) MakePrefix(prefix string) (uint64, error) {
	id, err := tx.PrefixID(prefix)
	if err != nil || id != 0 {
		return id, err
	}
	if id, err = tx.number(); err != nil {
		return 0, err
	}
	if err := tx.put(prefixIDKey(prefix), binary.BigEndian.AppendUint64(nil, id)); err != nil {
		return 0, err
	}
	return id, tx.put(prefixKey(id), []byte(prefix))
}

// PrefixesUnder yields the known prefixes that begin with prefix, itself
// included, in key order.
func (tx *Tx) PrefixesUnder(prefix string, yield func(id uint64, prefix string) bool) error {
	return tx.scan(prefixIDKey(prefix), nil, true, func(k, v []byte) (bool, error) {
		return yield(binary.BigEndian.Uint64(v), string(k[1:])), nil
	})
}

// Row reads a row; nil when nothing is known at the key.
func (tx *Tx) Row(k RowKey) (*Row, error) {
	var o *Row
	if k.IsZero() {
		return nil, nil
	}
	key := rowKey(k)
	err := tx.get(key, func(v []byte) error {
		var ok bool
		if o, ok = decodeRow(v); !ok {
			return corrupt("row", key)
		}
		return nil
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, wrap("read row", err)
	}
	return o, nil
}

// Rows yields the rows directly below a prefix, in the order of their names.
func (tx *Tx) Rows(dir uint64, yield func(RowKey, *Row) bool) error {
	return tx.scan(key8(kRow, dir, 0), nil, true, func(k, v []byte) (bool, error) {
		o, ok := decodeRow(v)
		if !ok {
			return false, corrupt("row", k)
		}
		return yield(RowKey{dir, string(k[9:])}, o), nil
	})
}

// PutRow stores a row as it is.
func (tx *Tx) PutRow(k RowKey, o *Row) error { return tx.put(rowKey(k), o.encode()) }

// DropRow removes a row and its queued deletion: no object is at the key. An
// entry that it belonged to is told so.
func (tx *Tx) DropRow(folder vfolder.Ino, k RowKey) error {
	o, err := tx.Row(k)
	if err != nil || o == nil {
		return err
	}
	if err := tx.unqueue(folder, o.Item); err != nil {
		return err
	}
	if o.Parent != 0 {
		e, err := tx.Entry(o.Parent, o.Name)
		switch {
		case errors.Is(err, vfolder.KindNotFound):
		case err != nil:
			return err
		case e.Row == k:
			e.Row = RowKey{}
			if err := tx.putEntry(o.Parent, o.Name, e); err != nil {
				return err
			}
		}
	}
	return tx.del(rowKey(k))
}

// BindRow stores a row at k as the object of entry (parent, name). A row that
// the entry had elsewhere loses its owner and is queued for deletion; a
// deletion queued for k is dropped.
func (tx *Tx) BindRow(folder, parent vfolder.Ino, name string, k RowKey, o *Row) error {
	e, err := tx.Entry(parent, name)
	if err != nil {
		return err
	}
	if was, err := tx.Row(k); err != nil {
		return err
	} else if was != nil {
		if err := tx.unqueue(folder, was.Item); err != nil {
			return err
		}
		if was.Parent != 0 && (was.Parent != parent || was.Name != name) {
			return vfolder.Errorf(vfolder.KindConflict, "bind row", name, "the key belongs to another entry (%d, %q)", was.Parent, was.Name)
		}
	}
	old := e.Row
	o.Parent, o.Name, o.Item, o.Absent = parent, name, 0, false
	if err := tx.PutRow(k, o); err != nil {
		return err
	}
	e.Row = k
	if err := tx.putEntry(parent, name, e); err != nil {
		return err
	}
	if old != k {
		return tx.disown(folder, old)
	}
	return nil
}

// MoveRow says that the object of row from now lies at to (parking).
func (tx *Tx) MoveRow(folder vfolder.Ino, from, to RowKey, o *Row) error {
	was, err := tx.Row(from)
	if err != nil || was == nil {
		return err
	}
	o.Parent, o.Name, o.Ino, o.Item, o.Absent = was.Parent, was.Name, was.Ino, 0, false
	if err := tx.PutRow(to, o); err != nil {
		return err
	}
	if o.Parent != 0 {
		e, err := tx.Entry(o.Parent, o.Name)
		if err != nil {
			return err
		}
		e.Row = to
		if err := tx.putEntry(o.Parent, o.Name, e); err != nil {
			return err
		}
	}
	// What is left at from is a copy nobody needs.
	was.Parent, was.Name = 0, ""
	if was.Item == 0 {
		if was.Item, err = tx.enqueue(Item{Folder: folder, Kind: ItemDelete, Row: from}); err != nil {
			return err
		}
	}
	return tx.PutRow(from, was)
}

// own tells a row that its entry has another name now.
func (tx *Tx) own(k RowKey, parent vfolder.Ino, name string) error {
	o, err := tx.Row(k)
	if err != nil || o == nil {
		return err
	}
	o.Parent, o.Name = parent, name
	return tx.PutRow(k, o)
}

// disown takes a row's owner away and queues its deletion.
func (tx *Tx) disown(folder vfolder.Ino, k RowKey) error {
	o, err := tx.Row(k)
	if err != nil || o == nil {
		return err
	}
	o.Parent, o.Name = 0, ""
	if o.Item == 0 {
		if o.Item, err = tx.enqueue(Item{Folder: folder, Kind: ItemDelete, Row: k}); err != nil {
			return err
		}
	}
	return tx.PutRow(k, o)
}

// QueueDelete queues the deletion of a row that has no owner.
func (tx *Tx) QueueDelete(folder vfolder.Ino, k RowKey) error { return tx.disown(folder, k) }

// Adopt inserts what was found in the bucket: inode n as entry (parent, name)
// whose object is row o at k. Ino, Folder, Parent and Name of n are set here
// unless n.Ino is set (a further name of a link group). Nothing is queued.
func (tx *Tx) Adopt(parent vfolder.Ino, name string, n *Inode, k RowKey, o *Row) error {
	dir, err := tx.liveDir(parent)
	if err != nil {
		return err
	}
	if err := tx.mustBeFree(parent, name); err != nil {
		return err
	}
	if n.Ino == 0 {
		ino, err := tx.number()
		if err != nil {
			return err
		}
		n.Ino, n.Folder, n.Parent, n.Name = vfolder.Ino(ino), dir.Folder, parent, name
		if n.Folder == 0 {
			n.Folder = n.Ino
		}
		if n.Gen == 0 {
			n.Gen, n.AttrGen = 1, 1
		}
		if n.Nlink == 0 {
			n.Nlink = 1
			if n.IsDir() {
				n.Nlink = 2
			}
		}
	}
	if n.Link != "" {
		if err := tx.put(nameKey(n.Ino, parent, name), nil); err != nil {
			return err
		}
	}
	if err := tx.PutInode(n); err != nil {
		return err
	}
	e := Entry{Ino: n.Ino, Type: n.Mode & 0o170000}
	if n.Unhydrated && !n.IsDir() {
		e.Type = 0
	}
	if o != nil {
		o.Parent, o.Name, o.Ino = parent, name, n.Ino
		e.Row = k
		if err := tx.PutRow(k, o); err != nil {
			return err
		}
	}
	if err := tx.putEntry(parent, name, e); err != nil {
		return err
	}
	if n.IsDir() {
		dir.Nlink++
	}
	now := tx.Now()
	dir.Mtime, dir.Ctime = now, now
	return tx.PutInode(dir)
}

// Forget removes a name because its object is gone from the bucket: entry,
// queued work and row go, and nothing is queued. A directory must be empty. The
// inode is returned as it is then; without a name left it is an orphan.
func (tx *Tx) Forget(parent vfolder.Ino, name string) (*Inode, error) {
	dir, e, n, err := tx.child(parent, name)
	if err != nil {
		return nil, err
	}
	if n.IsDir() {
		if err := tx.mustBeEmptyDir(n, name); err != nil {
			return nil, err
		}
	}
	if err := tx.DropRow(n.Folder, e.Row); err != nil {
		return nil, err
	}
	if err := tx.unqueue(n.Folder, e.Item); err != nil {
		return nil, err
	}
	if err := tx.del(tx.db.entryKey(parent, name)); err != nil {
		return nil, err
	}
	if n.Link != "" {
		if err := tx.del(nameKey(n.Ino, parent, name)); err != nil {
			return nil, err
		}
	}
	now := tx.Now()
	n.Ctime = now
	n.Nlink--
	if n.IsDir() {
		n.Nlink = 0
		dir.Nlink--
	}
	if n.Nlink > 0 {
		names, err := tx.Names(n)
		if err != nil {
			return nil, err
		}
		for _, p := range names {
			if p != (Place{parent, name}) {
				n.Parent, n.Name = p.Parent, p.Name
				break
			}
		}
	} else {
		n.Parent, n.Name = 0, ""
		if err := tx.put(orphanKey(n.Ino), nil); err != nil {
			return nil, err
		}
		if n.Link != "" {
			if err := tx.del(groupKey(n.Folder, n.Link)); err != nil {
				return nil, err
			}
		}
	}
	if err := tx.PutInode(n); err != nil {
		return nil, err
	}
	dir.Mtime, dir.Ctime = now, now
	return n, tx.PutInode(dir)
}

// SetEntry changes inode and type of an existing entry (hydration found that
// the name belongs to a link group). Nothing is queued.
func (tx *Tx) SetEntry(parent vfolder.Ino, name string, ino vfolder.Ino, typ uint32) error {
	e, err := tx.Entry(parent, name)
	if err != nil {
		return err
	}
	e.Ino, e.Type = ino, typ
	return tx.putEntry(parent, name, e)
}

// AddName records a further name of an inode in a link group, without an entry.
func (tx *Tx) AddName(ino, parent vfolder.Ino, name string) error {
	return tx.put(nameKey(ino, parent, name), nil)
}

// DropInode deletes an inode record that no entry names (hydration).
func (tx *Tx) DropInode(ino vfolder.Ino) error {
	if err := tx.dropXattrs(ino); err != nil {
		return err
	}
	return tx.del(inodeKey(ino))
}

// Group finds the inode of a hard link group, 0 when it is not known here.
func (tx *Tx) Group(folder vfolder.Ino, link string) (vfolder.Ino, error) {
	var ino vfolder.Ino
	err := tx.get(groupKey(folder, link), func(v []byte) error { ino = vfolder.Ino(binary.BigEndian.Uint64(v)); return nil })
	if errors.Is(err, badger.ErrKeyNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, wrap("read link group", err)
	}
	return ino, nil
}

// PutGroup makes ino the inode of a hard link group.
func (tx *Tx) PutGroup(folder vfolder.Ino, link string, ino vfolder.Ino) error {
	return tx.put(groupKey(folder, link), inodeKey(ino)[1:])
}

// Hint reads what a segment said of a key (relative to the folder); nil for
// nothing.
func (tx *Tx) Hint(folder vfolder.Ino, key string) ([]byte, error) {
	var out []byte
	err := tx.get(hintKey(folder, key), func(v []byte) error { out = append([]byte{}, v...); return nil })
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, wrap("read hint", err)
	}
	return out, nil
}

// PutHint stores what a segment said of a key; nil forgets it.
func (tx *Tx) PutHint(folder vfolder.Ino, key string, v []byte) error {
	if v == nil {
		return tx.del(hintKey(folder, key))
	}
	return tx.put(hintKey(folder, key), v)
}

// Folder reads a folder by its root directory; KindNotFound for none.
func (tx *Tx) Folder(root vfolder.Ino) (*Folder, error) {
	var f *Folder
	key := folderKey(root)
	err := tx.get(key, func(v []byte) error {
		var ok bool
		if f, ok = decodeFolder(root, v); !ok {
			return corrupt("folder", key)
		}
		return nil
	})
	if err != nil {
		return nil, wrap("read folder", err)
	}
	return f, nil
}

// PutFolder stores a folder record.
func (tx *Tx) PutFolder(f *Folder) error { return tx.put(folderKey(f.Root), f.encode()) }

// DropFolder deletes a folder record; the tree is dropped by DB.DropTree.
func (tx *Tx) DropFolder(root vfolder.Ino) error { return tx.del(folderKey(root)) }

// Folders lists all folders, in the order in which they came to this index.
func (tx *Tx) Folders() ([]*Folder, error) {
	var out []*Folder
	err := tx.scan([]byte{kFolder}, nil, true, func(k, v []byte) (bool, error) {
		f, ok := decodeFolder(vfolder.Ino(binary.BigEndian.Uint64(k[1:])), v)
		if !ok {
			return false, corrupt("folder", k)
		}
		out = append(out, f)
		return true, nil
	})
	return out, err
}

// enqueue appends an item to its folder's queue and returns its seq.
func (tx *Tx) enqueue(it Item) (uint64, error) {
	seq, err := tx.number()
	if err != nil {
		return 0, err
	}
	it.Seq = seq
	if it.Since == 0 {
		it.Since = tx.Now()
	}
	if len(tx.touched) == 0 || tx.touched[len(tx.touched)-1] != it.Folder {
		tx.touched = append(tx.touched, it.Folder)
	}
	return seq, tx.put(itemKey(it.Folder, seq), it.encode())
}

func (tx *Tx) unqueue(folder vfolder.Ino, seq uint64) error {
	if seq == 0 {
		return nil
	}
	return tx.del(itemKey(folder, seq))
}

// queuePut queues the work of one name; e is the entry that the caller stores.
// A new key keeps its place in the queue, since later replacements may rely on
// it; a replacement goes to the end, behind the new keys that it may name.
func (tx *Tx) queuePut(parent vfolder.Ino, name string, n *Inode, e *Entry) error {
	var since int64
	if e.Item != 0 {
		if e.Row.IsZero() || n.IsDir() {
			return nil
		}
		if old, ok, err := tx.Item(n.Folder, e.Item); err != nil {
			return err
		} else if ok {
			since = old.Since
		}
		if err := tx.unqueue(n.Folder, e.Item); err != nil {
			return err
		}
	}
	seq, err := tx.enqueue(Item{Folder: n.Folder, Kind: ItemPut, Parent: parent, Name: name, Ino: n.Ino, Since: since})
	e.Item = seq
	return err
}

// queueNames queues every name of an inode.
func (tx *Tx) queueNames(n *Inode) error {
	if n.Ino == vfolder.RootIno || n.Parent == 0 {
		return nil
	}
	names, err := tx.Names(n)
	if err != nil {
		return err
	}
	for _, p := range names {
		if err := tx.queueName(p.Parent, p.Name, n); err != nil {
			return err
		}
	}
	return nil
}

func (tx *Tx) queueName(parent vfolder.Ino, name string, n *Inode) error {
	e, err := tx.Entry(parent, name)
	if errors.Is(err, vfolder.KindNotFound) {
		return nil // a name of a link group that is being put in place by the caller
	}
	if err != nil {
		return err
	}
	was := e.Item
	if err := tx.queuePut(parent, name, n, &e); err != nil || e.Item == was {
		return err
	}
	return tx.putEntry(parent, name, e)
}

// QueuePut queues an ItemPut for an entry that needs one for a reason outside
// the index (out of place, conflict copy).
func (tx *Tx) QueuePut(parent vfolder.Ino, name string) error {
	e, err := tx.Entry(parent, name)
	if err != nil {
		return err
	}
	n, err := tx.Inode(e.Ino)
	if err != nil {
		return err
	}
	if e.Item != 0 {
		return nil
	}
	return tx.queueName(parent, name, n)
}

func (tx *Tx) queueTree(n *Inode) error {
	_, err := tx.enqueue(Item{Folder: n.Folder, Kind: ItemTree, Ino: n.Ino})
	return err
}

// QueueTree queues the walk below directory n for a reason outside the index:
// what lies below it is not where its names say.
func (tx *Tx) QueueTree(n *Inode) error { return tx.queueTree(n) }

// BeginWrite notes in the row at k, made Absent when there is none, that a
// write with vfolder-id vid is about to be sent. It is to be committed before
// the request.
func (tx *Tx) BeginWrite(folder vfolder.Ino, k RowKey, vid string) error {
	o, err := tx.Row(k)
	if err != nil {
		return err
	}
	if o == nil {
		o = &Row{Absent: true}
	}
	o.Pending = vid
	if err := tx.put(intentKey(folder, k), nil); err != nil {
		return err
	}
	return tx.PutRow(k, o)
}

// EndWrite clears the note of BeginWrite: the outcome is known. A row that was
// only made for the note goes with it.
func (tx *Tx) EndWrite(folder vfolder.Ino, k RowKey) error {
	if err := tx.del(intentKey(folder, k)); err != nil {
		return err
	}
	o, err := tx.Row(k)
	if err != nil || o == nil {
		return err
	}
	if o.Absent {
		return tx.DropRow(folder, k)
	}
	if o.Pending == "" {
		return nil
	}
	o.Pending = ""
	return tx.PutRow(k, o)
}

// Writes lists the rows that carry the note of BeginWrite.
func (tx *Tx) Writes(folder vfolder.Ino) ([]RowKey, error) {
	var out []RowKey
	err := tx.scan(key8(kIntent, uint64(folder), 0), nil, false, func(k, _ []byte) (bool, error) {
		out = append(out, RowKey{binary.BigEndian.Uint64(k[9:]), string(k[17:])})
		return true, nil
	})
	return out, err
}

// Item reads a work item; ok is false when it is done or was replaced.
func (tx *Tx) Item(folder vfolder.Ino, seq uint64) (it Item, ok bool, err error) {
	key := itemKey(folder, seq)
	err = tx.get(key, func(v []byte) error {
		if it, ok = decodeItem(folder, seq, v); !ok {
			return corrupt("work item", key)
		}
		return nil
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		return it, false, nil
	}
	if err != nil {
		return it, false, wrap("read item", err)
	}
	return it, ok, nil
}

// Items yields a folder's work after seq, in order.
func (tx *Tx) Items(folder vfolder.Ino, after uint64, yield func(Item) bool) error {
	return tx.scan(key8(kItem, uint64(folder), 0), itemKey(folder, after+1), true, func(k, v []byte) (bool, error) {
		it, ok := decodeItem(folder, binary.BigEndian.Uint64(k[9:]), v)
		if !ok {
			return false, corrupt("work item", k)
		}
		return yield(it), nil
	})
}

// CountItems counts a folder's work, at most limit.
func (tx *Tx) CountItems(folder vfolder.Ino, limit int) (int, error) {
	n := 0
	err := tx.scan(key8(kItem, uint64(folder), 0), nil, false, func(_, _ []byte) (bool, error) {
		n++
		return n < limit, nil
	})
	return n, err
}

// Done removes a finished item and its mark on the entry or row. It reports
// false, changing nothing, when the item was replaced by a later one meanwhile.
func (tx *Tx) Done(it Item) (bool, error) {
	_, ok, err := tx.Item(it.Folder, it.Seq)
	if err != nil || !ok {
		return false, err
	}
	switch it.Kind {
	case ItemPut:
		e, err := tx.Entry(it.Parent, it.Name)
		if err == nil && e.Item == it.Seq {
			e.Item = 0
			err = tx.putEntry(it.Parent, it.Name, e)
		}
		if err != nil && !errors.Is(err, vfolder.KindNotFound) {
			return false, err
		}
	case ItemDelete:
		o, err := tx.Row(it.Row)
		if err == nil && o != nil && o.Item == it.Seq {
			o.Item = 0
			err = tx.PutRow(it.Row, o)
		}
		if err != nil {
			return false, err
		}
	}
	return true, tx.unqueue(it.Folder, it.Seq)
}
