package content

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/vfolder/vfolder"
)

func BenchmarkCreateWrite4K(b *testing.B) {
	s := newStore(b)
	p := randomBytes(1, blockBytes)
	b.SetBytes(blockBytes)
	for i := 0; b.Loop(); i++ {
		f := s.File(ID{Ino: vfolder.Ino(i)})
		must(b, f.Create())
		_, err := f.WriteAt(p, 0)
		must(b, err)
		must(b, f.Close())
	}
}

func BenchmarkRandomWrite4K(b *testing.B) {
	for _, frozen := range []bool{false, true} {
		b.Run(fmt.Sprintf("view=%v", frozen), func(b *testing.B) {
			s := newStore(b)
			f := newFile(b, s, 1, randomBytes(1, 64<<20))
			rng := rand.New(rand.NewPCG(1, 2))
			if frozen {
				v, err := f.Freeze()
				must(b, err)
				defer func() { must(b, v.Close()) }()
			}
			p := randomBytes(2, blockBytes)
			b.SetBytes(blockBytes)
			for b.Loop() {
				_, err := f.WriteAt(p, rng.Int64N(64<<20/blockBytes)*blockBytes)
				must(b, err)
			}
		})
	}
}

func BenchmarkRandomRead4K(b *testing.B) {
	f := newFile(b, newStore(b), 1, randomBytes(1, 64<<20))
	rng := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, blockBytes)
	b.SetBytes(blockBytes)
	for b.Loop() {
		_, err := f.ReadAt(p, rng.Int64N(64<<20/blockBytes)*blockBytes)
		must(b, err)
	}
}

// BenchmarkRawCreateWrite4K is what the file system itself takes for
// BenchmarkCreateWrite4K, in as many directories.
func BenchmarkRawCreateWrite4K(b *testing.B) {
	root := b.TempDir()
	for i := range shardCount {
		must(b, os.Mkdir(fmt.Sprintf("%s/%02x", root, i), 0o700))
	}
	p := randomBytes(1, blockBytes)
	b.SetBytes(blockBytes)
	for i := 0; b.Loop(); i++ {
		must(b, os.WriteFile(fmt.Sprintf("%s/%02x/%x.0", root, i%shardCount, i), p, 0o600))
	}
}
