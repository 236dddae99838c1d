package vfs

import (
	"errors"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/content"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
	"golang.org/x/sys/unix"
)

// Fallocate allocates, punches or zeroes a range; the other modes of
// fallocate(2) are KindUnsupported.
func (fs *FS) Fallocate(req *fusefs.Request, ino vfolder.Ino, mode uint32, off, length int64) error {
	if length == 0 {
		return fail(vfolder.KindInvalid, "fallocate", "", "empty range")
	}
	keepSize := mode&unix.FALLOC_FL_KEEP_SIZE != 0
	var c change
	switch mode {
	case 0:
		c.do = func(f *content.File) error { return f.Allocate(off, length, false) }
	case unix.FALLOC_FL_KEEP_SIZE:
		c.keep = true
		c.do = func(f *content.File) error { return f.Allocate(off, length, true) }
	case unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE:
		c.holes = true
		c.do = func(f *content.File) error { return f.Punch(off, length) }
	case unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE:
		c.holes = true
		c.do = func(f *content.File) error { return f.ZeroRange(off, length, keepSize) }
	default:
		return fail(vfolder.KindUnsupported, "fallocate", "", "mode %#x", mode)
	}
	req.Blocking() // allocating may take long
	err := fs.modify(req, "fallocate", ino, off, length, c)
	fs.tellInode(req, ino)
	return err
}

// Seek finds data and holes; remote bytes are data.
func (fs *FS) Seek(_ *fusefs.Request, ino vfolder.Ino, off int64, whence uint32) (int64, error) {
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, fail(vfolder.KindInvalid, "seek", "", "whence %d", whence)
	}
	nd := fs.pin(ino)
	defer fs.unpin(nd)
	n, err := fs.lock(nd)
	if err != nil {
		return 0, err
	}
	defer nd.mu.Unlock()
	size := nd.sizeOf(n)
	switch {
	case !n.IsRegular():
		return 0, fail(vfolder.KindInvalid, "seek", n.Name, "is not a file")
	case off < 0 || off >= size:
		return 0, &vfolder.Error{Op: "seek", Kind: vfolder.KindNoData, Path: n.Name}
	case n.Data == meta.DataRemote && whence == unix.SEEK_DATA:
		return off, nil
	case n.Data == meta.DataRemote:
		return size, nil
	}
	if _, err = fs.openData(nd, n); err != nil {
		return 0, err
	}
	if whence == unix.SEEK_DATA {
		return nd.file.SeekData(off)
	}
	return nd.file.SeekHole(off)
}

// copyPiece is how much CopyRange holds in memory.
const copyPiece = 1 << 20

// CopyRange copies within the tree, without the bytes going through the kernel.
// What is copied twice comes out the same: ranges of one file do not overlap.
func (fs *FS) CopyRange(req *fusefs.Request, in vfolder.Ino, inOff int64, out vfolder.Ino, outOff, length int64) (int64, error) {
	if in == out && inOff < outOff+length && outOff < inOff+length {
		return 0, fail(vfolder.KindInvalid, "copy", "", "the ranges overlap")
	}
	req.Blocking()
	buf := make([]byte, min(length, copyPiece))
	var done int64
	for done < length {
		if err := req.Err(); err != nil {
			if done > 0 {
				return done, nil
			}
			return 0, &vfolder.Error{Op: "copy", Kind: vfolder.KindInterrupted, Err: err}
		}
		n, err := fs.Read(req, in, buf[:min(int64(len(buf)), length-done)], inOff+done)
		if err == nil && n > 0 {
			n, err = fs.Write(req, out, buf[:n], outOff+done, true)
			done += int64(max(n, 0))
		}
		switch {
		case err != nil && done > 0 && !errors.Is(err, vfolder.KindCorrupt):
			return done, nil // comes again with the rest
		case err != nil:
			return 0, err
		case n == 0:
			return done, nil
		}
	}
	return done, nil
}
