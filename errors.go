package vfolder

import (
	"errors"
	"fmt"
	"net/http"
	"syscall"
)

// Kind classifies an error for every edge at once: FUSE (errno), the control
// API (HTTP status) and the command line (exit code). See Kinds.
type Kind uint8

// The kinds of errors. The zero Kind is KindIO: unknown means a real failure.
const (
	KindIO Kind = iota
	KindNotFound
	KindExists
	KindNotEmpty
	KindNotDir
	KindIsDir
	KindInvalid
	KindNameTooLong
	KindTooLarge
	KindNoSpace
	KindQuota
	KindReadOnly
	KindBusy
	KindConflict
	KindAccess
	KindPermission
	KindCrossDevice
	KindStale
	KindUnreachable
	KindDaemon
	KindLocked
	KindCorrupt
	KindUnsupported
	KindInterrupted
	KindTimeout
	KindTooManyLinks
	KindNoAttr
	KindRange
	KindPartial
	KindLoop
	KindNoData
	kindCount
)

// KindInfo is one row of the table that maps a Kind to its three edges.
type KindInfo struct {
	Name  string // stable, used in the control API
	Errno syscall.Errno
	HTTP  int
	Exit  int
}

// kinds is the one table of errors; docs/errors.md is checked against it.
var kinds = [kindCount]KindInfo{
	KindIO:           {"io", syscall.EIO, http.StatusInternalServerError, 1},
	KindNotFound:     {"not-found", syscall.ENOENT, http.StatusNotFound, 4},
	KindExists:       {"exists", syscall.EEXIST, http.StatusConflict, 5},
	KindNotEmpty:     {"not-empty", syscall.ENOTEMPTY, http.StatusConflict, 5},
	KindNotDir:       {"not-a-directory", syscall.ENOTDIR, http.StatusBadRequest, 1},
	KindIsDir:        {"is-a-directory", syscall.EISDIR, http.StatusBadRequest, 1},
	KindInvalid:      {"invalid", syscall.EINVAL, http.StatusBadRequest, 2},
	KindNameTooLong:  {"name-too-long", syscall.ENAMETOOLONG, http.StatusBadRequest, 2},
	KindTooLarge:     {"too-large", syscall.EFBIG, http.StatusRequestEntityTooLarge, 1},
	KindNoSpace:      {"no-space", syscall.ENOSPC, http.StatusInsufficientStorage, 1},
	KindQuota:        {"quota", syscall.EDQUOT, http.StatusInsufficientStorage, 1},
	KindReadOnly:     {"read-only", syscall.EROFS, http.StatusForbidden, 6},
	KindBusy:         {"busy", syscall.EBUSY, http.StatusConflict, 5},
	KindConflict:     {"conflict", syscall.EBUSY, http.StatusConflict, 5},
	KindAccess:       {"access", syscall.EACCES, http.StatusForbidden, 6},
	KindPermission:   {"permission", syscall.EPERM, http.StatusForbidden, 6},
	KindCrossDevice:  {"cross-device", syscall.EXDEV, http.StatusBadRequest, 1},
	KindStale:        {"stale", syscall.ESTALE, http.StatusGone, 1},
	KindUnreachable:  {"store-unreachable", syscall.EIO, http.StatusBadGateway, 11},
	KindDaemon:       {"daemon-unreachable", syscall.EIO, http.StatusServiceUnavailable, 10},
	KindLocked:       {"locked", syscall.EROFS, http.StatusLocked, 12},
	KindCorrupt:      {"corrupt", syscall.EIO, http.StatusInternalServerError, 20},
	KindUnsupported:  {"unsupported", syscall.EOPNOTSUPP, http.StatusNotImplemented, 1},
	KindInterrupted:  {"interrupted", syscall.EINTR, 499, 130},
	KindTimeout:      {"timeout", syscall.ETIMEDOUT, http.StatusGatewayTimeout, 3},
	KindTooManyLinks: {"too-many-links", syscall.EMLINK, http.StatusConflict, 1},
	KindNoAttr:       {"no-attribute", syscall.ENODATA, http.StatusNotFound, 4},
	KindRange:        {"range", syscall.ERANGE, http.StatusBadRequest, 1},
	KindPartial:      {"partial", syscall.EIO, http.StatusAccepted, 3},
	KindLoop:         {"loop", syscall.ELOOP, http.StatusBadRequest, 1},
	KindNoData:       {"no-data", syscall.ENXIO, http.StatusRequestedRangeNotSatisfiable, 1},
}

// Info returns the Kind's row of the table.
func (k Kind) Info() KindInfo {
	if k >= kindCount {
		return kinds[KindIO]
	}
	return kinds[k]
}

func (k Kind) String() string { return k.Info().Name }

// Error makes a Kind usable as a target of errors.Is.
func (k Kind) Error() string { return k.Info().Name }

// ParseKind is the inverse of Kind.String; an unknown name is KindIO.
func ParseKind(name string) Kind {
	for k, row := range kinds {
		if row.Name == name {
			return Kind(k)
		}
	}
	return KindIO
}

// Kinds returns every Kind in the order of the table, for tests and documents.
func Kinds() []Kind {
	all := make([]Kind, kindCount)
	for i := range all {
		all[i] = Kind(i)
	}
	return all
}

// Error says which operation failed on what, of which Kind, and why. Fix, where
// there is one, is the next command to type.
type Error struct {
	Op   string
	Kind Kind
	Path string
	Err  error
	Fix  string
}

func (e *Error) Error() string {
	s := e.Op
	if e.Path != "" {
		s += " " + e.Path
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	} else {
		s += ": " + e.Kind.String()
	}
	return s
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is this error's Kind.
func (e *Error) Is(target error) bool {
	k, ok := target.(Kind)
	return ok && k == e.Kind
}

// Errorf makes an Error of a Kind.
func Errorf(kind Kind, op, path, format string, args ...any) error {
	return &Error{Op: op, Kind: kind, Path: path, Err: fmt.Errorf(format, args...)}
}

// KindOf finds the Kind of an error: of the outermost Error or Kind in its
// chain, else of the errno in it, else KindIO.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	var k Kind
	if errors.As(err, &k) {
		return k
	}
	var no syscall.Errno
	if errors.As(err, &no) {
		for i, row := range kinds {
			if row.Errno == no {
				return Kind(i)
			}
		}
	}
	return KindIO
}
