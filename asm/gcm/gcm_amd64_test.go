//go:build !purego

package gcm

import (
	"strings"
	"testing"

	"coffer/asm/internal/aeadtest"
)

func TestNeeds(t *testing.T) {
	for _, k := range Kernels()[1:] {
		other := map[Kernel]string{VAES512: "256", VAES256: "512"}[k]
		aeadtest.Needs(t, "gcm_amd64.s", func(name string) bool {
			return strings.HasPrefix(name, "expand") || !strings.Contains(strings.TrimSuffix(name, "AES256"), other)
		}, k.Needs())
	}
}

func TestReturns(t *testing.T) { aeadtest.Returns(t, "gcm_amd64.s", 14) }
