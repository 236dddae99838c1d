package vfs

import (
	"errors"
	"io"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
)

// Read fills buf, fetching what is not local.
func (fs *FS) Read(req *fusefs.Request, ino vfolder.Ino, buf []byte, off int64) (int, error) {
	nd := fs.pin(ino)
	defer fs.unpin(nd)
	stale := 0
	for rounds := 0; rounds < maxRounds; rounds++ {
		n, need, err := fs.readLocal(nd, buf, off)
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if need == nil {
			return n, nil
		}
		err = fs.await(req, nd, need, nd.window(off, int64(len(buf))))
		if errors.Is(err, vfolder.KindStale) && stale < 3 {
			stale++
			nd.epoch.Add(1)
			continue
		}
		if err != nil {
			return 0, err
		}
	}
	return 0, errBusy("read")
}

// readLocal reads what is known; otherwise it says what is needed.
func (fs *FS) readLocal(nd *node, buf []byte, off int64) (int, *need, error) {
	n, err := fs.rlock(nd)
	if err != nil {
		return 0, nil, err
	}
	switch {
	case n.IsDir():
		nd.mu.RUnlock()
		return 0, nil, fail(vfolder.KindIsDir, "read", n.Name, "is a directory")
	case !n.IsRegular():
		nd.mu.RUnlock()
		return 0, nil, fail(vfolder.KindInvalid, "read", n.Name, "is not a file")
	}
	if nd.file == nil || nd.gen != n.DataGen || n.Data == meta.DataRemote {
		nd.mu.RUnlock()
		if n, err = fs.lock(nd); err != nil {
			return 0, nil, err
		}
		_, err = fs.openData(nd, n)
		nd.mu.Unlock()
		if err == nil {
			err = errMoved
		}
		return 0, nil, err
	}
	defer nd.mu.RUnlock()
	size := nd.sizeOf(n)
	if off < 0 || off >= size || nd.absent {
		return 0, nil, nil
	}
	buf = buf[:min(int64(len(buf)), size-off)]
	partial := n.Data == meta.DataPartial
	if partial {
		if missing := nd.file.Missing(off, int64(len(buf))); len(missing) > 0 {
			return 0, fs.needs(nd, missing), nil
		}
	}
	done, err := nd.file.ReadAt(buf, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err == nil {
		fs.noteRead(nd, n)
		if partial {
			fs.readAhead(nd, off, int64(len(buf)))
		}
	}
	return done, nil, err
}

// noteRead moves the time of access as relatime does. It stays in memory until
// the record is stored for another reason.
func (fs *FS) noteRead(nd *node, n *meta.Inode) {
	at := max(n.Atime, nd.atime.Load())
	mtime, ctime := n.Mtime, n.Ctime
	if nd.open {
		mtime, ctime = nd.mtime, max(nd.ctime, ctime)
	}
	if at > mtime && at > ctime {
		if fs.nanos()-at < int64(24*time.Hour) {
			return
		}
	}
	nd.atime.Store(fs.nanos())
}
