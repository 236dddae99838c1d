package integration

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// churn writes files until stop: it creates, appends, overwrites, renames,
// links and deletes, and keeps what must be there. Any error is a failure: a
// program must not notice that the worker dies.
func churn(t *testing.T, dir string, seed uint64, stop <-chan struct{}) map[string][]byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	have := map[string][]byte{}
	fail := func(what string, err error) bool {
		if err != nil {
			t.Errorf("%s (writer %d): %v", what, seed, err)
		}
		return err != nil
	}
	if fail("mkdir", os.Mkdir(dir, 0o755)) {
		return have
	}
	for i := 0; ; i++ {
		select {
		case <-stop:
			return have
		default:
		}
		name := fmt.Sprint("f", rnd.IntN(40))
		p := filepath.Join(dir, name)
		body := make([]byte, rnd.IntN(60000))
		for j := range body {
			body[j] = byte(rnd.Uint32())
		}
		switch rnd.IntN(5) {
		case 0, 1:
			if fail("write", os.WriteFile(p, body, 0o644)) {
				return have
			}
			have[name] = body
		case 2:
			f, err := os.OpenFile(p, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
			if fail("open", err) {
				return have
			}
			_, err = f.Write(body)
			if fail("append", err) || fail("close", f.Close()) {
				return have
			}
			have[name] = append(append([]byte{}, have[name]...), body...)
		case 3:
			to := fmt.Sprint("f", rnd.IntN(40))
			if _, ok := have[name]; !ok || to == name {
				continue
			}
			if fail("rename", os.Rename(p, filepath.Join(dir, to))) {
				return have
			}
			have[to] = have[name]
			delete(have, name)
		case 4:
			if _, ok := have[name]; !ok {
				continue
			}
			if fail("remove", os.Remove(p)) {
				return have
			}
			delete(have, name)
		}
	}
}

// TestKilledWorkerLosesNothing kills the worker, again and again, under
// programs that write. Nothing that was written may be missing, neither in the
// folder nor, after sync, in the bucket.
func TestKilledWorkerLosesNothing(t *testing.T) {
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			cfg := open(t)
			h := newHost(t, &cfg).start()
			dir := h.folder("kill")
			stop := make(chan struct{})
			var wg sync.WaitGroup
			want := make([]map[string][]byte, 4)
			for i := range want {
				wg.Go(func() { want[i] = churn(t, filepath.Join(dir, fmt.Sprint("w", i)), uint64(i), stop) })
			}
			kills := 0
			last := 0
			for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
				time.Sleep(time.Duration(300+rand.IntN(900)) * time.Millisecond)
				for _, pid := range h.processes("worker") {
					if pid != last && syscall.Kill(pid, syscall.SIGKILL) == nil {
						last = pid
						kills++
					}
				}
			}
			close(stop)
			wg.Wait()
			t.Logf("%d kills", kills)
			if kills < 5 {
				t.Errorf("only %d kills: the test did not do what it is for", kills)
			}
			files := 0
			for i, m := range want {
				sub := filepath.Join(dir, fmt.Sprint("w", i))
				entries, err := os.ReadDir(sub)
				if err != nil {
					t.Fatal(err)
				}
				if len(entries) != len(m) {
					t.Errorf("writer %d: %d files, want %d", i, len(entries), len(m))
				}
				for name, body := range m {
					got, err := os.ReadFile(filepath.Join(sub, name))
					if err != nil || sha256.Sum256(got) != sha256.Sum256(body) {
						t.Errorf("writer %d, %s: %d bytes (%v), want %d", i, name, len(got), err, len(body))
					}
					files++
				}
			}
			h.sync("kill")
			bucketEqualsTree(t, client(t, cfg), cfg.Bucket, "kill/", dir)
			t.Logf("%d files compared", files)
		})
	}
}

// TestKilledStoreIsWaitedFor kills the embedded store under writes: it comes
// back and everything arrives.
func TestKilledStoreIsWaitedFor(t *testing.T) {
	h := newHost(t, nil).start()
	dir := h.folder("f")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { churn(t, filepath.Join(dir, "w"), 1, stop) })
	kills := 0
	for range 6 {
		time.Sleep(700 * time.Millisecond)
		for _, pid := range h.processes("store") {
			if syscall.Kill(pid, syscall.SIGKILL) == nil {
				kills++
			}
		}
	}
	close(stop)
	wg.Wait()
	if kills == 0 {
		t.Fatal("no store process was found")
	}
	h.sync("f")
	cfg := h.embedded()
	bucketEqualsTree(t, client(t, cfg), cfg.Bucket, "f/", dir)
}
