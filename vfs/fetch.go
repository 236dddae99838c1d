package vfs

import (
	"errors"
	"sync"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/content"
	"github.com/vfolder/vfolder/fusefs"
	"github.com/vfolder/vfolder/meta"
)

// How much is fetched at once. A small file comes whole; a random reader gets
// little more than it asked for; a sequential one gets ever more, and the next
// pieces while it reads this one.
const (
	fetchSmall  = 1 << 20   // a file up to this size comes whole
	fetchRandom = 256 << 10 // at least, for random reads
	fetchMost   = 4 << 20
	aheadPieces = 2  // of fetchMost, beyond a sequential reader
	maxAhead    = 16 // fetches ahead of all readers at once
)

// need is a wish for remote bytes. It holds a handle; await gives it back.
type need struct {
	f      *content.File
	ranges []content.Range
}

// needs makes a need of nd's open file. nd.mu is held.
func (fs *FS) needs(nd *node, ranges []content.Range) *need {
	return &need{f: fs.content.File(nd.file.ID()), ranges: ranges}
}

// flight is a fetch under way.
type flight struct {
	off, end int64
	tick     chan struct{} // closed, and replaced, when bytes came or it ended
	over     bool
	err      error
}

// window is how many bytes from off a reader of [off,off+n) should get.
func (nd *node) window(off, n int64) int64 {
	nd.fetchMu.Lock()
	defer nd.fetchMu.Unlock()
	nd.follow(off, n)
	if nd.streak == 0 {
		return max(n, fetchRandom)
	}
	return max(n, min(int64(fetchRandom)<<min(nd.streak, 8), fetchMost))
}

// follow recognises sequential readers; requests may come a little out of order.
func (nd *node) follow(off, n int64) {
	const slack = 1 << 20
	if off >= nd.seqNext-slack && off <= nd.seqNext+slack {
		if off+n > nd.seqNext {
			nd.seqNext = off + n
			nd.streak++
		}
		return
	}
	nd.streak, nd.seqNext = 0, off+n
}

// await makes the needed ranges known, fetching at least window bytes from the
// first one on. It returns early, without an error, when the state of the file
// changed: callers look again in any case.
func (fs *FS) await(req *fusefs.Request, nd *node, w *need, window int64) error {
	defer w.f.Close()
	r, err := fs.reach()
	if err != nil {
		return err
	}
	req.Blocking()
	for _, rng := range w.ranges {
		for {
			left := w.f.Missing(rng.Off, rng.Len)
			if len(left) == 0 {
				break
			}
			fl := fs.flightFor(r, nd, w.f, left[0], window)
			if fl == nil {
				continue
			}
			nd.fetchMu.Lock()
			tick, over, ferr := fl.tick, fl.over, fl.err
			nd.fetchMu.Unlock()
			if over {
				if ferr != nil {
					return ferr
				}
				if len(w.f.Missing(left[0].Off, min(left[0].Len, vfolder.BlockBytes))) > 0 {
					return fail(vfolder.KindIO, "fetch", "", "bytes %d+%d of inode %d did not come", left[0].Off, left[0].Len, nd.ino)
				}
				continue
			}
			select {
			case <-tick:
			case <-req.Done():
				return &vfolder.Error{Op: "fetch", Kind: vfolder.KindInterrupted, Err: req.Err()}
			}
			nd.fetchMu.Lock()
			over, ferr = fl.over, fl.err
			nd.fetchMu.Unlock()
			if over && ferr != nil {
				return ferr
			}
		}
	}
	return nil
}

// flightFor finds the fetch that brings the first byte of rng, or begins one;
// nil when it came meanwhile.
func (fs *FS) flightFor(r Remote, nd *node, f *content.File, rng content.Range, window int64) *flight {
	nd.fetchMu.Lock()
	defer nd.fetchMu.Unlock()
	if f.Size() <= fetchSmall {
		window = fetchSmall
	}
	window = max(window, rng.Len)
	window += -window & (vfolder.BlockBytes - 1)
	more := f.Missing(rng.Off, window)
	if len(more) == 0 || more[0].Off != rng.Off {
		return nil
	}
	end := min(more[0].End(), rng.Off+fetchMost)
	for _, fl := range nd.flights {
		if fl.off <= rng.Off && rng.Off < fl.end {
			return fl
		}
		if fl.off > rng.Off {
			end = min(end, fl.off)
		}
	}
	return fs.launch(r, nd, f, rng.Off, end, nil)
}

