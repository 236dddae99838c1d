package reconcile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/meta"
	"github.com/vfolder/vfolder/objstore"
)

const (
	formatKey   = vfolder.ReservedPrefix + "format.json"
	foldersDir  = vfolder.ReservedPrefix + "folders/"
	namesDir    = vfolder.ReservedPrefix + "names/"
	recordBytes = 64 << 10 // of a folder's record
)

// registry orders the changes and readings of the folder records.
type registry struct {
	mu sync.Mutex
}

type formatRecord struct {
	Version int `json:"version"`
}

// checkFormat refuses a bucket of a newer format and marks a new one. A store
// that does not answer is no reason to refuse.
func (r *Reconciler) checkFormat(ctx context.Context) error {
	body, _, err := r.readSmall(ctx, formatKey, recordBytes)
	if err != nil && vfolder.KindOf(err) == vfolder.KindNotFound {
		mine, merr := json.Marshal(formatRecord{vfolder.FormatVersion})
		if merr != nil {
			return merr
		}
		_, err = r.put(ctx, formatKey, bytes.NewReader(mine), int64(len(mine)), objstore.PutOptions{ContentType: "application/json", Condition: objstore.Condition{IfAbsent: true}})
		if err == nil || vfolder.KindOf(err) != vfolder.KindConflict {
			return r.unlessDown(err)
		}
		body, _, err = r.readSmall(ctx, formatKey, recordBytes)
	}
	if err != nil {
		return r.unlessDown(err)
	}
	var f formatRecord
	if err := json.Unmarshal(body, &f); err != nil {
		return &vfolder.Error{Op: "open bucket", Kind: vfolder.KindCorrupt, Path: formatKey, Err: err, Fix: "look at this object: it should read {\"version\":1}"}
	}
	if f.Version > vfolder.FormatVersion {
		return &vfolder.Error{
			Op: "open bucket", Kind: vfolder.KindUnsupported, Path: formatKey,
			Err: errors.New("this bucket was written by a newer vfolder"), Fix: "install a newer vfolder on this host, or use another bucket",
		}
	}
	return nil
}

func (r *Reconciler) unlessDown(err error) error {
	if err != nil && vfolder.KindOf(err) == vfolder.KindUnreachable {
		r.outage.note(r.now(), err)
		r.log.Warn("the object store does not answer; what is known here goes on", "err", err)
		return nil
	}
	return err
}

func (r *Reconciler) registryLoop() {
	defer r.wg.Done()
	t := time.NewTicker(r.cfg.RegistryEvery)
	defer t.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-t.C:
		}
		if err := r.SyncRegistry(r.ctx); err != nil && r.ctx.Err() == nil {
			r.outage.note(r.now(), err)
			r.log.Info("the registry of folders could not be read", "err", err)
		}
	}
}

// records reads all folder records.
func (r *Reconciler) records(ctx context.Context) (map[string]vfolder.Folder, error) {
	out := map[string]vfolder.Folder{}
	for in, err := range r.store.List(ctx, foldersDir, "", false) {
		if err != nil {
			return nil, err
		}
		id, ok := strings.CutSuffix(strings.TrimPrefix(in.Key, foldersDir), ".json")
		if !ok {
			continue
		}
		body, _, err := r.readSmall(ctx, in.Key, recordBytes)
		if err != nil {
			if vfolder.KindOf(err) == vfolder.KindNotFound {
				continue
			}
			return nil, err
		}
		var f vfolder.Folder
		if err := json.Unmarshal(body, &f); err != nil || f.ID != id || vfolder.CheckFolderName(f.Name) != nil || !strings.HasSuffix(f.Prefix, "/") {
			r.log.Error("a folder's record cannot be read; the folder is not shown", "key", in.Key, "err", err)
			continue
		}
		out[id] = f
	}
	return out, nil
}

// SyncRegistry takes folders that other hosts made or removed into the index.
// A removed folder with changes that are not in the bucket stays, so that they
// are not lost.
func (r *Reconciler) SyncRegistry(ctx context.Context) error {
	r.registry.mu.Lock()
	defer r.registry.mu.Unlock()
	records, err := r.records(ctx)
	if err != nil {
		return err
	}
	known, err := r.known()
	if err != nil {
		return err
	}
	here := map[string]bool{}
	for _, m := range known {
		here[m.Record.ID] = true
		rec, ok := records[m.Record.ID]
		if ok && rec.State == vfolder.FolderReady {
			continue
		}
		pending := 0
		if err := r.db.View(func(tx *meta.Tx) (err error) { pending, err = tx.CountItems(m.Root, 1); return err }); err != nil {
			return err
		}
		if pending > 0 {
			r.log.Warn("a folder was removed on another host but has changes here that are not in the bucket; it stays until they are", "folder", m.Record.Name)
			continue
		}
		if err := r.drop(m); err != nil {
			return err
		}
	}
	for id, rec := range records {
		if here[id] || rec.State != vfolder.FolderReady {
			continue
		}
		if _, err := r.adoptFolder(ctx, rec, false); err != nil {
			r.log.Warn("a folder of the bucket is not shown", "folder", rec.Name, "id", id, "err", err)
		}
	}
	return nil
}

