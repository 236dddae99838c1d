package objstore

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/vfolder/vfolder"
)

// How bodies are cut.
const (
	// PutThreshold is the largest body, in bytes, that goes up in one PUT.
	PutThreshold = int64(16) << 20
	// MinPartBytes is the smallest part but the last (S3 wants 5 MiB at least).
	MinPartBytes = int64(16) << 20
	// MaxParts is the most parts of one upload.
	MaxParts = 10000
	// uploadParallel is how many parts of one upload are under way at once.
	uploadParallel = 4
	// copyPartBytes is the preferred part of a server-side copy.
	copyPartBytes = int64(256) << 20
	// abortTimeout bounds the clean-up after a failed upload, whose own
	// context may be over.
	abortTimeout = 10 * time.Second
)

// PartBytes is the size of the parts for a body of size bytes: MinPartBytes
// unless that would make more than MaxParts, always whole MiB. All parts but
// the last have the same size, which some stores demand.
func PartBytes(size int64) int64 {
	return partBytes(size, MinPartBytes)
}

func partBytes(size, least int64) int64 {
	const mib = 1 << 20
	part := (size + MaxParts - 1) / MaxParts
	part = (part + mib - 1) / mib * mib
	return max(part, least)
}

// Upload publishes a body under o's Condition: by one PUT up to PutThreshold,
// else by a multipart upload of up to four parts at a time, completed under
// the condition. A failed upload is aborted and leaves key as it was, unless
// the error is KindUnreachable or KindInterrupted while publishing: then the
// outcome is unknown and the caller compares the object's vfolder-id.
// Nothing is retried here.
func Upload(ctx context.Context, s Store, key string, body Body, size int64, o PutOptions) (Info, error) {
	if size <= PutThreshold {
		return s.Put(ctx, key, body, size, o)
	}
	step := PartBytes(size)
	return byParts(ctx, s, key, size, step, o, func(ctx context.Context, id string, n int, off, length int64) (Part, error) {
		return s.UploadPart(ctx, key, id, n, body, off, length)
	})
}

// CopyConditional copies src (of size bytes, version o.SourceIfMatch) to dst
// on the server and publishes it under cond, which a plain copy cannot: by
// part copies and a conditional completion, or, for an empty source, by a
// conditional PUT. The copy carries put's metadata and content type; nil Meta
// takes the source's, with its content type.
func CopyConditional(ctx context.Context, s Store, dst, src string, size int64, o CopyOptions, cond Condition) (Info, error) {
	put := PutOptions{Meta: o.Meta, ContentType: o.ContentType, Condition: cond}
	if o.Meta == nil || size == 0 {
		in, err := s.Head(ctx, src)
		if err != nil {
			return Info{}, err
		}
		if o.SourceIfMatch != "" && in.ETag != o.SourceIfMatch || in.Size != size {
			return Info{}, vfolder.Errorf(vfolder.KindConflict, "copy", src, "the source is another version: %s of %d bytes", in.ETag, in.Size)
		}
		if o.Meta == nil {
			put.Meta, put.ContentType, put.StorageClass = in.Meta, in.ContentType, in.StorageClass
		}
	}
	if size == 0 {
		return s.Put(ctx, dst, nil, 0, put)
	}
	return copyParts(ctx, s, dst, src, size, o.SourceIfMatch, put)
}

func copyParts(ctx context.Context, s Store, dst, src string, size int64, srcETag string, put PutOptions) (Info, error) {
	step := min(partBytes(size, copyPartBytes), MaxCopyBytes)
	return byParts(ctx, s, dst, size, step, put, func(ctx context.Context, id string, n int, off, length int64) (Part, error) {
		return s.CopyPart(ctx, dst, id, n, src, off, length, srcETag)
	})
}

type partFunc func(ctx context.Context, id string, n int, off, length int64) (Part, error)

// byParts runs one multipart upload: create, parts in parallel, complete.
func byParts(ctx context.Context, s Store, key string, size, step int64, o PutOptions, one partFunc) (in Info, err error) {
	if size > vfolder.MaxFileBytes {
		return Info{}, vfolder.Errorf(vfolder.KindTooLarge, "upload", key, "%d bytes, more than an object may have", size)
	}
	id, err := s.CreateUpload(ctx, key, o)
	if err != nil {
		return Info{}, err
	}
	defer func() {
		if err != nil {
			// An upload that was completed after all is not there any more, so
			// that aborting it harms nothing.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
			defer cancel()
			_ = s.AbortUpload(ctx, key, id)
		}
	}()
	parts, err := sendParts(ctx, id, size, step, one)
	if err != nil {
		return Info{}, err
	}
	return s.CompleteUpload(ctx, key, id, parts, o)
}

// sendParts returns the parts in order, or the first error after all of its
// goroutines have ended.
func sendParts(ctx context.Context, id string, size, step int64, one partFunc) ([]Part, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex // guards parts and first
		parts []Part
		first error
	)
	slots := make(chan struct{}, uploadParallel)
	for n, off := 1, int64(0); off < size; n, off = n+1, off+step {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			p, err := one(ctx, id, n, off, min(step, size-off))
			<-slots
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				parts = append(parts, p)
				return
			}
			if first == nil {
				first = err
			}
			cancel()
		}()
	}
	wg.Wait()
	if first == nil && ctx.Err() != nil {
		first = &vfolder.Error{Op: "upload", Kind: vfolder.KindInterrupted, Path: id, Err: ctx.Err()}
	}
	slices.SortFunc(parts, func(a, b Part) int { return a.Number - b.Number })
	return parts, first
}
