package control

import "errors"

// Report is the one JSON object that "vfolderd run --report-fd=N" writes to that
// descriptor before it closes it: the mount is live and the socket answers, or
// why not.
type Report struct {
	Ready bool         `json:"ready"`
	Error *errorObject `json:"error,omitempty"`
}

// NewReport describes the outcome of a start.
func NewReport(err error) Report {
	if err == nil {
		return Report{Ready: true}
	}
	o := toObject(err)
	return Report{Error: &o}
}

// Err is the error of a start that failed, with its Kind and fix.
func (r Report) Err() error {
	switch {
	case r.Ready:
		return nil
	case r.Error == nil:
		return errors.New("the report says nothing")
	}
	return r.Error.toError()
}
