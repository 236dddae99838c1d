package vfs_test

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

func BenchmarkCreate(b *testing.B) {
	bed := newBed(b, nil)
	for i := 0; b.Loop(); i++ {
		a, err := bed.fs.Create(bed.req(), bed.root, fmt.Sprint("file", i), 0o644, 0, unix.O_RDWR)
		check(b, err)
		check(b, bed.fs.Flush(nil, a.Ino))
		bed.fs.Release(a.Ino, 0)
	}
}

func BenchmarkCreateWrite4K(b *testing.B) {
	bed := newBed(b, nil)
	data := make([]byte, 4096)
	for i := 0; b.Loop(); i++ {
		a, err := bed.fs.Create(bed.req(), bed.root, fmt.Sprint("file", i), 0o644, 0, unix.O_RDWR)
		check(b, err)
		_, err = bed.fs.Write(bed.req(), a.Ino, data, 0, false)
		check(b, err)
		check(b, bed.fs.Flush(nil, a.Ino))
		bed.fs.Release(a.Ino, 0)
	}
}

func benchFile(b *testing.B) (*bed, vfolder.Ino) {
	bed := newBed(b, nil)
	return bed, bed.file("a", string(make([]byte, 1<<20)))
}

func BenchmarkLookup(b *testing.B) {
	bed, _ := benchFile(b)
	for b.Loop() {
		_, err := bed.fs.Lookup(bed.req(), bed.root, "a")
		check(b, err)
	}
}

func BenchmarkGetAttr(b *testing.B) {
	bed, ino := benchFile(b)
	for b.Loop() {
		_, err := bed.fs.GetAttr(bed.req(), ino)
		check(b, err)
	}
}

func BenchmarkWrite4K(b *testing.B) {
	bed, ino := benchFile(b)
	data := make([]byte, 4096)
	b.SetBytes(int64(len(data)))
	for i := int64(0); b.Loop(); i++ {
		_, err := bed.fs.Write(bed.req(), ino, data, i%256*4096, true)
		check(b, err)
	}
}

func BenchmarkRead4K(b *testing.B) {
	bed, ino := benchFile(b)
	data := make([]byte, 4096)
	b.SetBytes(int64(len(data)))
	for i := int64(0); b.Loop(); i++ {
		_, err := bed.fs.Read(bed.req(), ino, data, i%256*4096)
		check(b, err)
	}
}
