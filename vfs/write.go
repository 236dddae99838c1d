package vfs

import (
	"errors"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/content"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
	"golang.org/x/sys/unix"
)

// Write stores data. Blocks that it covers in part are fetched before.
func (fs *FS) Write(req *fusefs.Request, ino vfolder.Ino, data []byte, off int64, killPriv bool) (int, error) {
	var done int
	err := fs.modify(req, "write", ino, off, int64(len(data)), change{kill: killPriv, do: func(f *content.File) (err error) {
		done, err = f.WriteAt(data, off)
		return err
	}})
	if done > 0 {
		fs.tellInode(req, ino)
		return done, nil // an error comes again with the rest
	}
	return 0, err
}

// change is one modification of content.
type change struct {
	kill bool // drop setuid and setgid
	// known says that it leaves holes in what was remote, which only the index
	// tells from remote bytes.
	holes bool
	keep  bool // the content stays as it is (space is allocated)
	do    func(*content.File) error
}

// modify changes [off,off+n) of a file.
func (fs *FS) modify(req *fusefs.Request, op string, ino vfolder.Ino, off, n int64, c change) error {
	nd := fs.pin(ino)
	defer fs.unpin(nd)
	rec, err := fs.mutable(req, op, nd)
	switch {
	case err != nil:
		return err
	case rec.IsDir():
		return fail(vfolder.KindIsDir, op, rec.Name, "is a directory")
	case !rec.IsRegular():
		return fail(vfolder.KindInvalid, op, rec.Name, "is not a file")
	case off < 0 || n < 0:
		return fail(vfolder.KindInvalid, op, rec.Name, "range %d+%d", off, n)
	case off > vfolder.MaxFileBytes-n:
		return fail(vfolder.KindTooLarge, op, rec.Name, "files have at most %d bytes", vfolder.MaxFileBytes)
	case n == 0:
		return nil
	}
	for rounds := 0; rounds < maxRounds; rounds++ {
		need, err := fs.modifyLocal(nd, off, n, c)
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil || need == nil {
			return err
		}
		if err := fs.await(req, nd, need, 0); err != nil {
			return err
		}
	}
	return errBusy(op)
}

// modifyLocal carries c out unless remote bytes are needed first.
func (fs *FS) modifyLocal(nd *node, off, n int64, c change) (*need, error) {
	rec, err := fs.lock(nd)
	if err != nil {
		return nil, err
	}
	defer nd.mu.Unlock()
	if rec, err = fs.openData(nd, rec); err != nil {
		return nil, err
	}
	var mark func(*meta.Inode)
	if rec.Data == meta.DataPartial {
		if missing := nd.file.MissingForWrite(off, n); len(missing) > 0 {
			return fs.needs(nd, missing), nil
		}
		if c.holes {
			mark = func(n2 *meta.Inode) { n2.Known = withKnown(nd.file.Known(), off, n, nd.sizeOf(n2)) }
		}
	}
	if !c.keep {
		if err := fs.dirty(nd, rec, c.kill, mark); err != nil {
			return nil, err
		}
	}
	if err := nd.create(); err != nil {
		return nil, err
	}
	err = c.do(nd.file)
	if !c.keep {
		fs.noteChange(nd)
	}
	return nil, err
}

// create makes the data file of a file that was empty without one.
func (nd *node) create() error {
	if !nd.absent {
		return nil
	}
	if err := nd.file.Create(); err != nil {
		return err
	}
	nd.absent = false
	return nil
}

// noteChange takes size and time over from the data file. nd.mu is held.
func (fs *FS) noteChange(nd *node) {
	if !nd.absent {
		nd.size = nd.file.Size()
		if t := nd.file.Mtime(); t != 0 {
			nd.mtime = t
		}
	}
	nd.ctime = max(nd.ctime, nd.mtime)
	nd.lastChange, nd.written = fs.now(), true
	nd.writes++
}

// dirty makes sure that a dirty period is open and that the index knows of it
// before the data file is touched. nd.mu is held for writing, the data file of
// n is open. mark changes the record in the same transaction.
func (fs *FS) dirty(nd *node, n *meta.Inode, kill bool, mark func(*meta.Inode)) error {
	kill = kill && n.Mode&(unix.S_ISUID|unix.S_ISGID) != 0
	if nd.open && nd.armed && mark == nil && !kill {
		return nil
	}
	out, err := fs.update(nd, func(tx *meta.Tx, n *meta.Inode) error {
		if n.DataGen != nd.gen || n.Data == meta.DataRemote {
			return errMoved
		}
		if mark != nil {
			mark(n)
		}
		return fs.putDirty(tx, nd, n, kill, mark != nil)
	})
	if err != nil {
		return err
	}
	if !nd.open {
		nd.begin(out, fs.now())
	}
	nd.armed = true
	return nil
}

