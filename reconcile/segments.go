package reconcile

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/objstore"
)

// hint is one line of an attribute segment: what the object at a key says of
// its file. It is believed only while ETag, size and time are as listed.
type hint struct {
	Key    string            `json:"k"` // relative to the folder
	ETag   string            `json:"e"`
	Size   int64             `json:"s"`
	Time   int64             `json:"t"` // Last-Modified as listed, Unix nanoseconds
	VID    string            `json:"v,omitempty"`
	Mode   uint32            `json:"m"`
	UID    uint32            `json:"u"`
	GID    uint32            `json:"g"`
	Rdev   uint32            `json:"r,omitempty"`
	Mtime  int64             `json:"mt"`
	Atime  int64             `json:"at,omitempty"`
	Ctime  int64             `json:"ct,omitempty"`
	Btime  int64             `json:"bt,omitempty"`
	Target string            `json:"tgt,omitempty"`
	Xattrs map[string][]byte `json:"x,omitempty"`
}

const (
	// hintAge is how old an object must be when it is listed for its time to be
	// unique to this version: some stores tell times in whole seconds.
	hintAge = 2 * time.Second
	// segmentsMost is how many segments of a folder lie side by side.
	segmentsMost = 16
	// segmentBytes bounds what is read of one segment, compressed.
	segmentBytes = 256 << 20
	// hintBatch is how many hints one transaction stores.
	hintBatch = 1000
	hintBytes = 1 << 20 // of one line
)

// segmentState says when segments are due.
type segmentState struct {
	mu    sync.Mutex // held while segments are read or written
	state sync.Mutex
	dirty bool // something was written since the last one
	last  time.Duration
	read  bool
}

func (s *segmentState) init() {}

func (s *segmentState) wrote(f *folder) {
	s.state.Lock()
	defer s.state.Unlock()
	if !s.dirty {
		s.dirty, s.last = true, f.r.cfg.Clock()
	}
}

// soon makes the next segment due once what was just written is old enough.
func (s *segmentState) soon(f *folder) {
	s.state.Lock()
	if s.dirty {
		s.last = min(s.last, f.r.cfg.Clock()-f.r.cfg.SegmentEvery+hintAge+time.Second)
	}
	s.state.Unlock()
	f.wake()
}

// due writes a segment when it is time, and says when it will be.
func (s *segmentState) due(f *folder) time.Duration {
	s.state.Lock()
	dirty, last := s.dirty, s.last
	s.state.Unlock()
	if !dirty {
		return time.Hour
	}
	if left := last + f.r.cfg.SegmentEvery - f.r.cfg.Clock(); left > 0 {
		return left
	}
	s.state.Lock()
	s.last = f.r.cfg.Clock()
	s.state.Unlock()
	f.wg.Add(1)
	go func() {
		defer f.wg.Done()
		f.flushSegments(f.ctx)
	}()
	return f.r.cfg.SegmentEvery
}

// flushSegments writes what the index knows of the folder's objects as one new
// segment, when something was written since the last. Losing segments costs
// time only, so that failures are just logged.
func (f *folder) flushSegments(ctx context.Context) {
	s := &f.seg
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Lock()
	dirty := s.dirty
	s.dirty = false
	s.state.Unlock()
	if !dirty || !f.lease.held() {
		return
	}
	if err := f.writeSegment(ctx); err != nil {
		f.r.log.Info("attribute segments were not written; a new host asks each object instead", "folder", f.name, "err", err)
		s.wrote(f)
	}
}

