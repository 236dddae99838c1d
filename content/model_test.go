package content

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"testing"

	"pgregory.net/rapid"

	"github.com/vfolder/vfolder"
)

func openStore(t testing.TB, o Options) *Store {
	t.Helper()
	if o.ReserveBytes == 0 {
		o.ReserveBytes = -1
	}
	o.Log = slog.New(slog.DiscardHandler)
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	<-s.Counted()
	return s
}

func randomBytes(seed uint64, n int64) []byte {
	rng := rand.New(rand.NewPCG(seed, 7))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// modelFile drives one file as a file system would, next to plain slices.
type modelFile struct {
	t       *rapid.T
	dir     string
	store   *Store
	id      ID
	f       *File
	maxOpen int

	remote    []byte // the object
	data      []byte // what the file must hold
	partial   bool   // as persisted
	persisted []Range

	view   *View
	frozen []byte
	seed   uint64
}

func (m *modelFile) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// persist is what an index does before it relies on a hole.
func (m *modelFile) persist() {
	m.partial, m.persisted = !m.f.Complete(), m.f.Known()
}

func (m *modelFile) fetch(list []Range) {
	m.t.Helper()
	for _, r := range list {
		if r.Len <= 0 || r.Off%blockBytes != 0 || r.End() > int64(len(m.remote)) {
			m.t.Fatalf("missing %v of an object of %d bytes", r, len(m.remote))
		}
		m.must(m.f.Fill(r.Off, m.remote[r.Off:r.End()]))
	}
}

// span draws offsets that like block boundaries and the end of the file.
func (m *modelFile) span(limit int64) (off, n int64) {
	off = rapid.Int64Range(0, limit).Draw(m.t, "off")
	n = rapid.Int64Range(1, 5*blockBytes).Draw(m.t, "n")
	if rapid.Bool().Draw(m.t, "aligned") {
		off -= off % blockBytes
		n += blockBytes - n%blockBytes
	}
	return off, n
}

func (m *modelFile) grow(size int64) {
	if size > int64(len(m.data)) {
		m.data = append(m.data, make([]byte, size-int64(len(m.data)))...)
	}
}

const modelSize = 24 * blockBytes

func (m *modelFile) write(t *rapid.T) {
	off, n := m.span(modelSize)
	m.seed++
	p := randomBytes(m.seed, n)
	if rapid.IntRange(0, 3).Draw(t, "zeros") == 0 {
		clear(p)
	}
	missing := m.f.MissingForWrite(off, n)
	if len(missing) > 0 {
		if _, err := m.f.WriteAt(p, off); !errors.Is(err, vfolder.KindInvalid) {
			t.Fatalf("write over half a remote block: %v", err)
		}
	}
	m.fetch(missing)
	done, err := m.f.WriteAt(p, off)
	m.must(err)
	if done != len(p) {
		t.Fatalf("wrote %d of %d", done, len(p))
	}
	m.grow(off + n)
	copy(m.data[off:], p)
}

func (m *modelFile) truncate(t *rapid.T) {
	size := rapid.Int64Range(0, modelSize).Draw(t, "size")
	switch rapid.IntRange(0, 5).Draw(t, "special") {
	case 0:
		size = 0
	case 1:
		size -= size % blockBytes
	}
	m.must(m.f.Truncate(size))
	if size < int64(len(m.data)) {
		m.data = m.data[:size:size]
	}
	m.grow(size)
	m.persist()
}

func (m *modelFile) punch(t *rapid.T) {
	off, n := m.span(modelSize)
	keep := rapid.Bool().Draw(t, "keep")
	zero := rapid.Bool().Draw(t, "zero")
	end := min(off+n, int64(len(m.data)))
	m.fetch(m.f.MissingForWrite(off, end-off))
	if zero {
		m.must(m.f.ZeroRange(off, n, keep))
	} else {
		m.must(m.f.Punch(off, n))
	}
	if off < end {
		clear(m.data[off:end])
	}
	if zero && !keep {
		m.grow(off + n)
	}
	m.persist()
}

func (m *modelFile) allocate(t *rapid.T) {
	off, n := m.span(modelSize)
	keep := rapid.Bool().Draw(t, "keep")
	m.must(m.f.Allocate(off, n, keep))
	if !keep {
		m.grow(off + n)
	}
	m.persist()
}

func (m *modelFile) prefetch(*rapid.T) {
	off, n := m.span(modelSize)
	m.fetch(m.f.Missing(off, n))
	if missing := m.f.Missing(off, n); len(missing) > 0 {
		m.t.Fatalf("still missing %v", missing)
	}
}

// overfetch fills like a reader that is late: with bytes that nobody asked for.
func (m *modelFile) overfetch(*rapid.T) {
	off, n := m.span(modelSize)
	off -= off % blockBytes
	if end := min(off+n, int64(len(m.remote))); off < end {
		m.must(m.f.Fill(off, m.remote[off:end]))
	}
}

func (m *modelFile) read(t *rapid.T) {
	off, n := m.span(modelSize)
	p := make([]byte, n)
	missing := m.f.Missing(off, n)
	if len(missing) > 0 {
		if _, err := m.f.ReadAt(p, off); !errors.Is(err, vfolder.KindInvalid) {
			t.Fatalf("read of a remote block: %v", err)
		}
	}
	m.fetch(missing)
	compareAt(t, "file", m.f, m.data, p, off)
}

func compareAt(t *rapid.T, what string, r io.ReaderAt, want, p []byte, off int64) {
	t.Helper()
	n, err := r.ReadAt(p, off)
	want = want[min(off, int64(len(want))):]
	if len(want) >= len(p) {
		want = want[:len(p)]
		if err != nil {
			t.Fatalf("%s: read at %d: %v", what, off, err)
		}
	} else if err != io.EOF {
		t.Fatalf("%s: read past the end at %d: %d, %v", what, off, n, err)
	}
	if !bytes.Equal(p[:n], want) {
		t.Fatalf("%s: %d bytes at %d differ, want %d", what, n, off, len(want))
	}
}

func (m *modelFile) freeze(t *rapid.T) {
	v, err := m.f.Freeze()
	if m.view != nil {
		if !errors.Is(err, vfolder.KindBusy) {
			t.Fatalf("second freeze: %v", err)
		}
		return
	}
	m.must(err)
	m.view, m.frozen = v, bytes.Clone(m.data)
}

func (m *modelFile) readView(t *rapid.T) {
	if m.view == nil {
		return
	}
	off, n := m.span(modelSize)
	m.fetch(m.view.Missing())
	if !m.view.Complete() {
		t.Fatalf("view still misses %v", m.view.Missing())
	}
	compareAt(t, "view", m.view, m.frozen, make([]byte, n), off)
}

func (m *modelFile) closeView(t *rapid.T) {
	if m.view == nil {
		return
	}
	m.fetch(m.view.Missing())
	if m.view.Size() != int64(len(m.frozen)) {
		t.Fatalf("view of %d bytes, want %d", m.view.Size(), len(m.frozen))
	}
	compareAt(t, "whole view", m.view, m.frozen, make([]byte, len(m.frozen)+1), 0)
	m.must(m.view.Close())
	m.view = nil
}

// restart loses every handle; what was not persisted must come back from the
// data file.
func (m *modelFile) restart(t *rapid.T) {
	if rapid.Bool().Draw(t, "persist") {
		m.persist()
	}
	if m.view != nil {
		m.must(m.view.Close())
		m.view = nil
	}
	if rapid.Bool().Draw(t, "process") {
		m.must(m.store.Close())
		m.store = openStore(modelTB, Options{Dir: m.dir, MaxOpen: m.maxOpen})
		m.store.cheapCut = 3 * blockBytes
	} else {
		m.must(m.f.Close())
	}
	m.f = m.store.File(m.id)
	m.must(m.f.Recover(m.partial, m.persisted))
}

// check compares everything that can be seen without fetching.
func (m *modelFile) check(t *rapid.T) {
	size := int64(len(m.data))
	if got := m.f.Size(); got != size {
		t.Fatalf("size %d, want %d", got, size)
	}
	known := make([]bool, size)
	for _, r := range m.f.Known() {
		if r.Len <= 0 || r.End() > size {
			t.Fatalf("known %v of %d bytes", r, size)
		}
		for i := r.Off; i < r.End(); i++ {
			known[i] = true
		}
		// A range may start inside a block, whose head is remote then.
		if from := blocksOf(r.Off) * blockBytes; from < r.End() {
			compareAt(t, "known", m.f, m.data, make([]byte, r.End()-from), from)
		}
	}
	for _, r := range m.f.Missing(0, size) {
		for i := r.Off; i < r.End(); i++ {
			if known[i] {
				t.Fatalf("byte %d is both known and missing", i)
			}
			known[i] = true
			if m.data[i] != m.remote[i] {
				t.Fatalf("byte %d is said to be remote but was changed", i)
			}
		}
	}
	for i, ok := range known {
		if !ok {
			t.Fatalf("byte %d is neither known nor missing", i)
		}
	}
	m.checkSeek(t, size)
}

func (m *modelFile) checkSeek(t *rapid.T, size int64) {
	for at := int64(0); at < size; {
		data, err := m.f.SeekData(at)
		if errors.Is(err, vfolder.KindNoData) {
			data, err = size, nil
		}
		m.must(err)
		if data < at || bytes.Count(m.data[at:data], []byte{0}) != int(data-at) {
			t.Fatalf("no data said to be in [%d,%d)", at, data)
		}
		if data == size {
			return
		}
		hole, err := m.f.SeekHole(data)
		m.must(err)
		if hole <= data || hole > size {
			t.Fatalf("hole at %d after data at %d", hole, data)
		}
		at = hole
	}
}

// modelTB lets helpers of *testing.T run inside a rapid check.
var modelTB testing.TB

func TestModel(t *testing.T) {
	modelTB = t
	root := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(root, "store")
		if err != nil {
			t.Fatal(err)
		}
		m := &modelFile{t: t, dir: dir, id: ID{Ino: 0x1234, Gen: 3}, maxOpen: rapid.IntRange(1, 2).Draw(t, "fds")}
		m.store = openStore(modelTB, Options{Dir: dir, MaxOpen: m.maxOpen})
		m.store.cheapCut = 3 * blockBytes
		defer func() { _ = m.store.Close() }()
		m.f = m.store.File(m.id)
		if size := rapid.Int64Range(0, modelSize).Draw(t, "remote"); size > 0 {
			m.remote = randomBytes(99, size)
			m.data = bytes.Clone(m.remote)
			m.must(m.f.CreatePartial(size))
		} else {
			m.must(m.f.Create())
		}
		m.persist()
		t.Repeat(map[string]func(*rapid.T){
			"":          m.check,
			"write":     m.write,
			"truncate":  m.truncate,
			"punch":     m.punch,
			"allocate":  m.allocate,
			"prefetch":  m.prefetch,
			"overfetch": m.overfetch,
			"read":      m.read,
			"freeze":    m.freeze,
			"readView":  m.readView,
			"closeView": m.closeView,
			"restart":   m.restart,
		})
	})
}

