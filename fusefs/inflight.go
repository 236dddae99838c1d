package fusefs

import (
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

const (
	inFlightMagic   = 0x7646_6c69_6768_7402 // "vFlight", version 2
	inFlightRecords = 1024
	inFlightBytes   = 4096 + inFlightRecords*int(unsafe.Sizeof(record{}))

	// maxInFlight bounds the requests being handled, waiting ones included.
	maxInFlight = 256

	// A worker's crash weighs more than a kill from outside: only the former
	// is likely to be a request's fault. At blameLimit a request is answered
	// with EIO instead of being tried again: two crashes, or eight kills.
	blameCrash = 4
	blameKill  = 1
	blameLimit = 8

	// maxUnseen is how many workers may come and go before a request that was
	// never sent again is forgotten: it was answered, or its caller is gone.
	maxUnseen = 4
)

// record is one request being handled. Words are written one by one while the
// process may be killed at any moment, so unique goes last on the way in and
// first on the way out.
type record struct {
	unique  atomic.Uint64 // 0: unused
	node    atomic.Uint64
	op      atomic.Uint32
	running atomic.Uint32 // 1 while a handler has it
	blame   atomic.Uint32
	unseen  atomic.Uint32
}

// InFlight is memory that outlives workers: the requests being handled. The
// supervisor makes it and keeps it; each worker maps it. One worker at a time
// uses it; its methods are safe for concurrent use.
type InFlight struct {
	mem     []byte
	records []record

	mu       sync.Mutex
	free     []int          // unused records
	suspects map[uint64]int // unique -> record of what a former worker had
}

// CreateInFlight makes the memory (a memfd) for one mount. The caller owns the
// file.
func CreateInFlight() (*os.File, error) {
	fd, err := unix.MemfdCreate("vfolder-inflight", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, &vfolder.Error{Op: "in-flight memory", Err: err}
	}
	f := os.NewFile(uintptr(fd), "vfolder-inflight")
	if err := f.Truncate(int64(inFlightBytes)); err != nil {
		_ = f.Close()
		return nil, &vfolder.Error{Op: "in-flight memory", Err: err}
	}
	return f, nil
}

// OpenInFlight maps the memory. The file may be closed afterwards.
func OpenInFlight(f *os.File) (*InFlight, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, &vfolder.Error{Op: "in-flight memory", Err: err}
	}
	if st.Size() != int64(inFlightBytes) {
		return nil, vfolder.Errorf(vfolder.KindCorrupt, "in-flight memory", "", "it has %d bytes, not %d", st.Size(), inFlightBytes)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, inFlightBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, &vfolder.Error{Op: "in-flight memory", Err: err}
	}
	magic := (*atomic.Uint64)(unsafe.Pointer(&mem[0]))
	if got := magic.Load(); got != 0 && got != inFlightMagic {
		_ = unix.Munmap(mem)
		return nil, vfolder.Errorf(vfolder.KindCorrupt, "in-flight memory", "", "unknown format %x", got)
	}
	magic.Store(inFlightMagic)
	return &InFlight{
		mem:      mem,
		records:  unsafe.Slice((*record)(unsafe.Pointer(&mem[4096])), inFlightRecords),
		suspects: make(map[uint64]int),
	}, nil
}

// Close unmaps the memory, once no Server uses it any more.
func (f *InFlight) Close() error {
	if f.mem == nil {
		return nil
	}
	mem := f.mem
	f.mem, f.records = nil, nil
	return unix.Munmap(mem)
}

// recover sorts out what the former worker left. blame is what its end adds to
// each request that it was handling. It returns these requests' ids, and how
// many of all that may be sent again are TMPFILE.
func (f *InFlight) recover(blame uint32) (left []uint64, tmpfiles int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.free = f.free[:0]
	for i := len(f.records) - 1; i >= 0; i-- {
		r := &f.records[i]
		unique := r.unique.Load()
		if unique == 0 {
			r.clear()
			f.free = append(f.free, i)
			continue
		}
		if r.running.Swap(0) == 1 {
			r.blame.Add(blame)
			r.unseen.Store(0)
			left = append(left, unique)
		} else if r.unseen.Add(1) > maxUnseen {
			r.clear()
			f.free = append(f.free, i)
			continue
		}
		f.suspects[unique] = i
	}
	// Handlers must always find room: suspects are the less important.
	for unique, i := range f.suspects {
		if len(f.free) >= maxInFlight {
			break
		}
		f.records[i].clear()
		f.free = append(f.free, i)
		delete(f.suspects, unique)
	}
	for _, i := range f.suspects {
		if f.records[i].op.Load() == opTmpfile {
			tmpfiles++
		}
	}
	return left, tmpfiles
}

// forgetAll drops every record, when nothing will be sent again.
func (f *InFlight) forgetAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for unique, i := range f.suspects {
		f.records[i].clear()
		f.free = append(f.free, i)
		delete(f.suspects, unique)
	}
}

// begin notes that a request is being handled and returns its record; known
// says that a former worker had it.
func (f *InFlight) begin(unique, node uint64, op uint32, resent bool) (i int, blame uint32, known bool) {
	f.mu.Lock()
	if resent {
		i, known = f.suspects[unique]
		delete(f.suspects, unique)
	}
	if !known {
		n := len(f.free) - 1
		i = f.free[n] // never empty: there are more records than handlers and suspects leave room
		f.free = f.free[:n]
	}
	f.mu.Unlock()
	r := &f.records[i]
	r.node.Store(node)
	r.op.Store(op)
	r.unseen.Store(0)
	r.running.Store(1)
	r.unique.Store(unique)
	return i, r.blame.Load(), known
}

// end notes that a request was answered.
func (f *InFlight) end(i int) {
	f.records[i].clear()
	f.mu.Lock()
	f.free = append(f.free, i)
	f.mu.Unlock()
}

func (r *record) clear() {
	r.unique.Store(0)
	r.running.Store(0)
	r.blame.Store(0)
	r.unseen.Store(0)
}
