// Package objstore is what vfolder needs of an S3-compatible object store, and
// only that. The one implementation talks minio-go; decorators add retries,
// limits, metrics and faults; embedded starts the server that is the default.
package objstore

import (
	"context"
	"io"
	"iter"
	"time"
)

// Info describes one object version as the store reported it.
type Info struct {
	Key          string
	ETag         string // without quotes
	Size         int64
	LastModified time.Time
	ContentType  string
	// Meta is the user metadata, keys in lower case without "x-amz-meta-";
	// nil where the call does not return it (List).
	Meta         map[string]string
	VersionID    string
	StorageClass string
	// IsPrefix marks a common prefix of a delimited listing; Key ends in "/".
	IsPrefix bool
}

// Condition makes a write or delete conditional. The zero value is none.
type Condition struct {
	IfAbsent bool   // If-None-Match: *
	IfMatch  string // an ETag without quotes
}

// PutOptions are what an object carries besides its bytes.
type PutOptions struct {
	Meta         map[string]string
	ContentType  string
	StorageClass string
	Condition
}

// CopyOptions of a server-side copy. A nil Meta keeps the source's metadata.
type CopyOptions struct {
	SourceIfMatch string // ETag of the source; "" for none
	Meta          map[string]string
	ContentType   string
}

// Body is what Put sends: it is read possibly more than once (checksum, then
// retries) and concurrently.
type Body interface {
	io.ReaderAt
}

// Store is the object store. Every method is safe for concurrent use and ends
// when ctx does. Errors are *vfolder.Error: KindNotFound (no such key or
// upload), KindConflict (a condition did not hold: 412 and 409), KindInvalid
// (the store refuses the request for good: bad key, entity too large),
// KindAccess, KindUnreachable (anything that a retry may cure, including
// time-outs and 5xx; the outcome of a write is then unknown). Retrying is done
// by the Retry decorator for idempotent calls; writes with a Condition are
// never retried below the caller.
type Store interface {
	// Put writes a whole object with a checksum that the server verifies.
	Put(ctx context.Context, key string, body Body, size int64, o PutOptions) (Info, error)
	// Get opens [off, off+length) (length < 0: to the end) of the version whose
	// ETag is ifMatch ("" for any). A short body is an error of the reader.
	Get(ctx context.Context, key string, off, length int64, ifMatch string) (io.ReadCloser, Info, error)
	// Head returns an object's Info with Meta.
	Head(ctx context.Context, key string) (Info, error)
	// List yields the objects below prefix in key order, those after
	// startAfter; with delimited, keys below the next "/" become one prefix.
	List(ctx context.Context, prefix, startAfter string, delimited bool) iter.Seq2[Info, error]
	// Copy copies on the server, above 5 GiB by parts. dst is unconditional.
	Copy(ctx context.Context, dst, src string, o CopyOptions) (Info, error)
	// Delete removes a key; a missing key is no error. A Condition.IfMatch is
	// honoured by the server where Capabilities.DeleteIfMatch says so, else by
	// a Head just before.
	Delete(ctx context.Context, key string, c Condition) error
	// CreateUpload starts a multipart upload and returns its id.
	CreateUpload(ctx context.Context, key string, o PutOptions) (string, error)
	// UploadPart sends part n (1-based) with a checksum; re-sending replaces it.
	UploadPart(ctx context.Context, key, upload string, n int, body Body, off, size int64) (Part, error)
	// CopyPart makes part n from [off, off+size) of src, whose ETag is srcIfMatch.
	CopyPart(ctx context.Context, key, upload string, n int, src string, off, size int64, srcIfMatch string) (Part, error)
	// CompleteUpload publishes the parts; o.Condition decides atomically.
	CompleteUpload(ctx context.Context, key, upload string, parts []Part, o PutOptions) (Info, error)
	// AbortUpload forgets an upload; a missing upload is no error.
	AbortUpload(ctx context.Context, key, upload string) error
	// Capabilities of the endpoint, found by the probe.
	Capabilities() Capabilities
}

// Part is one uploaded part.
type Part struct {
	Number int
	ETag   string
	Size   int64
}

// Capabilities are facts about an endpoint that the probe found out.
type Capabilities struct {
	PutIfAbsent, PutIfMatch bool // conditional PUT
	CompleteIfAbsent        bool // conditional CompleteMultipartUpload
	CompleteIfMatch         bool
	DeleteIfMatch           bool
	// PlainKeys: '+' and every printable ASCII byte list back as they are.
	PlusInKeys bool
	UTF8Keys   bool
	// FileBesideDir: the keys "a" and "a/b" can exist together and both list.
	FileBesideDir bool
	// ListEncoding: listings honour encoding-type=url. Some servers claim to and
	// send keys as they are, which makes '+' and '%' come back as other bytes.
	ListEncoding bool
}