// writeSegment lists the folder, for the times that the store gave, and writes
// one segment of the objects that changed since the last. Above segmentsMost,
// one segment of everything replaces all.
func (f *folder) writeSegment(ctx context.Context) error {
	old, err := f.segmentKeys(ctx)
	if err != nil {
		return err
	}
	all := len(old) >= segmentsMost
	var buf bytes.Buffer
	zw, err := zstd.NewWriter(&buf, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	enc := json.NewEncoder(zw)
	enc.SetEscapeHTML(false)
	lines, young := 0, false
	for _, prefix := range []string{f.prefix, f.own("long/")} {
		for in, err := range f.r.store.List(ctx, prefix, "", false) {
			if err != nil {
				return err
			}
			young = young || f.r.now().Sub(in.LastModified) < hintAge
			h, ok, err := f.hintOf(in, all)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			if err := enc.Encode(h); err != nil {
				return err
			}
			lines++
		}
	}
	if err := zw.Close(); err != nil {
		return err
	}
	if young {
		f.seg.wrote(f) // these are for the next one
	}
	if lines == 0 {
		return nil
	}
	var n uint64
	err = f.r.db.Update(func(tx *meta.Tx) error {
		m, err := tx.Folder(f.root)
		if err != nil {
			return err
		}
		m.Segments++
		n = m.Segments
		return tx.PutFolder(m)
	})
	if err != nil {
		return err
	}
	key := f.own(fmt.Sprintf("attrs/%020d-%s-%s.jsonl.zst", f.r.now().UnixNano(), f.r.cfg.HostID, fmt.Sprint(n)))
	if _, err := f.r.put(ctx, key, bytes.NewReader(buf.Bytes()), int64(buf.Len()), objstore.PutOptions{Condition: objstore.Condition{IfAbsent: true}}); err != nil {
		return err
	}
	if !all {
		return nil
	}
	for _, k := range old {
		if err := f.r.store.Delete(ctx, k, objstore.Condition{}); err != nil {
			return err
		}
	}
	return nil
}

func (f *folder) segmentKeys(ctx context.Context) ([]string, error) {
	var keys []string
	for in, err := range f.r.store.List(ctx, f.own("attrs/"), "", false) {
		if err != nil {
			return nil, err
		}
		keys = append(keys, in.Key)
	}
	return keys, nil
}

// hintOf makes a listed object's line, when the index knows this version and it
// is old enough. Without all, only of versions that no segment has.
func (f *folder) hintOf(in objstore.Info, all bool) (h hint, ok bool, err error) {
	if f.r.now().Sub(in.LastModified) < hintAge || strings.HasSuffix(in.Key, "/") {
		return h, false, nil // directories are asked themselves: a listing does not tell their times
	}
	rel := strings.TrimPrefix(in.Key, f.prefix)
	err = f.r.db.View(func(tx *meta.Tx) error {
		k, err := rowKeyOf(tx, in.Key)
		if err != nil {
			return err
		}
		o, err := tx.Row(k)
		if err != nil || o == nil || o.Parent == 0 || o.Absent || o.Pending != "" || o.VID == "" || o.ETag != in.ETag || o.Size != in.Size {
			return err
		}
		n, err := tx.Inode(o.Ino)
		if errors.Is(err, vfolder.KindStale) {
			return nil
		}
		if err != nil || n.Unhydrated || n.Gen != o.Gen || n.AttrGen != o.AttrGen || n.Link != "" || n.Dirty {
			return err
		}
		h = hint{
			Key: rel, ETag: in.ETag, Size: in.Size, Time: in.LastModified.UnixNano(), VID: o.VID, Mode: n.Mode, UID: n.UID, GID: n.GID,
			Rdev: n.Rdev, Mtime: n.Mtime, Atime: n.Atime, Ctime: n.Ctime, Btime: n.Btime, Target: n.Target,
		}
		if keep, err := readKept(tx, f.root, n.Ino); err != nil || len(keep.Meta) > 0 || keep.Type != "" || keep.Class != "" {
			return err // only the object tells these
		}
		if h.Xattrs, err = tx.Xattrs(n.Ino); err != nil {
			return err
		}
		if !all {
			was, err := tx.Hint(f.root, writtenHint(rel))
			if err != nil || string(was) == hintMark(h) {
				return err
			}
		}
		ok = true
		return nil
	})
	if err != nil || !ok {
		return h, false, err
	}
	err = f.r.db.Update(func(tx *meta.Tx) error { return tx.PutHint(f.root, writtenHint(rel), []byte(hintMark(h))) })
	return h, err == nil, err
}

// writtenHint names the note that a segment of ours has a version of a key.
func writtenHint(rel string) string { return "\x00seg/" + rel }

func hintMark(h hint) string { return fmt.Sprintf("%s %d", h.VID, h.Time) }

// readSegments takes the segments of other hosts into hints, once. They are an
// accelerator: without them every object is asked.
func (f *folder) readSegments(ctx context.Context) {
	s := &f.seg
	s.state.Lock()
	read := s.read
	s.state.Unlock()
	if read {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	done := false
	err := f.r.db.View(func(tx *meta.Tx) error {
		m, err := tx.Folder(f.root)
		if err == nil {
			done = m.SegmentsRead
		}
		return err
	})
	if err == nil && !done {
		err = f.loadSegments(ctx)
	}
	if err != nil {
		f.r.log.Info("attribute segments were not read; each object is asked instead", "folder", f.name, "err", err)
		if vfolder.KindOf(err) == vfolder.KindUnreachable || ctx.Err() != nil {
			return
		}
	}
	s.state.Lock()
	s.read = true
	s.state.Unlock()
}

func (f *folder) loadSegments(ctx context.Context) error {
	keys, err := f.segmentKeys(ctx) // oldest first: later lines win
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := f.loadSegment(ctx, k); err != nil {
			if vfolder.KindOf(err) == vfolder.KindUnreachable || ctx.Err() != nil {
				return err
			}
			f.r.log.Warn("an attribute segment cannot be read", "key", k, "err", err)
		}
	}
	return f.r.db.Update(func(tx *meta.Tx) error {
		m, err := tx.Folder(f.root)
		if err != nil {
			return err
		}
		m.SegmentsRead = true
		return tx.PutFolder(m)
	})
}

func (f *folder) loadSegment(ctx context.Context, key string) error {
	body, _, err := f.r.readSmall(ctx, key, segmentBytes)
	if err != nil {
		return err
	}
	zr, err := zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<30))
	if err != nil {
		return err
	}
	defer zr.Close()
	lines := bufio.NewScanner(zr)
	lines.Buffer(make([]byte, 64<<10), hintBytes)
	type line struct {
		key string
		raw []byte
	}
	var batch []line
	store := func() error {
		err := f.r.db.Update(func(tx *meta.Tx) error {
			for _, l := range batch {
				if err := tx.PutHint(f.root, l.key, l.raw); err != nil {
					return err
				}
			}
			return nil
		})
		batch = batch[:0]
		return err
	}
	for lines.Scan() {
		var h struct {
			Key string `json:"k"`
		}
		if json.Unmarshal(lines.Bytes(), &h) != nil || h.Key == "" || h.Key[0] == 0 {
			continue
		}
		batch = append(batch, line{h.Key, bytes.Clone(lines.Bytes())})
		if len(batch) == hintBatch {
			if err := store(); err != nil {
				return err
			}
		}
	}
	if err := store(); err != nil {
		return err
	}
	if err := lines.Err(); err != nil {
		return &vfolder.Error{Op: "read segment", Kind: vfolder.KindCorrupt, Path: key, Err: err}
	}
	return nil
}

