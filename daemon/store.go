package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/config"
	"github.com/vfolder/vfolder/objstore"
	"github.com/vfolder/vfolder/objstore/embedded"
)

// Files and directories of the state directory.
const (
	indexDir    = "index"
	contentDir  = "content"
	recoveryDir = "recovered"
	storeDir    = "store"         // of the embedded store
	addrFile    = "store.addr"    // where the embedded store listens
	probeFile   = "store.json"    // what the probe found out
	hostFile    = "host-id"       // names this state directory in leases
	lockFile    = "vfolderd.lock" // also in the run directory
)

// storeAddr reads where the embedded store listens, choosing a free port the
// first time. The port stays the same over restarts.
func storeAddr(stateDir string) (string, error) {
	path := filepath.Join(stateDir, addrFile)
	text, err := os.ReadFile(path)
	if err == nil {
		return strings.TrimSpace(string(text)), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", &vfolder.Error{Op: "embedded store", Kind: vfolder.KindOf(err), Path: path, Err: err}
	}
	return newStoreAddr(stateDir)
}

func newStoreAddr(stateDir string) (string, error) {
	addr, err := embedded.FreeAddr()
	if err != nil {
		return "", err
	}
	return addr, replaceFile(filepath.Join(stateDir, addrFile), []byte(addr+"\n"))
}

// replaceFile writes a small file whole.
func replaceFile(path string, text []byte) error {
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.Write(text)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return &vfolder.Error{Op: "write", Kind: vfolder.KindOf(err), Path: path, Err: err}
	}
	return nil
}

// RunStore is the embedded object store's process. It serves until ctx ends.
// When another program took its port it moves to a new one; the worker notices.
func RunStore(ctx context.Context, cfg *config.Config) error {
	log := newLogger(os.Stderr, cfg.Daemon.LogLevel).With("process", "store")
	dropKept(envControl, envStateLock, envRunLock)
	credentials, _, err := config.MakeCredentials(cfg.Store.CredentialsFile)
	if err != nil {
		return err
	}
	addr, err := storeAddr(cfg.Daemon.StateDir)
	if err != nil {
		return err
	}
	for {
		log.Info("embedded store starts", "addr", addr)
		err := embedded.Serve(ctx, embedded.Config{
			Dir: filepath.Join(cfg.Daemon.StateDir, storeDir), Addr: addr,
			AccessKey: credentials.AccessKey, SecretKey: credentials.SecretKey, Region: objstore.DefaultRegion,
		})
		var e *vfolder.Error
		if !errors.As(err, &e) || e.Kind != vfolder.KindBusy || e.Path != addr {
			return err
		}
		log.Warn("the embedded store's port is taken by another program; moving", "addr", addr)
		if addr, err = newStoreAddr(cfg.Daemon.StateDir); err != nil {
			return err
		}
	}
}

// storeConfig says how the worker reaches the bucket.
func storeConfig(cfg *config.Config) (objstore.Config, error) {
	s := cfg.Store
	if s.Embedded() {
		credentials, _, err := config.MakeCredentials(s.CredentialsFile)
		if err != nil {
			return objstore.Config{}, err
		}
		addr, err := storeAddr(cfg.Daemon.StateDir)
		return objstore.Config{
			Endpoint: addr, Region: objstore.DefaultRegion, Bucket: config.DefaultBucket, PathStyle: true, CreateBucket: true,
			AccessKey: credentials.AccessKey, SecretKey: credentials.SecretKey,
		}, err
	}
	credentials, err := config.ReadCredentials(s.CredentialsFile)
	if err != nil {
		return objstore.Config{}, err
	}
	return objstore.Config{
		Endpoint: s.Endpoint, TLS: s.TLS, Region: s.Region, Bucket: s.Bucket, PathStyle: s.PathStyle, CreateBucket: s.CreateBucket,
		AccessKey: credentials.AccessKey, SecretKey: credentials.SecretKey,
	}, nil
}

// probed is what a probe of an endpoint found, kept so that a restart need not
// ask again.
type probed struct {
	Endpoint     string                `json:"endpoint"`
	Bucket       string                `json:"bucket"`
	Program      string                `json:"program"` // a newer one asks again
	Capabilities objstore.Capabilities `json:"capabilities"`
}

// probeKey says which endpoint a probe is of.
func probeKey(cfg *config.Config, program string) probed {
	if cfg.Store.Embedded() { // wherever it listens
		return probed{Endpoint: "embedded", Bucket: config.DefaultBucket, Program: program}
	}
	return probed{Endpoint: cfg.Store.Endpoint, Bucket: cfg.Store.Bucket, Program: program}
}

// knownCapabilities are those found at an earlier start.
func knownCapabilities(cfg *config.Config, program string) (objstore.Capabilities, bool) {
	var was probed
	text, err := os.ReadFile(filepath.Join(cfg.Daemon.StateDir, probeFile))
	if err != nil || json.Unmarshal(text, &was) != nil {
		return objstore.Capabilities{}, false
	}
	caps := was.Capabilities
	was.Capabilities = objstore.Capabilities{}
	return caps, was == probeKey(cfg, program)
}

// openStore opens the bucket.
func openStore(ctx context.Context, cfg *config.Config, program string) (objstore.Store, error) {
	oc, err := storeConfig(cfg)
	if err != nil {
		return nil, err
	}
	if caps, ok := knownCapabilities(cfg, program); ok {
		oc.Capabilities = &caps
	}
	store, err := objstore.Open(ctx, oc)
	if err != nil {
		return nil, err
	}
	if oc.Capabilities == nil {
		found := probeKey(cfg, program)
		found.Capabilities = store.Capabilities()
		text, err := json.Marshal(found)
		if err == nil {
			err = replaceFile(filepath.Join(cfg.Daemon.StateDir, probeFile), text)
		}
		if err != nil {
			return nil, err
		}
	}
	return objstore.Retry(store, objstore.DefaultRetry), nil
}

// Pauses between attempts to open the bucket.
const (
	openFirst = 50 * time.Millisecond
	openMost  = 10 * time.Second
)

// openUntil opens the bucket however long that takes, telling note of every
// failure. The error is that of ctx.
func openUntil(ctx context.Context, cfg *config.Config, program string, log *slog.Logger, note func(error)) (objstore.Store, error) {
	for pause := openFirst; ; pause = min(2*pause, openMost) {
		store, err := openStore(ctx, cfg, program)
		if err == nil {
			return store, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		note(err)
		log.Warn("the object store cannot be used yet; what is local is served", "err", err, "again_in", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
