package objstore

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"io"
	"maps"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/vfolder/vfolder"
)

// metaHeader is put before every user metadata key by us: minio-go would
// otherwise take a key such as "cache-control" for the header of that name.
const metaHeader = "X-Amz-Meta-"

// putOptions translates o. DisableContentSha256 stands for the payload's
// signature: Content-MD5 is what the server verifies, because some stores
// refuse the chunked upload with a trailing checksum.
func putOptions(o PutOptions) minio.PutObjectOptions {
	m := minio.PutObjectOptions{
		ContentType:          o.ContentType,
		StorageClass:         o.StorageClass,
		DisableContentSha256: true,
	}
	if len(o.Meta) > 0 {
		m.UserMetadata = make(map[string]string, len(o.Meta))
		for k, v := range o.Meta {
			m.UserMetadata[metaHeader+k] = v
		}
	}
	setCondition(&m, o.Condition)
	return m
}

func setCondition(m *minio.PutObjectOptions, c Condition) {
	if c.IfAbsent {
		m.SetMatchETagExcept("*")
	}
	if c.IfMatch != "" {
		m.SetMatchETag(c.IfMatch)
	}
}

// bodyMD5 reads the body once for its checksum; "" and an error when the body
// is shorter than size.
func bodyMD5(body Body, off, size int64) (string, error) {
	if size == 0 {
		sum := md5.Sum(nil)
		return base64.StdEncoding.EncodeToString(sum[:]), nil
	}
	h := md5.New()
	n, err := io.Copy(h, io.NewSectionReader(body, off, size))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(h.Sum(nil)), nil
}

// bodyReader gives the bytes to send; nothing of an empty body is read, so
// that it may be nil.
func bodyReader(body Body, off, size int64) io.Reader {
	if size == 0 {
		return bytes.NewReader(nil)
	}
	return io.NewSectionReader(body, off, size)
}

