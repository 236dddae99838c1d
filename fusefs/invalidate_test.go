package fusefs

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

// fakeDevice takes what is written to the device: a file, as messages carry
// their lengths.
func fakeDevice(t testing.TB) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("device", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "device")
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// message is one reply (status up to 0) or notification (its code).
type message struct {
	status int32
	unique uint64
	body   []byte
}

// written cuts what was written into messages and empties the device.
func written(t testing.TB, device *os.File) []message {
	t.Helper()
	raw, err := io.ReadAll(io.NewSectionReader(device, 0, 1<<40))
	if err != nil {
		t.Fatal(err)
	}
	if err := device.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, err := device.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	var list []message
	for len(raw) > 0 {
		if len(raw) < outHeaderSize {
			t.Fatalf("%d bytes are no message", len(raw))
		}
		n := int(binary.NativeEndian.Uint32(raw))
		if n < outHeaderSize || n > len(raw) {
			t.Fatalf("a message says %d bytes, %d are left", n, len(raw))
		}
		list = append(list, message{int32(binary.NativeEndian.Uint32(raw[4:])), le64(raw[8:]), raw[outHeaderSize:n]})
		raw = raw[n:]
	}
	return list
}

// idleInvalidator queues until its run is started.
func idleInvalidator(fd int, epoch bool) *invalidator {
	v := &invalidator{
		fd: fd, epoch: epoch, log: slog.New(slog.DiscardHandler),
		queued: make(map[invalidation]struct{}), stopped: make(chan struct{}),
	}
	v.wake = sync.NewCond(&v.mu)
	return v
}

// The order of calls is kept, and one that is still queued is not queued again.
func TestInvalidationOrder(t *testing.T) {
	device := fakeDevice(t)
	v := idleInvalidator(int(device.Fd()), false)
	for range 3 {
		v.Entry(1, "a")
		v.Inode(7)
		v.Entry(2, "a")
		v.Entry(1, "b")
	}
	go v.run()
	v.flush()
	v.Entry(1, "a") // written before: again
	v.close()
	v.Entry(1, "late")
	var got []string
	for _, m := range written(t, device) {
		ino := strconv.FormatUint(le64(m.body), 10)
		switch m.status {
		case notifyInvalEntry:
			name := m.body[16:]
			if n := int(binary.NativeEndian.Uint32(m.body[8:])); n != len(name)-1 || name[n] != 0 {
				t.Errorf("name %q with length %d", name, n)
			}
			got = append(got, ino+string(name[:len(name)-1]))
		case notifyInvalInode:
			got = append(got, ino)
		default:
			t.Errorf("notification %d", m.status)
		}
	}
	if want := []string{"1a", "7", "2a", "1b", "1a"}; !slices.Equal(got, want) {
		t.Errorf("written %q, want %q", got, want)
	}
}

// Too many names become one invalidation of all, where the kernel knows that;
// else each stays. Inodes stay in any case.
func TestInvalidationOverflow(t *testing.T) {
	for _, epoch := range []bool{true, false} {
		t.Run(fmt.Sprint("epoch=", epoch), func(t *testing.T) {
			v := idleInvalidator(-1, epoch)
			v.Inode(7)
			for i := range vfolder.Ino(maxPending - 1) {
				v.Entry(i+1, "n")
			}
			v.Entry(1, "last")
			if !epoch {
				if len(v.queue) != maxPending+1 {
					t.Errorf("%d are queued", len(v.queue))
				}
				return
			}
			if want := []invalidation{{}, {7, ""}, {1, "last"}}; !slices.Equal(v.queue, want) {
				t.Fatalf("%d are queued, want %v", len(v.queue), want)
			}
			device := fakeDevice(t)
			v.fd = int(device.Fd())
			go v.run()
			v.close()
			var codes []int32
			for _, m := range written(t, device) {
				codes = append(codes, m.status)
			}
			if want := []int32{notifyIncEpoch, notifyInvalInode, notifyInvalEntry}; !slices.Equal(codes, want) {
				t.Errorf("written %v, want %v", codes, want)
			}
		})
	}
}

// A device that is gone ends the queue: nobody waits, nothing piles up.
func TestInvalidationAfterUnmount(t *testing.T) {
	v := idleInvalidator(-1, false)
	v.Inode(7)
	v.Inode(8)
	go v.run()
	v.flush()
	v.Inode(9)
	if len(v.queue) != 0 {
		t.Errorf("%d are queued", len(v.queue))
	}
	v.close()
}
