package fusetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Churn works below dir until ctx ends and returns how many rounds it made. It
// stops at the first call that fails or byte that is wrong. The rounds cover
// every operation that must not be carried out twice, and files that live on
// without a name.
func Churn(ctx context.Context, dir string, seed uint64) (rounds int, err error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, err
	}
	r := rand.New(rand.NewPCG(seed, 0))
	for ctx.Err() == nil {
		if err := round(r, dir, rounds); err != nil {
			return rounds, fmt.Errorf("round %d in %s: %w", rounds, dir, err)
		}
		rounds++
	}
	return rounds, nil
}

func round(r *rand.Rand, dir string, i int) (err error) {
	path := func(name string) string { return filepath.Join(dir, fmt.Sprint(name, i)) }
	current := filepath.Join(dir, "current")
	data := make([]byte, 1+r.IntN(200_000))
	for k := range data {
		data[k] = byte(r.Uint32())
	}
	f, err := os.OpenFile(path("a"), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for off := 0; off < len(data); off += 32 << 10 {
		if _, err := f.WriteAt(data[off:min(off+32<<10, len(data))], int64(off)); err != nil {
			return err
		}
	}
	steps := []func() error{
		f.Sync,
		func() error { return os.Link(path("a"), path("b")) },
		func() error { return os.Rename(path("b"), current) },
		func() error { return os.Chmod(path("a"), 0o600) },
		func() error { return unix.Setxattr(path("a"), "user.k", []byte("v"), unix.XATTR_CREATE) },
		func() error { return os.Remove(path("a")) },
		func() error { return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) },
		func() error { return same(f, data) },
		func() error { return unlinked(path("u")) },
		func() error { return subdir(path("d")) },
	}
	for k, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", k, err)
		}
	}
	st, err := os.Stat(current)
	if err != nil {
		return err
	}
	if n := st.Sys().(*syscall.Stat_t).Nlink; st.Size() != int64(len(data)) || n != 1 {
		return fmt.Errorf("size %d of %d, %d links", st.Size(), len(data), n)
	}
	g, err := os.Open(current)
	if err != nil {
		return err
	}
	return errors.Join(same(g, data), g.Close())
}

func same(f *os.File, data []byte) error {
	got := make([]byte, len(data))
	if _, err := f.ReadAt(got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, data) {
		return fmt.Errorf("%s: wrong content", f.Name())
	}
	return nil
}

// unlinked uses a file after its name is gone.
func unlinked(path string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := os.Remove(path); err != nil {
		return err
	}
	if _, err := f.WriteString("hello"); err != nil {
		return err
	}
	return same(f, []byte("hello"))
}

func subdir(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	const links = 5
	for k := range links {
		if err := os.Symlink("x", filepath.Join(path, fmt.Sprint(k))); err != nil {
			return err
		}
	}
	list, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	if len(list) != links {
		return fmt.Errorf("%s: %d entries of %d", path, len(list), links)
	}
	for _, e := range list {
		if err := os.Remove(filepath.Join(path, e.Name())); err != nil {
			return err
		}
	}
	return os.Remove(path)
}
