package content

import (
	"container/list"
	"sync"

	"golang.org/x/sys/unix"
)

// fdCache bounds the open descriptors: files in the order in which they were
// opened, with a second chance for those used since.
type fdCache struct {
	mu    sync.Mutex // taken with a File's mu held; only tries to lock others'
	max   int
	order list.List // of *File
}

// add records that f was opened, and closes others beyond the limit. Files in
// use are passed over, so the limit may be exceeded for a while.
func (c *fdCache) add(f *File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f.cached = c.order.PushBack(f)
	for tries := 2 * c.order.Len(); c.order.Len() > c.max && tries > 0; tries-- {
		e := c.order.Front()
		old := e.Value.(*File)
		if old == f || old.used.Swap(false) || !old.mu.TryLock() {
			c.order.MoveToBack(e)
			continue
		}
		c.order.Remove(e)
		old.cached = nil
		if old.drift > 0 {
			old.recharge(int(old.fd.Load()))
		}
		unix.Close(int(old.fd.Swap(-1)))
		old.mu.Unlock()
	}
}

// forget keeps f's descriptor from being closed by the cache.
func (c *fdCache) forget(f *File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.cached != nil {
		c.order.Remove(f.cached)
		f.cached = nil
	}
}