// putDirty stores n with a dirty period open. With holes the index and the data
// file change together, which a power loss may tear apart.
func (fs *FS) putDirty(tx *meta.Tx, nd *node, n *meta.Inode, kill, holes bool) error {
	killed := kill && dropSetID(n)
	caps, err := dropCaps(tx, n)
	if err != nil {
		return err
	}
	// Unpublished bytes that were flushed stay the truth after a power loss, with
	// as much of later changes as got to disk: that is what fsync promises.
	promised := n.Dirty && n.Boot == 0 && !holes
	attrs := killed || caps
	switch {
	case !nd.open:
		if attrs {
			n.AttrGen++
		}
		if err := tx.MarkDirty(n); err != nil || !promised {
			return err
		}
		n.Boot = 0
	case attrs:
		if err := tx.Touch(n); err != nil {
			return err
		}
	}
	if !promised {
		n.Boot = fs.db.Boot()
	}
	return tx.PutInode(n)
}

// withKnown adds [off,off+n), whole blocks of it, to known ranges.
func withKnown(known []content.Range, off, n, size int64) [][2]int64 {
	end := min(off+n, size)
	if end < size {
		end -= end % vfolder.BlockBytes
	}
	if off < end {
		known = append(known, content.Range{Off: off, Len: end - off})
	}
	return pairs(known)
}

func pairs(list []content.Range) [][2]int64 {
	out := make([][2]int64, len(list))
	for i, r := range list {
		out[i] = [2]int64{r.Off, r.Len}
	}
	return out
}

// truncate sets the size.
func (fs *FS) truncate(nd *node, size int64, kill bool) error {
	if size < 0 || size > vfolder.MaxFileBytes {
		return fail(vfolder.KindTooLarge, "truncate", "", "files have at most %d bytes", vfolder.MaxFileBytes)
	}
	for range maxRounds {
		err := fs.truncateOnce(nd, size, kill)
		if !errors.Is(err, errMoved) {
			return err
		}
	}
	return errBusy("truncate")
}

func (fs *FS) truncateOnce(nd *node, size int64, kill bool) error {
	n, err := fs.lock(nd)
	if err != nil {
		return err
	}
	defer nd.mu.Unlock()
	if !n.IsRegular() {
		return fail(vfolder.KindInvalid, "truncate", n.Name, "is not a file")
	}
	if size == 0 && n.Data != meta.DataComplete {
		return fs.renew(nd, n, kill)
	}
	if n, err = fs.openData(nd, n); err != nil {
		return err
	}
	var mark func(*meta.Inode)
	if was := nd.sizeOf(n); n.Data == meta.DataPartial && size < was {
		mark = func(n2 *meta.Inode) {
			n2.Known = pairs(append(nd.file.Known(), content.Range{Off: size, Len: was - size}))
		}
	}
	if err := fs.dirty(nd, n, kill, mark); err != nil {
		return err
	}
	if size > 0 {
		if err := nd.create(); err != nil {
			return err
		}
	}
	if nd.absent {
		nd.mtime = fs.nanos()
	} else {
		err = nd.file.Truncate(size)
	}
	fs.noteChange(nd)
	return err
}

// renew empties a file whose bytes are remote, or were: it gets a new, complete
// data generation in one transaction, and nothing needs to be fetched.
func (fs *FS) renew(nd *node, n *meta.Inode, kill bool) error {
	old := content.ID{Ino: n.Ino, Gen: n.DataGen}
	hadFile := n.Data == meta.DataPartial
	out, err := fs.update(nd, func(tx *meta.Tx, n *meta.Inode) error {
		if n.DataGen != old.Gen || n.Data == meta.DataComplete {
			return errMoved
		}
		now := fs.nanos()
		n.DataGen++
		n.Data, n.Known, n.Size, n.Mtime, n.Ctime = meta.DataComplete, nil, 0, now, now
		return fs.putDirty(tx, nd, n, kill, true)
	})
	if err != nil {
		return err
	}
	if !nd.open {
		nd.begin(out, fs.now())
	}
	nd.armed = true
	if err := nd.closeFile(); err != nil {
		return err
	}
	if _, err := fs.openData(nd, out); err != nil {
		return err
	}
	fs.noteChange(nd)
	if hadFile {
		return fs.content.Remove(old)
	}
	return nil
}
