package launcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containers/podman/v5/pkg/bindings/containers"

	"github.com/vfolder/vfolder"
)

// DefaultSyncTimeout bounds the wait of Delete for the bucket.
const DefaultSyncTimeout = 10 * time.Minute

// Left is what of a folder is not in the bucket yet.
type Left struct {
	Folder string `json:"folder"`
	Files  int    `json:"files"`
	Bytes  int64  `json:"bytes"`
}

// DeleteOptions say how a session is deleted.
type DeleteOptions struct {
	NoWait  bool          // remove at once; the daemon goes on uploading
	Timeout time.Duration // DefaultSyncTimeout if 0
	// Progress is called for each report of the daemon, never concurrently.
	Progress func(Left)
}

// Stop ends the processes of a session: SIGTERM, then SIGKILL. A session that
// does not run is left as it is.
func (l *Launcher) Stop(ctx context.Context, ref string) (Session, error) {
	s, err := l.Find(ctx, ref)
	if err != nil {
		return s, err
	}
	return s, l.stop(ctx, s)
}

func (l *Launcher) stop(ctx context.Context, s Session) error {
	opts := new(containers.StopOptions).WithTimeout(stopGrace).WithIgnore(true)
	if err := containers.Stop(l.with(ctx), s.ID, opts); err != nil && !isNotFound(err) {
		return podmanError("session", s.Name, err)
	}
	return nil
}

// remove deletes a container and what only it had; one that is gone is fine.
func (l *Launcher) remove(ctx context.Context, id string) error {
	opts := new(containers.RemoveOptions).WithForce(true).WithVolumes(true).WithTimeout(0)
	reports, err := containers.Remove(l.with(ctx), id, opts)
	if err != nil && !isNotFound(err) {
		return podmanError("session", id, err)
	}
	for _, r := range reports {
		if r.Err != nil {
			return podmanError("session", id, r.Err)
		}
	}
	return nil
}

// Delete stops a session, waits until what it wrote is in the bucket, and only
// then removes it. When the wait fails or takes too long, the session stays
// stopped and the error (KindTimeout if it took too long) lists what is left.
func (l *Launcher) Delete(ctx context.Context, folders Folders, ref string, o DeleteOptions) (Session, error) {
	s, err := l.Find(ctx, ref)
	if err != nil {
		return s, err
	}
	if err := l.stop(ctx, s); err != nil {
		return s, err
	}
	if names := s.Writable(); len(names) > 0 && !o.NoWait {
		if folders == nil {
			return s, &vfolder.Error{
				Op: "session", Kind: vfolder.KindDaemon, Path: s.Name,
				Err: errors.New("it is stopped, but there is no daemon to bring its folders into the bucket"), Fix: "vfolder daemon start",
			}
		}
		if err := syncAll(ctx, folders, s.Name, names, o); err != nil {
			return s, err
		}
	}
	return s, l.remove(ctx, s.ID)
}

// syncAll waits for all folders of a session at once, under one deadline.
func syncAll(ctx context.Context, folders Folders, session string, names []string, o DeleteOptions) error {
	timeout := o.Timeout
	if timeout == 0 {
		timeout = DefaultSyncTimeout
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var (
		mu   sync.Mutex // guards left and serialises Progress
		wait sync.WaitGroup
		left = make([]*Left, len(names)) // nil until the daemon reported
		errs = make([]error, len(names))
	)
	for i, name := range names {
		wait.Go(func() {
			errs[i] = folders.Sync(limited, name, func(files int, bytes int64) {
				mu.Lock()
				defer mu.Unlock()
				left[i] = &Left{name, files, bytes}
				if o.Progress != nil {
					o.Progress(*left[i])
				}
			})
		})
	}
	wait.Wait()
	var parts []string
	for i, err := range errs {
		if err != nil {
			parts = append(parts, describeLeft(names[i], left[i], err))
		}
	}
	if len(parts) == 0 {
		return nil
	}
	e := &vfolder.Error{
		Op: "session", Path: session, Kind: kindOfSync(ctx, limited, errs),
		Err: fmt.Errorf("it is stopped and kept, because not all of it is in the bucket: %s", strings.Join(parts, ", ")),
		Fix: fmt.Sprintf("vfolder session delete %s (again, to go on waiting), or --no-wait to leave the rest to the daemon", session),
	}
	return e
}

func kindOfSync(ctx, limited context.Context, errs []error) vfolder.Kind {
	switch {
	case ctx.Err() != nil:
		return vfolder.KindInterrupted
	case limited.Err() != nil:
		return vfolder.KindTimeout
	}
	first := slices.IndexFunc(errs, func(err error) bool { return err != nil })
	return vfolder.KindOf(errs[first])
}

func describeLeft(name string, left *Left, err error) string {
	why := ""
	if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) && vfolder.KindOf(err) != vfolder.KindTimeout {
		why = fmt.Sprintf(" (%v)", err)
	}
	if left == nil {
		return fmt.Sprintf("an unknown part of folder %q%s", name, why)
	}
	return fmt.Sprintf("%d files (%d bytes) of folder %q%s", left.Files, left.Bytes, name, why)
}
