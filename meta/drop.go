package meta

import (
	"encoding/binary"

	"github.com/vfolder/vfolder"
	"golang.org/x/sys/unix"
)

// dropBatch is how many records one transaction of DropTree deletes.
const dropBatch = 1000

// DropTree forgets a folder: its name in the root at once, then, batch by
// batch, its work, entries, inodes, rows, prefixes and hints. The bucket is not
// touched. freed is told of every inode whose local bytes may go. It may be
// repeated after a crash: the folder record goes last.
func (db *DB) DropTree(root vfolder.Ino, freed func(*Inode)) error {
	var name, prefix, id string
	err := db.Update(func(tx *Tx) error {
		f, err := tx.Folder(root)
		if err != nil {
			return err
		}
		name, prefix, id = f.Record.Name, f.Record.Prefix, f.Record.ID
		f.Record.State = vfolder.FolderTrash
		if err := tx.PutFolder(f); err != nil {
			return err
		}
		e, err := tx.Entry(vfolder.RootIno, name)
		if err != nil || e.Ino != root {
			return nil // dropped before
		}
		dir, err := tx.Inode(vfolder.RootIno)
		if err != nil {
			return err
		}
		dir.Nlink--
		dir.Mtime, dir.Ctime = tx.Now(), tx.Now()
		if err := tx.PutInode(dir); err != nil {
			return err
		}
		return tx.del(db.entryKey(vfolder.RootIno, name))
	})
	if err != nil {
		return err
	}
	if err := db.dropRange(key8(kItem, uint64(root), 0)); err != nil {
		return err
	}
	if err := db.dropDir(root, freed); err != nil {
		return err
	}
	for _, under := range []string{prefix, vfolder.ReservedPrefix + id + "/"} {
		if err := db.dropPrefixes(under); err != nil {
			return err
		}
	}
	for _, k := range [][]byte{key8(kHint, uint64(root), 0), key8(kGroup, uint64(root), 0), key8(kIntent, uint64(root), 0)} {
		if err := db.dropRange(k); err != nil {
			return err
		}
	}
	return db.Update(func(tx *Tx) error {
		if err := tx.DropInode(root); err != nil {
			return err
		}
		return tx.DropFolder(root)
	})
}

// dropDir deletes what lies below a directory, deepest first.
func (db *DB) dropDir(dir vfolder.Ino, freed func(*Inode)) error {
	for {
		var batch []DirEntry
		err := db.View(func(tx *Tx) error {
			return tx.Entries(dir, 0, func(e DirEntry) bool {
				batch = append(batch, e)
				return len(batch) < dropBatch
			})
		})
		if err != nil || len(batch) == 0 {
			return err
		}
		for _, e := range batch {
			if e.Type == unix.S_IFDIR {
				if err := db.dropDir(e.Ino, freed); err != nil {
					return err
				}
			}
		}
		var gone []*Inode
		err = db.Update(func(tx *Tx) error {
			gone = gone[:0]
			for _, e := range batch {
				n, err := tx.Inode(e.Ino)
				if err == nil {
					gone = append(gone, n)
					if err := tx.DropInode(e.Ino); err != nil {
						return err
					}
				} else if vfolder.KindOf(err) != vfolder.KindStale { // a further name of a file that went before
					return err
				}
				for _, k := range [][]byte{db.entryKey(dir, e.Name), nameKey(e.Ino, dir, e.Name)} {
					if err := tx.del(k); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, n := range gone {
			freed(n)
		}
	}
}

// dropRange deletes all keys with a prefix.
func (db *DB) dropRange(prefix []byte) error {
	for {
		var keys [][]byte
		err := db.View(func(tx *Tx) error {
			return tx.scan(prefix, nil, false, func(k, _ []byte) (bool, error) {
				keys = append(keys, append([]byte{}, k...))
				return len(keys) < dropBatch, nil
			})
		})
		if err != nil || len(keys) == 0 {
			return err
		}
		err = db.Update(func(tx *Tx) error {
			for _, k := range keys {
				if err := tx.del(k); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
}

// dropPrefixes deletes the prefixes below a prefix, with their rows.
func (db *DB) dropPrefixes(under string) error {
	ids := map[uint64]string{}
	err := db.View(func(tx *Tx) error {
		return tx.PrefixesUnder(under, func(id uint64, p string) bool { ids[id] = p; return true })
	})
	if err != nil {
		return err
	}
	for id, p := range ids {
		if err := db.dropRange(key8(kRow, id, 0)); err != nil {
			return err
		}
		err := db.Update(func(tx *Tx) error {
			if err := tx.del(prefixIDKey(p)); err != nil {
				return err
			}
			return tx.del(binary.BigEndian.AppendUint64([]byte{kPrefix}, id))
		})
		if err != nil {
			return err
		}
	}
	return nil
}
