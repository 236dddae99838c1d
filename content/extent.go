package content

import (
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

// Punch makes [off,off+n) known zeros without space, within the size. Blocks
// that it covers in part must be known, see MissingForWrite.
func (f *File) Punch(off, n int64) error {
	return f.zero("punch", off, n, false, fallocPunch)
}

// ZeroRange makes [off,off+n) known zeros and keeps or allocates their space
// where the file system can. Unless keepSize, the file grows to hold the range.
// Blocks that it covers in part must be known, see MissingForWrite.
func (f *File) ZeroRange(off, n int64, keepSize bool) error {
	return f.zero("zero", off, n, !keepSize, fallocZero)
}

func (f *File) zero(op string, off, n int64, grow bool, mode uint32) error {
	if err := f.checkRange(op, off, n); err != nil {
		return err
	}
	if n == 0 {
		return f.errorf(vfolder.KindInvalid, op, "empty range")
	}
	fd, err := f.lock()
	if err != nil {
		return err
	}
	defer f.mu.Unlock()
	end := off + n
	within := min(end, f.size)
	if err := f.needEdges(op, off, within); err != nil {
		return err
	}
	if off < within {
		if err := f.preserve(fd, off, within); err != nil {
			return f.fail(op, err)
		}
	}
	if mode == fallocZero {
		err = f.s.admit(n)
		if err == nil {
			if err = fallocate(fd, mode, off, n); err == unix.EOPNOTSUPP {
				err = fallocate(fd, fallocPunch, off, n)
			}
		}
	} else {
		err = fallocate(fd, mode, off, n)
	}
	if err != nil {
		f.unallocate(fd, off, end)
		f.recharge(fd)
		return f.fail(op, err)
	}
	if off < within {
		f.k.learn(off, within)
	}
	if grow && end > f.size {
		if err := f.truncate(fd, end); err != nil {
			return f.fail(op, err)
		}
	}
	f.recharge(fd)
	return nil
}

// unallocate makes unknown blocks of [off,end) holes again: file systems may
// turn space that is reserved next to data into zeros.
func (f *File) unallocate(fd int, off, end int64) {
	for a, b := range f.k.unknown(off, end) {
		if err := fallocate(fd, fallocPunch, a*blockBytes, (b-a)*blockBytes); err != nil {
			f.s.log.Error("content: a failed change could not be taken back", "file", f.id.String(), "block", a, "err", err)
		}
	}
}

// Allocate reserves space for what is known of [off,off+n), so that writing
// there cannot lack space (but see View). Unless keepSize, the file grows to
// hold the range. Remote blocks get none: they must stay holes to be told from
// known ones.
func (f *File) Allocate(off, n int64, keepSize bool) error {
	if err := f.checkRange("allocate", off, n); err != nil {
		return err
	}
	if n == 0 {
		return f.errorf(vfolder.KindInvalid, "allocate", "empty range")
	}
	fd, err := f.lock()
	if err != nil {
		return err
	}
	defer f.mu.Unlock()
	end := off + n
	if err := f.s.admit(n); err != nil {
		return f.fail("allocate", err)
	}
	defer f.recharge(fd)
	at := off
	for a, b := range f.k.unknown(off, end) {
		if err := fallocate(fd, fallocKeep, at, a*blockBytes-at); err != nil {
			return f.fail("allocate", err)
		}
		at = max(off, b*blockBytes)
	}
	if err := fallocate(fd, fallocKeep, at, end-at); err != nil {
		return f.fail("allocate", err)
	}
	if !keepSize && end > f.size {
		return f.fail("allocate", f.truncate(fd, end))
	}
	return nil
}

// SeekData finds the first byte at off or later that is not in a hole; remote
// bytes count as data. KindNoData if there is none.
func (f *File) SeekData(off int64) (int64, error) {
	return f.seek("seek data", off, func(fd int) (int64, error) {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if err != nil && err != unix.ENXIO {
			return 0, err
		}
		from, to := f.k.nextUnknown(off / blockBytes)
		if remote := max(from*blockBytes, off); from < to && (err != nil || remote < data) {
			return remote, nil
		}
		return data, err
	})
}

// SeekHole finds the first byte at off or later that is in a hole, at the
// latest the size. KindNoData if off is not inside the file.
func (f *File) SeekHole(off int64) (int64, error) {
	return f.seek("seek hole", off, func(fd int) (int64, error) {
		for off < f.size {
			hole, err := unix.Seek(fd, off, unix.SEEK_HOLE)
			if err != nil || hole >= f.size || f.k.has(hole/blockBytes) {
				return hole, err
			}
			_, to := f.k.nextUnknown(hole / blockBytes)
			off = to * blockBytes
		}
		return f.size, nil
	})
}

func (f *File) seek(op string, off int64, find func(fd int) (int64, error)) (int64, error) {
	fd, err := f.rlock()
	if err != nil {
		return 0, err
	}
	defer f.mu.RUnlock()
	if off < 0 || off >= f.size {
		return 0, f.errorf(vfolder.KindNoData, op, "offset %d of %d bytes", off, f.size)
	}
	at, err := find(fd)
	return at, f.fail(op, err)
}
