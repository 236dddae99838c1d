package storetest_test

import (
	"encoding/json"
	"testing"

	"github.com/vfolder/vfolder/objstore"
	"github.com/vfolder/vfolder/objstore/storetest"
)

func TestProbe(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  objstore.Config
		want objstore.Capabilities
	}{
		{"embedded", storetest.Embedded(t), objstore.Capabilities{
			PutIfAbsent: true, PutIfMatch: true, CompleteIfAbsent: true, CompleteIfMatch: true,
			DeleteIfMatch: true, PlusInKeys: true, UTF8Keys: true, ListEncoding: true,
		}},
		{"minio", storetest.MinIO(t), objstore.Capabilities{
			PutIfAbsent: true, PutIfMatch: true, CompleteIfAbsent: true, CompleteIfMatch: true,
			PlusInKeys: true, UTF8Keys: true, ListEncoding: true,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := storetest.Open(t, tc.cfg)
			if got := s.Capabilities(); got != tc.want {
				t.Errorf("capabilities %+v, want %+v", got, tc.want)
			}
			for in, err := range s.List(t.Context(), "", "", false) {
				t.Errorf("the probe left %q, %v", in.Key, err)
			}
			b, err := json.Marshal(s.Capabilities())
			if err != nil {
				t.Fatal(err)
			}
			var back objstore.Capabilities
			if err := json.Unmarshal(b, &back); err != nil || back != tc.want {
				t.Errorf("%s came back as %+v, %v", b, back, err)
			}
		})
	}
}
