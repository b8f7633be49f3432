package hw

import (
	"math"
	"runtime"
	"strconv"
	"strings"

	"github.com/klauspost/cpuid/v2"
)

// Report says what Probe found and chose. Its JSON form is fixed: other tools read it.
type Report struct {
	CPU      string       `json:"cpu"`
	Features []string     `json:"features"` // those that matter to the paths
	Paths    []PathReport `json:"paths"`
}

// PathReport is one path of one primitive.
type PathReport struct {
	Primitive Primitive `json:"primitive"`
	Path      string    `json:"path"`
	SelfTest  string    `json:"self_test"` // "pass", "fail: cause" or "unsupported: needs features"
	Chosen    bool      `json:"chosen"`
	// GBps is the measured speed, in 10^9 bytes per second and by message size in bytes: sealing for AEADs, encoding for
	// Reed-Solomon, counting data bytes against the size of each shard. It is empty if the path was not measured.
	GBps  map[string]float64 `json:"gbps"`
	Shape string             `json:"shape,omitempty"` // of the Reed-Solomon measurement: data+parity
}

// Report returns a copy that the caller may change.
func (e *Engine) Report() Report {
	r := Report{CPU: e.cpu, Features: append([]string{}, e.features...)}
	for _, c := range e.candidates {
		p := PathReport{
			Primitive: c.primitive, Path: c.name, SelfTest: c.selfTest(), Chosen: c.chosen,
			GBps: make(map[string]float64), Shape: c.spec.shape,
		}
		for i, size := range benchSizes {
			if c.median[i] > 0 {
				p.GBps[strconv.Itoa(size)] = c.gbps(i)
			}
		}
		r.Paths = append(r.Paths, p)
	}
	return r
}

// gbps is the speed at benchSizes[i] in GB/s, to three digits after the point.
func (c *candidate) gbps(i int) float64 { return math.Round(c.median[i]/1e6) / 1e3 }

// brand names the processor. ARM processors do not tell their name, so the architecture has to do.
func brand(cpu *cpuid.CPUInfo) string {
	if cpu.BrandName != "" {
		return cpu.BrandName
	}
	return strings.TrimSpace(cpu.VendorString + " " + runtime.GOARCH)
}

// features lists, of the features that crypto and coding kernels use, those that the processor has.
func features(cpu *cpuid.CPUInfo) []string {
	have := []string{}
	for _, f := range []cpuid.FeatureID{
		cpuid.SSSE3, cpuid.SSE42, cpuid.AESNI, cpuid.CLMUL, cpuid.SHA, cpuid.BMI2, cpuid.ADX, cpuid.AVX, cpuid.AVX2,
		cpuid.GFNI, cpuid.VAES, cpuid.VPCLMULQDQ,
		cpuid.AVX512F, cpuid.AVX512BW, cpuid.AVX512DQ, cpuid.AVX512VL, cpuid.AVX512IFMA, cpuid.AVX512VBMI,
		cpuid.ASIMD, cpuid.AESARM, cpuid.PMULL, cpuid.SHA1, cpuid.SHA2, cpuid.SHA3, cpuid.SHA512, cpuid.CRC32,
		cpuid.SVE, cpuid.SVE2,
	} {
		if cpu.Supports(f) {
			have = append(have, f.String())
		}
	}
	return have
}
