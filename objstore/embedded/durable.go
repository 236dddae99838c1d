package embedded

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"
)

// durable makes the POSIX backend keep what it acknowledges. Per write: the
// bytes have the announced length and are flushed before the object appears,
// and the object's attributes and every directory that it needed are flushed
// before the client hears of it.
type durable struct {
	*posix.Posix
	root string

	mu sync.Mutex
	// fresh counts the writers that found a directory missing and have not
	// flushed it yet. A writer that comes while the directory is there, but
	// perhaps not on disk, flushes it too. Guarded by mu.
	fresh map[string]int
}

func newDurable(be *posix.Posix, root string) *durable {
	return &durable{Posix: be, root: root, fresh: make(map[string]int)}
}

// checkAndSync is run on a body before it is published.
func checkAndSync(want *int64) func(*os.File) error {
	return func(f *os.File) error {
		st, err := f.Stat()
		if err != nil {
			return err
		}
		if want != nil && st.Size() != *want {
			return s3err.GetAPIError(s3err.ErrIncompleteBody)
		}
		return f.Sync()
	}
}

// syncPath flushes one file or directory. One that is gone was deleted since:
// there is nothing to keep.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// expect notes the directories above path that are missing now, nearest
// first.
func (d *durable) expect(path string) []string {
	var missing []string
	for dir := filepath.Dir(path); len(dir) > len(d.root); dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		missing = append(missing, dir)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, dir := range missing {
		d.fresh[dir]++
	}
	return missing
}

func (d *durable) forget(missing []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, dir := range missing {
		if d.fresh[dir]--; d.fresh[dir] <= 0 {
			delete(d.fresh, dir)
		}
	}
}

// flush makes path and its entry durable, and the entries of all directories
// above it that were made meanwhile.
func (d *durable) flush(path string) error {
	if err := syncPath(path); err != nil {
		return err
	}
	for dir := filepath.Dir(path); len(dir) >= len(d.root); dir = filepath.Dir(dir) {
		if err := syncPath(dir); err != nil {
			return err
		}
		d.mu.Lock()
		again := d.fresh[dir] > 0
		d.mu.Unlock()
		if !again {
			return nil
		}
	}
	return nil
}

// publish runs a write that makes path appear and flushes it.
func (d *durable) publish(path string, write func() error) error {
	missing := d.expect(path)
	defer d.forget(missing)
	if err := write(); err != nil {
		return err
	}
	if err := d.flush(path); err != nil {
		return fmt.Errorf("flush %s: %w", path, err)
	}
	return nil
}

func (d *durable) objectPath(bucket, key string) string {
	return filepath.Join(d.root, bucket, key)
}

func (d *durable) partPath(bucket, key, upload string, part int32) string {
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(d.root, bucket, posix.MetaTmpMultipartDir, hex.EncodeToString(sum[:]), upload, strconv.Itoa(int(part)))
}

// CreateBucket flushes the directory that holds the buckets.
func (d *durable) CreateBucket(ctx context.Context, in *s3.CreateBucketInput, acl []byte) error {
	if err := d.Posix.CreateBucket(ctx, in, acl); err != nil {
		return err
	}
	return d.flush(filepath.Join(d.root, *in.Bucket))
}

// PutObject publishes only a body of the announced length, flushed.
func (d *durable) PutObject(ctx context.Context, po s3response.PutObjectInput) (out s3response.PutObjectOutput, err error) {
	if po.Bucket == nil || po.Key == nil {
		return d.Posix.PutObject(ctx, po)
	}
	err = d.publish(d.objectPath(*po.Bucket, *po.Key), func() error {
		out, err = d.PutObjectWithPostFunc(ctx, po, checkAndSync(po.ContentLength))
		return err
	})
	return out, err
}

