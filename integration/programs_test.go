package integration

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/minio/minio-go/v7"

	"github.com/vfolder/vfolder/objstore"
	"github.com/vfolder/vfolder/objstore/storetest"
)

// stores are the real servers that everything facing the store runs against.
var stores = map[string]func(testing.TB) objstore.Config{"embedded": storetest.Embedded, "minio": storetest.MinIO}

const gitStory = `
export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@t GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@t
git init -q -b main origin; cd origin
for i in $(seq 200); do mkdir -p d$((i%10)); seq $i $((i+50)) >d$((i%10))/f$i; done
git add -A; git commit -qm one
cd ..; git clone -q origin clone; cd clone
for i in $(seq 10); do echo $i >new; git add new; git commit -qm "c$i"; done
git gc -q; git fsck --strict
test "$(git rev-list --count HEAD)" = 11
git status --porcelain | wc -l | grep -qx 0
`

const goStory = `
export GOCACHE="$TMPDIR/gocache" GOFLAGS=-mod=mod GOPROXY=off HOME="$TMPDIR"
mkdir prog; cd prog
cat >go.mod <<X
module example.com/prog
go 1.21
X
mkdir greet
printf 'package greet\n\nfunc Hello() string { return "hello from a folder" }\n' >greet/greet.go
printf 'package main\n\nimport "example.com/prog/greet"\n\nfunc main() { println(greet.Hello()) }\n' >main.go
go build -o prog .
./prog 2>&1 | grep -qx 'hello from a folder'
`

const pipStory = `
mkdir src; cd src
mkdir vfdemo; echo 'ANSWER = 42' >vfdemo/__init__.py
python3 - <<X
import zipfile
z = zipfile.ZipFile('vfdemo-1.0-py3-none-any.whl', 'w')
z.write('vfdemo/__init__.py')
z.writestr('vfdemo-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\nName: vfdemo\nVersion: 1.0\n')
z.writestr('vfdemo-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
z.writestr('vfdemo-1.0.dist-info/RECORD', '')
z.close()
X
/usr/bin/python3 -m pip install -q --no-index --no-cache-dir --disable-pip-version-check --target ../site vfdemo-1.0-py3-none-any.whl
cd ..; PYTHONPATH=$PWD/site /usr/bin/python3 -Pc 'import vfdemo; assert vfdemo.ANSWER == 42; assert "/site/" in vfdemo.__file__'
`

const sqliteStory = `
for mode in delete wal; do
  sqlite3 $mode.db "pragma journal_mode=$mode; create table t(a integer primary key, b text);" >/dev/null
  for i in $(seq 25); do sqlite3 $mode.db "insert into t(b) values (hex(randomblob(200))); update t set b = b || 'x' where a % 7 = 0;"; done
  sqlite3 $mode.db 'pragma integrity_check' | grep -qx ok
  sqlite3 $mode.db 'select count(*) from t' | grep -qx 25
done
`

const tarStory = `
python3 - "$TMPDIR/many.tar" <<X
import io, os, sys, tarfile
t = tarfile.open(sys.argv[1], 'w')
for i in range(10000):
    b = (str(i) * 40).encode()
    f = tarfile.TarInfo('many/d%02d/f%05d' % (i % 100, i))
    f.size, f.mtime, f.mode = len(b), 1600000000 + i, 0o640 if i % 2 else 0o755
    f.uid, f.gid = os.getuid(), os.getgid()
    t.addfile(f, io.BytesIO(b))
t.close()
X
tar -xf "$TMPDIR/many.tar"
find many -type f | wc -l | grep -qx 10000
tar -df "$TMPDIR/many.tar"
rm "$TMPDIR/many.tar"
`

const bigStory = `
head -c 1073741824 /dev/urandom | tee big | sha256sum >"$TMPDIR/big.sum"
sed -i 's/-$/big/' "$TMPDIR/big.sum"
sha256sum -c --quiet "$TMPDIR/big.sum"
`

const nodesStory = `
mkdir nodes; cd nodes
echo one >a; ln a b; mkdir sub; ln a sub/c
ln -s ../nowhere dangling; ln -s a link
printf x >modes; chmod 6751 modes
mkdir sticky; chmod 1770 sticky; mkdir empty
mkfifo pipe
touch -d '2001-02-03 04:05:06.123456789' a
truncate -s 3M sparse; printf end >>sparse
`

// TestPrograms runs what people run in a folder, and then holds three trees
// against one another: the folder, the bucket, and the folder as a second host
// sees it that has nothing but the bucket, with and without the attribute
// segments.
func TestPrograms(t *testing.T) {
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			cfg := open(t)
			h := newHost(t, &cfg).start()
			dir := h.folder("work")
			for _, s := range []struct{ name, script string }{
				{"git", gitStory}, {"go", goStory}, {"pip", pipStory}, {"sqlite", sqliteStory}, {"tar", tarStory}, {"big", bigStory}, {"nodes", nodesStory},
			} {
				if !t.Run(s.name, func(t *testing.T) {
					h := *h
					h.t = t
					sub := filepath.Join(dir, s.name)
					if err := os.Mkdir(sub, 0o755); err != nil {
						t.Fatal(err)
					}
					h.env = append(h.env, "TMPDIR="+t.TempDir())
					h.sh(sub, s.script)
				}) {
					return
				}
			}
			want := tree(t, dir)
			h.sync("work")
			c := client(t, cfg)
			bucketEqualsTree(t, c, cfg.Bucket, "work/", dir)
			o, err := c.StatObject(t.Context(), cfg.Bucket, "work/nodes/nodes/modes", minio.StatObjectOptions{})
			if err != nil || mode(o) != "0106751" {
				t.Errorf("the object of a file of mode 6751 says %s (%v)", mode(o), err)
			}
			h.vf("daemon", "stop")

			second := newHost(t, &cfg).start()
			sameTree(t, "second host", want, tree(t, second.path("work")))
			second.vf("daemon", "stop")

			for key := range objects(t, c, cfg.Bucket, ".vfolder/") {
				if filepath.Base(filepath.Dir(key)) == "attrs" {
					if err := c.RemoveObject(t.Context(), cfg.Bucket, ".vfolder/"+key, minio.RemoveObjectOptions{}); err != nil {
						t.Fatal(err)
					}
				}
			}
			third := newHost(t, &cfg).start()
			sameTree(t, "host without attribute segments", want, tree(t, third.path("work")))
		})
	}
}
