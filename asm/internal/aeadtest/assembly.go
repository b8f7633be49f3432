package aeadtest

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/cpuid/v2"
)

// Needs compares what the generator found the functions of a kernel to require with what must be there for it to be used.
func Needs(t *testing.T, file string, uses func(function string) bool, needs []cpuid.FeatureID) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^// func ([^(]*).*\n// Requires: (.*)$`).FindAllStringSubmatch(string(text), -1) {
		if uses(m[1]) {
			for f := range strings.SplitSeq(m[2], ", ") {
				want[f] = true
			}
		}
	}
	names := map[cpuid.FeatureID]string{cpuid.AESNI: "AES", cpuid.CLMUL: "PCLMULQDQ"}
	for _, f := range needs {
		name := names[f]
		if name == "" {
			name = f.String()
		}
		if !want[name] {
			t.Errorf("%s is not needed", name)
		}
		delete(want, name)
	}
	delete(want, "MMX+") // PREFETCHT0, which every amd64 processor has with SSE
	for name := range want {
		t.Errorf("%s is required and not in Needs", name)
	}
}

// Returns: every function clears the vector registers that it used, as they held keys and text, and leaves no upper halves behind,
// which would slow down the SSE code of others.
func Returns(t *testing.T, file string, functions int) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Split(string(text), "\nTEXT ·")[1:]
	if len(all) != functions {
		t.Errorf("%d functions, want %d", len(all), functions)
	}
	register := regexp.MustCompile(`\b[XYZ](\d+)\b`)
	cleared := regexp.MustCompile(`\bVPXORQ? +([XZ]\d+), ([XZ]\d+), ([XZ]\d+)$`)
	for _, f := range all {
		name, _, _ := strings.Cut(f, "(")
		used := map[string]bool{}
		for _, m := range register.FindAllStringSubmatch(f, -1) {
			used[m[1]] = true
		}
		lines := slices.DeleteFunc(strings.Split(f, "\n"), func(s string) bool { return strings.TrimSpace(s) == "" })
		returns := 0
		for i, line := range lines {
			if strings.TrimSpace(line) != "RET" {
				continue
			}
			returns++
			if strings.TrimSpace(lines[i-1]) == "VZEROALL" { // the first sixteen
				if used["16"] || strings.Contains(f, "Z0") {
					t.Errorf("%s: VZEROALL does not clear all of its registers", name)
				}
				continue
			}
			if strings.TrimSpace(lines[i-1]) != "VZEROUPPER" {
				t.Errorf("%s: returns without VZEROUPPER", name)
			}
			left := map[string]bool{}
			for r := range used {
				left[r] = true
			}
			for j := i - 2; ; j-- {
				m := cleared.FindStringSubmatch(lines[j])
				if m == nil || m[1] != m[2] || m[2] != m[3] {
					break
				}
				delete(left, m[1][1:])
			}
			if len(left) > 0 {
				t.Errorf("%s: returns with registers %v not cleared", name, left)
			}
		}
		if returns == 0 {
			t.Errorf("%s: no return", name)
		}
	}
}

// Layout holds the constants of a generator's file against the compiler's.
func Layout(t *testing.T, file string, want map[string]uintptr) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range want {
		m := regexp.MustCompile(`(?m)^\s+` + name + `\s+= (\d+)\b`).FindSubmatch(text)
		if m == nil {
			t.Errorf("no constant %s", name)
		} else if got, _ := strconv.Atoi(string(m[1])); uintptr(got) != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
}
