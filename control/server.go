package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/vfolder/vfolder"
)

// Limits of the server.
const (
	maxConnections = 256
	maxHeaderBytes = 64 << 10
	maxBodyBytes   = 64 << 10 // of a request in JSON

	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	// stallTimeout ends a connection whose client neither reads nor writes.
	stallTimeout = time.Minute
	// progressEvery is how often a stream says something while nothing happens.
	progressEvery = 10 * time.Second
)

// Server serves the API.
type Server struct {
	http *http.Server
	svc  Services
	log  *slog.Logger
	uid  int
}

type peerKey struct{}

// NewServer makes a server that answers the daemon's own user and root.
func NewServer(svc Services, log *slog.Logger) *Server {
	if log == nil {
		log = slog.Default()
	}
	s := &Server{svc: svc, log: log, uid: os.Geteuid()}
	s.http = &http.Server{
		Handler:           s.guard(s.routes()),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if p, ok := c.(*peerConn); ok {
				ctx = context.WithValue(ctx, peerKey{}, p.uid)
			}
			return ctx
		},
	}
	return s
}

// Serve answers until Shutdown (then nil) or the listener fails. It closes the
// listener, not the socket's file.
func (s *Server) Serve(l net.Listener) error {
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	err := s.http.Serve(newPeerListener(l, maxConnections))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return &vfolder.Error{Op: "control socket", Kind: vfolder.KindOf(err), Err: err}
}

// Shutdown stops accepting and waits for the answers under way until ctx ends;
// then it cuts them off.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		_ = s.http.Close()
	}
	return err
}

// Listen makes the control socket, 0600 in a directory that only its user can
// enter, in place of a dead one. The caller holds the daemon's lock: nobody
// else listens there.
func Listen(path string) (*net.UnixListener, error) {
	fail := func(err error) (*net.UnixListener, error) {
		return nil, &vfolder.Error{Op: "control socket", Kind: vfolder.KindOf(err), Path: path, Err: err}
	}
	// sun_path has 108 bytes; the kernel's error for a longer one is only
	// "invalid argument".
	if len(path) > 107 {
		return nil, &vfolder.Error{
			Op: "control socket", Kind: vfolder.KindNameTooLong, Path: path,
			Err: fmt.Errorf("a socket's path has at most 107 bytes, this one has %d", len(path)), Fix: "set daemon.run_dir to a shorter path",
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fail(err)
	}
	// The mode comes from the umask between bind and listen, which is the
	// process's: the directory is what keeps others out meanwhile.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fail(err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return fail(err)
	}
	return l, nil
}

// guard lets nobody in but the daemon's user and root, and turns a panic of a
// handler into an answer.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		uid, ok := r.Context().Value(peerKey{}).(int)
		if !ok || uid < 0 || uid != 0 && uid != s.uid {
			s.log.Warn("control: refused", "uid", uid)
			writeError(w, &vfolder.Error{
				Op: "control socket", Kind: vfolder.KindAccess,
				Err: fmt.Errorf("this daemon serves user %d, not user %d", s.uid, uid), Fix: "vfolder daemon start",
			})
			return
		}
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler {
					panic(p)
				}
				s.log.Error("control: handler panicked", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
				panic(http.ErrAbortHandler)
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// handler is an endpoint that has written nothing yet when it fails.
type handler func(w http.ResponseWriter, r *http.Request) error

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h handler) {
		method, path, _ := strings.Cut(pattern, " ")
		mux.HandleFunc(method+" "+prefix+path, func(w http.ResponseWriter, r *http.Request) {
			start := time.Now()
			err := h(w, r)
			if err != nil {
				writeError(w, err)
			}
			s.log.Debug("control", "method", r.Method, "path", r.URL.Path, "took", time.Since(start), "err", err)
		})
	}
	handle("GET /version", s.version)
	handle("GET /folders", s.listFolders)
	handle("POST /folders", s.createFolder)
	handle("GET /folders/{folder}", s.showFolder)
	handle("DELETE /folders/{folder}", s.deleteFolder)
	handle("GET /folders/{folder}/status", s.folderStatus)
	handle("POST /folders/{folder}/sync", s.syncFolder)
	handle("POST /folders/{folder}/prepare", s.prepareFolder)
	handle("GET /folders/{folder}/entries", s.listFiles)
	handle("GET /folders/{folder}/stat", s.statFile)
	handle("GET /folders/{folder}/content", s.readFile)
	handle("PUT /folders/{folder}/content", s.writeFile)
	handle("POST /folders/{folder}/mkdir", s.mkdir)
	handle("POST /folders/{folder}/symlink", s.symlink)
	handle("GET /daemon", s.daemonStatus)
	handle("POST /daemon/restart", s.restart)
	handle("POST /daemon/stop", s.stop)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, vfolder.Errorf(vfolder.KindUnsupported, "api", r.Method+" "+r.URL.Path, "this daemon has no such call; it speaks version %d", APIVersion))
	})
	return mux
}

// decode reads a small JSON body; unknown fields are refused, so that an option
// that an older daemon does not know is not dropped silently.
func decode(w http.ResponseWriter, r *http.Request, into any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errors.New("there is more after the value")
		}
	}
	if err != nil {
		kind := vfolder.KindInvalid
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			kind = vfolder.KindTooLarge
		}
		return vfolder.Errorf(kind, "request", r.URL.Path, "body: %w", err)
	}
	return nil
}
