package config

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// DefaultBucket is the bucket of the embedded store, and the one asked for
// elsewhere when none is named.
const DefaultBucket = "vfolder"

// DefaultDrain is how long a stop waits for uploads.
const DefaultDrain = 10 * time.Minute

// setting is one row of the table of settings.
type setting struct {
	name     string
	fallback func(c *Config, env environment) string
	set      func(c *Config, text string) error
}

// settings is the one table; docs/configuration.md is checked against it.
var settings = []setting{
	{"store.endpoint", constant(""), func(c *Config, s string) error { return setEndpoint(&c.Store, s) }},
	{"store.tls", constant("true"), func(c *Config, s string) error { return setTLS(&c.Store, s) }},
	{"store.region", constant("us-east-1"), func(c *Config, s string) error { return setText(&c.Store.Region, s) }},
	{"store.bucket", constant(DefaultBucket), func(c *Config, s string) error { return setText(&c.Store.Bucket, s) }},
	{"store.create_bucket", constant("false"), func(c *Config, s string) error { return setBool(&c.Store.CreateBucket, s) }},
	{"store.path_style", constant("false"), func(c *Config, s string) error { return setBool(&c.Store.PathStyle, s) }},
	{"store.credentials_file", func(_ *Config, env environment) string {
		return filepath.Join(env.stateDir(), "credentials.toml")
	}, func(c *Config, s string) error { return setPath(&c.Store.CredentialsFile, s) }},

	{"daemon.state_dir", func(_ *Config, env environment) string { return env.stateDir() }, func(c *Config, s string) error { return setPath(&c.Daemon.StateDir, s) }},
	{"daemon.run_dir", func(_ *Config, env environment) string { return env.runDir() }, func(c *Config, s string) error { return setPath(&c.Daemon.RunDir, s) }},
	{"daemon.mountpoint", func(c *Config, _ environment) string {
		return filepath.Join(c.Daemon.RunDir, "mnt")
	}, func(c *Config, s string) error { return setPath(&c.Daemon.Mountpoint, s) }},
	{"daemon.reserve", constant("0"), func(c *Config, s string) error { return setSize(&c.Daemon.ReserveBytes, s) }},
	{"daemon.drain", constant(DefaultDrain.String()), func(c *Config, s string) error { return setDuration(&c.Daemon.Drain, s) }},
	{"daemon.log_level", constant("info"), func(c *Config, s string) error { return setLevel(&c.Daemon.LogLevel, s) }},
}

func known(name string) bool {
	for _, s := range settings {
		if s.name == name {
			return true
		}
	}
	return false
}

func constant(s string) func(*Config, environment) string {
	return func(*Config, environment) string { return s }
}

func setText(to *string, s string) error {
	if s == "" {
		return errors.New("it is empty")
	}
	*to = s
	return nil
}

func setBool(to *bool, s string) error {
	v, err := strconv.ParseBool(s)
	if err != nil {
		return fmt.Errorf("%q is not true or false", s)
	}
	*to = v
	return nil
}

// setPath takes absolute paths only: the daemon has no directory of its own.
func setPath(to *string, s string) error {
	if !filepath.IsAbs(s) {
		return fmt.Errorf("%q is not an absolute path", s)
	}
	*to = filepath.Clean(s)
	return nil
}

func setDuration(to *time.Duration, s string) error {
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a time such as 90s or 10m", s)
	}
	*to = v
	return nil
}

func setLevel(to *string, s string) error {
	switch s {
	case "debug", "info", "warn", "error":
		*to = s
		return nil
	}
	return fmt.Errorf("%q is not debug, info, warn or error", s)
}

// setEndpoint takes "host[:port]", or a URL without a path.
func setEndpoint(to *Store, s string) error {
	if s == "" {
		return nil
	}
	whole := s
	if !strings.Contains(s, "://") {
		whole = "https://" + s
	}
	u, err := url.Parse(whole)
	if err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return fmt.Errorf("%q is not HOST:PORT", s)
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("%q is neither http nor https", u.Scheme)
	}
	to.Endpoint = strings.TrimSuffix(s, "/")
	return nil
}

// setTLS comes after setEndpoint: a scheme in the endpoint wins over the
// setting, because it is the more visible of the two.
func setTLS(to *Store, s string) error {
	if err := setBool(&to.TLS, s); err != nil {
		return err
	}
	switch {
	case strings.HasPrefix(to.Endpoint, "http://"):
		to.TLS = false
	case strings.HasPrefix(to.Endpoint, "https://"):
		to.TLS = true
	}
	return nil
}

var units = []struct {
	suffix string
	bytes  int64
}{
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"KB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"TB", 1e12},
	{"K", 1 << 10},
	{"M", 1 << 20},
	{"G", 1 << 30},
	{"T", 1 << 40},
	{"B", 1},
}

// setSize takes a number of bytes, with a unit or without.
func setSize(to *int64, s string) error {
	bad := fmt.Errorf("%q is not a size such as 20GiB", s)
	number, unit := strings.TrimSpace(s), int64(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(number, u.suffix); ok {
			number, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	v, err := strconv.ParseInt(number, 10, 64)
	if err != nil || v < 0 || v > (1<<62)/unit {
		return bad
	}
	*to = v * unit
	return nil
}
