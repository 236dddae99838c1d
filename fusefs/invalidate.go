package fusefs

import (
	"encoding/binary"
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

// Notification codes, as the kernel wants them in a message's error field.
const (
	notifyInvalInode = 2
	notifyInvalEntry = 3
	notifyResend     = 7
	notifyIncEpoch   = 8

	epochMinor = 44 // protocol minor that knows notifyIncEpoch

	// maxPending invalidations of names are kept one by one (roughly 100 bytes
	// each); above it all names are invalidated at once where the kernel can.
	maxPending = 1 << 18
)

// invalidation is one queued call; name is empty for an inode. The zero value
// stands for all names.
type invalidation struct {
	ino  vfolder.Ino
	name string
}

// invalidator implements Invalidator. The kernel takes locks for most
// notifications that a running request may hold, so none may be written by a
// handler or while a lock is held that a handler waits for: callers queue, one
// goroutine writes.
type invalidator struct {
	fd    int
	log   *slog.Logger
	epoch bool // the kernel can invalidate all names at once

	mu      sync.Mutex
	wake    *sync.Cond // queue grew or closed; also: a batch was written
	queue   []invalidation
	queued  map[invalidation]struct{} // the queue's content: repeated calls add nothing
	busy    bool
	closed  bool
	stopped chan struct{}
}

func newInvalidator(fd int, epoch bool, log *slog.Logger) *invalidator {
	v := &invalidator{fd: fd, log: log, epoch: epoch, queued: make(map[invalidation]struct{}), stopped: make(chan struct{})}
	v.wake = sync.NewCond(&v.mu)
	go v.run()
	return v
}

// Entry implements Invalidator.
func (v *invalidator) Entry(parent vfolder.Ino, name string) { v.add(invalidation{parent, name}) }

// Inode implements Invalidator.
func (v *invalidator) Inode(ino vfolder.Ino) { v.add(invalidation{ino, ""}) }

func (v *invalidator) add(call invalidation) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return
	}
	if _, ok := v.queued[call]; ok {
		return
	}
	if len(v.queue) >= maxPending && v.epoch {
		v.collapse()
	}
	v.queue = append(v.queue, call)
	v.queued[call] = struct{}{}
	v.wake.Broadcast()
}

// collapse replaces all queued names by one invalidation of every name; inodes
// stay. It is the last resort: a directory in use loses its path until it is
// looked up again.
func (v *invalidator) collapse() {
	kept := []invalidation{{}}
	queued := map[invalidation]struct{}{{}: {}}
	for _, call := range v.queue {
		if call.name == "" && call.ino != 0 {
			kept = append(kept, call)
			queued[call] = struct{}{}
		}
	}
	v.queue, v.queued = kept, queued
}

func (v *invalidator) run() {
	defer close(v.stopped)
	v.mu.Lock()
	defer v.mu.Unlock()
	for {
		for len(v.queue) == 0 && !v.closed {
			v.wake.Wait()
		}
		if len(v.queue) == 0 {
			return
		}
		batch := v.queue
		v.queue, v.queued, v.busy = nil, make(map[invalidation]struct{}), true
		v.mu.Unlock()
		alive := v.write(batch)
		v.mu.Lock()
		v.busy = false
		if !alive {
			v.closed, v.queue = true, nil
		}
		v.wake.Broadcast()
	}
}

// write sends a batch; false when the mount is gone.
func (v *invalidator) write(batch []invalidation) bool {
	for _, call := range batch {
		var err error
		switch {
		case call.name != "":
			err = notifyEntry(v.fd, call.ino, call.name)
		case call.ino != 0:
			err = notifyInode(v.fd, call.ino, 0)
		default:
			err = notify(v.fd, notifyIncEpoch)
		}
		switch err {
		case nil, unix.ENOENT, unix.ENOTDIR, unix.ENOTEMPTY: // not cached
		case unix.ENODEV, unix.EBADF:
			return false
		default:
			v.log.Warn("kernel cache not invalidated", "ino", uint64(call.ino), "name", call.name, "err", err)
		}
	}
	return true
}

// flush waits until everything queued so far, and meanwhile, is written.
func (v *invalidator) flush() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for (len(v.queue) > 0 || v.busy) && !v.closed {
		v.wake.Wait()
	}
}

// close ends the goroutine after what is queued.
func (v *invalidator) close() {
	v.mu.Lock()
	v.closed = true
	v.wake.Broadcast()
	v.mu.Unlock()
	<-v.stopped
}

func notify(fd int, code int32, body ...[]byte) error {
	msg := make([]byte, outHeaderSize, 64)
	for _, part := range body {
		msg = append(msg, part...)
	}
	binary.NativeEndian.PutUint32(msg, uint32(len(msg)))
	binary.NativeEndian.PutUint32(msg[4:], uint32(code))
	_, err := unix.Write(fd, msg)
	return err
}

func words(values ...uint64) []byte {
	b := make([]byte, 0, 8*len(values))
	for _, v := range values {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	return b
}

// notifyInode drops an inode's attributes, and its data from off on unless off
// is negative. ENOENT means that the kernel has no such inode.
func notifyInode(fd int, ino vfolder.Ino, off int64) error {
	return notify(fd, notifyInvalInode, words(uint64(ino), uint64(off), 0))
}

func notifyEntry(fd int, parent vfolder.Ino, name string) error {
	sizes := binary.NativeEndian.AppendUint32(nil, uint32(len(name)))
	sizes = binary.NativeEndian.AppendUint32(sizes, 0) // flags
	return notify(fd, notifyInvalEntry, words(uint64(parent)), sizes, append([]byte(name), 0))
}