// CreateMultipartUpload flushes the upload's directory, which carries the
// object's metadata.
func (d *durable) CreateMultipartUpload(ctx context.Context, in s3response.CreateMultipartUploadInput) (out s3response.InitiateMultipartUploadResult, err error) {
	out, err = d.Posix.CreateMultipartUpload(ctx, in)
	if err != nil || in.Bucket == nil || in.Key == nil {
		return out, err
	}
	dir := filepath.Dir(d.partPath(*in.Bucket, *in.Key, out.UploadId, 0))
	for ; len(dir) > len(d.root); dir = filepath.Dir(dir) {
		if err := syncPath(dir); err != nil {
			return out, err
		}
	}
	return out, nil
}

// UploadPart acknowledges only a part of the announced length, flushed.
func (d *durable) UploadPart(ctx context.Context, in *s3.UploadPartInput) (*s3.UploadPartOutput, error) {
	if in.Bucket == nil || in.Key == nil || in.UploadId == nil || in.PartNumber == nil {
		return d.Posix.UploadPart(ctx, in)
	}
	out, err := d.UploadPartWithPostFunc(ctx, in, checkAndSync(in.ContentLength))
	if err != nil {
		return out, err
	}
	return out, d.flush(d.partPath(*in.Bucket, *in.Key, *in.UploadId, *in.PartNumber))
}

// UploadPartCopy flushes the part that was copied.
func (d *durable) UploadPartCopy(ctx context.Context, in *s3.UploadPartCopyInput) (s3response.CopyPartResult, error) {
	out, err := d.Posix.UploadPartCopy(ctx, in)
	if err != nil || in.Bucket == nil || in.Key == nil || in.UploadId == nil || in.PartNumber == nil {
		return out, err
	}
	return out, d.flush(d.partPath(*in.Bucket, *in.Key, *in.UploadId, *in.PartNumber))
}

// CompleteMultipartUpload flushes the assembled bytes before they appear.
func (d *durable) CompleteMultipartUpload(ctx context.Context, in *s3.CompleteMultipartUploadInput) (out s3response.CompleteMultipartUploadResult, version string, err error) {
	if in.Bucket == nil || in.Key == nil {
		return d.Posix.CompleteMultipartUpload(ctx, in)
	}
	err = d.publish(d.objectPath(*in.Bucket, *in.Key), func() error {
		out, version, err = d.CompleteMultipartUploadWithCopy(ctx, in, appendAndSync)
		return err
	})
	return out, version, err
}

// appendAndSync adds one part to the object being assembled. On failure it
// closes the object's file: the library would otherwise go on with a copy of
// its own behind what was written already, and publish that.
func appendAndSync(from, to *os.File) (idempotent bool, err error) {
	st, err := from.Stat()
	if err == nil {
		var n int64
		n, err = io.Copy(to, from)
		if err == nil && n != st.Size() {
			err = io.ErrUnexpectedEOF
		}
	}
	if err == nil {
		err = to.Sync()
	}
	if err != nil {
		_ = to.Close()
	}
	return true, err
}

// DeleteObject flushes the directory that lost the entry, or the nearest one
// above it that is still there: empty parents go with the last object.
func (d *durable) DeleteObject(ctx context.Context, in *s3.DeleteObjectInput) (*s3.DeleteObjectOutput, error) {
	out, err := d.Posix.DeleteObject(ctx, in)
	if err != nil || in.Bucket == nil || in.Key == nil {
		return out, err
	}
	return out, d.flushRemoval(d.objectPath(*in.Bucket, *in.Key))
}

// DeleteObjects is DeleteObject for many keys.
func (d *durable) DeleteObjects(ctx context.Context, in *s3.DeleteObjectsInput) (s3response.DeleteResult, error) {
	out, err := d.Posix.DeleteObjects(ctx, in)
	if err != nil || in.Bucket == nil || in.Delete == nil {
		return out, err
	}
	for _, o := range in.Delete.Objects {
		if o.Key != nil {
			if err := d.flushRemoval(d.objectPath(*in.Bucket, *o.Key)); err != nil {
				return out, err
			}
		}
	}
	return out, nil
}

func (d *durable) flushRemoval(path string) error {
	for dir := filepath.Dir(path); len(dir) >= len(d.root); dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return syncPath(dir)
	}
	return nil
}
