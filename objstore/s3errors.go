package objstore

import (
	"context"
	"errors"
	"net/http"
	"unicode/utf8"

	"github.com/minio/minio-go/v7"

	"github.com/vfolder/vfolder"
)

// codeKinds maps the error codes whose HTTP status alone would mislead.
var codeKinds = map[string]vfolder.Kind{
	"NoSuchKey":     vfolder.KindNotFound,
	"NoSuchUpload":  vfolder.KindNotFound,
	"NoSuchVersion": vfolder.KindNotFound,
	// A bucket that is gone says nothing about the key: "not found" here would
	// read as "every file was deleted".
	"NoSuchBucket":      vfolder.KindUnreachable,
	"KeyTooLongError":   vfolder.KindNameTooLong,
	"EntityTooLarge":    vfolder.KindTooLarge,
	"InvalidRange":      vfolder.KindNoData,
	"NotImplemented":    vfolder.KindUnsupported,
	"AccessDenied":      vfolder.KindAccess,
	"MethodNotAllowed":  vfolder.KindUnsupported,
	"QuotaExceeded":     vfolder.KindUnreachable,
	"XMinioStorageFull": vfolder.KindUnreachable,
	// Bytes that changed or stopped on the way: sending them again may cure it.
	"BadDigest":                   vfolder.KindUnreachable,
	"XAmzContentSHA256Mismatch":   vfolder.KindUnreachable,
	"XAmzContentChecksumMismatch": vfolder.KindUnreachable,
	"IncompleteBody":              vfolder.KindUnreachable,
	"RequestTimeout":              vfolder.KindUnreachable,
	"SlowDown":                    vfolder.KindUnreachable,
	"OperationAborted":            vfolder.KindConflict,
	"ConditionalRequestConflict":  vfolder.KindConflict,
	"PreconditionFailed":          vfolder.KindConflict,
	// A key that needs a directory where another key is a file, or the other
	// way round. It is not a lost race: it stays until that other key moves.
	"ObjectParentIsFile":            vfolder.KindExists,
	"ExistingObjectIsDirectory":     vfolder.KindExists,
	"ErrDirectoryNotEmpty":          vfolder.KindExists,
	"DirectoryNotEmpty":             vfolder.KindExists,
	"XMinioParentIsObject":          vfolder.KindExists,
	"XMinioObjectExistsAsDirectory": vfolder.KindExists,
}

// kindOfResponse classifies an answer of the store.
func kindOfResponse(code string, status int) vfolder.Kind {
	if k, ok := codeKinds[code]; ok {
		return k
	}
	switch {
	case status == http.StatusNotFound:
		return vfolder.KindNotFound
	case status == http.StatusPreconditionFailed, status == http.StatusConflict:
		return vfolder.KindConflict
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return vfolder.KindAccess
	case status == http.StatusRequestedRangeNotSatisfiable:
		return vfolder.KindNoData
	case status == http.StatusRequestEntityTooLarge:
		return vfolder.KindTooLarge
	case status == http.StatusNotImplemented, status == http.StatusMethodNotAllowed:
		return vfolder.KindUnsupported
	case status == http.StatusTooManyRequests, status == http.StatusRequestTimeout:
		return vfolder.KindUnreachable
	case status >= 400 && status < 500:
		return vfolder.KindInvalid
	}
	return vfolder.KindUnreachable
}

// fail makes the one error type out of whatever minio-go or net/http said.
// A caller that gave up gets KindInterrupted; a deadline, ours or the
// caller's, is KindUnreachable: the outcome of a write is then unknown.
func (c *Client) fail(ctx context.Context, op, key string, err error) error {
	if err == nil {
		return nil
	}
	var done *vfolder.Error
	if errors.As(err, &done) {
		return err
	}
	e := &vfolder.Error{Op: op, Kind: vfolder.KindUnreachable, Path: key, Err: err}
	var resp minio.ErrorResponse
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		e.Kind, e.Err = vfolder.KindInterrupted, ctx.Err()
	case ctx.Err() != nil:
		e.Err = context.Cause(ctx)
	case errors.As(err, &resp):
		e.Kind = kindOfResponse(resp.Code, resp.StatusCode)
	}
	return e
}

// checkKey refuses what no store could carry before it is sent.
func checkKey(op, key string) error {
	switch {
	case len(key) > vfolder.MaxKeyBytes:
		return vfolder.Errorf(vfolder.KindNameTooLong, op, key, "the key has %d bytes, more than %d", len(key), vfolder.MaxKeyBytes)
	case key == "" || key[0] == '/':
		return vfolder.Errorf(vfolder.KindInvalid, op, key, "a key is not empty and has no slash in front")
	case !utf8.ValidString(key):
		return vfolder.Errorf(vfolder.KindInvalid, op, key, "the key is not UTF-8")
	}
	return nil
}
