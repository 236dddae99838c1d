package vfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/content"
	"github.com/vfolder/vfolder/meta"
)

// What is left of a former worker is put right when an inode is first touched.
//
// After the death of a worker the data file is whole, and tells size and time
// of an open dirty period. After the death of the machine local bytes that were
// not flushed cannot be trusted: clean ones are dropped (the bucket has them),
// dirty ones go to a recovery directory, and the file is what it was when it
// was last published.

// flushedValue names the list of boots that ended in Close.
const flushedValue = "vfs flushed boots"

// maxBoots bounds that list; the oldest go first.
const maxBoots = 512

// beginBoot reads which former boots ended well. This one is not among them
// while it is served.
func (fs *FS) beginBoot() error {
	again := false
	err := fs.db.Update(func(tx *meta.Tx) error {
		list, err := flushedBoots(tx)
		if err != nil {
			return err
		}
		fs.flushed = make(map[uint64]bool)
		for _, b := range list {
			fs.flushed[b] = b != fs.db.Boot()
		}
		if i := slices.Index(list, fs.db.Boot()); i >= 0 {
			again = true
			return putBoots(tx, slices.Delete(list, i, i+1))
		}
		return nil
	})
	if err != nil || !again {
		return err
	}
	return fs.db.Sync() // before anything is written that the old list would vouch for
}

// endBoot flushes everything, and stores that it did.
func (fs *FS) endBoot() error {
	if err := fs.content.SyncAll(); err != nil {
		return err
	}
	err := fs.db.Update(func(tx *meta.Tx) error {
		list, err := flushedBoots(tx)
		if err != nil || slices.Contains(list, fs.db.Boot()) {
			return err
		}
		list = append(list, fs.db.Boot())
		return putBoots(tx, list[max(0, len(list)-maxBoots):])
	})
	if err != nil {
		return err
	}
	return fs.db.Sync()
}

func flushedBoots(tx *meta.Tx) ([]uint64, error) {
	v, err := tx.Value(flushedValue)
	var list []uint64
	for ; len(v) >= 8; v = v[8:] {
		list = append(list, binary.BigEndian.Uint64(v))
	}
	return list, err
}

func putBoots(tx *meta.Tx, list []uint64) error {
	var v []byte
	for _, b := range list {
		v = binary.BigEndian.AppendUint64(v, b)
	}
	return tx.PutValue(flushedValue, v)
}

// doubtful says that local bytes may not have survived the machine.
func (fs *FS) doubtful(n *meta.Inode) bool {
	return n.Boot != 0 && n.Boot != fs.db.Boot() && !fs.flushed[n.Boot]
}

func (fs *FS) needsRecovery(n *meta.Inode) bool {
	return n.IsRegular() && n.Data != meta.DataRemote && (n.Dirty || fs.doubtful(n))
}

// recoverInode puts right what a former worker left. nd.mu is held for writing.
func (fs *FS) recoverInode(nd *node, n *meta.Inode) (*meta.Inode, error) {
	if nd.open || !fs.needsRecovery(n) {
		nd.settled = true
		return n, nil
	}
	err := nd.closeFile()
	if err != nil {
		return nil, err
	}
	missing, err := fs.openFile(nd, n)
	if err != nil {
		return nil, err
	}
	empty := missing && n.Data == meta.DataComplete && n.Size == 0
	switch {
	case fs.doubtful(n) && !n.Dirty:
		n, err = fs.forgetBytes(nd, n)
	case fs.doubtful(n) && (!empty || !n.Base.IsZero()), missing && !empty:
		n, err = fs.salvage(nd, n, missing)
	case missing:
		nd.absent = true
	default:
		n, err = fs.reread(nd)
	}
	if err != nil {
		_ = nd.closeFile()
		return nil, err
	}
	nd.settled = true
	return n, nil
}

// reread takes size and time of a dirty file from its data file.
func (fs *FS) reread(nd *node) (*meta.Inode, error) {
	size, mtime := nd.file.Size(), nd.file.Mtime()
	n, err := fs.inode(nd)
	if err != nil || n.Size == size && n.Mtime == mtime {
		return n, err
	}
	return fs.update(nd, func(tx *meta.Tx, n *meta.Inode) error {
		n.Size, n.Mtime, n.Ctime = size, mtime, max(n.Ctime, mtime)
		return tx.PutInode(n)
	})
}

// forgetBytes drops doubtful bytes that the bucket has.
func (fs *FS) forgetBytes(nd *node, n *meta.Inode) (*meta.Inode, error) {
	fs.log.Info("local bytes are gone, or were not flushed before the machine went down; they are fetched again", "ino", n.Ino, "name", n.Name)
	return fs.revert(nd, func(tx *meta.Tx, n *meta.Inode) (bool, error) {
		if n.Base.IsZero() {
			n.Boot = 0 // an empty file has nothing to lose
			return false, tx.PutInode(n)
		}
		n.Data, n.Known, n.Boot = meta.DataRemote, nil, 0
		n.DataGen++
		return true, tx.PutInode(n)
	})
}

