package alibaba

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"sync"

	sdk "github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"

	"fabric/internal/config"
)

// credentials are the keys that calls are signed with: a static one from a file, or the SDK's chain, which ends at the
// instance's role. It implements the SDK's CredentialsProvider.
type credentials struct {
	file string

	mu     sync.Mutex
	source sdk.CredentialsProvider
	last   *sdk.Credentials
	secret []string // all values handed out lately, for scrub
}

func newCredentials(file string) *credentials { return &credentials{file: file} }

// GetProviderName is the SDK's.
func (c *credentials) GetProviderName() string { return "fabric" }

// GetCredentials is the SDK's. A source that fails is survived with the key it gave last, for as long as the server takes
// that: the metadata service may be away for a moment.
func (c *credentials) GetCredentials() (cc *sdk.Credentials, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() {
		// The SDK's providers trust what they read and panic on some of it.
		if r := recover(); r != nil {
			cc, err = nil, fmt.Errorf("credentials: the SDK failed on an unexpected answer: %v", r)
		}
		if err != nil && c.last != nil {
			cc, err = c.last, nil
		}
	}()
	if c.source == nil {
		if c.source, err = c.open(); err != nil {
			return nil, err
		}
	}
	cc, err = c.source.GetCredentials()
	if err == nil && (cc == nil || cc.AccessKeyId == "") {
		err = fmt.Errorf("credentials: none found")
	}
	if err != nil {
		c.source = nil // the SDK's chain would stay with the provider it tried last
		return nil, err
	}
	if c.last == nil || c.last.AccessKeyId != cc.AccessKeyId {
		c.secret = append(c.secret, cc.AccessKeyId, cc.AccessKeySecret, cc.SecurityToken)
		if n := len(c.secret); n > 12 {
			c.secret = c.secret[n-12:]
		}
	}
	c.last = cc
	return cc, nil
}

func (c *credentials) open() (sdk.CredentialsProvider, error) {
	if c.file == "" {
		return sdk.NewDefaultCredentialsProvider(), nil
	}
	b, err := config.ReadSecretFile(c.file)
	if err != nil {
		return nil, err
	}
	var key struct {
		ID     string `json:"access-key-id"`
		Secret string `json:"access-key-secret"`
	}
	// The error of the parser may quote what it read.
	if json.Unmarshal(b, &key) != nil || key.ID == "" || key.Secret == "" {
		return nil, fmt.Errorf(`credentials file %s is not {"access-key-id": "...", "access-key-secret": "..."}`, c.file)
	}
	return sdk.NewStaticAKCredentialsProvider(key.ID, key.Secret), nil
}

// renew forgets the key: the server refused it, or it was rotated.
func (c *credentials) renew() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.source, c.last = nil, nil
}

// signing matches what a signed request carries, also percent-encoded once or twice.
var signing = regexp.MustCompile(`(?i)(AccessKeyId|AccessKeySecret|SecurityToken|Signature|SignatureNonce)(=|%(?:25)*3D|"?\s*:\s*"?)[^&"\s,}]*?(%(?:25)*26|&|"|\s|,|}|$)`)

// scrub takes keys, tokens and signatures out of a text.
func (c *credentials) scrub(text string) string {
	c.mu.Lock()
	secrets := c.secret
	c.mu.Unlock()
	for _, s := range secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, "***")
		}
	}
	return signing.ReplaceAllString(text, "$1$2***$3")
}
