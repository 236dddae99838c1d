package storetest_test

import (
	"testing"

	"github.com/vfolder/vfolder/objstore"
	"github.com/vfolder/vfolder/objstore/faultstore"
	"github.com/vfolder/vfolder/objstore/storetest"
)

func TestEmbedded(t *testing.T) {
	storetest.Run(t, func(t *testing.T) objstore.Store { return storetest.Open(t, storetest.Embedded(t)) })
}

func TestMinIO(t *testing.T) {
	storetest.Run(t, func(t *testing.T) objstore.Store { return storetest.Open(t, storetest.MinIO(t)) })
}

// The decorators keep the contract too.
func TestDecorated(t *testing.T) {
	storetest.Run(t, func(t *testing.T) objstore.Store {
		return objstore.Retry(faultstore.New(storetest.Open(t, storetest.Embedded(t))), objstore.DefaultRetry)
	})
}
