package fusefs

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

const (
	// MaxWrite is the largest READ or WRITE, in bytes; it is a mount option
	// (max_read) too.
	MaxWrite = 1 << 20

	maxReadahead  = 1 << 20 // bytes; the kernel takes less when its bdi says so
	maxBackground = 128     // asynchronous requests (readahead) in flight
	protoMajor    = 7
	protoMinor    = 41 // the newest minor whose structures this package knows
	minMinor      = 31 // Linux 5.4: older ones know too few operations
)

// wantedCaps is what is asked of the kernel; it grants what it knows.
const wantedCaps = uint64(fuse.CAP_ASYNC_READ | fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_EXPORT_SUPPORT |
	fuse.CAP_BIG_WRITES | fuse.CAP_READDIRPLUS | fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_ASYNC_DIO |
	fuse.CAP_PARALLEL_DIROPS | fuse.CAP_MAX_PAGES | fuse.CAP_CACHE_SYMLINKS | fuse.CAP_EXPLICIT_INVAL_DATA |
	fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_HAS_EXPIRE_ONLY | fuse.CAP_DIRECT_IO_ALLOW_MMAP | fuse.CAP_HAS_RESEND)

const (
	headerSize    = int(unsafe.Sizeof(fuse.InHeader{}))
	outHeaderSize = int(unsafe.Sizeof(fuse.OutHeader{}))
	initInSize    = int(unsafe.Sizeof(fuse.InitIn{}))
	initReplySize = outHeaderSize + int(unsafe.Sizeof(fuse.InitOut{}))
)

// Handshake answers the INIT request of a freshly mounted device, once in the
// mount's life, and returns the request followed by the reply. These bytes are
// Config.Init of every Server of this mount, so that a newer program knows
// what an older one agreed with the kernel. It waits for the request.
func Handshake(fd int) ([]byte, error) { return handshake(fd, wantedCaps) }

func handshake(fd int, want uint64) ([]byte, error) {
	buf := make([]byte, MaxWrite+4096)
	n, err := readDevice(fd, buf, nil)
	if err != nil {
		return nil, &vfolder.Error{Op: "fuse init", Err: err}
	}
	reply, err := initReply(buf[:n], want)
	if err != nil {
		return nil, err
	}
	if _, err := unix.Write(fd, reply); err != nil {
		return nil, &vfolder.Error{Op: "fuse init", Err: err}
	}
	return append(buf[:n:n], reply...), nil
}

// readDevice reads one request, retrying what a signal or a withdrawn request
// interrupted, until quit (nil: never) is set: then it is EINTR.
func readDevice(fd int, buf []byte, quit *atomic.Bool) (int, error) {
	for {
		n, err := unix.Read(fd, buf)
		switch err {
		case unix.EINTR, unix.ENOENT, unix.EAGAIN:
			if quit != nil && quit.Load() {
				return 0, unix.EINTR
			}
			continue
		case nil:
			if n < headerSize {
				return 0, fmt.Errorf("the device gave %d bytes", n)
			}
			return n, nil
		}
		return 0, err
	}
}

func initReply(request []byte, want uint64) ([]byte, error) {
	in := fuse.InitIn{}
	if len(request) < headerSize+16 {
		return nil, vfolder.Errorf(vfolder.KindInvalid, "fuse init", "", "the request has %d bytes", len(request))
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&in)), initInSize), request)
	if in.Opcode != opInit {
		return nil, vfolder.Errorf(vfolder.KindInvalid, "fuse init", "", "the first request is %s", opName(in.Opcode))
	}
	if in.Major != protoMajor || in.Minor < minMinor {
		return nil, &vfolder.Error{
			Op: "fuse init", Kind: vfolder.KindUnsupported,
			Err: fmt.Errorf("the kernel speaks FUSE %d.%d, at least %d.%d is needed", in.Major, in.Minor, protoMajor, minMinor),
			Fix: "boot Linux 5.4 or newer",
		}
	}
	offered := uint64(in.Flags)
	if in.Flags&fuse.CAP_INIT_EXT != 0 {
		offered = in.Flags64()
	}
	granted := offered & want
	var out struct {
		fuse.OutHeader
		fuse.InitOut
	}
	out.Length, out.Unique = uint32(initReplySize), in.Unique
	out.Major, out.Minor = protoMajor, min(in.Minor, protoMinor)
	out.MaxReadAhead = maxReadahead
	out.Flags = uint32(granted) | in.Flags&fuse.CAP_INIT_EXT
	out.Flags2 = uint32(granted >> 32)
	out.MaxBackground, out.CongestionThreshold = maxBackground, maxBackground*3/4
	out.MaxWrite = MaxWrite
	out.MaxPages = uint16(MaxWrite / syscall.Getpagesize())
	out.TimeGran = 1
	out.MaxStackDepth = 0
	reply := make([]byte, initReplySize)
	copy(reply, unsafe.Slice((*byte)(unsafe.Pointer(&out)), initReplySize))
	return reply, nil
}

// agreed is what was settled when the mount was made.
type agreed struct {
	caps  uint64
	minor uint32 // the kernel's own, which may be newer than ours
}

func parseInit(saved []byte) (agreed, error) {
	bad := func(why string) (agreed, error) {
		return agreed{}, vfolder.Errorf(vfolder.KindCorrupt, "fuse init", "", "saved handshake: %s", why)
	}
	if len(saved) < headerSize+16+initReplySize {
		return bad("too short")
	}
	n := int(binary.NativeEndian.Uint32(saved))
	if n < headerSize+16 || n+initReplySize != len(saved) {
		return bad("lengths do not match")
	}
	if binary.NativeEndian.Uint32(saved[4:]) != opInit {
		return bad("not an INIT request")
	}
	out := fuse.InitOut{}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&out)), unsafe.Sizeof(out)), saved[n+outHeaderSize:])
	if out.MaxWrite > MaxWrite {
		return bad("larger requests were agreed than this program reads")
	}
	return agreed{caps: out.Flags64(), minor: binary.NativeEndian.Uint32(saved[headerSize+4:])}, nil
}
