package content

import (
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

// checkRange refuses what no file may have.
func (f *File) checkRange(op string, off, n int64) error {
	if off < 0 || n < 0 {
		return f.errorf(vfolder.KindInvalid, op, "range %d+%d", off, n)
	}
	if off > vfolder.MaxFileBytes-n {
		return f.errorf(vfolder.KindTooLarge, op, "range %d+%d", off, n)
	}
	return nil
}

// needEdges refuses a change that would leave a block half remote.
func (f *File) needEdges(op string, off, end int64) error {
	if missing := f.k.edges(off, end); len(missing) > 0 {
		return f.errorf(vfolder.KindInvalid, op, "[%d,%d) covers a part of remote bytes %v", off, end, missing)
	}
	return nil
}

// WriteAt writes p, growing the file if need be; a gap becomes zeros. Blocks
// that it covers in part must be known (KindInvalid, see MissingForWrite). On
// KindNoSpace the first n bytes are written and nothing else has changed.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	n := int64(len(p))
	if err := f.checkRange("write", off, n); err != nil || n == 0 {
		return 0, err
	}
	fd, err := f.lock()
	if err != nil {
		return 0, err
	}
	defer f.mu.Unlock()
	end := off + n
	if err := f.needEdges("write", off, end); err != nil {
		return 0, err
	}
	if end > f.size || f.charged < f.size || f.view != nil {
		if err := f.s.admit(n); err != nil {
			return 0, f.fail("write", err)
		}
	}
	if err := f.preserve(fd, off, end); err != nil {
		return 0, f.fail("write", err)
	}
	done, err := pwriteFull(fd, p, off)
	written := off + int64(done)
	if err != nil {
		written = f.undoPartBlock(fd, off, written)
	}
	if written > off {
		f.k.learn(off, written)
		f.size = max(f.size, written)
		f.changed(fd)
	}
	return int(written - off), f.fail("write", err)
}

// undoPartBlock takes back the part of an unknown block that a write or a fill
// of [off,written) got to before the disk was full: it would count as known
// after a restart. It returns where the whole blocks end.
func (f *File) undoPartBlock(fd int, off, written int64) int64 {
	b := written / blockBytes
	if written%blockBytes == 0 || written >= f.k.limit || f.k.has(b) {
		return written
	}
	if err := fallocate(fd, fallocPunch, b*blockBytes, blockBytes); err != nil {
		f.s.log.Error("content: a failed write could not be taken back", "file", f.id.String(), "block", b, "err", err)
	}
	return max(b*blockBytes, off)
}

// Fill stores bytes fetched from the object, at a block boundary. They go only
// into blocks that are still unknown, and into those of the live View that were
// overwritten before anybody fetched them; what covers only part of a block's
// remote bytes is left out. The modification time stays.
func (f *File) Fill(off int64, data []byte) error {
	if err := f.checkRange("fill", off, int64(len(data))); err != nil {
		return err
	}
	if off%blockBytes != 0 {
		return f.errorf(vfolder.KindInvalid, "fill", "offset %d is inside a block", off)
	}
	fd, err := f.lock()
	if err != nil {
		return err
	}
	defer f.mu.Unlock()
	if f.view != nil {
		if err := f.view.fill(off, data); err != nil {
			return f.fail("fill", err)
		}
	}
	if f.k.complete() {
		return nil
	}
	return f.fail("fill", f.fill(fd, off, data))
}

func (f *File) fill(fd int, off int64, data []byte) error {
	end := min(off+int64(len(data)), f.k.limit)
	if end < f.k.limit {
		end -= end % blockBytes
	}
	runs := f.k.missing(off, end)
	if len(runs) == 0 || off >= end {
		return nil
	}
	st, err := fstat(fd)
	if err != nil {
		return err
	}
	for _, r := range runs {
		to := min(r.End(), end)
		if err := f.s.admit(to - r.Off); err != nil {
			return err
		}
		n, err := pwriteFull(fd, data[r.Off-off:to-off], r.Off)
		to = r.Off + int64(n)
		if err != nil {
			to = f.undoPartBlock(fd, r.Off, to)
		}
		f.k.learn(r.Off, to)
		if err != nil {
			_ = setMtime(fd, st.Mtim.Nano()) // the lack of space is the error to tell
			f.recharge(fd)
			return err
		}
	}
	f.changed(fd)
	return setMtime(fd, st.Mtim.Nano())
}

