package launcher

import (
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vfolder/vfolder"
)

// Without what Podman needs, the error names the command that mends it.
func testRefusals(t *testing.T, _ *bed) {
	cases := []struct {
		name string
		env  map[string]string
		text string
		fix  string
	}{
		{"podman elsewhere", map[string]string{"CONTAINER_HOST": "ssh://host/sock"}, "on this host", "unset CONTAINER_HOST"},
		{"nobody listens", map[string]string{"CONTAINER_HOST": "unix:///nowhere/sock"}, "does not answer", "podman info"},
		{"no runtime directory", map[string]string{"XDG_RUNTIME_DIR": "/nowhere"}, "no runtime directory", "loginctl enable-linger"},
		{"no podman", map[string]string{"XDG_RUNTIME_DIR": t.TempDir(), "PATH": t.TempDir()}, "not installed", "apt-get install podman"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("CONTAINER_HOST", "")
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			l, err := Connect(t.Context())
			if err == nil {
				l.Close()
				t.Fatal("connected")
			}
			var e *vfolder.Error
			if !errors.As(err, &e) || e.Kind != vfolder.KindUnsupported || !strings.Contains(e.Error(), c.text) || !strings.Contains(e.Fix, c.fix) {
				t.Errorf("%v; fix %q", err, e.Fix)
			}
		})
	}
	t.Run("a service that cannot start", func(t *testing.T) {
		bin := t.TempDir()
		write(t, filepath.Join(bin, "podman"), []byte("#!/bin/sh\necho broken on purpose >&2\nexit 3\n"), 0o755)
		t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
		t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
		if _, err := Connect(t.Context()); err == nil || !strings.Contains(err.Error(), "broken on purpose") {
			t.Error(err)
		}
	})
}

// An older Podman is refused by its version.
func TestOldPodman(t *testing.T) {
	for version, old := range map[string]bool{"4.2.1": true, "4.3.0": false, "5.8.0": false} {
		socket := filepath.Join(t.TempDir(), "s")
		listener, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Libpod-API-Version", version)
		})}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = server.Serve(listener)
		}()
		l, err := dial(t.Context(), socket)
		if (err != nil) != old || old && !strings.Contains(err.Error(), "4.2.1 is too old") {
			t.Errorf("%s: %v", version, err)
		}
		if err == nil {
			l.Close()
		}
		_ = server.Close()
		<-done
	}
}

func TestHasSubordinate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "subuid")
	write(t, file, []byte("ann:100000:65536\nanna:165536:65536\n"), 0o644)
	for name, want := range map[string]bool{"ann": true, "anna": true, "an": false, "": false} {
		if got := hasSubordinate(file, name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
	if hasSubordinate(file+"x", "ann") {
		t.Error("a missing file")
	}
}

func TestPick(t *testing.T) {
	sessions := []Session{{ID: "aaaa1111", Name: "one"}, {ID: "aaaa2222", Name: "two"}, {ID: "bbbb3333", Name: "aaaa"}}
	for ref, want := range map[string]string{"one": "one", "aaaa1": "one", "aaaa": "aaaa", "bbbb": "aaaa", "aaaa2222": "two"} {
		if s, err := pick(sessions, ref); err != nil || s.Name != want {
			t.Errorf("%s: %v, %v", ref, s, err)
		}
	}
	if _, err := pick(sessions[:2], "aaaa"); !errors.Is(err, vfolder.KindConflict) {
		t.Error(err)
	}
	if _, err := pick(nil, "x"); !errors.Is(err, vfolder.KindNotFound) {
		t.Error(err)
	}
}
