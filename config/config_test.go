package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vfolder/vfolder"
)

const uid = 1234

// write makes config.toml of a home and returns the home.
func write(t *testing.T, text string) string {
	t.Helper()
	home := t.TempDir()
	dir := filepath.Join(home, ".config", "vfolder")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return home
}

func TestDefaults(t *testing.T) {
	home := t.TempDir()
	c, err := load(nil, nil, home, uid)
	if err != nil {
		t.Fatal(err)
	}
	d := Daemon{
		StateDir: home + "/.local/state/vfolder", RunDir: "/run/user/1234/vfolder", Mountpoint: "/run/user/1234/vfolder/mnt",
		Drain: 10 * time.Minute, LogLevel: "info",
	}
	if c.Daemon != d || !c.Store.Embedded() || c.Store.CredentialsFile != home+"/.local/state/vfolder/credentials.toml" {
		t.Errorf("got %+v", c)
	}
	for _, v := range c.Values() {
		if v.Origin.Source != FromDefault {
			t.Errorf("%+v", v)
		}
	}
	if c.Daemon.Socket() != "/run/user/1234/vfolder/control.sock" {
		t.Error(c.Daemon.Socket())
	}
	c, err = load(nil, []string{"XDG_STATE_HOME=/s", "XDG_RUNTIME_DIR=/r", "XDG_CONFIG_HOME=relative"}, home, 0)
	if err != nil || c.Daemon.StateDir != "/s/vfolder" || c.Daemon.RunDir != "/r/vfolder" || c.File != home+"/.config/vfolder/config.toml" {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err = load(nil, nil, home, 0); err != nil || c.Daemon.RunDir != "/run/vfolder" {
		t.Errorf("root: %+v, %v", c, err)
	}
}

func TestWhoWins(t *testing.T) {
	home := write(t, `
# a comment
[store]
endpoint = "http://minio:9000"
bucket = "from-file"
path_style = true

[daemon]
reserve = 1048576
drain = "90s"
`)
	c, err := load(
		map[string]string{"store.bucket": "from-flag"},
		[]string{"VFOLDER_STORE_BUCKET=from-env", "VFOLDER_DAEMON_LOG_LEVEL=debug", "VFOLDER_IMAGE=other", "HOME=/x"},
		home, uid)
	if err != nil {
		t.Fatal(err)
	}
	s := c.Store
	if s.Endpoint != "http://minio:9000" || s.TLS || s.Bucket != "from-flag" || !s.PathStyle || s.Embedded() {
		t.Errorf("store %+v", s)
	}
	d := c.Daemon
	if d.ReserveBytes != 1<<20 || d.Drain != 90*time.Second || d.LogLevel != "debug" {
		t.Errorf("daemon %+v", d)
	}
	for key, want := range map[string]string{
		"store.bucket":     "flag --store-bucket",
		"daemon.log_level": "environment VFOLDER_DAEMON_LOG_LEVEL",
		"daemon.reserve":   "file " + c.File + ":9",
		"store.region":     "default",
	} {
		if got := c.Origin(key).String(); got != want {
			t.Errorf("%s: %s, want %s", key, got, want)
		}
	}
}

func TestMistakesAreNamed(t *testing.T) {
	for _, test := range []struct{ text, env, want string }{
		{"[store]\nendpont = \"x\"", "", "line 2: there is no setting \"store.endpont\""},
		{"[stor]\nendpoint = \"x\"", "", "line 1: there is no setting \"stor\""},
		{"top = 1", "", "line 1: there is no setting \"top\""},
		{"[daemon]\nlog_level = \"loud\"", "", "config.toml:2"},
		{"[daemon]\nreserve = \"much\"", "", "not a size"},
		{"[daemon]\nreserve = -5", "", "not a size"},
		{"[daemon]\nstate_dir = \"here\"", "", "not an absolute path"},
		{"[daemon]\ndrain = \"soon\"", "", "not a time"},
		{"[store]\ntls = \"maybe\"", "", "not true or false"},
		{"[store]\nbucket = \"\"", "", "empty"},
		{"[store]\nendpoint = \"ftp://x\"", "", "neither http nor https"},
		{"[store]\nendpoint = \"http://x/path\"", "", "not HOST:PORT"},
		{"[store]\nendpoint = [1]", "", "line 2"},
		{"[store\n", "", "line 2: expected"},
		{"", "VFOLDER_STORE_ENDPONT=x", "VFOLDER_STORE_ENDPONT"},
		{"", "VFOLDER_DAEMON_DRAIN=x", "environment VFOLDER_DAEMON_DRAIN"},
		{"", "VFOLDER_CONFIG=/nowhere/at-all.toml", "no such file"},
	} {
		_, err := load(nil, []string{test.env}, write(t, test.text), uid)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q %q: %v", test.text, test.env, err)
		}
		if k := vfolder.KindOf(err); k != vfolder.KindInvalid && k != vfolder.KindNotFound {
			t.Errorf("%q: kind %v", test.text, k)
		}
	}
	_, err := load(map[string]string{"store.color": "red"}, nil, t.TempDir(), uid)
	if err == nil {
		t.Error("an unknown flag was taken")
	}
	_, err = load(nil, nil, write(t, "[store]\npath-style = true"), uid)
	var e *vfolder.Error
	if !errors.As(err, &e) || e.Fix != "write store.path_style" {
		t.Errorf("no hint: %v", err)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "7": 7, "7B": 7, "2KiB": 2048, "2 KB": 2000, "3G": 3 << 30, "1TiB": 1 << 40} {
		var got int64
		if err := setSize(&got, text); err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "GiB", "1.5G", "99999999999T", "0x10"} {
		var got int64
		if err := setSize(&got, text); err == nil {
			t.Errorf("%q was taken as %d", text, got)
		}
	}
}