// revert stores what change makes of the record; when it says that the data
// file is not used any more, that goes.
func (fs *FS) revert(nd *node, change func(*meta.Tx, *meta.Inode) (bool, error)) (*meta.Inode, error) {
	old := nd.file.ID()
	drop := false
	n, err := fs.update(nd, func(tx *meta.Tx, n *meta.Inode) (err error) {
		drop, err = change(tx, n)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := nd.closeFile(); err != nil || !drop {
		return n, err
	}
	return n, fs.content.Remove(old)
}

// salvage moves the bytes of a dirty file that cannot be trusted to the
// recovery directory and makes the file what it was when it was last published.
// One that never was stays, with what there is of it.
func (fs *FS) salvage(nd *node, n *meta.Inode, missing bool) (*meta.Inode, error) {
	base, err := fs.published(n)
	if err != nil {
		return nil, err
	}
	if base == nil {
		fs.log.Warn("a file was not flushed before the machine went down and was never uploaded; it has what is left", "ino", n.Ino, "name", n.Name)
		var size int64
		if !missing {
			size = nd.file.Size()
		}
		return fs.revert(nd, func(tx *meta.Tx, n *meta.Inode) (bool, error) {
			n.Size, n.Data, n.Known, n.Boot = size, meta.DataComplete, nil, 0
			return false, tx.PutInode(n)
		})
	}
	saved := "nothing was left of them"
	if !missing && nd.file.Size() > 0 {
		if saved, err = fs.saveAside(nd.file, n); err != nil {
			return nil, err
		}
	}
	fs.log.Warn("changes of a file were not flushed before the machine went down; it is as last uploaded", "ino", n.Ino, "name", n.Name, "changes", saved)
	return fs.revert(nd, func(tx *meta.Tx, n *meta.Inode) (bool, error) {
		row, err := tx.Row(n.Base)
		if err != nil {
			return false, err
		}
		if row == nil || row.Absent {
			return false, errMoved
		}
		n.Data, n.Known, n.Size, n.Boot, n.Dirty = meta.DataRemote, nil, row.Size, 0, false
		n.Mtime, n.Ctime = row.LastModified, tx.Now()
		n.DataGen++
		// The object is what this generation is now.
		row.Gen = n.Gen
		if err := tx.PutRow(n.Base, row); err != nil {
			return false, err
		}
		return true, tx.Touch(n)
	})
}

// published finds the object that the file was last published as; nil for none.
func (fs *FS) published(n *meta.Inode) (row *meta.Row, err error) {
	err = fs.db.View(func(tx *meta.Tx) error {
		row, err = tx.Row(n.Base)
		return err
	})
	if row != nil && row.Absent {
		row = nil
	}
	return row, err
}

// saveAside copies what is known of a data file into the recovery directory and
// returns the path.
func (fs *FS) saveAside(f *content.File, n *meta.Inode) (string, error) {
	to, err := fs.asidePath(n)
	if err != nil {
		return "", err
	}
	if err := copyOut(f, to); err != nil {
		return "", &vfolder.Error{Op: "recover", Kind: vfolder.KindOf(err), Path: to, Err: err}
	}
	return to, nil
}

func copyOut(f *content.File, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := out.Truncate(f.Size()); err != nil {
		return err
	}
	buf := make([]byte, copyPiece)
	for _, r := range f.Known() {
		for off := r.Off; off < r.End(); {
			n, err := f.ReadAt(buf[:min(int64(len(buf)), r.End()-off)], off)
			if n == 0 && err != nil {
				return err
			}
			if _, err := out.WriteAt(buf[:n], off); err != nil {
				return err
			}
			off += int64(n)
		}
	}
	return errors.Join(out.Sync(), out.Close())
}

// asidePath names the copy after the file's folder and path. The inode and the
// data generation keep copies apart.
func (fs *FS) asidePath(n *meta.Inode) (string, error) {
	if fs.recovery == "" {
		return "", fail(vfolder.KindInvalid, "recover", n.Name, "there is no recovery directory")
	}
	folder, path := fmt.Sprint(n.Folder), []string{"nameless"}
	err := fs.db.View(func(tx *meta.Tx) error {
		if f, err := tx.Folder(n.Folder); err == nil {
			folder = f.Record.Name
		}
		p, err := tx.Path(n)
		if err == nil && len(p) > 0 {
			path = p
		} else if err != nil && vfolder.KindOf(err) != vfolder.KindNotFound {
			return err
		}
		return nil
	})
	last := path[len(path)-1]
	path[len(path)-1] = fmt.Sprintf("%s.%d-%d", last[:min(len(last), 200)], n.Ino, n.DataGen)
	return filepath.Join(append([]string{fs.recovery, folder}, path...)...), err
}
