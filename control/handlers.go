package control

import (
	"net/http"
	"sync"
	"time"

	"github.com/vfolder/vfolder"
)

func (s *Server) version(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, Version{API: APIVersion, Program: s.svc.Program, Format: vfolder.FormatVersion})
	return nil
}

type folderList struct {
	Folders []Folder `json:"folders"`
}

func (s *Server) listFolders(w http.ResponseWriter, r *http.Request) error {
	list, err := s.svc.Folders.Folders(r.Context())
	if err != nil {
		return err
	}
	if list == nil {
		list = []Folder{}
	}
	writeJSON(w, http.StatusOK, folderList{list})
	return nil
}

type createRequest struct {
	Name string `json:"name"`
}

func (s *Server) createFolder(w http.ResponseWriter, r *http.Request) error {
	var req createRequest
	if err := decode(w, r, &req); err != nil {
		return err
	}
	if err := vfolder.CheckFolderName(req.Name); err != nil {
		return err
	}
	f, err := s.svc.Folders.CreateFolder(r.Context(), req.Name)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, f)
	return nil
}

// folderName reads the folder of a path. A name that cannot be one names
// nothing.
func folderName(r *http.Request) (string, error) {
	name := r.PathValue("folder")
	if vfolder.CheckFolderName(name) != nil {
		return "", &vfolder.Error{Op: "folder", Kind: vfolder.KindNotFound, Path: name}
	}
	return name, nil
}

func (s *Server) showFolder(w http.ResponseWriter, r *http.Request) error {
	name, err := folderName(r)
	if err != nil {
		return err
	}
	f, err := s.svc.Folders.Folder(r.Context(), name)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, f)
	return nil
}

func (s *Server) deleteFolder(w http.ResponseWriter, r *http.Request) error {
	name, err := folderName(r)
	if err != nil {
		return err
	}
	if err := s.svc.Folders.DeleteFolder(r.Context(), name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) folderStatus(w http.ResponseWriter, r *http.Request) error {
	name, err := folderName(r)
	if err != nil {
		return err
	}
	f, err := s.svc.Folders.FolderStatus(r.Context(), name)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, f)
	return nil
}

func (s *Server) prepareFolder(w http.ResponseWriter, r *http.Request) error {
	name, err := folderName(r)
	if err != nil {
		return err
	}
	p, err := s.svc.Folders.PrepareFolder(r.Context(), name)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, p)
	return nil
}

func (s *Server) syncFolder(w http.ResponseWriter, r *http.Request) error {
	name, err := folderName(r)
	if err != nil {
		return err
	}
	stream := newStreamWriter(w)
	progress, stop := repeat(stream)
	err = s.svc.Folders.SyncFolder(r.Context(), name, progress)
	stop()
	return stream.end(event{}, err)
}

// repeat makes a progress function that sends its last value again while
// nothing happens, so that a dead connection is noticed at both ends. Before
// the first call there is nothing to repeat. Call stop before the stream ends.
func repeat(stream *streamWriter) (progress func(Pending), stop func()) {
	var mu sync.Mutex
	var last *Pending
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			mu.Lock()
			p := last
			mu.Unlock()
			if p != nil {
				_ = stream.send(event{Progress: p}, true)
			}
		}
	}()
	progress = func(p Pending) {
		mu.Lock()
		last = &p
		mu.Unlock()
		_ = stream.send(event{Progress: &p}, true)
	}
	return progress, func() {
		close(done)
		<-ended
	}
}

func (s *Server) daemonStatus(w http.ResponseWriter, r *http.Request) error {
	st, err := s.svc.Daemon.Status(r.Context())
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, st)
	return nil
}

func (s *Server) restart(w http.ResponseWriter, r *http.Request) error {
	if err := s.svc.Daemon.Restart(r.Context()); err != nil {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

func (s *Server) stop(w http.ResponseWriter, r *http.Request) error {
	var o StopOptions
	if err := decode(w, r, &o); err != nil {
		return err
	}
	if o.DrainMillis < 0 {
		return vfolder.Errorf(vfolder.KindInvalid, "stop", "", "drain_ms is negative")
	}
	stream := newStreamWriter(w)
	progress, stop := repeat(stream)
	result, err := s.svc.Daemon.Stop(r.Context(), o, progress)
	stop()
	return stream.end(event{Stopped: &result}, err)
}