func TestCredentials(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "credentials.toml")
	first, made, err := MakeCredentials(path)
	if err != nil || !made || len(first.SecretKey) < 32 {
		t.Fatalf("%v, %v, %v", first, made, err)
	}
	if strings.Contains(first.String(), first.SecretKey) {
		t.Error("the secret shows")
	}
	second, made, err := MakeCredentials(path)
	if err != nil || made || second != first {
		t.Errorf("made anew: %v, %v", made, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	_, err = ReadCredentials(path)
	var e *vfolder.Error
	if !errors.As(err, &e) || e.Kind != vfolder.KindAccess || e.Fix != "chmod 600 "+path {
		t.Errorf("readable by others: %v", err)
	}
	for name, text := range map[string]string{
		"half":    "access_key = \"a\"",
		"unknown": "access_key = \"a\"\nsecret_key = \"b\"\nsecert = \"c\"",
		"broken":  "access_key = \"leaked-secret",
	} {
		p := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := ReadCredentials(p)
		if vfolder.KindOf(err) != vfolder.KindInvalid || strings.Contains(err.Error(), "leaked-secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ReadCredentials("/nowhere/c"); vfolder.KindOf(err) != vfolder.KindNotFound {
		t.Errorf("missing: %v", err)
	}
}

// TestDocumented compares the table with the document: every setting, its
// variable and nothing else.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "docs", "configuration.md"))
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	table, _, _ := strings.Cut(string(text), "\n\nSizes take")
	for line := range strings.SplitSeq(table, "\n") {
		if name, ok := strings.CutPrefix(line, "| `"); ok {
			name, _, _ = strings.Cut(name, "`")
			if strings.Contains(name, ".") {
				rows = append(rows, name)
			}
		}
	}
	if got, want := strings.Join(rows, " "), strings.Join(Keys(), " "); got != want {
		t.Errorf("documented: %s\nsettings:   %s", got, want)
	}
}
