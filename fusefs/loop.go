package fusefs

import (
	"context"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

const (
	resendBit = 1 << 63 // in unique: sent once before

	// Requests up to smallBytes are copied out of the request buffer, so that a
	// handler that waits can give the buffer away.
	smallBytes = 1024
	// Replies up to inlineBytes are made in the task's own buffer.
	inlineBytes = 8192

	// An INTERRUPT ends a wait only after this long: Go programs interrupt
	// their own system calls all the time (preemption), and an operation that
	// fails because of that is worse than one that takes a little longer.
	interruptAfter = 10 * time.Second
)

// task is one goroutine's request: read, handle, answer, next.
type task struct {
	s      *Server
	req    Request
	op     uint32
	node   uint64
	unique uint64 // with the resend bit, as the reply must have it
	msg    []byte // the whole request
	out    []byte // reply: header and body
	big    []byte // of s.replies, when out is that
	in     []byte // request buffer; nil once given away

	blockFn func() // block, made once
	blocked bool
	started time.Time // when it blocked
	stop    context.CancelFunc
	timer   *time.Timer

	small  [smallBytes / 8]uint64 // words: structures in them need alignment
	inline [inlineBytes / 8]uint64
}

// spawn starts a reader that owns a request buffer; s.mu is held.
func (s *Server) spawn(in []byte) {
	s.active++
	s.total++
	go s.reader(in)
}

// reader reads and handles requests until there are enough readers without it.
// Few fixed readers are faster than a goroutine per request, and none is pinned
// to a thread.
func (s *Server) reader(in []byte) {
	t := &task{s: s, in: in}
	t.blockFn = t.block
	t.req.Block = t.blockFn
	for !s.draining.Load() {
		n, err := readDevice(s.fd, t.in, &s.draining)
		if err != nil {
			s.stopped(err)
			break
		}
		t.serve(n)
		if t.blocked && !s.rejoin(t) {
			return
		}
	}
	s.leave(t, true)
}

// stopped notes why a reader ends. ENODEV is the unmounted device, ECONNABORTED
// the same through the control file system.
func (s *Server) stopped(err error) {
	if err == unix.ENODEV || err == unix.ECONNABORTED || err == unix.EINTR { // EINTR: Drain
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure == nil {
		s.failure = &vfolder.Error{Op: "read request", Err: err}
	}
}

// leave ends a reader.
func (s *Server) leave(t *task, active bool) {
	if t.in != nil {
		s.buffers.put(t.in)
		t.in = nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if active {
		s.active--
	}
	s.total--
	if s.total == 0 {
		s.idle.Broadcast()
	}
}

// block gives the reader slot away: another reader takes over while this
// handler waits. Above the limits nobody does, and the slot is idle until a
// handler is done: that is the back-pressure.
func (t *task) block() {
	s := t.s
	t.blocked = true
	t.started = time.Now()
	t.req.Context, t.stop = context.WithCancel(s.base)
	key := t.unique &^ resendBit

	s.mu.Lock()
	defer s.mu.Unlock()
	s.active--
	s.waiting[key] = t
	if _, ok := s.early[key]; ok {
		delete(s.early, key)
		t.interruptLocked()
	}
	if s.active >= s.cfg.Readers || s.total >= maxInFlight || s.draining.Load() {
		return
	}
	next := t.in
	if len(t.msg) <= smallBytes {
		t.in = nil
	} else {
		var err error
		if next, err = s.buffers.get(); err != nil {
			return
		}
	}
	s.spawn(next)
}

// rejoin makes a handler that waited a reader again, unless there are enough.
func (s *Server) rejoin(t *task) bool {
	t.blocked = false
	t.req.Block = t.blockFn
	s.mu.Lock()
	enough := s.active >= s.cfg.Readers
	if !enough {
		s.active++
	}
	s.mu.Unlock()
	if enough {
		s.leave(t, false)
		return false
	}
	if t.in == nil {
		in, err := s.buffers.get()
		if err != nil {
			// All buffers belong to handlers that will be readers again.
			s.leave(t, true)
			return false
		}
		t.in = in
	}
	return true
}

// unblocked forgets the wait once the request is answered.
func (t *task) unblocked() {
	t.s.mu.Lock()
	delete(t.s.waiting, t.unique&^resendBit)
	timer := t.timer
	t.timer = nil
	t.s.mu.Unlock()
	if timer != nil {
		timer.Stop()
	}
	t.stop()
}

// interruptLocked ends the task's wait when it has lasted long enough; s.mu is
// held.
func (t *task) interruptLocked() {
	if t.timer == nil {
		t.timer = time.AfterFunc(max(0, interruptAfter-time.Since(t.started)), t.stop)
	}
}

// serve handles one request of n bytes.
func (t *task) serve(n int) {
	t.msg = t.in[:n]
	if n <= smallBytes {
		small := unsafe.Slice((*byte)(unsafe.Pointer(&t.small)), smallBytes)
		t.msg = small[:copy(small, t.msg)]
	}
	h := (*fuse.InHeader)(unsafe.Pointer(&t.msg[0]))
	t.op, t.node, t.unique = h.Opcode, h.NodeId, h.Unique
	t.out = unsafe.Slice((*byte)(unsafe.Pointer(&t.inline)), inlineBytes)
	t.req.Context = t.s.base
	t.req.Unique, t.req.Resent = h.Unique&^resendBit, h.Unique&resendBit != 0
	t.req.UID, t.req.GID = t.s.cfg.Owners.ToStored(h.Uid, h.Gid)
	t.req.PID = h.Pid

	switch t.op {
	case opForget, opBatchForget, opInterrupt, opNotifyReply:
		_, _ = operations[t.op].do(t) // these have no reply
		return
	}
	f := t.s.cfg.InFlight
	var slot int
	var blame uint32
	var known bool // a former worker had it
	if f != nil {
		slot, blame, known = f.begin(t.req.Unique, t.node, t.op, t.req.Resent)
	}
	size, err := 0, error(nil)
	switch {
	case blame >= blameLimit:
		err = vfolder.Errorf(vfolder.KindIO, "request", "", "given up: it was being handled each time a worker died")
	case int(h.Length) != n:
		err = vfolder.Errorf(vfolder.KindIO, "request", "", "it says %d bytes and has %d", h.Length, n)
	case t.op >= opCount || operations[t.op].do == nil:
		err = unix.ENOSYS
	default:
		size, err = operations[t.op].do(t)
	}
	t.reply(size, err)
	if t.blocked {
		t.unblocked()
	}
	if f != nil {
		f.end(slot)
		if known && t.op == opTmpfile && t.s.tmpfiles.Add(-1) == 0 {
			t.s.sweepOrphans()
		}
	}
	if t.big != nil {
		t.s.replies.put(t.big)
		t.big = nil
	}
}

// reply writes the answer: size bytes of body, or the error.
func (t *task) reply(size int, err error) {
	errno := errnoOf(err)
	if errno != 0 {
		t.s.report(t, errno, err)
		size = 0
	}
	h := (*fuse.OutHeader)(unsafe.Pointer(&t.out[0]))
	h.Length, h.Status, h.Unique = uint32(outHeaderSize+size), -int32(errno), t.unique
	_, werr := unix.Write(t.s.fd, t.out[:h.Length])
	switch werr {
	case nil, unix.ENOENT, unix.ENODEV: // the caller, or the mount, is gone
	default:
		t.s.log.Error("reply refused", "op", opName(t.op), "ino", t.node, "bytes", h.Length, "err", werr)
		if size > 0 {
			// Without any answer the caller would wait for ever.
			_ = t.s.replyError(t.unique, unix.EIO)
		}
	}
}

// room makes place for a body of n bytes.
func (t *task) room(n int) ([]byte, error) {
	if n < 0 || n > MaxWrite {
		return nil, vfolder.Errorf(vfolder.KindInvalid, "reply", "", "%d bytes asked for", n)
	}
	if outHeaderSize+n > len(t.out) {
		b, err := t.s.replies.get()
		if err != nil {
			b = make([]byte, bufferBytes) // rather memory than an error
		} else {
			t.big = b
		}
		t.out = b
	}
	return t.out[outHeaderSize : outHeaderSize+n], nil
}

// request views the request as its structure and what follows it.
func request[T any](t *task) (*T, []byte, error) {
	var zero T
	size := int(unsafe.Sizeof(zero))
	if len(t.msg) < size {
		return nil, nil, vfolder.Errorf(vfolder.KindIO, "request", "", "it has %d bytes of %d", len(t.msg), size)
	}
	return (*T)(unsafe.Pointer(&t.msg[0])), t.msg[size:], nil
}

// result gives a zeroed structure at an offset of the reply's body.
func result[T any](t *task, at int) (*T, int) {
	p := (*T)(unsafe.Pointer(&t.out[outHeaderSize+at]))
	var zero T
	*p = zero
	return p, at + int(unsafe.Sizeof(zero))
}

// names cuts n NUL-terminated names off; they are copies.
func names(b []byte, n int) ([]string, []byte, error) {
	list := make([]string, n)
	for i := range list {
		end := 0
		for end < len(b) && b[end] != 0 {
			end++
		}
		if end == len(b) {
			return nil, nil, vfolder.Errorf(vfolder.KindIO, "request", "", "a name does not end")
		}
		list[i], b = string(b[:end]), b[end+1:]
	}
	return list, b, nil
}

// oneName is names for the usual case.
func oneName(b []byte) (string, []byte, error) {
	list, rest, err := names(b, 1)
	if err != nil {
		return "", nil, err
	}
	return list[0], rest, nil
}
