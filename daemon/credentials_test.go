package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestGivenCredentials(t *testing.T) {
	file := writeTemp(t, "root", "access_key: filekey\nsecret_key: filesecret\n")
	for name, tt := range map[string]struct {
		vars map[string]string
		file string
		want rootCredentials
		err  string
	}{
		"none":           {nil, "", rootCredentials{}, ""},
		"variables":      {map[string]string{"COFFER_ROOT_ACCESS_KEY": "envkey", "COFFER_ROOT_SECRET_KEY": "envsecret"}, file, rootCredentials{"envkey", "envsecret"}, ""},
		"file":           {nil, file, rootCredentials{"filekey", "filesecret"}, ""},
		"half":           {map[string]string{"COFFER_ROOT_ACCESS_KEY": "envkey"}, file, rootCredentials{}, "secret key has 0 characters"},
		"short secret":   {map[string]string{"COFFER_ROOT_ACCESS_KEY": "abc", "COFFER_ROOT_SECRET_KEY": "1234567"}, "", rootCredentials{}, "8 to"},
		"shortest":       {map[string]string{"COFFER_ROOT_ACCESS_KEY": "abc", "COFFER_ROOT_SECRET_KEY": "12345678"}, "", rootCredentials{"abc", "12345678"}, ""},
		"short key":      {map[string]string{"COFFER_ROOT_ACCESS_KEY": "ab", "COFFER_ROOT_SECRET_KEY": "12345678"}, "", rootCredentials{}, "3 to 128"},
		"long key":       {map[string]string{"COFFER_ROOT_ACCESS_KEY": strings.Repeat("a", 129), "COFFER_ROOT_SECRET_KEY": "12345678"}, "", rootCredentials{}, "3 to 128"},
		"slash":          {map[string]string{"COFFER_ROOT_ACCESS_KEY": "a/b", "COFFER_ROOT_SECRET_KEY": "12345678"}, "", rootCredentials{}, "access key has a space"},
		"newline":        {map[string]string{"COFFER_ROOT_ACCESS_KEY": "abc\n", "COFFER_ROOT_SECRET_KEY": "12345678"}, "", rootCredentials{}, "access key has a space"},
		"absent file":    {nil, file + "x", rootCredentials{}, "no such file"},
		"unknown key":    {nil, writeTemp(t, "root", "access_key: abc\npassword: x\n"), rootCredentials{}, "field password not found"},
		"secret missing": {nil, writeTemp(t, "root", "access_key: abc\n"), rootCredentials{}, "secret key has 0"},
	} {
		got, _, err := givenCredentials(func(n string) string { return tt.vars[n] }, tt.file)
		if tt.err == "" && (err != nil || got != tt.want) || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret1") {
			t.Errorf("%s: the error shows the secret: %v", name, err)
		}
	}
}

// fakeConfig is a configStore in memory.
type fakeConfig struct {
	records map[string][]byte
	err     error
}

func (f *fakeConfig) Config(_ context.Context, name string) ([]byte, error) {
	return f.records[name], f.err
}
func (f *fakeConfig) SetConfig(_ context.Context, name string, v []byte) error {
	f.records[name] = v
	return f.err
}

func TestStoredCredentials(t *testing.T) {
	s := &fakeConfig{records: map[string][]byte{}}
	first, made, err := storedCredentials(t.Context(), s)
	if err != nil || !made || first.validate() != nil || len(first.AccessKey) != 20 || len(first.SecretKey) != 40 {
		t.Fatalf("%v, %v, %v", first, made, err)
	}
	second, made, err := storedCredentials(t.Context(), s)
	if err != nil || made || second != first {
		t.Errorf("second start: %v, %v, %v", second, made, err)
	}
	s.err = errors.New("disk on fire")
	if _, made, err := storedCredentials(t.Context(), s); !errors.Is(err, s.err) || made {
		t.Errorf("failing store: %v, %v", made, err)
	}
	s = &fakeConfig{records: map[string][]byte{rootConfigName: []byte("{")}}
	if _, made, err := storedCredentials(t.Context(), s); err == nil || made {
		t.Errorf("broken record: %v, %v", made, err)
	}
}

func TestCredentialsAreNotFormatted(t *testing.T) {
	c := rootCredentials{"access", "topsecret"}
	var log bytes.Buffer
	newLogger(&log, "json", slog.LevelInfo).Info("x", "credentials", c.String())
	newLogger(&log, "text", slog.LevelInfo).Info("x", "credentials", c)
	fmt.Fprintf(&log, "%v %+v %#v %s", c, c, c, c)
	if strings.Contains(log.String(), "topsecret") {
		t.Errorf("the secret shows: %s", &log)
	}
}
