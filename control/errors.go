package control

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/vfolder/vfolder"
)

// errorObject is an error in JSON. Its status is the Kind's.
type errorObject struct {
	Kind    string `json:"kind"`
	Op      string `json:"op,omitempty"`
	Path    string `json:"path,omitempty"`
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"`
}

type errorBody struct {
	Error errorObject `json:"error"`
}

// toObject describes an error. The Kind is the outermost one, the fix the first
// one in the chain.
func toObject(err error) errorObject {
	o := errorObject{Kind: kindOf(err).String(), Message: err.Error()}
	var e *vfolder.Error
	if errors.As(err, &e) {
		o.Op, o.Path = e.Op, e.Path
		if e.Err != nil {
			o.Message = e.Err.Error()
		} else {
			o.Message = e.Kind.String()
		}
	}
	for next := err; errors.As(next, &e) && o.Fix == ""; next = e.Err {
		o.Fix = e.Fix
		if e.Err == nil {
			break
		}
	}
	return o
}

// kindOf is vfolder.KindOf, and the Kinds of a context that ended.
func kindOf(err error) vfolder.Kind {
	kind := vfolder.KindOf(err)
	if kind == vfolder.KindIO {
		switch {
		case errors.Is(err, context.Canceled):
			return vfolder.KindInterrupted
		case errors.Is(err, context.DeadlineExceeded):
			return vfolder.KindTimeout
		}
	}
	return kind
}

// toError is the inverse of toObject.
func (o errorObject) toError() error {
	op := o.Op
	if op == "" {
		op = "daemon"
	}
	e := &vfolder.Error{Op: op, Kind: vfolder.ParseKind(o.Kind), Path: o.Path, Fix: o.Fix}
	if o.Message != "" && o.Message != o.Kind {
		e.Err = errors.New(o.Message)
	}
	return e
}

func writeError(w http.ResponseWriter, err error) {
	writeJSON(w, kindOf(err).Info().HTTP, errorBody{toObject(err)})
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	// The only error is a client that went away.
	_ = encoder(w).Encode(value)
}

func encoder(w interface{ Write([]byte) (int, error) }) *json.Encoder {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e
}
