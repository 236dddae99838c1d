package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/vfolder/vfolder/config"
	"github.com/vfolder/vfolder/control"
)

// bucket is the object store itself.
type bucket struct {
	label  string
	client *minio.Client
	bucket string
}

func (b *bucket) name() string { return b.label }
func (b *bucket) close() error { return nil }

// openBucket makes a bucket of its own on the store that the folder's daemon
// uses.
func openBucket(ctx context.Context, name string, f *folder) (target, error) {
	access, err := f.access(ctx)
	if err != nil {
		return nil, err
	}
	client, err := minio.New(access.host, &minio.Options{Creds: credentials.NewStaticV4(access.key, access.secret, ""), Region: "us-east-1"})
	if err != nil {
		return nil, err
	}
	b := &bucket{label: name, client: client, bucket: "bench-raw"}
	return b, client.MakeBucket(ctx, b.bucket, minio.MakeBucketOptions{})
}

func (b *bucket) put(ctx context.Context, key string, body []byte) error {
	_, err := b.client.PutObject(ctx, b.bucket, key, bytes.NewReader(body), int64(len(body)), minio.PutObjectOptions{SendContentMd5: true, DisableMultipart: true})
	return err
}

func (b *bucket) get(ctx context.Context, key string, use func(io.Reader) error) (err error) {
	o, err := b.client.GetObject(ctx, b.bucket, key, minio.GetObjectOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	return use(o)
}

// smallObjects is smallFiles with one object per file, by one client and by 16.
func smallObjects(r *runner, b *bucket) error {
	n := r.in.smallFiles
	key := func(i int) string { return fmt.Sprintf("%s/d%02d/file%05d", r.name, i%20, i) }
	read := func(i int) error {
		return b.get(r.ctx, key(i), func(o io.Reader) error {
			got, err := io.ReadAll(o)
			if err == nil && !bytes.Equal(got, r.in.small(i)) {
				err = fmt.Errorf("object %d reads back differently", i)
			}
			return err
		})
	}
	steps := []struct {
		row     string
		clients int
		do      func(i int) error
	}{
		{"create 4 KiB files", 1, func(i int) error { return b.put(r.ctx, key(i), r.in.small(i)) }},
		{"create, on the store", 16, func(i int) error { return b.put(r.ctx, key(i), r.in.small(i)) }},
		{"stat, cold", 1, func(i int) error {
			_, err := b.client.StatObject(r.ctx, b.bucket, key(i), minio.StatObjectOptions{})
			return err
		}},
		{"read 4 KiB files, cold", 1, read},
		{"delete", 1, func(i int) error {
			return b.client.RemoveObject(r.ctx, b.bucket, key(i), minio.RemoveObjectOptions{})
		}},
	}
	for _, s := range steps {
		start := time.Now()
		if err := each(n, s.clients, s.do); err != nil {
			return err
		}
		r.rate(s.row, "files", float64(n), start)
		if s.row == "stat, cold" {
			if err := listObjects(r, b); err != nil {
				return err
			}
		}
	}
	return nil
}

func listObjects(r *runner, b *bucket) error {
	start, seen := time.Now(), 0
	for o := range b.client.ListObjects(r.ctx, b.bucket, minio.ListObjectsOptions{Prefix: r.name + "/", Recursive: true}) {
		if o.Err != nil {
			return o.Err
		}
		if o.Size == smallBytes {
			seen++
		}
	}
	r.rate("list with attributes, cold", "files", float64(r.in.smallFiles), start)
	if seen != r.in.smallFiles {
		return fmt.Errorf("the listing showed %d of %d objects", seen, r.in.smallFiles)
	}
	return nil
}

// each calls do for 0..n-1 from so many goroutines.
func each(n, clients int, do func(i int) error) error {
	var wg sync.WaitGroup
	errs := make([]error, clients)
	for c := range clients {
		wg.Go(func() {
			for i := c; i < n && errs[c] == nil; i += clients {
				errs[c] = do(i)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// largeObject puts and gets one large object.
func largeObject(r *runner, b *bucket) error {
	key := r.name + "/large"
	size := int64(r.in.largeMiB) << 20
	start := time.Now()
	_, err := b.client.PutObject(r.ctx, b.bucket, key, &largeReader{in: r.in}, size, minio.PutObjectOptions{PartSize: 16 << 20, NumThreads: 4, SendContentMd5: true, ConcurrentStreamParts: true})
	if err != nil {
		return err
	}
	r.rate("write large, on the store", "MiB", float64(r.in.largeMiB), start)
	start = time.Now()
	if err := b.get(r.ctx, key, r.in.checkLarge); err != nil {
		return err
	}
	r.rate("read large, cold", "MiB", float64(r.in.largeMiB), start)
	return b.client.RemoveObject(r.ctx, b.bucket, key, minio.RemoveObjectOptions{})
}

// largeReader is a large file's content as a stream.
type largeReader struct {
	in   *input
	next int
	rest []byte
}

func (l *largeReader) Read(p []byte) (int, error) {
	if len(l.rest) == 0 {
		if l.next == l.in.largeMiB {
			return 0, io.EOF
		}
		l.rest = make([]byte, 1<<20)
		l.in.block(l.rest, l.next)
		l.next++
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	return n, nil
}

// access is where and with which keys the daemon reaches its store.
type access struct{ host, key, secret string }

func (f *folder) access(ctx context.Context) (access, error) {
	out, err := f.vfolder(ctx, "daemon", "status", "--format", "json")
	if err != nil {
		return access{}, err
	}
	var status control.DaemonStatus
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return access{}, fmt.Errorf("vfolder daemon status: %w", err)
	}
	keys, err := config.ReadCredentials(filepath.Join(f.state, "credentials.toml"))
	if err != nil {
		return access{}, err
	}
	return access{status.Store.Endpoint, keys.AccessKey, keys.SecretKey}, nil
}
