package content

import (
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

const (
	copyBytes = 256 << 10 // buffer with which blocks are set aside
	readBytes = 1 << 20   // of a View read under one lock, so that writers wait little
	cloneMin  = 128 << 10 // shorter runs are cheaper to copy than to clone
)

var copyBuffers = sync.Pool{New: func() any { return new([copyBytes]byte) }}

// View is a file as it was at one instant. Changes made since first set the old
// blocks aside, in a side file without a name, at the same offsets. Its memory
// is a bitmap of those blocks.
//
// A View counts as a handle: it must be closed. Safe for concurrent use.
type View struct {
	f     *File
	size  int64
	limit int64 // where remote bytes ended

	// Guarded by f.mu.
	side     int      // -1 until something is set aside
	aside    blockSet // in the side file
	lost     blockSet // unknown when frozen, changed since without being fetched
	detached bool     // the data file is the View's own: fd and k
	fd       int
	k        knowledge
	closed   bool
}

// Freeze returns a View of this instant, at the cost of an allocation:
// KindBusy while another one lives. Allocated space is no promise while a View
// lives, because a change needs room for the old bytes too.
func (f *File) Freeze() (*View, error) {
	if _, err := f.lock(); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	if f.view != nil {
		return nil, f.errorf(vfolder.KindBusy, "freeze", "another view lives")
	}
	f.s.mu.Lock()
	f.refs++
	f.s.mu.Unlock()
	f.view = &View{f: f, size: f.size, limit: f.k.limit, side: -1}
	return f.view, nil
}

// Close ends the View and frees what was set aside. Closing again does nothing.
func (v *View) Close() error {
	v.f.mu.Lock()
	if v.closed {
		v.f.mu.Unlock()
		return nil
	}
	v.closed = true
	v.f.view = nil
	if v.side >= 0 {
		unix.Close(v.side)
	}
	if v.detached {
		unix.Close(v.fd)
	}
	v.aside, v.lost, v.k = blockSet{}, blockSet{}, knowledge{}
	v.f.mu.Unlock()
	return v.f.Close()
}

// Size returns the frozen size in bytes.
func (v *View) Size() int64 { return v.size }

// source is where blocks are that were not set aside.
func (v *View) source() *knowledge {
	if v.detached {
		return &v.k
	}
	return &v.f.k
}

// Complete says whether every frozen byte can be read.
func (v *View) Complete() bool { return len(v.Missing()) == 0 }

// Missing lists the frozen bytes that only the object has, sorted: File.Fill
// them before they are read. It may shrink, never grow.
func (v *View) Missing() []Range {
	v.f.mu.RLock()
	defer v.f.mu.RUnlock()
	if v.closed {
		return nil
	}
	return v.missing(0, v.limit)
}

// missing merges what the source does not know with what was lost.
func (v *View) missing(off, end int64) []Range {
	var list []Range
	k, stop := v.source(), blocksOf(min(end, v.limit))
	for b := off / blockBytes; b < stop; {
		from, to := k.nextUnknown(b)
		if from >= to {
			from, to = stop, stop
		}
		if lost := v.lost.next(b, stop, true); lost < from {
			from, to = lost, v.lost.next(lost, stop, false)
		}
		to = min(to, stop)
		// Of an unknown run, what was set aside is there.
		for from < to {
			from = v.aside.next(from, to, false)
			upto := v.aside.next(from, to, true)
			list = appendRange(list, from*blockBytes, min(upto*blockBytes, v.limit))
			from = upto
		}
		b = max(to, b+1)
	}
	return list
}

// ReadAt implements io.ReaderAt over the frozen bytes: io.EOF at the frozen
// size, KindInvalid if a byte is Missing, KindStale after Close.
func (v *View) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, v.f.errorf(vfolder.KindInvalid, "view", "offset %d", off)
	}
	if off >= v.size {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	want := min(int64(len(p)), v.size-off)
	n := int64(0)
	for n < want {
		m := min(want-n, readBytes)
		if err := v.read(p[n:n+m], off+n); err != nil {
			return int(n), v.f.fail("view", err)
		}
		n += m
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// read fills p from the side file and the data file, within the frozen size.
func (v *View) read(p []byte, off int64) error {
	v.f.mu.RLock()
	defer v.f.mu.RUnlock()
	if v.closed {
		return v.f.errorf(vfolder.KindStale, "view", "it is closed")
	}
	end := off + int64(len(p))
	if missing := v.missing(off, end); len(missing) > 0 {
		return v.f.errorf(vfolder.KindInvalid, "view", "of [%d,%d), %v is not known", off, end, missing)
	}
	fd, err := v.dataFD()
	if err != nil {
		return err
	}
	for at := off; at < end; {
		b := at / blockBytes
		from, stop := fd, blocksOf(end)
		set := v.aside.has(b)
		to := min(v.aside.next(b, stop, !set)*blockBytes, end)
		if set {
			from = v.side
		}
		part := p[at-off : to-off]
		n, err := preadFull(from, part, at)
		if err == io.EOF && set {
			clear(part[n:]) // zeros at the end of the side file are not written
			err = nil
		}
		if err == io.EOF {
			err = unix.EIO
		}
		if err != nil {
			return err
		}
		at = to
	}
	return nil
}

func (v *View) dataFD() (int, error) {
	if v.detached {
		return v.fd, nil
	}
	return v.f.open()
}

// cheaperDetached says whether to leave the data file to the View and copy what
// stays of the file, rather than set aside what a truncation to size cuts off.
func (v *View) cheaperDetached(size int64) bool {
	if v == nil || v.detached {
		return false
	}
	cut := min(v.size, v.f.size) - size
	return cut > 0 && size == 0 || cut > v.f.s.cheapCut && size < cut
}

// preserve sets aside what a change of [off,end) would take from the live View.
// It comes before the change; if it fails the View has lost nothing.
func (f *File) preserve(fd int, off, end int64) error {
	v := f.view
	if v == nil || v.detached {
		return nil
	}
	end = min(end, v.size)
	if off >= end {
		return nil
	}
	stop := blocksOf(end)
	for b := off / blockBytes; b < stop; {
		from := v.aside.next(b, stop, false)
		if from >= stop {
			return nil
		}
		b = v.aside.next(from, stop, true)
		if err := v.setAside(fd, from, b); err != nil {
			return err
		}
	}
	return nil
}

// setAside copies the known blocks of [from,to) and gives up the unknown ones.
func (v *View) setAside(fd int, from, to int64) error {
	for from < to {
		lost := v.lost.next(from, to, true)
		unknown, after := v.f.k.nextUnknown(from)
		if unknown >= after {
			unknown, after = to, to
		}
		unknown = min(unknown, to)
		if stop := min(lost, unknown); from < stop {
			if err := v.copyBlocks(fd, from, stop); err != nil {
				return err
			}
			v.aside.add(from, stop)
			from = stop
		}
		switch {
		case from < to && from == unknown:
			after = min(after, to)
			v.lost.add(from, after)
			from = after
		case from < to && from == lost:
			from = v.lost.next(from, to, false)
		}
	}
	return nil
}

func (v *View) openSide() error {
	if v.side >= 0 {
		return nil
	}
	fd, err := v.f.s.tempFile()
	if err != nil {
		return err
	}
	v.side = fd
	return nil
}

// copyBlocks copies the blocks [from,to) into the side file, without holes and
// zeros.
func (v *View) copyBlocks(fd int, from, to int64) error {
	if err := v.openSide(); err != nil {
		return err
	}
	off, end := from*blockBytes, min(to*blockBytes, v.size)
	if whole := end - end%blockBytes; whole-off >= cloneMin && v.clone(fd, off, whole) {
		off = whole
	}
	return copyData(fd, off, end, v.putAside)
}

// copyData hands the bytes of [off,end) to put, in pieces, without long holes.
func copyData(fd int, off, end int64, put func(p []byte, off int64) error) error {
	buf := copyBuffers.Get().(*[copyBytes]byte)
	defer copyBuffers.Put(buf)
	for off < end {
		if end-off > copyBytes {
			data, err := unix.Seek(fd, off, unix.SEEK_DATA)
			if err == unix.ENXIO || err == nil && data >= end {
				return nil
			}
			if err != nil {
				return err
			}
			off = max(off, data-data%blockBytes)
		}
		p := buf[:min(end-off, copyBytes)]
		n, err := preadFull(fd, p, off)
		if err == io.EOF {
			err = unix.EIO
		}
		if err != nil {
			return err
		}
		if err := put(p[:n], off); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// putAside writes to the side file, where zeros need not be written.
func (v *View) putAside(p []byte, off int64) error {
	if allZero(p) {
		return nil
	}
	if err := v.f.s.admit(int64(len(p))); err != nil {
		return err
	}
	_, err := pwriteFull(v.side, p, off)
	return err
}

func (v *View) clone(fd int, off, end int64) bool {
	if v.f.s.noClone.Load() {
		return false
	}
	err := unix.IoctlFileCloneRange(v.side, &unix.FileCloneRange{
		Src_fd: int64(fd), Src_offset: uint64(off), Src_length: uint64(end - off), Dest_offset: uint64(off),
	})
	if err != nil && err != unix.ENOSPC {
		v.f.s.noClone.Store(true)
	}
	return err == nil
}

// fill stores fetched bytes of blocks that the data file cannot take any more.
func (v *View) fill(off int64, data []byte) error {
	end := min(off+int64(len(data)), v.limit)
	if end < v.limit {
		end -= end % blockBytes
	}
	for _, r := range v.missing(off, end) {
		for b := r.Off / blockBytes; b < blocksOf(min(r.End(), end)); b++ {
			if !v.detached && !v.lost.has(b) {
				continue // File.fill stores it
			}
			if err := v.openSide(); err != nil {
				return err
			}
			from, to := b*blockBytes, min((b+1)*blockBytes, end)
			if err := v.putAside(data[from-off:to-off], from); err != nil {
				return err
			}
			v.lost.remove(b, b+1)
			v.aside.add(b, b+1)
		}
	}
	return nil
}

func allZero(p []byte) bool {
	for len(p) >= 8 {
		if p[0]|p[1]|p[2]|p[3]|p[4]|p[5]|p[6]|p[7] != 0 {
			return false
		}
		p = p[8:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
