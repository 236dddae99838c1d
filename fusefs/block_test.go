package fusefs

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 30 * time.Second

// wire is a device whose kernel is the test: one message per read and write.
type wire struct {
	t  *testing.T
	fd int
	s  *Server
}

// serveWire serves fs on a wire until the test ends.
func serveWire(t *testing.T, fs FS) *wire {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	limit := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(fds[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		t.Fatal(err)
	}
	w := &wire{t: t, fd: fds[0], s: newServer(t, fds[1], 0, Config{Readers: 2}, fs)}
	_ = unix.Close(fds[1]) // the server has a copy
	result := make(chan error, 1)
	go func() { result <- w.s.Serve() }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := w.s.Drain(ctx); err != nil {
			t.Error(err)
		} else if err := <-result; !errors.Is(err, ErrDrained) {
			t.Errorf("serve: %v", err)
		}
		_ = unix.Close(w.fd)
	})
	return w
}

func (w *wire) send(request []byte) {
	w.t.Helper()
	if _, err := unix.Write(w.fd, request); err != nil {
		w.t.Fatal("send: ", err)
	}
}

// reply receives the next answer: to which request, and its status.
func (w *wire) reply() (uint64, int32) {
	w.t.Helper()
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(w.fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n < outHeaderSize {
			w.t.Fatalf("no answer: %d bytes, %v", n, err)
		}
		return le64(buf[8:]), int32(binary.NativeEndian.Uint32(buf[4:]))
	}
}

func (w *wire) await(what string, c <-chan uint64) uint64 {
	w.t.Helper()
	select {
	case unique := <-c:
		return unique
	case <-time.After(patience):
		w.t.Fatal("waited in vain: ", what)
		return 0
	}
}

// Many handlers that wait do not keep others from being served.
func TestBlockedHandlersLeaveRoom(t *testing.T) {
	const blocked = 60
	entered, release := make(chan uint64, blocked), make(chan struct{})
	w := serveWire(t, &stub{hook: func(r *Request) error {
		r.Blocking()
		entered <- r.Unique
		<-release
		return nil
	}})
	for i := range uint64(blocked) {
		w.send(encode(opLookup, 100+i, 1, []byte("name\x00")))
	}
	for range blocked {
		w.await("a handler", entered)
	}
	for i := range uint64(10) {
		w.send(encode(opGetattr, 10+i, 1))
		if unique, status := w.reply(); unique != 10+i || status != 0 {
			t.Errorf("request %d is answered while others wait: %d", unique, status)
		}
	}
	close(release)
	seen := make(map[uint64]bool)
	for range blocked {
		unique, status := w.reply()
		if status != 0 || seen[unique] {
			t.Errorf("request %d: status %d, answered before: %v", unique, status, seen[unique])
		}
		seen[unique] = true
	}
	if len(seen) != blocked {
		t.Errorf("%d were answered", len(seen))
	}
}

// INTERRUPT ends a wait that has lasted the grace period, and no other.
func TestInterruptEndsLongWaits(t *testing.T) {
	const young, old = 100, 101
	entered, release := make(chan uint64, 2), make(chan struct{})
	w := serveWire(t, &stub{hook: func(r *Request) error {
		r.Blocking()
		entered <- r.Unique
		select {
		case <-r.Done():
			return r.Err()
		case <-release:
			return nil
		}
	}})
	for _, unique := range []uint64{young, old} {
		w.send(encode(opLookup, unique, 1, []byte("name\x00")))
		w.await("a handler", entered)
	}
	w.s.mu.Lock()
	w.s.waiting[old].started = time.Now().Add(-interruptAfter)
	w.s.waiting[young].started = time.Now().Add(time.Hour) // however slow this machine is
	w.s.mu.Unlock()
	for _, unique := range []uint64{young, old} {
		w.send(encode(opInterrupt, unique+1000, 0, words(unique)))
	}
	if unique, status := w.reply(); unique != old || status != -int32(unix.EINTR) {
		t.Errorf("request %d ended with %d, want %d with EINTR", unique, status, old)
	}
	close(release)
	if unique, status := w.reply(); unique != young || status != 0 {
		t.Errorf("request %d ended with %d, want %d with success", unique, status, young)
	}
}