// launch begins a fetch; nd.fetchMu is held. It goes on when its reader does
// not wait any more: it is bounded, and the bytes are likely to be wanted.
func (fs *FS) launch(r Remote, nd *node, f *content.File, off, end int64, done func()) *flight {
	fl := &flight{off: off, end: end, tick: make(chan struct{})}
	nd.flights = append(nd.flights, fl)
	f = fs.content.File(f.ID())
	fs.nodes.hold(nd)
	fs.tasks.Go(func() {
		defer fs.unpin(nd)
		defer f.Close()
		s := stitcher{f: f, end: end, arrived: func() { nd.progress(fl) }}
		err := r.Fetch(fs.ctx, nd.ino, off, end-off, s.fill)
		if err == nil && s.loose() {
			err = fail(vfolder.KindIO, "fetch", "", "the bytes of inode %d ended inside a block", nd.ino)
		}
		nd.finish(fl, err)
		if done != nil {
			done()
		}
		if err == nil && f.Complete() {
			fs.completed(nd, f)
		}
	})
	return fl
}

func (nd *node) progress(fl *flight) {
	nd.fetchMu.Lock()
	defer nd.fetchMu.Unlock()
	close(fl.tick)
	fl.tick = make(chan struct{})
}

func (nd *node) finish(fl *flight, err error) {
	nd.fetchMu.Lock()
	defer nd.fetchMu.Unlock()
	for i, x := range nd.flights {
		if x == fl {
			nd.flights = append(nd.flights[:i], nd.flights[i+1:]...)
			break
		}
	}
	fl.over, fl.err = true, err
	close(fl.tick)
}

// readAhead keeps fetches going beyond a sequential reader. nd.mu is held.
func (fs *FS) readAhead(nd *node, off, n int64) {
	r := fs.remote.Load()
	if r == nil || fs.ctx.Err() != nil {
		return
	}
	nd.fetchMu.Lock()
	defer nd.fetchMu.Unlock()
	nd.follow(off, n)
	if nd.streak < 2 || len(nd.flights) >= aheadPieces {
		return
	}
	left := nd.file.Missing(off+n, aheadPieces*fetchMost)
	for _, rng := range left {
		at, end := rng.Off, rng.End()
		for _, fl := range nd.flights {
			if fl.off <= at && at < fl.end {
				at = fl.end
			} else if fl.off > at {
				end = min(end, fl.off)
			}
		}
		end = min(end, at+fetchMost)
		// Small rests are left to the next look, when more is missing.
		if at >= end || end-at < fetchMost/2 && end < nd.file.Size() {
			continue
		}
		select {
		case fs.ahead <- struct{}{}:
		default:
			return
		}
		fs.launch(*r, nd, nd.file, at, end, func() { <-fs.ahead })
		if len(nd.flights) >= aheadPieces {
			return
		}
	}
}

// completed stores that every byte is local.
func (fs *FS) completed(nd *node, f *content.File) {
	n, err := fs.lock(nd)
	if err != nil {
		return // the file is gone
	}
	defer nd.mu.Unlock()
	if n.Data != meta.DataPartial || n.DataGen != f.ID().Gen {
		return
	}
	if n.Boot == 0 {
		// The record promises that local bytes are on disk; unknown holes would
		// be taken for zeros after a power loss.
		if err := f.Sync(); err != nil {
			return
		}
	}
	_, err = fs.update(nd, func(tx *meta.Tx, n *meta.Inode) error {
		if n.Data != meta.DataPartial || n.DataGen != f.ID().Gen {
			return errMoved
		}
		n.Data, n.Known = meta.DataComplete, nil
		return tx.PutInode(n)
	})
	if err != nil && !errors.Is(err, errMoved) {
		fs.log.Warn("a file stays partial in the index", "ino", nd.ino, "err", err)
	}
}

// stitcher turns pieces of any length into whole blocks for content.Fill.
// Pieces that follow one another may end anywhere; others begin at a block.
type stitcher struct {
	f       *content.File
	end     int64 // of the fetch; the last block may be short
	arrived func()

	mu    sync.Mutex
	carry []byte // of a block that is not whole yet, from carryAt on
	at    int64
}

func (s *stitcher) loose() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.carry) > 0
}

func (s *stitcher) fill(off int64, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.carry) > 0 && off == s.at+int64(len(s.carry)) {
		take := min(len(data), vfolder.BlockBytes-len(s.carry))
		s.carry = append(s.carry, data[:take]...)
		off, data = off+int64(take), data[take:]
		if len(s.carry) < vfolder.BlockBytes && off < s.end {
			return nil
		}
		if err := s.f.Fill(s.at, s.carry); err != nil {
			return err
		}
		s.carry = s.carry[:0]
	}
	if len(data) > 0 {
		whole := len(data)
		if off+int64(len(data)) < s.end {
			whole -= whole % vfolder.BlockBytes
		}
		if off%vfolder.BlockBytes != 0 {
			return fail(vfolder.KindIO, "fetch", "", "a piece began at %d, inside a block", off)
		}
		if whole > 0 {
			if err := s.f.Fill(off, data[:whole]); err != nil {
				return err
			}
		}
		if rest := data[whole:]; len(rest) > 0 {
			if len(s.carry) > 0 {
				return fail(vfolder.KindIO, "fetch", "", "pieces of unaligned length came out of order")
			}
			s.carry, s.at = append(s.carry[:0], rest...), off+int64(whole)
		}
	}
	s.arrived()
	return nil
}
