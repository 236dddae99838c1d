package meta

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/vfolder/vfolder"
)

// Options of the index.
type Options struct {
	Dir string
	// BootID identifies this boot of the machine (/proc/sys/kernel/random/boot_id).
	BootID string
	Now    func() time.Time // nil: time.Now
	Log    *slog.Logger     // nil: slog.Default
}

// DB is the index. It is safe for concurrent use: readers see a snapshot,
// writers are one at a time. A committed transaction survives the death of the
// process at once, and a power loss after Sync.
type DB struct {
	b    *badger.DB
	dir  string
	seed uint64
	boot uint64
	now  func() time.Time
	log  *slog.Logger

	mu        sync.Mutex // the one writer; held from Update's start to its commit
	next      uint64     // next number for inodes, seqs and prefixes
	nextLimit uint64     // numbers below are reserved in the store

	syncMu   sync.Mutex // one barrier at a time
	syncSeen sync.Mutex // guards the three below
	commits  uint64     // transactions committed
	synced   uint64     // commits that a barrier has covered
	onItem   func(folder vfolder.Ino)
}

// reserveNumbers is how many numbers one record reserves: a crash skips at
// most so many.
const reserveNumbers = 4096

const memTableBytes = 16 << 20

// Open opens or creates the index in o.Dir. The directory has one opener at a
// time: a second is refused with KindBusy.
func Open(o Options) (*DB, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, &vfolder.Error{Op: "open index", Path: o.Dir, Err: err}
	}
	bo := badger.DefaultOptions(o.Dir).
		WithLogger(badgerLog{o.Log}).
		WithDetectConflicts(false). // one writer
		WithMemTableSize(memTableBytes).
		WithNumMemtables(2).
		WithNumCompactors(2).
		WithValueThreshold(1 << 20).
		WithValueLogFileSize(64 << 20).
		WithBlockCacheSize(64 << 20).
		WithIndexCacheSize(32 << 20).
		WithCompression(options.None).
		WithMetricsEnabled(false).
		WithSyncWrites(false)
	b, err := badger.Open(bo)
	if err != nil {
		kind := vfolder.KindCorrupt
		if strings.Contains(err.Error(), "Another process is using") { // badger has no sentinel for it
			kind = vfolder.KindBusy
		}
		return nil, &vfolder.Error{Op: "open index", Kind: kind, Path: o.Dir, Err: err}
	}
	db := &DB{b: b, dir: o.Dir, now: o.Now, log: o.Log, boot: hashBoot(o.BootID)}
	if err := db.load(); err != nil {
		b.Close()
		return nil, err
	}
	return db, nil
}

func hashBoot(id string) uint64 {
	h := cookieOf(0x626f6f74, id)
	return max(h, 1)
}

// load reads the counters, and makes the root of a new index.
func (db *DB) load() error {
	return db.Update(func(tx *Tx) error {
		v, err := tx.Value("schema")
		switch {
		case err != nil:
			return err
		case v == nil:
			return db.create(tx)
		case len(v) != 24:
			return corrupt("schema", valueKey("schema"))
		}
		if n := binary.BigEndian.Uint64(v); n > schemaVersion {
			return vfolder.Errorf(vfolder.KindUnsupported, "open index", db.dir, "its schema version is %d, this program knows %d; use a newer vfolderd", n, schemaVersion)
		}
		db.seed = binary.BigEndian.Uint64(v[8:])
		db.nextLimit = binary.BigEndian.Uint64(v[16:])
		db.next = db.nextLimit
		return nil
	})
}

func (db *DB) create(tx *Tx) error {
	var seed [8]byte
	rand.Read(seed[:])
	db.seed = binary.BigEndian.Uint64(seed[:])
	db.next, db.nextLimit = 16, 16
	now := db.now().UnixNano()
	root := &Inode{Ino: vfolder.RootIno, Mode: 0o40755, UID: vfolder.SessionUID, GID: vfolder.SessionGID, Nlink: 2, Atime: now, Mtime: now, Ctime: now, Btime: now, Listed: true}
	if _, err := tx.number(); err != nil { // writes the schema record
		return err
	}
	return tx.PutInode(root)
}

// Boot is a number that differs after the machine was booted anew.
func (db *DB) Boot() uint64 { return db.boot }

