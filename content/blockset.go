package content

import (
	"iter"
	"maps"
	"math/bits"
	"slices"

	"github.com/vfolder/vfolder"
)

const (
	blockBytes  = int64(vfolder.BlockBytes)
	chunkWords  = 64
	chunkBlocks = chunkWords * 64 // blocks of one chunk: 16 MiB of file
)

type chunk [chunkWords]uint64

// fullChunk stands for every chunk whose blocks are all members, so that a
// long run costs a map entry per 16 MiB. It is never written to.
var fullChunk = func() *chunk {
	c := new(chunk)
	for i := range c {
		c[i] = ^uint64(0)
	}
	return c
}()

// blockSet is a set of block numbers: a bitmap in chunks, absent where empty.
// At worst it takes 32 KiB per GiB of file. The zero value is empty. It is not
// safe for concurrent use.
type blockSet struct {
	chunks map[int64]*chunk
	n      int64
}

func (s *blockSet) has(b int64) bool {
	c := s.chunks[b/chunkBlocks]
	return c != nil && c[b%chunkBlocks/64]&(1<<(b%64)) != 0
}

// wordMask has the bits of word w of a chunk that lie in blocks [lo,hi) of it.
func wordMask(w, lo, hi int64) uint64 {
	lo, hi = max(lo-w*64, 0), min(hi-w*64, 64)
	if lo >= hi {
		return 0
	}
	return ^uint64(0) << lo & (^uint64(0) >> (64 - hi))
}

// add puts blocks [from,to) into the set.
func (s *blockSet) add(from, to int64) {
	for from < to {
		key := from / chunkBlocks
		base := key * chunkBlocks
		lo, hi := from-base, min(to-base, chunkBlocks)
		from = base + hi
		c := s.chunks[key]
		if c == fullChunk {
			continue
		}
		if s.chunks == nil {
			s.chunks = make(map[int64]*chunk)
		}
		if c == nil {
			if hi-lo == chunkBlocks {
				s.chunks[key] = fullChunk
				s.n += chunkBlocks
				continue
			}
			c = new(chunk)
			s.chunks[key] = c
		}
		for w := lo / 64; w <= (hi-1)/64; w++ {
			m := wordMask(w, lo, hi) &^ c[w]
			c[w] |= m
			s.n += int64(bits.OnesCount64(m))
		}
		if *c == *fullChunk {
			s.chunks[key] = fullChunk
		}
	}
}

// remove takes blocks [from,to) out of the set.
func (s *blockSet) remove(from, to int64) {
	for _, key := range s.keys(from, to) {
		c, base := s.chunks[key], key*chunkBlocks
		lo, hi := max(from-base, 0), min(to-base, chunkBlocks)
		if hi-lo == chunkBlocks {
			s.n -= c.count()
			delete(s.chunks, key)
			continue
		}
		if c == fullChunk {
			c = new(chunk)
			*c = *fullChunk
			s.chunks[key] = c
		}
		for w := lo / 64; w <= (hi-1)/64; w++ {
			m := wordMask(w, lo, hi) & c[w]
			c[w] &^= m
			s.n -= int64(bits.OnesCount64(m))
		}
		if *c == (chunk{}) {
			delete(s.chunks, key)
		}
	}
}

func (c *chunk) count() int64 {
	n := 0
	for _, w := range c {
		n += bits.OnesCount64(w)
	}
	return int64(n)
}

// next finds the first block in [from,to) that is a member (or, with want
// false, that is none). It returns to where there is no such block.
func (s *blockSet) next(from, to int64, want bool) int64 {
	for from < to {
		key := from / chunkBlocks
		c, end := s.chunks[key], min((key+1)*chunkBlocks, to)
		if c == nil || c == fullChunk {
			if (c != nil) == want {
				return from
			}
			from = end
			continue
		}
		for from < end {
			w := c[from%chunkBlocks/64]
			if !want {
				w = ^w
			}
			w >>= from % 64
			if w != 0 {
				return min(from+int64(bits.TrailingZeros64(w)), end)
			}
			from += 64 - from%64
		}
		from = end
	}
	return to
}

// runs yields the maximal runs [a,b) of members within [from,to), ascending.
func (s *blockSet) runs(from, to int64) iter.Seq2[int64, int64] {
	return func(yield func(int64, int64) bool) {
		for _, key := range s.keys(from, to) {
			at, end := max(key*chunkBlocks, from), min((key+1)*chunkBlocks, to)
			for {
				a := s.next(at, end, true)
				if a >= end {
					break
				}
				at = s.next(a, end, false)
				if !yield(a, at) {
					return
				}
			}
		}
	}
}

// keys returns the chunks that touch [from,to), in order. Short ranges do not
// pay for the whole map.
func (s *blockSet) keys(from, to int64) []int64 {
	if from >= to {
		return nil
	}
	first, last := from/chunkBlocks, (to-1)/chunkBlocks
	if last-first < int64(len(s.chunks)) {
		keys := make([]int64, 0, last-first+1)
		for k := first; k <= last; k++ {
			if s.chunks[k] != nil {
				keys = append(keys, k)
			}
		}
		return keys
	}
	keys := slices.Sorted(maps.Keys(s.chunks))
	i, _ := slices.BinarySearch(keys, first)
	j, found := slices.BinarySearch(keys, last)
	if found {
		j++
	}
	return keys[i:j]
}
