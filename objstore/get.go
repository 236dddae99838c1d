package objstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/vfolder/vfolder"
)

// errStalled is why a request was cancelled whose answer or body stood still.
var errStalled = errors.New("the object store sent nothing for too long")

// Get implements Store. Info.Size is the whole object's size, whatever the
// range. A range that begins at or behind the end is KindNoData.
func (c *Client) Get(ctx context.Context, key string, off, length int64, ifMatch string) (io.ReadCloser, Info, error) {
	if err := checkKey("get", key); err != nil {
		return nil, Info{}, err
	}
	if off < 0 {
		return nil, Info{}, vfolder.Errorf(vfolder.KindInvalid, "get", key, "negative offset %d", off)
	}
	if length == 0 {
		return c.getNothing(ctx, key, ifMatch)
	}
	var o minio.GetObjectOptions
	if ifMatch != "" {
		if err := o.SetMatchETag(ifMatch); err != nil {
			return nil, Info{}, &vfolder.Error{Op: "get", Kind: vfolder.KindInvalid, Path: key, Err: err}
		}
	}
	if off > 0 || length > 0 {
		last := int64(0) // "to the end" in minio-go's words
		if length > 0 {
			last = off + length - 1
		}
		if err := setRange(&o, off, last); err != nil {
			return nil, Info{}, &vfolder.Error{Op: "get", Kind: vfolder.KindInvalid, Path: key, Err: err}
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stall := newStallTimer(c.cfg.Timeout, func() { cancel(errStalled) })
	body, obj, header, err := c.core.GetObject(ctx, c.cfg.Bucket, key, o)
	stall.rest()
	if err != nil {
		err = c.failGet(ctx, key, err)
		cancel(nil)
		return nil, Info{}, err
	}
	in := infoOf(obj)
	if whole, ok := wholeSize(header); ok {
		in.Size = whole
	} else if off > 0 {
		// Not a range: the bytes would be those of another place.
		_ = body.Close()
		cancel(nil)
		return nil, Info{}, vfolder.Errorf(vfolder.KindUnsupported, "get", key, "the store answered a range with the whole object")
	}
	want := in.Size - off
	if length > 0 {
		want = min(length, want)
	}
	stall.limit = c.cfg.Stall
	return &bodyStream{c: c, ctx: ctx, cancel: cancel, stall: stall, body: body, key: key, left: want}, in, nil
}

// setRange asks for [off, last], or to the end for last 0.
func setRange(o *minio.GetObjectOptions, off, last int64) error {
	if off == 0 && last == 0 {
		// The first byte alone, which SetRange cannot say.
		o.Set("Range", "bytes=0-0")
		return nil
	}
	return o.SetRange(off, last)
}

// getNothing answers a read of no bytes without a body.
func (c *Client) getNothing(ctx context.Context, key, ifMatch string) (io.ReadCloser, Info, error) {
	in, err := c.Head(ctx, key)
	if err != nil {
		return nil, Info{}, err
	}
	if ifMatch != "" && in.ETag != ifMatch {
		return nil, Info{}, vfolder.Errorf(vfolder.KindConflict, "get", key, "the object is another version: %s, not %s", in.ETag, ifMatch)
	}
	return http.NoBody, in, nil
}

// wholeSize reads the object's size out of "Content-Range: bytes 2-5/10".
func wholeSize(h http.Header) (int64, bool) {
	_, total, ok := strings.Cut(h.Get("Content-Range"), "/")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(total, 10, 64)
	return n, err == nil && n >= 0
}

// failGet is fail, except that a stalled body is the store's fault.
func (c *Client) failGet(ctx context.Context, key string, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
		return &vfolder.Error{Op: "get", Kind: vfolder.KindUnreachable, Path: key, Err: cause}
	}
	return c.fail(ctx, "get", key, err)
}

// bodyStream reads a body that must have exactly the bytes asked for.
type bodyStream struct {
	c      *Client
	ctx    context.Context
	cancel context.CancelCauseFunc
	stall  *stallTimer
	body   io.ReadCloser
	key    string
	left   int64
}

func (b *bodyStream) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	b.stall.run()
	n, err := b.body.Read(p)
	b.stall.rest()
	b.left -= int64(n)
	switch {
	case err == io.EOF && b.left > 0:
		return n, &vfolder.Error{
			Op: "get", Kind: vfolder.KindUnreachable, Path: b.key,
			Err: fmt.Errorf("the body ended %d bytes early: %w", b.left, io.ErrUnexpectedEOF),
		}
	case err != nil && err != io.EOF:
		return n, b.c.failGet(b.ctx, b.key, err)
	}
	return n, err
}

func (b *bodyStream) Close() error {
	b.stall.rest()
	// Cancelling first spares reading the rest of a body nobody wants; a body
	// read to its end gives its connection back.
	if b.left > 0 {
		b.cancel(nil)
	}
	err := b.body.Close()
	b.cancel(nil)
	if err != nil && b.left > 0 {
		return nil
	}
	return err
}