// blockSet against a map.
func TestBlockSetModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s blockSet
		model := map[int64]bool{}
		const top = 3 * chunkBlocks
		draw := func() (int64, int64) {
			a := rapid.Int64Range(0, top).Draw(t, "from")
			b := min(a+rapid.OneOf(rapid.Int64Range(0, 70), rapid.Int64Range(0, top)).Draw(t, "len"), top)
			if rapid.IntRange(0, 4).Draw(t, "chunks") == 0 {
				a, b = a/chunkBlocks*chunkBlocks, (b+chunkBlocks-1)/chunkBlocks*chunkBlocks
			}
			return a, b
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				a, b := draw()
				s.add(a, b)
				for ; a < b; a++ {
					model[a] = true
				}
			},
			"remove": func(t *rapid.T) {
				a, b := draw()
				s.remove(a, b)
				for ; a < b; a++ {
					delete(model, a)
				}
			},
			"next": func(t *rapid.T) {
				a, b := draw()
				want := rapid.Bool().Draw(t, "want")
				got, exp := s.next(a, b, want), a
				for exp < b && model[exp] != want {
					exp++
				}
				if got != exp {
					t.Fatalf("next(%d,%d,%v) = %d, want %d", a, b, want, got, exp)
				}
			},
			"runs": func(t *rapid.T) {
				a, b := draw()
				n := 0
				for i := a; i < b; i++ {
					if model[i] {
						n++
					}
				}
				for x, y := range s.runs(a, b) {
					if x < a || y > b || x >= y || !model[x] || !model[y-1] {
						t.Fatalf("run [%d,%d) of [%d,%d)", x, y, a, b)
					}
					n -= int(y - x)
				}
				if n != 0 {
					t.Fatalf("runs differ by %d blocks", n)
				}
			},
			"": func(t *rapid.T) {
				if s.n != int64(len(model)) {
					t.Fatalf("%d members, want %d", s.n, len(model))
				}
			},
		})
	})
}
