package content

import "iter"

// knowledge says which bytes of a file are here. The zero value knows all.
//
// Bytes at limit and beyond are always known. Below it, blocks are known if
// they are in have. limit only ever falls: it is where remote bytes end.
type knowledge struct {
	limit int64
	have  blockSet
}

func blocksOf(size int64) int64 { return (size + blockBytes - 1) / blockBytes }

func (k *knowledge) complete() bool { return k.limit == 0 }

// settle forgets the bookkeeping once nothing is missing any more.
func (k *knowledge) settle() {
	if k.have.n == blocksOf(k.limit) {
		*k = knowledge{}
	}
}

func (k *knowledge) has(b int64) bool { return b*blockBytes >= k.limit || k.have.has(b) }

// nextUnknown finds the first unknown block at b or later and the end of its
// run; both are the first block past the limit where there is none.
func (k *knowledge) nextUnknown(b int64) (from, to int64) {
	end := blocksOf(k.limit)
	from = k.have.next(min(b, end), end, false)
	return from, k.have.next(from, end, true)
}

// unknown yields the runs of unknown blocks that touch bytes [off,end).
func (k *knowledge) unknown(off, end int64) iter.Seq2[int64, int64] {
	return func(yield func(int64, int64) bool) {
		last := blocksOf(min(end, k.limit))
		for b := off / blockBytes; b < last; {
			from := k.have.next(b, last, false)
			if from >= last {
				return
			}
			b = k.have.next(from, last, true)
			if !yield(from, b) {
				return
			}
		}
	}
}

// missing lists the unknown bytes in blocks that touch [off,end), clipped to
// the limit.
func (k *knowledge) missing(off, end int64) []Range {
	var list []Range
	for a, b := range k.unknown(off, end) {
		list = appendRange(list, a*blockBytes, min(b*blockBytes, k.limit))
	}
	return list
}

// learn marks the blocks known of which [off,end) holds every remote byte.
func (k *knowledge) learn(off, end int64) {
	to := end / blockBytes
	if end >= k.limit {
		to = blocksOf(k.limit)
	}
	k.have.add(blocksOf(off), to)
	k.settle()
}

// cut lowers the limit.
func (k *knowledge) cut(size int64) {
	if size >= k.limit {
		return
	}
	k.have.remove(blocksOf(size), blocksOf(k.limit))
	k.limit = size
	k.settle()
}

// edges lists the unknown bytes that an overwrite of [off,end) would need: in
// blocks of which it covers some remote bytes but not all.
func (k *knowledge) edges(off, end int64) []Range {
	if off >= end {
		return nil
	}
	var list []Range
	first, last := off/blockBytes, (end-1)/blockBytes
	if off%blockBytes != 0 && !k.has(first) {
		list = appendRange(list, first*blockBytes, min((first+1)*blockBytes, k.limit))
	}
	if end < min((last+1)*blockBytes, k.limit) && !k.has(last) {
		list = appendRange(list, last*blockBytes, min((last+1)*blockBytes, k.limit))
	}
	return list
}

// ranges lists what is known of a file of that size.
func (k *knowledge) ranges(size int64) []Range {
	var list []Range
	for a, b := range k.have.runs(0, blocksOf(k.limit)) {
		list = appendRange(list, a*blockBytes, min(b*blockBytes, k.limit))
	}
	return appendRange(list, k.limit, size)
}
