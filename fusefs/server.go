package fusefs

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

// Resume says how the former worker of a mount ended.
type Resume uint8

// Crashed and Killed both have the kernel send again what was not answered;
// they differ in how much a request in flight is suspected of having done it.
const (
	Fresh      Resume = iota // there was none
	HandedOver               // it answered all it had read (Drain)
	Killed                   // from outside: SIGKILL
	Crashed                  // by itself
)

// ErrDrained is what Serve returns after Drain.
var ErrDrained = errors.New("handed over")

// wakeAgain is how often Drain interrupts readers that are still waiting.
const wakeAgain = 5 * time.Millisecond

// Config is what a Server needs besides its FS.
type Config struct {
	FD       int          // the FUSE device, mounted and past Handshake; the Server makes its own copy
	Init     []byte       // what Handshake returned
	Owners   OwnerMap     // the zero value is the identity
	InFlight *InFlight    // nil: none, for tests and single-process use
	Resume   Resume       // how the former Server of this device ended
	Readers  int          // requests handled at once without waiting; 0 is 2
	Logger   *slog.Logger // nil: slog.Default
}

// Server serves one mount. Serve, Drain, Probe and the Invalidator may be
// called concurrently.
type Server struct {
	cfg      Config
	fd       int
	device   *os.File // owner of fd, closed with the Server
	fs       FS
	log      *slog.Logger
	caps     uint64
	inval    *invalidator
	buffers  bufferPool // requests
	replies  bufferPool // bodies too large for a task's own buffer
	draining atomic.Bool
	tmpfiles atomic.Int32  // TMPFILE requests that a former worker may have carried out
	done     chan struct{} // closed when Serve returns

	base   context.Context // of all requests; ends with the mount
	cancel context.CancelFunc

	mu      sync.Mutex
	active  int                 // readers, or handlers that do not wait
	total   int                 // all goroutines of requests
	waiting map[uint64]*task    // by unique: handlers that called Block
	idle    *sync.Cond          // total fell to 0
	failure error               // why readers stopped, when not an unmount
	early   map[uint64]struct{} // INTERRUPT came while the handler did not wait yet
}

