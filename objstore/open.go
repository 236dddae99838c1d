package objstore

import (
	"context"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/vfolder/vfolder"
)

// Deadlines of one request. A request whose answer is small gets the base
// time-out; one that moves bytes gets a second more for every so many bytes,
// so that a slow line works and a dead one is noticed.
const (
	// DefaultTimeout is the base deadline of every request (Config.Timeout).
	DefaultTimeout = 30 * time.Second
	// MinUploadRate is the rate, in bytes per second, that an upload must keep.
	MinUploadRate = 128 << 10
	// MinCopyRate is the rate, in bytes per second, of a server-side copy.
	MinCopyRate = 8 << 20
	// DefaultStall is how long a body that is being read may stand still.
	DefaultStall = 30 * time.Second

	dialTimeout      = 5 * time.Second
	handshakeTimeout = 10 * time.Second
	idleConnTimeout  = 60 * time.Second
	maxConnsPerHost  = 128
	maxIdlePerHost   = 64

	// DefaultRegion is what nearly every store other than AWS calls itself.
	DefaultRegion = "us-east-1"
)

// Config says how to reach one bucket.
type Config struct {
	Endpoint  string `json:"endpoint"` // "host:port"; a scheme in front decides TLS
	TLS       bool   `json:"tls,omitempty"`
	Region    string `json:"region,omitempty"` // default DefaultRegion
	Bucket    string `json:"bucket"`
	AccessKey string `json:"access_key"`
	SecretKey string `json:"secret_key"`
	// PathStyle addresses the bucket in the path instead of the host name.
	PathStyle bool `json:"path_style,omitempty"`
	// CreateBucket makes the bucket at Open when it is missing.
	CreateBucket bool `json:"create_bucket,omitempty"`
	// ReadOnly promises that nothing is written: Open then probes nothing and
	// assumes no capability.
	ReadOnly bool `json:"read_only,omitempty"`
	// Capabilities, when known from an earlier Open, spares the probe.
	Capabilities *Capabilities `json:"capabilities,omitempty"`
	// Timeout is the base deadline of a request (DefaultTimeout when zero), and
	// Stall how long a body may stand still while it is read.
	Timeout time.Duration `json:"timeout,omitempty"`
	Stall   time.Duration `json:"stall,omitempty"`
}

// withDefaults fills what was left out and splits a scheme off the endpoint.
func (c Config) withDefaults() Config {
	if rest, ok := strings.CutPrefix(c.Endpoint, "https://"); ok {
		c.Endpoint, c.TLS = rest, true
	} else if rest, ok := strings.CutPrefix(c.Endpoint, "http://"); ok {
		c.Endpoint, c.TLS = rest, false
	}
	c.Endpoint = strings.TrimSuffix(c.Endpoint, "/")
	if c.Region == "" {
		c.Region = DefaultRegion
	}
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Stall <= 0 {
		c.Stall = DefaultStall
	}
	return c
}

// Client is the Store behind an S3 endpoint. It sends every request once:
// wrap it with Retry for the calls that may be repeated.
type Client struct {
	cfg    Config
	core   *minio.Core
	http   *http.Client
	caps   Capabilities
	signer requestSigner
}

var _ Store = (*Client)(nil)

// Open connects to the bucket, makes it if asked to, and finds out the
// endpoint's capabilities unless they are given. It fails with KindUnreachable
// when the endpoint does not answer, KindAccess when the keys are refused,
// KindNotFound when there is no such bucket and KindInvalid for a Config that
// cannot work.
func Open(ctx context.Context, cfg Config) (Store, error) {
	c, err := newClient(cfg)
	if err != nil {
		return nil, err
	}
	if err := c.ensureBucket(ctx); err != nil {
		return nil, err
	}
	switch {
	case c.cfg.Capabilities != nil:
		c.caps = *c.cfg.Capabilities
	case !c.cfg.ReadOnly:
		caps, err := Probe(ctx, c)
		if err != nil {
			return nil, err
		}
		c.caps = caps
	}
	return c, nil
}

func newClient(cfg Config) (*Client, error) {
	cfg = cfg.withDefaults()
	if cfg.Endpoint == "" || cfg.Bucket == "" {
		return nil, vfolder.Errorf(vfolder.KindInvalid, "open store", cfg.Endpoint, "an endpoint and a bucket are needed")
	}
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   handshakeTimeout,
		IdleConnTimeout:       idleConnTimeout,
		MaxConnsPerHost:       maxConnsPerHost,
		MaxIdleConnsPerHost:   maxIdlePerHost,
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true, // a body must arrive as it lies in the store
	}
	lookup := minio.BucketLookupAuto
	if cfg.PathStyle {
		lookup = minio.BucketLookupPath
	}
	core, err := minio.NewCore(cfg.Endpoint, &minio.Options{
		Creds:        credentials.NewStaticV4(cfg.AccessKey, cfg.SecretKey, ""),
		Secure:       cfg.TLS,
		Region:       cfg.Region,
		BucketLookup: lookup,
		Transport:    transport,
		MaxRetries:   1,
	})
	if err != nil {
		return nil, &vfolder.Error{Op: "open store", Kind: vfolder.KindInvalid, Path: cfg.Endpoint, Err: err}
	}
	core.SetAppInfo("vfolder", "1")
	return &Client{
		cfg: cfg, core: core, http: &http.Client{Transport: transport},
		signer: requestSigner{access: cfg.AccessKey, secret: cfg.SecretKey, region: cfg.Region},
	}, nil
}

func (c *Client) ensureBucket(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	ok, err := c.core.BucketExists(ctx, c.cfg.Bucket)
	if err != nil {
		return c.fail(ctx, "open bucket", c.cfg.Bucket, err)
	}
	if ok {
		return nil
	}
	if !c.cfg.CreateBucket {
		return &vfolder.Error{
			Op: "open bucket", Kind: vfolder.KindNotFound, Path: c.cfg.Bucket,
			Fix: "make the bucket with the store's own tools, or let vfolder make it with create_bucket = true",
		}
	}
	err = c.core.MakeBucket(ctx, c.cfg.Bucket, minio.MakeBucketOptions{Region: c.cfg.Region})
	if err != nil {
		// Another daemon may have been faster.
		if ok, again := c.core.BucketExists(ctx, c.cfg.Bucket); again == nil && ok {
			return nil
		}
		return c.fail(ctx, "create bucket", c.cfg.Bucket, err)
	}
	return nil
}

// Capabilities implements Store.
func (c *Client) Capabilities() Capabilities { return c.caps }

// uploadDeadline and copyDeadline bound a request by the bytes it moves.
func (c *Client) uploadDeadline(size int64) time.Duration {
	return c.cfg.Timeout + time.Duration(size/MinUploadRate)*time.Second
}

func (c *Client) copyDeadline(size int64) time.Duration {
	return c.cfg.Timeout + time.Duration(size/MinCopyRate)*time.Second
}
