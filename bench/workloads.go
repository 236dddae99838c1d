package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// workload is one thing that a person does. Either function may be nil: not
// everything makes sense on an object store.
type workload struct {
	name    string
	onDir   func(*runner) error
	onStore func(*runner, *bucket) error
}

// workloads in the order in which a repetition runs them.
var workloads = []workload{
	{name: "small", onDir: smallFiles, onStore: smallObjects},
	{name: "large", onDir: largeFile, onStore: largeObject},
	{name: "random", onDir: randomIO},
	{name: "tree", onDir: sourceTree},
	{name: "sqlite", onDir: sqliteTransactions},
}

func workloadNames() []string {
	var names []string
	for _, w := range workloads {
		names = append(names, w.name)
	}
	return names
}

// runner is one workload on one target in one repetition.
type runner struct {
	ctx    context.Context
	in     *input
	dir    string     // where to work, for directories
	at     *directory // nil for the object store
	name   string     // unique within the run
	target string
	res    *results
}

// rate records n per second since start.
func (r *runner) rate(name, unit string, n float64, start time.Time) {
	r.res.add(r.target, name, unit+"/s", n/time.Since(start).Seconds())
}

// seconds records the time since start.
func (r *runner) seconds(name string, start time.Time) {
	r.res.add(r.target, name, "s", time.Since(start).Seconds())
}

// stored waits until all is on the object store and calls record; nothing
// where there is no store behind the directory.
func (r *runner) stored(record func()) error {
	if r.at.sync == nil {
		return nil
	}
	if err := r.at.sync(r.ctx); err != nil {
		return err
	}
	record()
	return nil
}

// command runs a program in the working directory.
func (r *runner) command(name string, args ...string) error {
	_, err := r.output(name, args...)
	return err
}

// output is command for programs whose standard output matters.
func (r *runner) output(name string, args ...string) (string, error) {
	c := exec.CommandContext(r.ctx, name, args...)
	var stdout, stderr strings.Builder
	c.Dir, c.Stdout, c.Stderr = r.dir, &stdout, &stderr
	c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "LC_ALL=C")
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, stderr.String())
	}
	return stdout.String(), nil
}

func (r *runner) smallName(i int) string {
	return filepath.Join(r.dir, fmt.Sprintf("d%02d", i%20), fmt.Sprintf("file%05d", i))
}

// smallFiles creates, lists, reads and deletes files of 4 KiB in 20
// directories, warm and cold.
func smallFiles(r *runner) error {
	n := r.in.smallFiles
	for i := range 20 {
		if err := os.Mkdir(filepath.Join(r.dir, fmt.Sprintf("d%02d", i)), 0o755); err != nil {
			return err
		}
	}
	start := time.Now()
	for i := range n {
		if err := os.WriteFile(r.smallName(i), r.in.small(i), 0o644); err != nil {
			return err
		}
	}
	r.rate("create 4 KiB files", "files", float64(n), start)
	if err := r.stored(func() { r.rate("create, on the store", "files", float64(n), start) }); err != nil {
		return err
	}
	if err := r.readSmall("warm"); err != nil {
		return err
	}
	if err := r.readSmall("cold"); err != nil {
		return err
	}
	start = time.Now()
	for i := range n {
		if err := os.Remove(r.smallName(i)); err != nil {
			return err
		}
	}
	r.rate("delete", "files", float64(n), start)
	return r.stored(func() { r.rate("delete, on the store", "files", float64(n), start) })
}

