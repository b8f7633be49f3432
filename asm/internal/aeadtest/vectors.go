package aeadtest

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"testing"
)

// vectorFile is a file of testdata, which names its source and licence.
type vectorFile struct {
	Tests []struct {
		Comment                    string
		Key, IV, AAD, Msg, CT, Tag hexBytes
		Result                     string
	}
}

type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

// Vectors tests against the files, with so many vectors each.
func (s *Suite) Vectors(t *testing.T, files map[string]int) {
	for name, want := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var file vectorFile
		if err := json.Unmarshal(text, &file); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(file.Tests) != want {
			t.Errorf("%s: %d vectors, want %d", name, len(file.Tests), want)
		}
		s.each(t, func(t *testing.T, k Kernel) {
			for _, v := range file.Tests {
				a := k.aead(t, v.Key)
				sealed := append(bytes.Clone(v.CT), v.Tag...)
				got, err := a.Open(nil, v.IV, sealed, v.AAD)
				switch v.Result {
				case "valid":
					if err != nil || !bytes.Equal(got, v.Msg) {
						t.Errorf("%s: %s: opened as %x, %v", name, v.Comment, got, err)
					}
					if got := a.Seal(nil, v.IV, v.Msg, v.AAD); !bytes.Equal(got, sealed) {
						t.Errorf("%s: %s: sealed as %x", name, v.Comment, got)
					}
				case "invalid":
					if !errors.Is(err, s.ErrOpen) {
						t.Errorf("%s: %s: accepted", name, v.Comment)
					}
				default:
					t.Errorf("%s: %s: result %q", name, v.Comment, v.Result)
				}
			}
		})
	}
}
