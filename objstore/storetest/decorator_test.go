package storetest_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vfolder/vfolder"
	"github.com/vfolder/vfolder/objstore"
	"github.com/vfolder/vfolder/objstore/faultstore"
	"github.com/vfolder/vfolder/objstore/storetest"
)

var quick = objstore.RetryPolicy{Attempts: 3, Base: time.Microsecond, Max: time.Microsecond}

func putString(ctx context.Context, s objstore.Store, key, body string) error {
	_, err := s.Put(ctx, key, strings.NewReader(body), int64(len(body)), objstore.PutOptions{})
	return err
}

func TestRetryRepeatsReadsOnly(t *testing.T) {
	ctx := t.Context()
	fault := faultstore.New(storetest.Open(t, storetest.Embedded(t)))
	s := objstore.Retry(fault, quick)
	if err := putString(ctx, s, "k", "v"); err != nil {
		t.Fatal(err)
	}
	all := func(faultstore.Call) bool { return true }
	fault.SetRules(faultstore.Times(2, faultstore.FailBefore(all)))
	if _, err := s.Head(ctx, "k"); err != nil || fault.Calls(faultstore.Head) != 3 {
		t.Errorf("head: %v after %d calls", err, fault.Calls(faultstore.Head))
	}
	fault.SetRules(faultstore.FailBefore(all))
	if _, _, err := s.Get(ctx, "k", 0, -1, ""); vfolder.KindOf(err) != vfolder.KindUnreachable || fault.Calls(faultstore.Get) != 3 {
		t.Errorf("get: %v after %d calls", err, fault.Calls(faultstore.Get))
	}
	if err := putString(ctx, s, "k", "w"); err == nil || fault.Calls(faultstore.Put) != 2 {
		t.Errorf("put: %v after %d calls, the first one included", err, fault.Calls(faultstore.Put))
	}
	if err := s.Delete(ctx, "k", objstore.Condition{}); err == nil || fault.Calls(faultstore.Delete) != 1 {
		t.Errorf("delete: %v after %d calls", err, fault.Calls(faultstore.Delete))
	}
	fault.SetRules()
	before := fault.Calls(faultstore.Head)
	if _, err := s.Head(ctx, "none"); vfolder.KindOf(err) != vfolder.KindNotFound || fault.Calls(faultstore.Head) != before+1 {
		t.Errorf("what is missing is asked for again: %v", err)
	}
	fault.SetDown(true)
	if _, err := s.Head(ctx, "k"); vfolder.KindOf(err) != vfolder.KindUnreachable {
		t.Errorf("down: %v", err)
	}
}

// A listing that breaks off after every entry is still whole, in order and
// without doubles.
func TestRetryGoesOnWithAListing(t *testing.T) {
	ctx := t.Context()
	fault := faultstore.New(storetest.Open(t, storetest.Embedded(t)))
	s := objstore.Retry(fault, quick)
	for _, k := range []string{"a", "b/1", "b/2", "c", "d/1"} {
		if err := putString(ctx, s, k, "v"); err != nil {
			t.Fatal(err)
		}
	}
	for delimited, want := range map[bool]string{true: "[a b/ c d/]", false: "[a b/1 b/2 c d/1]"} {
		// As many faults as it takes to see every entry, then an answer.
		fault.SetRules(faultstore.Times(5, faultstore.FailAfter(faultstore.On(faultstore.List))))
		var keys []string
		for in, err := range s.List(ctx, "", "", delimited) {
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, in.Key)
		}
		if got := fmt.Sprint(keys); got != want {
			t.Errorf("delimited %v: %s, want %s", delimited, got, want)
		}
	}
}

// A lost answer: the write happened, and its vfolder-id tells.
func TestLostAnswer(t *testing.T) {
	ctx := t.Context()
	s := faultstore.New(storetest.Open(t, storetest.Embedded(t)))
	s.SetRules(faultstore.Times(1, faultstore.FailAfter(faultstore.On(faultstore.Put))))
	o := objstore.PutOptions{Meta: map[string]string{"vfolder-id": "1.1.1.a"}, Condition: objstore.Condition{IfAbsent: true}}
	_, err := s.Put(ctx, "k", strings.NewReader("v"), 1, o)
	if vfolder.KindOf(err) != vfolder.KindUnreachable {
		t.Fatalf("%v", err)
	}
	if in, err := s.Head(ctx, "k"); err != nil || in.Meta["vfolder-id"] != "1.1.1.a" {
		t.Errorf("%+v, %v", in, err)
	}
	_, err = s.Put(ctx, "k", strings.NewReader("v"), 1, o)
	if vfolder.KindOf(err) != vfolder.KindConflict {
		t.Errorf("again: %v", err)
	}
}

func TestUploadAbortsWhatFailed(t *testing.T) {
	ctx := t.Context()
	s := faultstore.New(storetest.Open(t, storetest.Embedded(t)))
	body := bytes.NewReader(make([]byte, objstore.PutThreshold+1))
	for _, op := range []faultstore.Op{faultstore.UploadPart, faultstore.CompleteUpload} {
		aborts := s.Calls(faultstore.AbortUpload)
		s.SetRules(faultstore.Times(1, faultstore.FailBefore(faultstore.On(op))))
		_, err := objstore.Upload(ctx, s, "k", body, body.Size(), objstore.PutOptions{})
		if vfolder.KindOf(err) != vfolder.KindUnreachable || s.Calls(faultstore.AbortUpload) != aborts+1 {
			t.Errorf("%s: %v, %d aborts", op, err, s.Calls(faultstore.AbortUpload)-aborts)
		}
		if _, err := s.Head(ctx, "k"); vfolder.KindOf(err) != vfolder.KindNotFound {
			t.Errorf("%s: something was published: %v", op, err)
		}
	}
}

// A call that is held ends with its context.
func TestFaultHoldsACall(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := faultstore.New(storetest.Open(t, storetest.Embedded(t)))
	held := make(chan struct{})
	s.SetRules(func(faultstore.Call) (faultstore.Fault, bool) {
		close(held)
		return faultstore.Fault{Delay: time.Nanosecond, Wait: make(chan struct{})}, true
	})
	done := make(chan error)
	go func() {
		_, err := s.Head(ctx, "k")
		done <- err
	}()
	<-held
	cancel()
	if err := <-done; vfolder.KindOf(err) != vfolder.KindInterrupted {
		t.Errorf("%v", err)
	}
}
