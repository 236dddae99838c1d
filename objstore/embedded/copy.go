package embedded

import (
	"context"
	"net/url"
	"path"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/versity/versitygw/backend"
	"github.com/versity/versitygw/s3response"
)

// CopyObject copies through PutObject, so that the copy appears whole and
// flushed. The library would rewrite the attributes of an object copied onto
// itself in place, by deleting them first: killed in between, the object has
// lost its mode, owner and times.
func (d *durable) CopyObject(ctx context.Context, in s3response.CopyObjectInput) (s3response.CopyObjectOutput, error) {
	if in.Bucket == nil || in.Key == nil || in.CopySource == nil {
		return d.Posix.CopyObject(ctx, in)
	}
	srcBucket, src, version, err := backend.ParseCopySource(*in.CopySource)
	if err != nil {
		return s3response.CopyObjectOutput{}, err
	}
	replace := in.MetadataDirective == types.MetadataDirectiveReplace
	self := srcBucket == *in.Bucket && path.Clean(src) == path.Clean(*in.Key)
	rare := version != "" || in.CopySourceIfNoneMatch != nil || in.CopySourceIfModifiedSince != nil ||
		in.CopySourceIfUnmodifiedSince != nil || in.ChecksumAlgorithm != "" || in.ObjectLockMode != "" ||
		in.ObjectLockLegalHoldStatus != ""
	if rare || self && !replace {
		return d.copyByLibrary(ctx, in)
	}
	head, err := d.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &srcBucket, Key: &src})
	if err != nil {
		return s3response.CopyObjectOutput{}, err
	}
	if head.ContentLength == nil || *head.ContentLength > maxCopyBytes || head.ETag == nil {
		return d.copyByLibrary(ctx, in)
	}
	if in.CopySourceIfMatch != nil && !backend.AreEtagsSame(*head.ETag, *in.CopySourceIfMatch) {
		return d.copyByLibrary(ctx, in) // which refuses, in the words of S3
	}
	// Conditions are compared without the quotes that an answer has.
	etag := strings.Trim(*head.ETag, `"`)
	get, err := d.GetObject(ctx, &s3.GetObjectInput{Bucket: &srcBucket, Key: &src, IfMatch: &etag})
	if err != nil {
		return s3response.CopyObjectOutput{}, err
	}
	if get.Body != nil {
		defer get.Body.Close()
	}
	put := s3response.PutObjectInput{
		Bucket: in.Bucket, Key: in.Key, Body: get.Body, ContentLength: get.ContentLength,
		ContentType: in.ContentType, ContentEncoding: in.ContentEncoding, ContentDisposition: in.ContentDisposition,
		ContentLanguage: in.ContentLanguage, CacheControl: in.CacheControl, Expires: in.Expires,
		WebsiteRedirectLocation: in.WebsiteRedirectLocation, Metadata: in.Metadata, Tagging: in.Tagging,
	}
	if !replace {
		put.ContentType, put.ContentEncoding, put.ContentDisposition = get.ContentType, get.ContentEncoding, get.ContentDisposition
		put.ContentLanguage, put.CacheControl, put.Expires = get.ContentLanguage, get.CacheControl, get.ExpiresString
		put.Metadata = get.Metadata
	}
	if in.TaggingDirective != types.TaggingDirectiveReplace {
		if put.Tagging, err = d.taggingOf(ctx, srcBucket, src); err != nil {
			return s3response.CopyObjectOutput{}, err
		}
	}
	if self {
		// What was read must be what is replaced.
		put.IfMatch = &etag
	}
	out, err := d.PutObject(ctx, put)
	if err != nil {
		return s3response.CopyObjectOutput{}, err
	}
	now, err := d.HeadObject(ctx, &s3.HeadObjectInput{Bucket: in.Bucket, Key: in.Key})
	if err != nil {
		return s3response.CopyObjectOutput{}, err
	}
	return s3response.CopyObjectOutput{CopyObjectResult: &s3response.CopyObjectResult{
		ETag: &out.ETag, LastModified: now.LastModified, ChecksumType: out.ChecksumType,
		ChecksumCRC64NVME: out.ChecksumCRC64NVME,
	}}, nil
}

// copyByLibrary leaves the rare copies to the library and flushes afterwards.
func (d *durable) copyByLibrary(ctx context.Context, in s3response.CopyObjectInput) (out s3response.CopyObjectOutput, err error) {
	if in.Bucket == nil || in.Key == nil {
		return d.Posix.CopyObject(ctx, in)
	}
	err = d.publish(d.objectPath(*in.Bucket, *in.Key), func() error {
		out, err = d.Posix.CopyObject(ctx, in)
		return err
	})
	return out, err
}

// taggingOf is the source's tags as a header value, nil without any.
func (d *durable) taggingOf(ctx context.Context, bucket, key string) (*string, error) {
	tags, err := d.GetObjectTagging(ctx, bucket, key, "")
	if err != nil || len(tags) == 0 {
		return nil, nil //nolint:nilerr // no tags are reported as an error
	}
	q := make(url.Values, len(tags))
	for k, v := range tags {
		q.Set(k, v)
	}
	s := q.Encode()
	return &s, nil
}
