// Package embedded is the object store that vfolder brings along: versitygw's
// POSIX backend on loopback, made durable. What the store acknowledged has the
// length the client announced and is on disk, directories included; what it
// did not acknowledge never replaces an older object.
//
// Run it in a process of its own: the library changes the working directory
// of the process, keeps globals, and must not take a mount down with it.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
	"golang.org/x/sys/unix"

	"github.com/vfolder/vfolder"
)

// Limits of the server.
const (
	maxConnections = 4096
	maxRequests    = 2048
	maxParts       = 10000
	maxCopyBytes   = int64(5) << 30
	// maxActions bounds concurrent file system work, hence operating system
	// threads; further requests wait.
	maxActions = 256

	dialPoll = 20 * time.Millisecond
)

// Config of the embedded server. Dir holds it all: Dir/data the buckets (one
// directory each), Dir/lock keeps a second server off. The file system must
// keep user extended attributes.
type Config struct {
	Dir string
	// Addr is "host:port" on loopback with a port that is not 0: the server
	// does not tell which one it got. The caller picks a free port, keeps it
	// (clients reconnect to it after a restart) and passes another one when
	// Serve ends with KindBusy.
	Addr      string
	AccessKey string
	SecretKey string
	// Region is what clients must sign for; "us-east-1" when empty.
	Region string
}

// Serve runs the server until ctx ends, then returns nil. It can run once per
// process at a time and leaves the process in another working directory.
// KindInvalid is a Config that cannot work, KindBusy a directory or port that
// another server has, KindUnsupported a file system without extended
// attributes.
func Serve(ctx context.Context, cfg Config) error {
	const op = "embedded store"
	host, port, err := net.SplitHostPort(cfg.Addr)
	if err != nil || port == "0" || port == "" {
		return vfolder.Errorf(vfolder.KindInvalid, op, cfg.Addr, "an address with a port that is not 0 is needed")
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return vfolder.Errorf(vfolder.KindInvalid, op, cfg.Addr, "the embedded store listens on loopback only")
	}
	if cfg.AccessKey == "" || cfg.SecretKey == "" {
		return vfolder.Errorf(vfolder.KindInvalid, op, cfg.Dir, "access key and secret key are needed")
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return &vfolder.Error{Op: op, Kind: vfolder.KindInvalid, Path: cfg.Dir, Err: err}
	}
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return &vfolder.Error{Op: op, Kind: vfolder.KindOf(err), Path: data, Err: err}
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := cleanTemporary(data, time.Now()); err != nil {
		return &vfolder.Error{Op: op, Kind: vfolder.KindOf(err), Path: data, Err: err}
	}
	be, err := posix.New(data, meta.XattrMeta{}, posix.PosixOpts{
		CopyObjectThreshold: maxCopyBytes,
		NewDirPerm:          0o700,
		NewFilePerm:         0o600,
		Concurrency:         maxActions,
		// Unnamed files would be linked under a temporary name beside the object
		// before they replace it: a kill in between would leave that name among
		// the objects, and long names would not fit.
		ForceNoTmpFile:     true,
		ForceNoObjLockFile: true, // Dir/lock keeps other servers off
	})
	if err != nil {
		return &vfolder.Error{
			Op: op, Kind: vfolder.KindUnsupported, Path: data, Err: err,
			Fix: "keep the store on a file system with user extended attributes (ext4, xfs, btrfs)",
		}
	}
	// The gateway would only report a busy port in words.
	if l, err := net.Listen("tcp", cfg.Addr); err != nil {
		return &vfolder.Error{Op: op, Kind: vfolder.KindBusy, Path: cfg.Addr, Err: err}
	} else if err := l.Close(); err != nil {
		return &vfolder.Error{Op: op, Kind: vfolder.KindBusy, Path: cfg.Addr, Err: err}
	}
	err = embedgw.RunVersityGW(ctx, newDurable(be, data), &embedgw.Config{
		RootUserAccess: cfg.AccessKey, RootUserSecret: cfg.SecretKey, Region: cfg.Region,
		Ports: []string{cfg.Addr}, MaxConnections: maxConnections, MaxRequests: maxRequests,
		MultipartMaxParts: maxParts, Quiet: true, KeepAlive: true, IAMCacheDisable: true,
	})
	if err != nil && ctx.Err() == nil {
		return &vfolder.Error{Op: op, Kind: vfolder.KindIO, Path: cfg.Addr, Err: err}
	}
	return nil
}

// lockDir keeps a second server off the directory; the lock goes with the
// process, however it ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, &vfolder.Error{Op: "embedded store", Kind: vfolder.KindOf(err), Path: dir, Err: err}
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		kind := vfolder.KindIO
		if errors.Is(err, unix.EWOULDBLOCK) {
			kind, err = vfolder.KindBusy, errors.New("another embedded store runs on this directory")
		}
		return nil, &vfolder.Error{Op: "embedded store", Kind: kind, Path: dir, Err: err}
	}
	return f, nil
}

// WaitReady returns once a server accepts connections at addr, or with
// KindUnreachable when ctx ends first.
func WaitReady(ctx context.Context, addr string) error {
	var d net.Dialer
	tick := time.NewTicker(dialPoll)
	defer tick.Stop()
	for {
		conn, err := d.DialContext(ctx, "tcp", addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return &vfolder.Error{Op: "embedded store", Kind: vfolder.KindUnreachable, Path: addr, Err: fmt.Errorf("%w: %w", ctx.Err(), err)}
		case <-tick.C:
		}
	}
}

// FreeAddr finds a loopback address whose port is free now. Another process
// may take it before the server does: then Serve says KindBusy.
func FreeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", &vfolder.Error{Op: "free port", Kind: vfolder.KindIO, Err: err}
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return "", &vfolder.Error{Op: "free port", Kind: vfolder.KindIO, Path: addr, Err: err}
	}
	return addr, nil
}
