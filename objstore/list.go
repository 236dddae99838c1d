package objstore

import (
	"context"
	"errors"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/vfolder/vfolder"
)

// List implements Store. Each page is one request with its own deadline; an
// error ends the sequence. ETag, size and LastModified are as the listing has
// them (some stores round LastModified down to the second).
func (c *Client) List(ctx context.Context, prefix, startAfter string, delimited bool) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		token := ""
		for {
			page, err := c.listOnce(ctx, prefix, startAfter, token, delimited)
			if err != nil {
				yield(Info{}, err)
				return
			}
			entries, err := c.entriesOf(page)
			if err != nil {
				yield(Info{}, c.fail(ctx, "list", prefix, err))
				return
			}
			for _, in := range entries {
				if !yield(in, nil) {
					return
				}
			}
			if !page.IsTruncated {
				return
			}
			if page.NextContinuationToken == "" || page.NextContinuationToken == token {
				// Going on would list the same page for ever.
				yield(Info{}, c.fail(ctx, "list", prefix, errors.New("the store did not say where the listing goes on")))
				return
			}
			token = page.NextContinuationToken
		}
	}
}

func (c *Client) listOnce(ctx context.Context, prefix, startAfter, token string, delimited bool) (listPage, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	q := url.Values{"list-type": {"2"}, "prefix": {prefix}, "max-keys": {"1000"}}
	if c.caps.ListEncoding {
		q.Set("encoding-type", "url")
	}
	if delimited {
		q.Set("delimiter", "/")
	}
	if startAfter != "" {
		q.Set("start-after", startAfter)
	}
	if token != "" {
		q.Set("continuation-token", token)
	}
	body, err := c.do(ctx, http.MethodGet, "", q, nil)
	if err != nil {
		err = c.fail(ctx, "list", prefix, err)
		if vfolder.KindOf(err) == vfolder.KindNotFound {
			// Only the bucket can be missing; nothing listed is not "all deleted".
			err = &vfolder.Error{Op: "list", Kind: vfolder.KindUnreachable, Path: prefix, Err: err}
		}
		return listPage{}, err
	}
	page, err := decodePage(body)
	if err != nil {
		return listPage{}, c.fail(ctx, "list", prefix, err)
	}
	return page, nil
}

// entriesOf merges a page's objects and prefixes into key order.
func (c *Client) entriesOf(page listPage) ([]Info, error) {
	name := func(s string) (string, error) { return s, nil }
	if page.EncodingType == "url" && c.caps.ListEncoding {
		name = url.QueryUnescape
	}
	entries := make([]Info, 0, len(page.Contents)+len(page.CommonPrefixes))
	for _, o := range page.Contents {
		key, err := name(o.Key)
		if err != nil {
			return nil, err
		}
		entries = append(entries, Info{
			Key: key, ETag: strings.Trim(o.ETag, `"`), Size: o.Size,
			LastModified: o.LastModified.UTC(), StorageClass: o.StorageClass,
		})
	}
	for _, p := range page.CommonPrefixes {
		key, err := name(p.Prefix)
		if err != nil {
			return nil, err
		}
		entries = append(entries, Info{Key: key, IsPrefix: true})
	}
	slices.SortStableFunc(entries, func(a, b Info) int { return strings.Compare(a.Key, b.Key) })
	return entries, nil
}
