// Package config finds out how a daemon and its clients are set up: flag, then
// VFOLDER_* environment, then config.toml, then the default, and remembers for
// each value which of these it came from.
package config

import (
	"os"
	"path/filepath"
	"time"

	"github.com/vfolder/vfolder"
)

// Store says which bucket holds the folders. An empty Endpoint is the embedded
// store: then the other fields say nothing.
type Store struct {
	Endpoint        string // "host:port" or with http:// or https:// in front
	TLS             bool   // https, where Endpoint has no scheme
	Region          string
	Bucket          string
	CreateBucket    bool   // make the bucket when it is missing
	PathStyle       bool   // the bucket is addressed in the path, not in the host name
	CredentialsFile string // see ReadCredentials
}

// Embedded reports whether the daemon runs an object store of its own.
func (s Store) Embedded() bool { return s.Endpoint == "" }

// Daemon says where the daemon keeps things, and how it runs.
type Daemon struct {
	StateDir   string // index, local content, embedded store, logs: must survive a reboot
	RunDir     string // sockets and the mount; gone after a reboot
	Mountpoint string
	// ReserveBytes is disk space that is left alone. 0: chosen by the size of
	// the disk.
	ReserveBytes int64
	Drain        time.Duration // how long a stop waits for what is not in the bucket yet
	LogLevel     string        // debug, info, warn or error
}

// Socket is where the control API is served.
func (d Daemon) Socket() string { return filepath.Join(d.RunDir, "control.sock") }

// LogDir holds the log files of a daemon that systemd did not start.
func (d Daemon) LogDir() string { return filepath.Join(d.StateDir, "log") }

// Config is the whole of it. It is not changed after Load.
type Config struct {
	Store  Store
	Daemon Daemon
	// File is the configuration file that was looked for; it may not exist.
	File string

	values []Value
}

// Origin says where a value came from.
type Origin struct {
	Source Source
	// Name is the flag, the variable, or the file with the line.
	Name string
}

// Source is a kind of Origin. A higher one wins.
type Source string

// The sources of values.
const (
	FromDefault Source = "default"
	FromFile    Source = "file"
	FromEnv     Source = "environment"
	FromFlag    Source = "flag"
)

func (o Origin) String() string {
	if o.Name == "" {
		return string(o.Source)
	}
	return string(o.Source) + " " + o.Name
}

// Value is one setting as it was decided.
type Value struct {
	Key    string // "store.endpoint"
	Text   string
	Origin Origin
}

// Values lists all settings in the order of docs/configuration.md.
func (c *Config) Values() []Value { return append([]Value(nil), c.values...) }

// Origin tells where the value of a key ("store.endpoint") came from.
func (c *Config) Origin(key string) Origin {
	for _, v := range c.values {
		if v.Key == key {
			return v.Origin
		}
	}
	return Origin{}
}

// Load reads the configuration of this process: flags by key
// ("daemon.state_dir"), os.Environ, and the file that $VFOLDER_CONFIG names,
// else vfolder/config.toml of the user's configuration directory. A file that
// is named but missing is an error. Every error is KindInvalid, KindNotFound or
// KindAccess and names the line, variable or flag.
func Load(flags map[string]string) (*Config, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, &vfolder.Error{Op: "configuration", Kind: vfolder.KindInvalid, Err: err, Fix: "set HOME"}
	}
	return load(flags, os.Environ(), home, os.Geteuid())
}
