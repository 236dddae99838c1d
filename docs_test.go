package vfolder

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	promise  = regexp.MustCompile(`^- \*\*(SEM-\d{3})\*\* .*? Tests: (.+)$`)
	testName = regexp.MustCompile("`([a-z/0-9]+)\\.((?:Test|Fuzz)\\w+)`")
)

// TestPromisesAreTested holds docs/semantics.md against the tests it names.
func TestPromisesAreTested(t *testing.T) {
	text, err := os.ReadFile("docs/semantics.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, line := range strings.Split(string(text), "\n") {
		if !strings.HasPrefix(line, "- **SEM-") {
			continue
		}
		m := promise.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("a promise names no test: %s", line)
			continue
		}
		if seen[m[1]] {
			t.Errorf("%s is there twice", m[1])
		}
		seen[m[1]] = true
		tests := testName.FindAllStringSubmatch(m[2], -1)
		if len(tests) == 0 {
			t.Errorf("%s names no test", m[1])
		}
		for _, test := range tests {
			if !hasTest(t, test[1], test[2]) {
				t.Errorf("%s names %s.%s, which does not exist", m[1], test[1], test[2])
			}
		}
	}
	if len(seen) < 10 {
		t.Errorf("only %d promises were found", len(seen))
	}
}

func hasTest(t *testing.T, pkg, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "\nfunc "+name+"(") {
			return true
		}
	}
	return false
}

// TestErrorTableIsDocumented holds docs/errors.md against the table of kinds.
func TestErrorTableIsDocumented(t *testing.T) {
	text, err := os.ReadFile("docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, k := range Kinds() {
		row := k.Info()
		if names[row.Name] || row.Name == "" || row.Errno == 0 || row.HTTP < 200 || row.Exit == 0 {
			t.Errorf("row of kind %d is not complete and unique: %+v", k, row)
		}
		names[row.Name] = true
		want := fmt.Sprintf("| %s | %s | %d | %d |", row.Name, errnoName(row.Errno), row.HTTP, row.Exit)
		if !strings.Contains(string(text), want) {
			t.Errorf("docs/errors.md lacks the row %s", want)
		}
		if ParseKind(row.Name) != k {
			t.Errorf("ParseKind(%q) is not %d", row.Name, k)
		}
	}
}
