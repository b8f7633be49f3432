//go:build !purego

package chacha

import (
	"testing"

	"coffer/asm/internal/aeadtest"
)

func TestNeeds(t *testing.T) {
	aeadtest.Needs(t, "chacha_amd64.s", func(string) bool { return true }, IFMA512.Needs())
}

func TestReturns(t *testing.T) { aeadtest.Returns(t, "chacha_amd64.s", 4) }
