package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// randomIO reads and writes blocks of 4 KiB at random places of one file, with
// one and with four threads; writes include the fsync at the end.
func randomIO(r *runner) (err error) {
	path := filepath.Join(r.dir, "random")
	if err := writeLarge(path, r.in); err != nil {
		return err
	}
	if err := r.stored(func() {}); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for _, threads := range []int{1, 4} {
		if err := r.at.cold(r.ctx, r.dir); err != nil {
			return err
		}
		for _, op := range []string{"read", "write"} {
			start := time.Now()
			n, err := r.randomBlocks(f, op == "write", threads)
			if err != nil {
				return err
			}
			if op == "write" {
				if err := f.Sync(); err != nil {
					return err
				}
			}
			r.rate(fmt.Sprintf("random %s 4 KiB, %d threads", op, threads), "ops", float64(n), start)
		}
	}
	return nil
}

// randomBlocks works for the input's time and returns how much was done.
func (r *runner) randomBlocks(f *os.File, write bool, threads int) (int64, error) {
	var (
		done     atomic.Int64
		wg       sync.WaitGroup
		errs     = make([]error, threads)
		blocks   = int64(r.in.largeMiB) << 20 / smallBytes
		deadline = time.Now().Add(r.in.randomTime)
	)
	for t := range threads {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(t), 4096))
			buf := append([]byte{}, r.in.small(t)...)
			for time.Now().Before(deadline) {
				off := random.Int64N(blocks) * smallBytes
				var err error
				if write {
					_, err = f.WriteAt(buf, off)
				} else {
					_, err = f.ReadAt(buf, off)
				}
				if err != nil {
					errs[t] = err
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	return done.Load(), errors.Join(errs...)
}

// sqliteTransactions commits one insert at a time, as a careful program does.
// SQLite comes with Python's standard library.
func sqliteTransactions(r *runner) error {
	const script = `
import sqlite3, sys, time
path, mode, limit = sys.argv[1], sys.argv[2], float(sys.argv[3])
db = sqlite3.connect(path, isolation_level=None, timeout=10)
got = db.execute("pragma journal_mode=" + mode).fetchone()[0]
assert got.upper() == mode, "journal mode is " + got
db.execute("pragma synchronous=FULL")
db.execute("create table t(i integer primary key, s text)")
n, start = 0, time.monotonic()
while time.monotonic() - start < limit:
    db.execute("begin")
    db.execute("insert into t(s) values(?)", ("row %d" % n,))
    db.execute("commit")
    n += 1
rate = n / (time.monotonic() - start)
assert db.execute("pragma integrity_check").fetchone()[0] == "ok"
assert db.execute("select count(*) from t").fetchone()[0] == n
print(rate)
`
	for _, mode := range []string{"DELETE", "WAL"} {
		out, err := r.output("python3", "-c", script, filepath.Join(r.dir, strings.ToLower(mode)+".db"), mode, fmt.Sprint(r.in.randomTime.Seconds()))
		if err != nil {
			return err
		}
		var rate float64
		if _, err := fmt.Sscan(out, &rate); err != nil {
			return fmt.Errorf("python3 printed %q: %w", out, err)
		}
		r.res.add(r.target, "SQLite "+mode+" transactions", "tx/s", rate)
	}
	return nil
}
