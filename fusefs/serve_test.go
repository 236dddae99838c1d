package fusefs

import (
	"encoding/binary"
	"log/slog"
	"testing"

	"golang.org/x/sys/unix"
)

// encode makes a request of its header and the parts of its body.
func encode(op uint32, unique, node uint64, body ...[]byte) []byte {
	msg := make([]byte, headerSize)
	for _, part := range body {
		msg = append(msg, part...)
	}
	binary.NativeEndian.PutUint32(msg, uint32(len(msg)))
	binary.NativeEndian.PutUint32(msg[4:], op)
	binary.NativeEndian.PutUint64(msg[8:], unique)
	binary.NativeEndian.PutUint64(msg[16:], node)
	return msg
}

// newServer makes a Server of a device that is not the kernel's, which agreed
// to the given capabilities.
func newServer(t testing.TB, fd int, caps uint64, cfg Config, fs FS) *Server {
	t.Helper()
	request := encode(opInit, 1, 0, words(protoMajor|protoMinor<<32, 0), make([]byte, 48))
	reply, err := initReply(request, caps)
	if err != nil {
		t.Fatal(err)
	}
	cfg.FD, cfg.Init, cfg.Logger = fd, append(request, reply...), slog.New(slog.DiscardHandler)
	s, err := New(cfg, fs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.cancel()
		s.inval.close()
		_ = s.device.Close()
	})
	return s
}

// A worker that takes over without in-flight memory, on a kernel that cannot
// send requests again, has nothing to answer and serves.
func TestTakeOverWithoutMemory(t *testing.T) {
	for _, resume := range []Resume{Fresh, HandedOver, Killed, Crashed} {
		device := fakeDevice(t)
		newServer(t, int(device.Fd()), 0, Config{Resume: resume}, &stub{})
		if got := written(t, device); len(got) != 0 {
			t.Errorf("resume %d: %v was written", resume, got)
		}
	}
}

// FuzzServe hands any bytes to the decoder as a request. Each is answered
// exactly once, except for those that have no answer.
func FuzzServe(f *testing.F) {
	name := []byte("name\x00")
	for op := range uint32(opCount) {
		f.Add(true, encode(op, 2, 1))
		f.Add(true, encode(op, 2, 1, name, name))
		f.Add(true, encode(op, 2, 1, words(1, 0, 64), name, name))
		f.Add(true, encode(op, 2, 1, words(0, 1, 64, 0, 0), name, name, make([]byte, 64)))
	}
	f.Add(true, encode(opWrite, 2|resendBit, 1, words(0, 0, 5, 0, 0), name))
	f.Add(true, encode(opRead, 2, 1, words(0, 0, 1<<20, 0, 0)))
	f.Add(true, encode(opReaddirplus, 2, 1, words(0, 0, 4096, 0, 0)))
	f.Add(true, encode(opBatchForget, 2, 0, words(2, 5, 1, 6, 1)))
	f.Add(false, encode(opLookup, 2, 1, name)[:headerSize+1])
	f.Add(true, encode(^uint32(0), 2, 1))
	device := fakeDevice(f)
	s := newServer(f, int(device.Fd()), 0, Config{}, &stub{})
	in := &task{s: s, in: make([]byte, bufferBytes)}
	f.Fuzz(func(t *testing.T, honest bool, data []byte) {
		n := copy(in.in, data)
		if n < headerSize {
			return // refused when it is read
		}
		if honest { // the kernel's length is right
			binary.NativeEndian.PutUint32(in.in, uint32(n))
		}
		op, unique := binary.NativeEndian.Uint32(data[4:]), le64(data[8:])
		want := 1
		switch op {
		case opForget, opBatchForget, opInterrupt, opNotifyReply:
			want = 0
		}
		in.serve(n)
		got := 0
		for _, m := range written(t, device) {
			if m.status > 0 { // asks the kernel whether it has an inode
				continue
			}
			got++
			if m.unique != unique {
				t.Errorf("%s: request %d is answered as %d", opName(op), unique, m.unique)
			}
			if m.status == 0 && op < opCount && operations[op].do == nil {
				t.Errorf("%s is not served and succeeds", opName(op))
			}
			if m.status != 0 && len(m.body) != 0 {
				t.Errorf("%s: error %v with a body", opName(op), unix.Errno(-m.status))
			}
		}
		if got != want {
			t.Errorf("%s: %d replies, want %d", opName(op), got, want)
		}
	})
}
