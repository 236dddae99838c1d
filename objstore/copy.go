package objstore

import (
	"context"
	"maps"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/vfolder/vfolder"
)

// MaxCopyBytes is the largest object that one CopyObject or one part copies.
const MaxCopyBytes = int64(5) << 30

// Copy implements Store. With Meta, an empty ContentType becomes the store's
// default: give the source's to keep it.
func (c *Client) Copy(ctx context.Context, dst, src string, o CopyOptions) (Info, error) {
	for _, k := range []string{dst, src} {
		if err := checkKey("copy", k); err != nil {
			return Info{}, err
		}
	}
	in, err := c.copyWhole(ctx, dst, src, o)
	switch vfolder.KindOf(err) {
	case vfolder.KindInvalid, vfolder.KindTooLarge:
		// The refusal of a source above the limit has many names: look at it.
		if err != nil {
			if s, herr := c.Head(ctx, src); herr == nil && s.Size > MaxCopyBytes {
				return c.copyByParts(ctx, dst, s, o)
			}
		}
	}
	return in, err
}

func (c *Client) copyWhole(ctx context.Context, dst, src string, o CopyOptions) (Info, error) {
	ctx, cancel := context.WithTimeout(ctx, c.copyDeadline(MaxCopyBytes))
	defer cancel()
	h := map[string]string{"x-amz-metadata-directive": "COPY"}
	if o.Meta != nil {
		h["x-amz-metadata-directive"] = "REPLACE"
		for k, v := range o.Meta {
			h[metaHeader+k] = v
		}
		if o.ContentType != "" {
			h["Content-Type"] = o.ContentType
		}
	}
	if o.SourceIfMatch != "" {
		h["x-amz-copy-source-if-match"] = `"` + o.SourceIfMatch + `"`
	}
	r, err := c.core.CopyObject(ctx, c.cfg.Bucket, src, c.cfg.Bucket, dst, h, minio.CopySrcOptions{}, minio.PutObjectOptions{})
	if err != nil {
		return Info{}, c.fail(ctx, "copy", dst, err)
	}
	if r.ETag == "" {
		// The answer was 200 with an error in its body.
		return Info{}, vfolder.Errorf(vfolder.KindUnreachable, "copy", dst, "the store began the copy of %s and did not finish it", src)
	}
	return Info{Key: dst, ETag: r.ETag, LastModified: r.LastModified.UTC(), ContentType: o.ContentType, Meta: maps.Clone(o.Meta)}, nil
}

// copyByParts copies a source above MaxCopyBytes; the destination appears at
// once, unconditionally.
func (c *Client) copyByParts(ctx context.Context, dst string, src Info, o CopyOptions) (Info, error) {
	if o.SourceIfMatch != "" && o.SourceIfMatch != src.ETag {
		return Info{}, vfolder.Errorf(vfolder.KindConflict, "copy", src.Key, "the object is another version: %s, not %s", src.ETag, o.SourceIfMatch)
	}
	put := PutOptions{Meta: o.Meta, ContentType: o.ContentType, StorageClass: src.StorageClass}
	if o.Meta == nil {
		put.Meta, put.ContentType = src.Meta, src.ContentType
	}
	return copyParts(ctx, c, dst, src.Key, src.Size, src.ETag, put)
}

// CopyPart implements Store.
func (c *Client) CopyPart(ctx context.Context, key, upload string, n int, src string, off, size int64, srcIfMatch string) (Part, error) {
	if err := checkKey("copy part", src); err != nil {
		return Part{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.copyDeadline(size))
	defer cancel()
	h := map[string]string{}
	if srcIfMatch != "" {
		h["x-amz-copy-source-if-match"] = `"` + srcIfMatch + `"`
	}
	p, err := c.core.CopyObjectPart(ctx, c.cfg.Bucket, src, c.cfg.Bucket, key, upload, n, off, size, h)
	if err != nil {
		return Part{}, c.fail(ctx, "copy part", key, err)
	}
	etag := strings.Trim(p.ETag, `"`)
	if etag == "" {
		return Part{}, vfolder.Errorf(vfolder.KindUnreachable, "copy part", key, "the store began the copy of %s and did not finish it", src)
	}
	return Part{Number: n, ETag: etag, Size: size}, nil
}