// New prepares to serve a device. After a former worker it has the kernel send
// unanswered requests again (or answers them with EIO on kernels that cannot),
// and tells FS which orphans the kernel dropped meanwhile.
func New(cfg Config, fs FS) (*Server, error) {
	agreed, err := parseInit(cfg.Init)
	if err != nil {
		return nil, err
	}
	if cfg.Readers <= 0 {
		cfg.Readers = 2
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	// A copy of our own: a caller's *os.File that is collected would close the
	// number, and another file might get it.
	fd, err := unix.FcntlInt(uintptr(cfg.FD), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, &vfolder.Error{Op: "fuse device", Err: err}
	}
	s := &Server{
		cfg: cfg, fd: fd, device: os.NewFile(uintptr(fd), "/dev/fuse"), fs: fs, log: cfg.Logger, caps: agreed.caps,
		inval:   newInvalidator(fd, agreed.minor >= epochMinor, cfg.Logger),
		done:    make(chan struct{}),
		waiting: make(map[uint64]*task),
		early:   make(map[uint64]struct{}),
	}
	s.idle = sync.NewCond(&s.mu)
	s.base, s.cancel = context.WithCancel(context.Background())
	if err := s.takeOver(); err != nil {
		s.cancel()
		s.inval.close()
		return nil, err
	}
	return s, nil
}

// takeOver settles what the former worker left behind, before any request is
// read.
func (s *Server) takeOver() error {
	var left []uint64
	tmpfiles := 0
	if f := s.cfg.InFlight; f != nil {
		left, tmpfiles = f.recover(map[Resume]uint32{Killed: blameKill, Crashed: blameCrash}[s.cfg.Resume])
	}
	if s.cfg.Resume == Fresh {
		return nil
	}
	if s.caps&fuse.CAP_HAS_RESEND != 0 {
		if err := notify(s.fd, notifyResend); err != nil && err != unix.ENODEV {
			return &vfolder.Error{Op: "fuse resend", Err: err}
		}
	} else {
		s.abandon(left)
		tmpfiles = 0
	}
	if tmpfiles == 0 {
		s.sweepOrphans()
	}
	s.tmpfiles.Store(int32(tmpfiles))
	return nil
}

// sweepOrphans tells FS which nameless inodes the kernel dropped while no
// worker was there to hear it. It must wait for every TMPFILE that is sent
// again: its inode is nameless and not yet known to the kernel, which is still
// to hear of it. When such a request never comes, the next worker sweeps.
func (s *Server) sweepOrphans() {
	for _, ino := range s.fs.Orphans() {
		if !s.Probe(ino) {
			s.fs.Forget(ino)
		}
	}
}

// abandon answers with EIO what the former worker had read, on kernels that
// cannot send it again: callers would wait for ever. Requests that it read but
// did not get to note are near the noted ones; the kernel ignores answers to
// requests that nobody has read.
func (s *Server) abandon(left []uint64) {
	const around, step = 4096, 1
	if len(left) > 0 {
		newest := left[0]
		for _, unique := range left {
			newest = max(newest, unique)
		}
		for u := newest - min(newest, around); u <= newest+around; u += step {
			left = append(left, u)
		}
	}
	answered := 0
	for _, unique := range left {
		if s.replyError(unique, unix.EIO) == nil {
			answered++
		}
	}
	if answered > 0 {
		s.log.Error("requests failed: the worker died and this kernel cannot send them again", "requests", answered)
	}
	if f := s.cfg.InFlight; f != nil {
		f.forgetAll()
	}
}

func (s *Server) replyError(unique uint64, errno unix.Errno) error {
	var msg [16]byte
	binary.NativeEndian.PutUint32(msg[0:], uint32(len(msg)))
	binary.NativeEndian.PutUint32(msg[4:], uint32(-int32(errno)))
	binary.NativeEndian.PutUint64(msg[8:], unique)
	_, err := unix.Write(s.fd, msg[:])
	return err
}

// Invalidator drops cached state of this mount.
func (s *Server) Invalidator() Invalidator { return s.inval }

// Probe reports whether the kernel still holds an inode. For one without a
// name, which cannot be looked up again, false is final.
func (s *Server) Probe(ino vfolder.Ino) bool {
	defer runtime.KeepAlive(s.device)
	return notifyInode(s.fd, ino, -1) != unix.ENOENT
}

// Serve handles requests until the device is unmounted (nil), Drain is called
// (ErrDrained) or reading fails. It is called once. All handlers have returned
// when it does.
func (s *Server) Serve() error {
	defer close(s.done)
	s.mu.Lock()
	for s.active < s.cfg.Readers && !s.draining.Load() {
		in, err := s.buffers.get()
		if err != nil {
			s.failure = err
			break
		}
		s.spawn(in)
	}
	for s.total > 0 {
		s.idle.Wait()
	}
	err := s.failure
	s.mu.Unlock()

	drained := err == nil && s.draining.Load()
	if drained {
		s.inval.flush()
		err = ErrDrained
	}
	s.cancel()
	s.inval.close()
	s.buffers.drop()
	s.replies.drop()
	return err
}

// Drain stops reading, and waits until all that was read is answered and all
// queued invalidations are written: then another worker may take the device
// over without anybody noticing. When ctx ends first, handlers go on.
func (s *Server) Drain(ctx context.Context) error {
	s.draining.Store(true)
	if err := prepareWake(); err != nil {
		return err
	}
	again := time.NewTicker(wakeAgain)
	defer again.Stop()
	for {
		s.mu.Lock()
		reading := s.active > 0
		s.mu.Unlock()
		if reading {
			if err := wakeReaders(); err != nil {
				return err
			}
		}
		select {
		case <-s.done:
			return nil
		case <-ctx.Done():
			return &vfolder.Error{Op: "hand over", Kind: vfolder.KindTimeout, Err: ctx.Err()}
		case <-again.C:
		}
	}
}
