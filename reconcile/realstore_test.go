package reconcile

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/vfolder/vfolder/objstore"
	"github.com/vfolder/vfolder/objstore/storetest"
)

// TestRealStores plays one long story on the servers that are supported, and
// looks at the result with a host that knows nothing.
func TestRealStores(t *testing.T) {
	for name, cfg := range map[string]func(testing.TB) objstore.Config{"embedded": storetest.Embedded, "minio": storetest.MinIO} {
		t.Run(name, func(t *testing.T) {
			s := storetest.Open(t, cfg(t))
			h := newHost(t, "host-a", s, fast())
			h.mkfolder("f")
			h.mkdir("d")
			h.mkdir("d/sub")
			for i := range 40 {
				h.write(fmt.Sprintf("d/sub/%d", i), fmt.Sprint("body ", i))
			}
			h.write("plus+ blank%41é", "odd name")
			h.write("a", "file a")
			h.write("b", strings.Repeat("0123456789abcdef", 2<<20))
			h.write("x", "file x")
			h.link("a", "d/hard")
			h.sync()
			h.exchange("a", "b")
			h.exchange("d", "x")
			h.rename("x/sub/7", "t")
			h.remove("x/sub/8")
			h.sync()
			h.rename("t", "x/sub/8")
			h.write("x/sub/9", "again")
			h.sync()
			h.check()
			want := h.tree()
			got := bucketTree(t, s, "f/")
			for k := range want {
				if _, ok := got[k]; !ok && k != "plus+ blank%41é" {
					t.Errorf("the bucket misses %q", k)
				}
			}
			if len(got) != len(want) {
				t.Errorf("the bucket has %d keys, the folder %d: %v", len(got), len(want), got)
			}
			h.close()
			b := newHost(t, "host-b", s, fast())
			b.useFolder("f")
			sameTree(t, "second host", b.tree(), want)
			b.check()
			n, err := b.stat("b")
			b.must(err)
			if n.Nlink != 2 {
				t.Errorf("b has %d links", n.Nlink)
			}
		})
	}
}

func bucketTree(t *testing.T, s objstore.Store, prefix string) map[string]bool {
	out := map[string]bool{}
	for in, err := range s.List(context.Background(), prefix, "", false) {
		if err != nil {
			t.Fatal(err)
		}
		if rest := strings.TrimPrefix(in.Key, prefix); rest != "" {
			out[rest] = true
		}
	}
	return out
}
