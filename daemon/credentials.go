package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"unicode"
)

// Bounds of root credentials, as S3 clients and other servers expect them: AWS's access key ids have 16 to 128 characters, its
// secrets 40; private servers have long allowed shorter ones.
const (
	minAccessKey, maxAccessKey = 3, 128
	minSecretKey, maxSecretKey = 8, 128
)

// rootConfigName is the name under which the store keeps generated root credentials.
const rootConfigName = "root-credentials"

// rootCredentials are allowed everything.
type rootCredentials struct {
	AccessKey string `yaml:"access_key" json:"access_key"`
	SecretKey string `yaml:"secret_key" json:"secret_key"`
}

// String keeps the secret out of logs.
func (c rootCredentials) String() string { return c.AccessKey }

// GoString keeps the secret out of %#v.
func (c rootCredentials) GoString() string { return c.AccessKey }

func (c rootCredentials) validate() error {
	var errs []error
	if n := len(c.AccessKey); n < minAccessKey || n > maxAccessKey {
		errs = append(errs, fmt.Errorf("access key has %d characters, want %d to %d", n, minAccessKey, maxAccessKey))
	}
	// These separate the parts of a signature's scope and header (AWS SigV4, "Authorization header").
	if strings.ContainsFunc(c.AccessKey, func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsGraphic(r) || strings.ContainsRune(" /,=", r)
	}) {
		errs = append(errs, errors.New("access key has a space, '/', ',', '=' or a character beyond ASCII"))
	}
	if n := len(c.SecretKey); n < minSecretKey || n > maxSecretKey {
		errs = append(errs, fmt.Errorf("secret key has %d characters, want %d to %d", n, minSecretKey, maxSecretKey))
	}
	return errors.Join(errs...)
}

// generateCredentials makes credentials of the shape of AWS's: 20 characters of A-Z2-7, and 240 random bits.
func generateCredentials() rootCredentials {
	secret := make([]byte, 30)
	rand.Read(secret) // never fails (crypto/rand)
	return rootCredentials{
		AccessKey: "COFFER" + rand.Text()[:14],
		SecretKey: base64.RawURLEncoding.EncodeToString(secret),
	}
}

// givenCredentials returns the credentials that the variables or the file give, and where they came from; zero if neither does.
func givenCredentials(getenv func(string) string, file string) (c rootCredentials, source string, err error) {
	c = rootCredentials{AccessKey: getenv("COFFER_ROOT_ACCESS_KEY"), SecretKey: getenv("COFFER_ROOT_SECRET_KEY")}
	switch {
	case c != (rootCredentials{}):
		source = "COFFER_ROOT_ACCESS_KEY and COFFER_ROOT_SECRET_KEY"
	case secretPath(getenv, file, "root_credentials") != "":
		source = secretPath(getenv, file, "root_credentials")
		f, err := os.Open(source)
		if err != nil {
			return c, source, fmt.Errorf("read root credentials: %w", err)
		}
		defer f.Close()
		if err := decodeYAML(f, &c); err != nil {
			return c, source, fmt.Errorf("read root credentials %s: %w", source, err)
		}
	default:
		return c, "", nil
	}
	if err := c.validate(); err != nil {
		return rootCredentials{}, source, fmt.Errorf("root credentials from %s: %w", source, err)
	}
	return c, source, nil
}

// configStore keeps small sealed records (object.Store). Config returns nil without an error for a name that was never set.
type configStore interface {
	Config(ctx context.Context, name string) ([]byte, error)
	SetConfig(ctx context.Context, name string, value []byte) error
}

// storedCredentials returns the credentials kept in the array, making them first if there are none; made reports that.
func storedCredentials(ctx context.Context, s configStore) (c rootCredentials, made bool, err error) {
	p, err := s.Config(ctx, rootConfigName)
	if err != nil {
		return c, false, fmt.Errorf("read root credentials from the array: %w", err)
	}
	if p != nil {
		if err := json.Unmarshal(p, &c); err != nil {
			return c, false, fmt.Errorf("read root credentials from the array: %w", err)
		}
		return c, false, nil
	}
	c = generateCredentials()
	if p, err = json.Marshal(c); err != nil {
		return c, false, fmt.Errorf("store root credentials: %w", err)
	}
	if err := s.SetConfig(ctx, rootConfigName, p); err != nil {
		return c, false, fmt.Errorf("store root credentials: %w", err)
	}
	return c, true, nil
}
