package objstore

import (
	"bytes"
	"context"
	"encoding/xml"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/signer"
)

// Two requests are made here because minio-go cannot: a DELETE with a
// condition, and one page of a listing under a context of its own.

const (
	// emptySHA256 is the payload hash of a request without a body.
	emptySHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	// maxXMLBytes bounds an XML answer: 1,000 keys of 1 KiB, escaped, with room.
	maxXMLBytes = 16 << 20
)

type requestSigner struct{ access, secret, region string }

// do signs and sends a request without a body and returns its body. An answer
// that is not 2xx is a minio.ErrorResponse.
func (c *Client) do(ctx context.Context, method, key string, query url.Values, header http.Header) ([]byte, error) {
	// Presigning knows where bucket and key go; its signature is not used.
	u, err := c.core.Presign(ctx, method, c.cfg.Bucket, key, time.Hour, query)
	if err != nil {
		return nil, err
	}
	u.RawQuery = strings.ReplaceAll(query.Encode(), "+", "%20")
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("X-Amz-Content-Sha256", emptySHA256)
	req = signer.SignV4(*req, c.signer.access, c.signer.secret, "", c.signer.region)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxXMLBytes))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		e := minio.ErrorResponse{StatusCode: resp.StatusCode}
		if xml.Unmarshal(body, &e) != nil || e.Code == "" {
			e.Code = http.StatusText(resp.StatusCode)
		}
		e.StatusCode = resp.StatusCode
		if e.Message == "" {
			e.Message = resp.Status
		}
		return nil, e
	}
	return body, nil
}

func (c *Client) rawDelete(ctx context.Context, key, ifMatch string) error {
	h := http.Header{}
	if ifMatch != "" {
		h.Set("If-Match", `"`+ifMatch+`"`)
	}
	_, err := c.do(ctx, http.MethodDelete, key, url.Values{}, h)
	return c.fail(ctx, "delete", key, err)
}

// listPage is the XML of one page of a version 2 listing.
type listPage struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	EncodingType          string
	IsTruncated           bool
	NextContinuationToken string
	Contents              []struct {
		Key          string
		LastModified time.Time
		ETag         string
		Size         int64
		StorageClass string
	}
	CommonPrefixes []struct{ Prefix string }
}

func decodePage(body []byte) (listPage, error) {
	var p listPage
	d := xml.NewDecoder(bytes.NewReader(body))
	// Keys may hold what XML 1.0 forbids; one such key must not hide a page.
	d.Strict = false
	err := d.Decode(&p)
	return p, err
}
