package config

import (
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/vfolder/vfolder"
)

// Credentials are the keys of an object store. They never appear on a command
// line, in the environment of a child or in a log.
type Credentials struct {
	AccessKey string `toml:"access_key"`
	SecretKey string `toml:"secret_key"`
}

// String hides the secret.
func (c Credentials) String() string { return c.AccessKey + ":***" }

// GoString hides the secret.
func (c Credentials) GoString() string { return c.String() }

// ReadCredentials reads a TOML file with access_key and secret_key. A file that
// others can read is refused with KindAccess.
func ReadCredentials(path string) (Credentials, error) {
	fail := func(kind vfolder.Kind, err error, fix string) (Credentials, error) {
		return Credentials{}, &vfolder.Error{Op: "credentials", Kind: kind, Path: path, Err: err, Fix: fix}
	}
	info, err := os.Stat(path)
	if err != nil {
		return fail(vfolder.KindOf(err), err, "write access_key and secret_key into "+path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fail(vfolder.KindAccess, fmt.Errorf("others may read it (mode %04o)", mode), "chmod 600 "+path)
	}
	text, err := readBounded(path)
	if err != nil {
		return fail(vfolder.KindOf(err), err, "")
	}
	var c Credentials
	md, err := toml.Decode(text, &c)
	if err != nil {
		return fail(vfolder.KindInvalid, errors.New("it is not TOML"), "") // the cause would show its text
	}
	if extra := md.Undecoded(); len(extra) > 0 {
		return fail(vfolder.KindInvalid, fmt.Errorf("line %d: there is no setting %q", lineOf(text, extra[0].String()), extra[0].String()), "")
	}
	if c.AccessKey == "" || c.SecretKey == "" {
		return fail(vfolder.KindInvalid, errors.New("access_key or secret_key is missing"), "write both into "+path)
	}
	return c, nil
}

// MakeCredentials reads the file, or makes it with new random keys when it does
// not exist. made tells which. Two processes that race agree on one file.
func MakeCredentials(path string) (c Credentials, made bool, err error) {
	c, err = ReadCredentials(path)
	if !errors.Is(err, os.ErrNotExist) {
		return c, false, err
	}
	c = Credentials{AccessKey: "vfolder" + strings.ToUpper(random(8)), SecretKey: random(25)}
	if err := writeNew(path, fmt.Sprintf("# Keys of vfolder's embedded object store on this host.\naccess_key = %q\nsecret_key = %q\n", c.AccessKey, c.SecretKey)); err != nil {
		if errors.Is(err, os.ErrExist) {
			c, err = ReadCredentials(path)
			return c, false, err
		}
		return Credentials{}, false, &vfolder.Error{Op: "credentials", Kind: vfolder.KindOf(err), Path: path, Err: err}
	}
	return c, true, nil
}

// random returns n random bytes as lower-case letters and digits.
func random(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b))
}

// writeNew makes a file that appears whole, durably, and never replaces one.
func writeNew(path, text string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".credentials-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
