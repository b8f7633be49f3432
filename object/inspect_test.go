package object

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestInspectRecord holds that records of every kind are described, without secrets always and without names unless asked for.
func TestInspectRecord(t *testing.T) {
	described := map[string]bool{}
	for name, rec := range sampleRecords() {
		body := rec.appendTo(nil)
		for _, names := range []bool{false, true} {
			r := InspectRecord(body, names)
			if described[r.KindName] = true; r.Fault != "" || r.Kind != int(body[1]) || r.Name == "" {
				t.Errorf("%s: %+v", name, r)
			}
			p, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			for _, secret := range []string{"7777", "eeee", "wrapped", "bWQ1", "w1", "AKIA", "text/plain"} {
				if strings.Contains(string(p), secret) {
					t.Errorf("%s: shows %q: %s", name, secret, p)
				}
			}
			for _, word := range []string{"dir/k", "photos", `"root"`, "etag"} {
				if !names && strings.Contains(string(p), word) {
					t.Errorf("%s: shows %q without being asked to: %s", name, word, p)
				}
			}
		}
		// Whatever befell a record that opened, it is described and no panic.
		for n := range body {
			InspectRecord(body[:n], true)
		}
	}
	if len(described) != len(kindNames) || len(kindNames) != int(kindMax)-1 {
		t.Errorf("described %v of %d kinds", described, kindMax-1)
	}
	if r := InspectRecord([]byte{1, 200, 3}, true); r.Fault == "" || r.KindName != "unknown" {
		t.Errorf("an unknown kind: %+v", r)
	}
}