// readSmall lists with attributes, stats and reads all small files; "cold"
// drops the kernel's caches before each of the three.
func (r *runner) readSmall(state string) error {
	chill := func() error {
		if state != "cold" {
			return nil
		}
		return r.at.cold(r.ctx, r.dir)
	}
	n := r.in.smallFiles
	if err := chill(); err != nil {
		return err
	}
	start, seen := time.Now(), 0
	err := filepath.WalkDir(r.dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Size() == smallBytes {
			seen++
		}
		return err
	})
	if err != nil {
		return err
	}
	r.rate("list with attributes, "+state, "files", float64(n), start)
	if seen != n {
		return fmt.Errorf("the listing showed %d of %d files with the right size", seen, n)
	}
	if err := chill(); err != nil {
		return err
	}
	start = time.Now()
	for i := range n {
		if _, err := os.Lstat(r.smallName(i)); err != nil {
			return err
		}
	}
	r.rate("stat, "+state, "files", float64(n), start)
	if err := chill(); err != nil {
		return err
	}
	start = time.Now()
	for i := range n {
		b, err := os.ReadFile(r.smallName(i))
		if err != nil {
			return err
		}
		if string(b) != string(r.in.small(i)) {
			return fmt.Errorf("file %d reads back differently", i)
		}
	}
	r.rate("read 4 KiB files, "+state, "files", float64(n), start)
	return nil
}

// largeFile writes and reads one file in blocks of 1 MiB.
func largeFile(r *runner) error {
	mib := float64(r.in.largeMiB)
	path := filepath.Join(r.dir, "large")
	start := time.Now()
	if err := writeLarge(path, r.in); err != nil {
		return err
	}
	r.rate("write large, fsync", "MiB", mib, start)
	if err := r.stored(func() { r.rate("write large, on the store", "MiB", mib, start) }); err != nil {
		return err
	}
	if err := r.at.cold(r.ctx, r.dir); err != nil {
		return err
	}
	for _, state := range []string{"cold", "warm"} {
		start = time.Now()
		if err := readLarge(path, r.in); err != nil {
			return err
		}
		r.rate("read large, "+state, "MiB", mib, start)
	}
	return nil
}

func writeLarge(path string, in *input) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, 1<<20)
	for i := range in.largeMiB {
		in.block(buf, i)
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	return f.Sync()
}

func readLarge(path string, in *input) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return in.checkLarge(f)
}

// sourceTree unpacks a source tree, commits it with git, renames and removes it.
func sourceTree(r *runner) error {
	start := time.Now()
	if err := r.command("tar", "-xf", r.in.tar); err != nil {
		return err
	}
	r.seconds(fmt.Sprintf("untar %d files", r.in.treeFiles), start)
	if err := r.stored(func() { r.seconds("untar, on the store", start) }); err != nil {
		return err
	}
	start = time.Now()
	script := `cd src && git -c init.defaultBranch=main init -q . && git add -A &&
		git -c user.name=bench -c user.email=bench@localhost -c gc.auto=0 commit -q -m bench && test -z "$(git status --porcelain)"`
	if err := r.command("sh", "-ec", script); err != nil {
		return err
	}
	r.seconds("git init, add, commit, status", start)
	read := "find src -path src/.git -prune -o -type f -print0 | xargs -0 cat >/dev/null"
	start = time.Now()
	if err := r.command("sh", "-ec", read); err != nil {
		return err
	}
	r.seconds("cat the tree, warm", start)
	if err := r.at.cold(r.ctx, r.dir); err != nil {
		return err
	}
	start = time.Now()
	if err := r.command("sh", "-ec", read); err != nil {
		return err
	}
	r.seconds("cat the tree, cold", start)
	// What is measured is the rename alone, not uploads that are still going on.
	if err := r.stored(func() {}); err != nil {
		return err
	}
	start = time.Now()
	if err := os.Rename(filepath.Join(r.dir, "src"), filepath.Join(r.dir, "renamed")); err != nil {
		return err
	}
	r.seconds("rename the tree", start)
	if err := r.stored(func() { r.seconds("rename the tree, on the store", start) }); err != nil {
		return err
	}
	start = time.Now()
	if err := r.command("rm", "-rf", "renamed"); err != nil {
		return err
	}
	r.seconds("rm -rf", start)
	return r.stored(func() { r.seconds("rm -rf, on the store", start) })
}
