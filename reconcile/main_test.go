package reconcile

import (
	"flag"
	"fmt"
	"os"
	"testing"
)

// TestMain keeps the model test short unless -rapid.checks says otherwise.
func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "25"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	os.Exit(m.Run())
}
