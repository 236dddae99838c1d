package main

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// smallBytes is the size of a small file and of a random access.
const smallBytes = 4096

// input is the data that all targets are given, and how much of it.
type input struct {
	smallFiles int
	largeMiB   int
	treeFiles  int
	randomTime time.Duration // of one random I/O or SQLite row
	tar        string        // path of a source tree's archive, top directory src
	random     []byte        // 1 MiB that does not compress
}

// makeInput writes what has to be on disk below scratch.
func makeInput(scratch string, quick bool) (*input, error) {
	in := &input{smallFiles: 2000, largeMiB: 512, treeFiles: 2000, randomTime: 4 * time.Second}
	if quick {
		in = &input{smallFiles: 200, largeMiB: 64, treeFiles: 200, randomTime: 400 * time.Millisecond}
	}
	in.random = make([]byte, 1<<20)
	seed := [32]byte{1}
	_, _ = rand.NewChaCha8(seed).Read(in.random) // it cannot fail
	in.tar = filepath.Join(scratch, "tree.tar")
	return in, writeTree(in.tar, in.treeFiles)
}

// small is the content of small file i, different for each.
func (in *input) small(i int) []byte {
	b := make([]byte, smallBytes)
	copy(b, in.random[(i*61)%(len(in.random)-smallBytes):])
	binary.LittleEndian.PutUint64(b, uint64(i))
	return b
}

// block fills 1 MiB with the content of a large file's block i.
func (in *input) block(buf []byte, i int) {
	copy(buf, in.random)
	binary.LittleEndian.PutUint64(buf, uint64(i)*0x9E3779B97F4A7C15)
}

// checkLarge compares what a reader gives with a large file's content.
func (in *input) checkLarge(r io.Reader) error {
	buf, want := make([]byte, 1<<20), make([]byte, 1<<20)
	for i := range in.largeMiB {
		if _, err := io.ReadFull(r, buf); err != nil {
			return fmt.Errorf("block %d: %w", i, err)
		}
		in.block(want, i)
		if !bytes.Equal(buf, want) {
			return fmt.Errorf("block %d reads back differently", i)
		}
	}
	if n, err := r.Read(buf[:1]); n != 0 || (err != nil && err != io.EOF) {
		return fmt.Errorf("more than %d MiB came back (%v)", in.largeMiB, err)
	}
	return nil
}

// writeTree makes an archive that looks like a source tree: n files of text,
// most of them a few KiB, in directories of some twenty.
func writeTree(path string, n int) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	random := rand.New(rand.NewPCG(7, 7))
	when := time.Unix(1700000000, 0)
	line := "the %dth line of a file that a compiler might read, number %d\n"
	for i := range n {
		if i%20 == 0 {
			h := &tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("src/p%03d/", i/20), Mode: 0o755, ModTime: when}
			if err := w.WriteHeader(h); err != nil {
				return err
			}
		}
		var body bytes.Buffer
		for size := int(random.ExpFloat64() * 6000); body.Len() < size; {
			fmt.Fprintf(&body, line, body.Len(), random.Uint32())
		}
		h := &tar.Header{Name: fmt.Sprintf("src/p%03d/f%04d.go", i/20, i), Mode: 0o644, Size: int64(body.Len()), ModTime: when}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(body.Bytes()); err != nil {
			return err
		}
	}
	return w.Close()
}