// OnItem sets a function that is told, after a commit, of each folder that got
// a new work item. It must not wait. Set it before the first Update.
func (db *DB) OnItem(f func(folder vfolder.Ino)) { db.onItem = f }

// Close flushes and closes the index.
func (db *DB) Close() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if err := db.b.Close(); err != nil {
		return &vfolder.Error{Op: "close index", Path: db.dir, Err: err}
	}
	return nil
}

// View runs fn on a snapshot. fn must not keep the Tx.
func (db *DB) View(fn func(*Tx) error) error {
	txn := db.b.NewTransaction(false)
	defer txn.Discard()
	return fn(&Tx{db: db, txn: txn})
}

// Update runs fn in a transaction and commits it when fn returns nil; nothing
// happens otherwise. Transactions run one after the other. A transaction that
// is too large for the store fails whole (KindTooLarge): work that may grow is
// cut into transactions by its caller, each leaving the index consistent.
func (db *DB) Update(fn func(*Tx) error) error {
	db.mu.Lock()
	tx := &Tx{db: db, txn: db.b.NewTransaction(true), write: true}
	next, limit := db.next, db.nextLimit
	err := fn(tx)
	if err == nil {
		if err = tx.txn.Commit(); err != nil {
			err = wrap("commit", err)
		}
	} else {
		tx.txn.Discard()
	}
	if err != nil {
		// A reservation that was not committed must not be used, and numbers
		// handed out are skipped.
		db.nextLimit = limit
		if db.next > limit {
			db.next = next
		}
	}
	db.mu.Unlock()
	if err != nil {
		return err
	}
	db.syncSeen.Lock()
	db.commits++
	db.syncSeen.Unlock()
	if db.onItem != nil {
		for _, f := range tx.touched {
			db.onItem(f)
		}
	}
	return nil
}

// Sync makes every transaction committed before the call survive power loss.
//
// Badger's own Sync covers only the memtable in use. One that was rotated out
// lies in its .mem file until its table is written and synced, so the barrier
// flushes every .mem file of the directory: the log pages are shared mappings
// of these files. A file that goes away meanwhile has become a synced table.
func (db *DB) Sync() error {
	db.syncSeen.Lock()
	want := db.commits
	db.syncSeen.Unlock()
	db.syncMu.Lock() // waiters queue here and find themselves covered: group commit
	defer db.syncMu.Unlock()
	db.syncSeen.Lock()
	covered := db.synced >= want
	upto := db.commits
	db.syncSeen.Unlock()
	if covered {
		return nil
	}
	files, err := filepath.Glob(filepath.Join(db.dir, "*.mem"))
	if err != nil {
		return wrap("sync", err)
	}
	for _, f := range append(files, db.dir) {
		if err := fsyncPath(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return wrap("sync", err)
		}
	}
	db.syncSeen.Lock()
	db.synced = max(db.synced, upto)
	db.syncSeen.Unlock()
	return nil
}

func fsyncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Size returns the bytes that the index takes on disk.
func (db *DB) Size() int64 {
	lsm, vlog := db.b.Size()
	return lsm + vlog
}

func wrap(op string, err error) error {
	var e *vfolder.Error
	if errors.As(err, &e) {
		return err
	}
	kind := vfolder.KindIO
	switch {
	case errors.Is(err, badger.ErrKeyNotFound):
		kind = vfolder.KindNotFound
	case errors.Is(err, badger.ErrTxnTooBig):
		kind = vfolder.KindTooLarge
	case errors.Is(err, badger.ErrBlockedWrites), errors.Is(err, badger.ErrDBClosed):
		kind = vfolder.KindBusy
	default:
		if k := vfolder.KindOf(err); k != vfolder.KindIO {
			kind = k
		}
	}
	return &vfolder.Error{Op: "index " + op, Kind: kind, Err: err}
}

type badgerLog struct{ log *slog.Logger }

func (l badgerLog) Errorf(f string, a ...any)   { l.log.Error("index: " + sprint(f, a)) }
func (l badgerLog) Warningf(f string, a ...any) { l.log.Warn("index: " + sprint(f, a)) }
func (l badgerLog) Infof(f string, a ...any)    { l.log.Debug("index: " + sprint(f, a)) }
func (l badgerLog) Debugf(string, ...any)       {}
