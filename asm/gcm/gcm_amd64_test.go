//go:build !purego

package gcm

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/cpuid/v2"
)

// TestNeeds compares what the generator found each function to require with what must be there for it to be used.
func TestNeeds(t *testing.T) {
	text, err := os.ReadFile("gcm_amd64.s")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range Kernels()[1:] {
		other := map[Kernel]string{VAES512: "256", VAES256: "512"}[k]
		want := map[string]bool{}
		for _, m := range regexp.MustCompile(`(?m)^// func ([^(]*).*\n// Requires: (.*)$`).FindAllStringSubmatch(string(text), -1) {
			if name, list := m[1], m[2]; strings.HasPrefix(name, "expand") || !strings.Contains(strings.TrimSuffix(name, "AES256"), other) {
				for _, f := range strings.Split(list, ", ") {
					want[f] = true
				}
			}
		}
		names := map[cpuid.FeatureID]string{cpuid.AESNI: "AES", cpuid.CLMUL: "PCLMULQDQ"}
		for _, f := range k.Needs() {
			name := names[f]
			if name == "" {
				name = f.String()
			}
			if !want[name] {
				t.Errorf("%v: %s is not needed", k, name)
			}
			delete(want, name)
		}
		delete(want, "MMX+") // PREFETCHT0, which every amd64 processor has with SSE
		for name := range want {
			t.Errorf("%v: %s is required and not in Needs", k, name)
		}
	}
}

// TestReturns: every function clears the registers that held keys and leaves no upper halves behind, which would slow down the
// SSE code of others.
func TestReturns(t *testing.T) {
	text, err := os.ReadFile("gcm_amd64.s")
	if err != nil {
		t.Fatal(err)
	}
	functions := strings.Split(string(text), "\nTEXT ·")[1:]
	if len(functions) != 14 {
		t.Errorf("%d functions", len(functions))
	}
	for _, f := range functions {
		name, _, _ := strings.Cut(f, "(")
		lines := slices.DeleteFunc(strings.Split(f, "\n"), func(s string) bool { return strings.TrimSpace(s) == "" })
		returns := 0
		for i, line := range lines {
			if strings.TrimSpace(line) != "RET" {
				continue
			}
			returns++
			if strings.TrimSpace(lines[i-1]) == "VZEROALL" {
				if strings.Contains(f, "Z0") {
					t.Errorf("%s: VZEROALL does not clear all of its registers", name)
				}
				continue
			}
			if strings.TrimSpace(lines[i-1]) != "VZEROUPPER" {
				t.Errorf("%s: returns without VZEROUPPER", name)
			}
			cleared := regexp.MustCompile(`\bVPXORQ? +([XZ]\d+), ([XZ]\d+), ([XZ]\d+)$`)
			for j := i - 2; ; j-- {
				m := cleared.FindStringSubmatch(lines[j])
				if m == nil || m[1] != m[2] || m[2] != m[3] {
					if want := 32; i-2-j < want && !strings.HasPrefix(name, "expand") || i-2-j < 3 {
						t.Errorf("%s: clears %d registers", name, i-2-j)
					}
					break
				}
			}
		}
		if returns == 0 {
			t.Errorf("%s: no return", name)
		}
	}
}