func (r *Reconciler) known() (known []*meta.Folder, err error) {
	err = r.db.View(func(tx *meta.Tx) error { known, err = tx.Folders(); return err })
	return known, err
}

func (r *Reconciler) drop(m *meta.Folder) error {
	r.detach(m.Root)
	if err := r.db.DropTree(m.Root, r.local.Freed); err != nil {
		return err
	}
	r.local.EntryChanged(vfolder.RootIno, m.Record.Name)
	return nil
}

// adoptFolder shows a folder of the registry. A new one has nothing to list.
func (r *Reconciler) adoptFolder(ctx context.Context, rec vfolder.Folder, empty bool) (*meta.Folder, error) {
	in, err := r.store.Head(ctx, rec.Prefix)
	missing := err != nil && (vfolder.KindOf(err) == vfolder.KindNotFound || vfolder.KindOf(err) == vfolder.KindInvalid)
	if err != nil && !missing {
		return nil, err
	}
	a := objstore.DecodeMeta(in.Meta)
	xattrs, err := r.readXattrs(ctx, a)
	if err != nil {
		return nil, err
	}
	m := &meta.Folder{Record: rec}
	err = r.db.Update(func(tx *meta.Tx) error {
		id, err := tx.MakePrefix(rec.Prefix)
		if err != nil {
			return err
		}
		n := &meta.Inode{Listed: empty, Prefix: id}
		at := time.Unix(0, rec.Created)
		if !missing && in.Size == 0 {
			at = in.LastModified
		}
		applyAttrs(n, a, true, 0, at)
		n.LongID = ""
		k := meta.RowKey{Dir: id}
		var row *meta.Row
		if !missing && in.Size == 0 {
			row = &meta.Row{
				ETag: in.ETag, LastModified: in.LastModified.UnixNano(), VersionID: in.VersionID, VID: a.VID, Gen: 1, AttrGen: 1,
			}
		}
		if err := tx.Adopt(vfolder.RootIno, rec.Name, n, k, row); err != nil {
			return err
		}
		for x, v := range xattrs {
			if err := tx.PutXattr(n.Ino, x, v); err != nil {
				return err
			}
		}
		m.Root = n.Ino
		if err := tx.PutFolder(m); err != nil {
			return err
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	r.attach(m)
	r.local.EntryChanged(vfolder.RootIno, rec.Name)
	return m, nil
}

// Folders lists the folders known here, by name. It asks nobody.
func (r *Reconciler) Folders(context.Context) ([]*meta.Folder, error) {
	known, err := r.known()
	if err != nil {
		return nil, err
	}
	known = slices.DeleteFunc(known, func(m *meta.Folder) bool { return m.Record.State != vfolder.FolderReady })
	slices.SortFunc(known, func(a, b *meta.Folder) int { return strings.Compare(a.Record.Name, b.Record.Name) })
	return known, nil
}

// FolderByName finds a folder known here; KindNotFound for none.
func (r *Reconciler) FolderByName(ctx context.Context, name string) (*meta.Folder, error) {
	all, err := r.Folders(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if m.Record.Name == name {
			return m, nil
		}
	}
	return nil, &vfolder.Error{Op: "folder", Kind: vfolder.KindNotFound, Path: name, Fix: "list the folders with: vfolder folder list"}
}

// CreateFolder makes a folder. When objects lie under NAME/ that no record
// tells of, the folder is made over them and adopted is true; when they are
// those of a folder in the trash, the new one gets a prefix of its own.
// KindExists when the name is taken here or on another host.
func (r *Reconciler) CreateFolder(ctx context.Context, name string) (m *meta.Folder, adopted bool, err error) {
	if err := vfolder.CheckFolderName(name); err != nil {
		return nil, false, err
	}
	r.registry.mu.Lock()
	defer r.registry.mu.Unlock()
	exists := func() error {
		return &vfolder.Error{Op: "create folder", Kind: vfolder.KindExists, Path: name, Fix: "choose another name, or use the folder that is there"}
	}
	if _, err := r.FolderByName(ctx, name); err == nil {
		return nil, false, exists()
	}
	records, err := r.records(ctx)
	if err != nil {
		return nil, false, err
	}
	now := r.now().UnixNano()
	rec := vfolder.Folder{ID: randomHex(8), Name: name, Prefix: name + "/", State: vfolder.FolderReady, Created: now, Changed: now}
	recorded := false
	for _, o := range records {
		if o.State == vfolder.FolderReady && o.Name == name {
			return nil, false, exists()
		}
		recorded = recorded || o.Prefix == rec.Prefix
	}
	for _, err := range r.store.List(ctx, rec.Prefix, "", false) {
		if err != nil {
			return nil, false, err
		}
		adopted = true
		break
	}
	if recorded { // also when it has nothing below now: a prefix has one folder
		rec.Prefix, adopted = name+"~"+rec.ID+"/", false
	}
	if err := r.claim(ctx, rec, records); err != nil {
		return nil, false, err
	}
	if err := r.putRecord(ctx, rec, objstore.Condition{IfAbsent: true}); err != nil {
		return nil, false, err
	}
	if m, err = r.adoptFolder(ctx, rec, !adopted); err != nil {
		return nil, false, err
	}
	err = r.db.Update(func(tx *meta.Tx) error {
		e, err := tx.Entry(vfolder.RootIno, name)
		if err != nil || !e.Row.IsZero() {
			return err
		}
		return tx.QueuePut(vfolder.RootIno, name)
	})
	return m, adopted, err
}

func (r *Reconciler) putRecord(ctx context.Context, rec vfolder.Folder, c objstore.Condition) error {
	body, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	_, err = r.put(ctx, foldersDir+rec.ID+".json", bytes.NewReader(body), int64(len(body)), objstore.PutOptions{ContentType: "application/json", Condition: c})
	return err
}

// claim takes the name. A claim of a folder that has no live record is what a
// crash left, and is taken over.
func (r *Reconciler) claim(ctx context.Context, rec vfolder.Folder, records map[string]vfolder.Folder) error {
	key := namesDir + rec.Name
	put := func(c objstore.Condition) error {
		_, err := r.put(ctx, key, strings.NewReader(rec.ID), int64(len(rec.ID)), objstore.PutOptions{ContentType: "text/plain", Condition: c})
		return err
	}
	err := put(objstore.Condition{IfAbsent: true})
	if err == nil || vfolder.KindOf(err) != vfolder.KindConflict {
		return err
	}
	body, in, err := r.readSmall(ctx, key, recordBytes)
	if err != nil {
		return err
	}
	id := strings.TrimSpace(string(body))
	if id == rec.ID {
		return nil
	}
	if o, ok := records[id]; ok && o.State == vfolder.FolderReady && o.Name == rec.Name || !ok && r.now().Sub(in.LastModified) < claimAge {
		return &vfolder.Error{Op: "create folder", Kind: vfolder.KindExists, Path: rec.Name, Fix: "choose another name"}
	}
	return put(objstore.Condition{IfMatch: in.ETag})
}

// claimAge is how long a claim without a record may be one in the making.
const claimAge = time.Minute

// DeleteFolder puts a folder into the trash: what is pending is brought to the
// bucket first, its record says so, the name is free again, and this host
// forgets it. Its objects stay.
func (r *Reconciler) DeleteFolder(ctx context.Context, name string) error {
	m, err := r.FolderByName(ctx, name)
	if err != nil {
		return err
	}
	f, err := r.need(m.Root)
	if err != nil {
		return err
	}
	if err := r.Sync(ctx, m.Root, nil); err != nil {
		return err
	}
	r.registry.mu.Lock()
	defer r.registry.mu.Unlock()
	key := foldersDir + m.Record.ID + ".json"
	body, in, err := r.readSmall(ctx, key, recordBytes)
	if err != nil {
		return err
	}
	var rec vfolder.Folder
	if err := json.Unmarshal(body, &rec); err != nil {
		return &vfolder.Error{Op: "delete folder", Kind: vfolder.KindCorrupt, Path: key, Err: err}
	}
	rec.State, rec.Changed = vfolder.FolderTrash, r.now().UnixNano()
	if err := r.putRecord(ctx, rec, objstore.Condition{IfMatch: in.ETag}); err != nil {
		return err
	}
	if claim, c, err := r.readSmall(ctx, namesDir+name, recordBytes); err == nil && strings.TrimSpace(string(claim)) == rec.ID {
		if err := r.store.Delete(ctx, namesDir+name, objstore.Condition{IfMatch: c.ETag}); err != nil {
			return err
		}
	}
	f.releaseIfDrained(ctx)
	return r.drop(m)
}