// applyHint gives a listed entry the attributes of its segment line, if it has
// one that is valid; the inode is not Unhydrated any more then.
func (f *folder) applyHint(tx *meta.Tx, n *meta.Inode, row *meta.Row, rel string, at time.Time) (map[string][]byte, error) {
	raw, err := tx.Hint(f.root, rel)
	if err != nil || raw == nil {
		return nil, err
	}
	var h hint
	if json.Unmarshal(raw, &h) != nil || h.ETag != row.ETag || h.Size != row.Size || h.Time != row.LastModified ||
		at.Sub(time.Unix(0, row.LastModified)) < hintAge {
		return nil, nil
	}
	if v, err := objstore.ParseVID(h.VID); err != nil || v.Ino == 0 {
		return nil, nil
	}
	typ := h.Mode & unix.S_IFMT
	if typ == unix.S_IFDIR || typ == 0 || typ == unix.S_IFLNK && (h.Target == "" || len(h.Target) >= vfolder.MaxPathBytes) {
		return nil, nil
	}
	n.Mode, n.UID, n.GID, n.Rdev = h.Mode, h.UID, h.GID, h.Rdev
	n.Mtime, n.Atime, n.Ctime, n.Btime, n.Target = h.Mtime, h.Atime, h.Ctime, h.Btime, h.Target
	if typ != unix.S_IFREG {
		n.Size = 0
	}
	n.Unhydrated = false
	row.VID = h.VID
	return h.Xattrs, nil
}