// Truncate sets the size. Growing adds known zeros; shrinking forgets the bytes
// beyond, which read as zeros if the file grows again, and needs no filling.
func (f *File) Truncate(size int64) error {
	if err := f.checkRange("truncate", size, 0); err != nil {
		return err
	}
	fd, err := f.lock()
	if err != nil {
		return err
	}
	defer f.mu.Unlock()
	return f.fail("truncate", f.truncate(fd, size))
}

func (f *File) truncate(fd int, size int64) error {
	if size < f.size {
		if f.view.cheaperDetached(size) {
			return f.detach(fd, size)
		}
		if err := f.preserve(fd, size, f.size); err != nil {
			return err
		}
	}
	if err := ftruncate(fd, size); err != nil {
		return err
	}
	shrunk := size < f.size
	f.size = size
	if size < f.k.limit {
		f.k.cut(size)
		if err := f.storeLimit(fd, size); err != nil {
			return err
		}
	}
	if shrunk {
		f.recharge(fd)
	}
	return nil
}

// detach shrinks a file under a live View for the cost of the bytes that stay:
// the View keeps the old data file, and a new one takes over its name, label
// and handle.
func (f *File) detach(fd int, size int64) error {
	k := knowledge{limit: min(size, f.k.limit)}
	for a, b := range f.k.have.runs(0, blocksOf(k.limit)) {
		k.have.add(a, b)
	}
	newfd, err := f.replacement(fd, size, &k)
	if err != nil {
		return err
	}
	k.settle()
	v := f.view
	v.fd, v.k, v.detached = fd, f.k, true
	f.fd.Store(int32(newfd))
	f.size, f.k = size, k
	f.named.Store(false)
	f.recharge(newfd)
	return nil
}

// replacement makes a data file in the place of the one at fd, with the first
// size bytes of it as far as k knows them.
func (f *File) replacement(fd int, size int64, k *knowledge) (int, error) {
	if f.removed {
		newfd, err := f.s.tempFile()
		if err == nil {
			if err = f.copyHead(newfd, fd, size, k); err != nil {
				unix.Close(newfd)
			}
		}
		return newfd, err
	}
	dir, err := f.s.shard(f.id, true)
	if err != nil {
		return -1, err
	}
	newfd, temp, err := f.s.namedTemp()
	if err != nil {
		return -1, err
	}
	about, err := label(fd)
	if err == nil && len(about) > 0 {
		if err = unix.Fsetxattr(newfd, labelXattr, about, 0); err != nil && (unsupportedXattr(err) || err == unix.ENOSPC) {
			err = nil // as in SetLabel
		}
	}
	if err == nil {
		err = f.copyHead(newfd, fd, size, k)
	}
	if err == nil && !f.k.complete() {
		err = f.storeLimit(newfd, k.limit)
	}
	if err == nil {
		err = unix.Renameat(f.s.dirfd, temp, dir, f.id.String())
	}
	if err != nil {
		unix.Close(newfd)
		_ = unix.Unlinkat(f.s.dirfd, temp, 0) // the next Open removes it otherwise
		return -1, err
	}
	f.s.changedNames(f.id)
	return newfd, nil
}

// copyHead copies the known blocks of the first size bytes to a new file.
func (f *File) copyHead(newfd, fd int, size int64, k *knowledge) error {
	if err := ftruncate(newfd, size); err != nil {
		return err
	}
	put := func(p []byte, off int64) error {
		if allZero(p) {
			return nil
		}
		if err := f.s.admit(int64(len(p))); err != nil {
			return err
		}
		_, err := pwriteFull(newfd, p, off)
		return err
	}
	for a, b := range k.have.runs(0, blocksOf(k.limit)) {
		if err := copyData(fd, a*blockBytes, min(b*blockBytes, size), put); err != nil {
			return err
		}
	}
	return copyData(fd, blocksOf(k.limit)*blockBytes, size, put)
}
