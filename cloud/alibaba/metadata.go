package alibaba

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"fabric/cloud"
)

// metadataURL is the metadata service of every instance.
// https://www.alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata
const metadataURL = "http://100.100.100.200"

// place is where this gateway is.
type place struct{ instance, region, vpc string }

// locate finds what the wish does not say: by the metadata service, else, with the instance's id and a key given, by
// asking each region for the instance.
func (o Options) locate(ctx context.Context, w cloud.Wish, creds *credentials, log *slog.Logger) (place, error) {
	p := place{instance: w.Instance, region: w.Region, vpc: w.VPC}
	if p.instance != "" && p.region != "" && p.vpc != "" {
		return p, nil
	}
	m := metadata{base: o.Metadata, client: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}}
	here, err := m.place(ctx)
	if err != nil {
		if p.instance == "" {
			return place{}, fmt.Errorf("find this gateway's instance: %w; give instance, region and vpc in the document where there is no metadata service", err)
		}
		log.Info("no metadata service; asking the API for the instance", "instance", p.instance, "error", err)
		return find(ctx, p, w, creds, o.Timing, log)
	}
	for _, f := range []struct {
		what  string
		said  *string
		found string
	}{{"instance", &p.instance, here.instance}, {"region", &p.region, here.region}, {"vpc", &p.vpc, here.vpc}} {
		if *f.said == "" {
			*f.said = f.found
		}
		if *f.said != f.found {
			return place{}, fmt.Errorf("the document says %s %s, but this gateway's metadata service says %s; correct the document, or run on that instance",
				f.what, *f.said, f.found)
		}
	}
	return p, nil
}

// metadata is a client of the metadata service in its hardened mode: every read carries a token.
type metadata struct {
	base   string
	client *http.Client
}

func (m metadata) place(ctx context.Context) (place, error) {
	token, err := m.do(ctx, http.MethodPut, "/latest/api/token", "X-aliyun-ecs-metadata-token-ttl-seconds", "300")
	if err != nil {
		return place{}, err
	}
	var p place
	for _, f := range []struct {
		path string
		to   *string
	}{{"instance-id", &p.instance}, {"region-id", &p.region}, {"vpc-id", &p.vpc}} {
		if *f.to, err = m.do(ctx, http.MethodGet, "/latest/meta-data/"+f.path, "X-aliyun-ecs-metadata-token", token); err != nil {
			return place{}, err
		}
	}
	return p, nil
}

func (m metadata) do(ctx context.Context, method, path, header, value string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, method, m.base+path, nil)
	if err != nil {
		return "", fmt.Errorf("metadata service: %w", err)
	}
	r.Header.Set(header, value)
	resp, err := m.client.Do(r)
	if err != nil {
		return "", fmt.Errorf("metadata service: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	text := strings.TrimSpace(string(b))
	switch {
	case err != nil:
		return "", fmt.Errorf("metadata service: %s: %w", path, err)
	case resp.StatusCode != http.StatusOK:
		return "", fmt.Errorf("metadata service: %s: HTTP status %d", path, resp.StatusCode)
	case text == "" || strings.ContainsAny(text, "<> \n"):
		return "", fmt.Errorf("metadata service: %s: the answer is no value; is a proxy in between?", path)
	}
	return text, nil
}
