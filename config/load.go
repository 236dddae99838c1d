package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/vfolder/vfolder"
)

// maxFileBytes bounds what is read as configuration or credentials.
const maxFileBytes = 1 << 20

// environment is what defaults are made from.
type environment struct {
	vars map[string]string
	home string
	uid  int
}

// dir is an XDG directory: relative values are ignored, as that standard says.
func (e environment) dir(name, fallback string) string {
	if v := e.vars[name]; filepath.IsAbs(v) {
		return v
	}
	return fallback
}

func (e environment) configDir() string {
	return filepath.Join(e.dir("XDG_CONFIG_HOME", filepath.Join(e.home, ".config")), "vfolder")
}

func (e environment) stateDir() string {
	return filepath.Join(e.dir("XDG_STATE_HOME", filepath.Join(e.home, ".local", "state")), "vfolder")
}

func (e environment) runDir() string {
	fallback := fmt.Sprintf("/run/user/%d", e.uid)
	if e.uid == 0 {
		fallback = "/run"
	}
	return filepath.Join(e.dir("XDG_RUNTIME_DIR", fallback), "vfolder")
}

// found is a value before it is taken.
type found struct {
	text   string
	origin Origin
}

func load(flags map[string]string, environ []string, home string, uid int) (*Config, error) {
	env := environment{vars: map[string]string{}, home: home, uid: uid}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		env.vars[name] = value
	}
	c := &Config{File: env.vars["VFOLDER_CONFIG"]}
	named := c.File != ""
	if !named {
		c.File = filepath.Join(env.configDir(), "config.toml")
	}
	values, err := readFile(c.File, named)
	if err != nil {
		return nil, err
	}
	if err := fromEnvironment(env, values); err != nil {
		return nil, err
	}
	for name, text := range flags {
		if !known(name) {
			return nil, vfolder.Errorf(vfolder.KindInvalid, "configuration", name, "there is no such setting")
		}
		values[name] = found{text, Origin{FromFlag, "--" + FlagName(name)}}
	}
	return c, c.take(values, env)
}

// take sets every setting, in the order of the table: defaults may use what
// came before.
func (c *Config) take(values map[string]found, env environment) error {
	for _, s := range settings {
		v, ok := values[s.name]
		if !ok {
			v = found{s.fallback(c, env), Origin{Source: FromDefault}}
		}
		if err := s.set(c, v.text); err != nil {
			return &vfolder.Error{
				Op: "configuration", Kind: vfolder.KindInvalid, Path: s.name, Err: fmt.Errorf("%w (%s)", err, v.origin),
			}
		}
		c.values = append(c.values, Value{s.name, v.text, v.origin})
	}
	return nil
}

// fromEnvironment takes VFOLDER_SECTION_KEY. A variable of our sections that is
// no setting is an error: a typing error must not be silent.
func fromEnvironment(env environment, values map[string]found) error {
	names := map[string]string{}
	for _, s := range settings {
		names[envName(s.name)] = s.name
	}
	for name, text := range env.vars {
		if key, ok := names[name]; ok {
			values[key] = found{text, Origin{FromEnv, name}}
			continue
		}
		if strings.HasPrefix(name, "VFOLDER_STORE_") || strings.HasPrefix(name, "VFOLDER_DAEMON_") {
			return &vfolder.Error{
				Op: "configuration", Kind: vfolder.KindInvalid, Path: name,
				Err: errors.New("no setting has this variable"), Fix: "unset " + name,
			}
		}
	}
	return nil
}

// Keys lists all settings ("store.endpoint") in the order of
// docs/configuration.md.
func Keys() []string {
	var keys []string
	for _, s := range settings {
		keys = append(keys, s.name)
	}
	return keys
}

func envName(key string) string {
	return "VFOLDER_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// FlagName is the flag of vfolderd for a key: "daemon.state_dir" is state-dir,
// "store.endpoint" is store-endpoint.
func FlagName(key string) string {
	return strings.ReplaceAll(strings.ReplaceAll(strings.TrimPrefix(key, "daemon."), ".", "-"), "_", "-")
}

// readFile reads config.toml into texts by key.
func readFile(path string, named bool) (map[string]found, error) {
	text, err := readBounded(path)
	switch {
	case errors.Is(err, os.ErrNotExist) && !named:
		return map[string]found{}, nil
	case err != nil:
		return nil, &vfolder.Error{Op: "configuration", Kind: vfolder.KindOf(err), Path: path, Err: err}
	}
	var tree map[string]any
	if _, err := toml.Decode(text, &tree); err != nil {
		var at toml.ParseError
		if errors.As(err, &at) {
			err = fmt.Errorf("line %d: %s", at.Position.Line, at.Message)
		}
		return nil, &vfolder.Error{Op: "configuration", Kind: vfolder.KindInvalid, Path: path, Err: err}
	}
	values := map[string]found{}
	for section, content := range tree {
		keys, ok := content.(map[string]any)
		if !ok || !slices.Contains([]string{"store", "daemon"}, section) {
			return nil, unknown(path, text, section)
		}
		for name, value := range keys {
			key := section + "." + name
			if !known(key) {
				return nil, unknown(path, text, key)
			}
			at := Origin{FromFile, fmt.Sprintf("%s:%d", path, lineOf(text, key))}
			switch v := value.(type) {
			case string:
				values[key] = found{v, at}
			case bool:
				values[key] = found{strconv.FormatBool(v), at}
			case int64:
				values[key] = found{strconv.FormatInt(v, 10), at}
			default:
				return nil, vfolder.Errorf(vfolder.KindInvalid, "configuration", path,
					"line %d: %s has to be a string, a number or true or false", lineOf(text, key), key)
			}
		}
	}
	return values, nil
}

func readBounded(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFileBytes {
		return "", fmt.Errorf("not a regular file of at most %d bytes", maxFileBytes)
	}
	text, err := os.ReadFile(path)
	return string(text), err
}

func unknown(path, text, key string) error {
	err := vfolder.Error{
		Op: "configuration", Kind: vfolder.KindInvalid, Path: path,
		Err: fmt.Errorf("line %d: there is no setting %q", lineOf(text, key), key),
	}
	if near := nearest(key); near != "" {
		err.Fix = "write " + near
	}
	return &err
}

// lineOf finds the line of a key, because the decoder does not tell it. 0 when
// it is written in a way that this does not see (an inline table).
func lineOf(text, key string) int {
	section := ""
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "["); ok {
			section, _, _ = strings.Cut(rest, "]")
			section = unquote(section)
			if section == key {
				return i + 1
			}
			continue
		}
		name, _, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		name = unquote(name)
		if section != "" {
			name = section + "." + name
		}
		if name == key {
			return i + 1
		}
	}
	return 0
}

func unquote(s string) string { return strings.Trim(strings.TrimSpace(s), `"' [`) }

// nearest is a setting whose last part is written nearly so.
func nearest(key string) string {
	_, name, _ := strings.Cut(key, ".")
	plain := func(s string) string { return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(s)) }
	for _, s := range settings {
		_, last, _ := strings.Cut(s.name, ".")
		if plain(last) == plain(name) || plain(s.name) == plain(key) {
			return s.name
		}
	}
	return ""
}