// Put implements Store. The Info has the key, ETag, size, content type and
// metadata; LastModified is zero, since the store does not tell it.
func (c *Client) Put(ctx context.Context, key string, body Body, size int64, o PutOptions) (Info, error) {
	if err := checkKey("put", key); err != nil {
		return Info{}, err
	}
	sum, err := bodyMD5(body, 0, size)
	if err != nil {
		return Info{}, &vfolder.Error{Op: "put: read body", Kind: vfolder.KindOf(err), Path: key, Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, c.uploadDeadline(size))
	defer cancel()
	u, err := c.core.PutObject(ctx, c.cfg.Bucket, key, bodyReader(body, 0, size), size, sum, "", putOptions(o))
	if err != nil {
		return Info{}, c.fail(ctx, "put", key, err)
	}
	return Info{
		Key: key, ETag: u.ETag, Size: size, ContentType: o.ContentType,
		Meta: maps.Clone(o.Meta), VersionID: u.VersionID, StorageClass: o.StorageClass,
	}, nil
}

// Head implements Store.
func (c *Client) Head(ctx context.Context, key string) (Info, error) {
	if err := checkKey("head", key); err != nil {
		return Info{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	o, err := c.core.StatObject(ctx, c.cfg.Bucket, key, minio.StatObjectOptions{})
	if err != nil {
		return Info{}, c.fail(ctx, "head", key, err)
	}
	return infoOf(o), nil
}

// infoOf translates an object's description; metadata keys become lower case.
func infoOf(o minio.ObjectInfo) Info {
	meta := make(map[string]string, len(o.UserMetadata))
	for k, v := range o.UserMetadata {
		meta[strings.ToLower(k)] = v
	}
	return Info{
		Key: o.Key, ETag: o.ETag, Size: o.Size, LastModified: o.LastModified.UTC(),
		ContentType: o.ContentType, Meta: meta, VersionID: o.VersionID, StorageClass: o.StorageClass,
	}
}

// Delete implements Store.
func (c *Client) Delete(ctx context.Context, key string, cond Condition) error {
	if err := checkKey("delete", key); err != nil {
		return err
	}
	if cond.IfMatch != "" && !c.caps.DeleteIfMatch {
		// The store ignores the condition: what remains between this Head and
		// the Delete is a window that only one writing host keeps closed.
		in, err := c.Head(ctx, key)
		if vfolder.KindOf(err) == vfolder.KindNotFound {
			return nil
		}
		if err != nil {
			return err
		}
		if in.ETag != cond.IfMatch {
			return vfolder.Errorf(vfolder.KindConflict, "delete", key, "the object is another version: %s, not %s", in.ETag, cond.IfMatch)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	err := c.rawDelete(ctx, key, cond.IfMatch)
	if vfolder.KindOf(err) == vfolder.KindNotFound && err != nil {
		return nil
	}
	return err
}

// CreateUpload implements Store.
func (c *Client) CreateUpload(ctx context.Context, key string, o PutOptions) (string, error) {
	if err := checkKey("create upload", key); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	o.Condition = Condition{} // it is decided when the upload is completed
	id, err := c.core.NewMultipartUpload(ctx, c.cfg.Bucket, key, putOptions(o))
	if err != nil {
		return "", c.fail(ctx, "create upload", key, err)
	}
	return id, nil
}

// UploadPart implements Store.
func (c *Client) UploadPart(ctx context.Context, key, upload string, n int, body Body, off, size int64) (Part, error) {
	sum, err := bodyMD5(body, off, size)
	if err != nil {
		return Part{}, &vfolder.Error{Op: "upload part: read body", Kind: vfolder.KindOf(err), Path: key, Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, c.uploadDeadline(size))
	defer cancel()
	p, err := c.core.PutObjectPart(ctx, c.cfg.Bucket, key, upload, n, bodyReader(body, off, size), size,
		minio.PutObjectPartOptions{Md5Base64: sum, DisableContentSha256: true})
	if err != nil {
		return Part{}, c.fail(ctx, "upload part", key, err)
	}
	return Part{Number: n, ETag: strings.Trim(p.ETag, `"`), Size: size}, nil
}

// CompleteUpload implements Store. KindNotFound after a lost answer may mean
// that the upload was completed: the caller compares the object's vfolder-id.
func (c *Client) CompleteUpload(ctx context.Context, key, upload string, parts []Part, o PutOptions) (Info, error) {
	var size int64
	done := make([]minio.CompletePart, len(parts))
	for i, p := range parts {
		done[i] = minio.CompletePart{PartNumber: p.Number, ETag: p.ETag}
		size += p.Size
	}
	// Assembling the parts may be a copy inside the store.
	ctx, cancel := context.WithTimeout(ctx, c.copyDeadline(size))
	defer cancel()
	var m minio.PutObjectOptions
	setCondition(&m, o.Condition)
	u, err := c.core.CompleteMultipartUpload(ctx, c.cfg.Bucket, key, upload, done, m)
	if err != nil {
		return Info{}, c.fail(ctx, "complete upload", key, err)
	}
	return Info{
		Key: key, ETag: strings.Trim(u.ETag, `"`), Size: size, ContentType: o.ContentType,
		Meta: maps.Clone(o.Meta), VersionID: u.VersionID, StorageClass: o.StorageClass,
	}, nil
}

// AbortUpload implements Store.
func (c *Client) AbortUpload(ctx context.Context, key, upload string) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	err := c.fail(ctx, "abort upload", key, c.core.AbortMultipartUpload(ctx, c.cfg.Bucket, key, upload))
	if err != nil && vfolder.KindOf(err) == vfolder.KindNotFound {
		return nil
	}
	return err
}

// stallTimer cancels a request whose body stands still for too long.
type stallTimer struct {
	timer *time.Timer
	limit time.Duration
}

func newStallTimer(limit time.Duration, cancel func()) *stallTimer {
	return &stallTimer{timer: time.AfterFunc(limit, cancel), limit: limit}
}

func (s *stallTimer) rest() { s.timer.Stop() }
func (s *stallTimer) run()  { s.timer.Reset(s.limit) }
