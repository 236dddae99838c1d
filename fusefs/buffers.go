package fusefs

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

const (
	bufferBytes = MaxWrite + 4096 // the kernel demands MaxWrite and its headers
	maxBuffers  = 64              // of one pool, in use or not
	keepBuffers = 8               // of one pool, mapped while not in use
)

// bufferPool hands out request buffers outside the Go heap, all pages present:
// when the process is being killed, a page fault while the kernel copies a
// request would end that request with EIO instead of leaving it for the next
// worker.
type bufferPool struct {
	mu   sync.Mutex
	free [][]byte
	out  int // handed out
}

// get returns a buffer, or an error of KindNoSpace when too many are in use.
func (p *bufferPool) get() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free = p.free[:n-1]
		p.out++
		return b, nil
	}
	if p.out >= maxBuffers {
		return nil, vfolder.Errorf(vfolder.KindNoSpace, "request buffer", "", "all %d are in use", maxBuffers)
	}
	b, err := unix.Mmap(-1, 0, bufferBytes, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, &vfolder.Error{Op: "request buffer", Kind: vfolder.KindNoSpace, Err: err}
	}
	p.out++
	return b, nil
}

func (p *bufferPool) put(b []byte) {
	p.mu.Lock()
	p.out--
	keep := len(p.free) < keepBuffers
	if keep {
		p.free = append(p.free, b)
	}
	p.mu.Unlock()
	if !keep {
		_ = unix.Munmap(b)
	}
}

// drop unmaps what is idle.
func (p *bufferPool) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.free {
		_ = unix.Munmap(b)
	}
	p.free = nil
}
