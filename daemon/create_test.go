package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestPlannedCapacity: what a plan says is usable is the capacity of the array that comes of it, also of disks of different sizes.
func TestPlannedCapacity(t *testing.T) {
	for _, sizes := range [][]int64{{64 << 20, 64 << 20, 512 << 20}, {64 << 20, 65 << 20, 80 << 20, 96 << 20, 128 << 20, 64 << 20, 70 << 20}} {
		dir := t.TempDir()
		args := "--extent-size 1MiB"
		for i, size := range sizes {
			args += " --disk " + newDiskFile(t, dir, string(rune('a'+i)), size)
		}
		run := func(what string, to any) {
			t.Helper()
			code, out, errText := coffer(t, strings.Fields("array "+what+" --json --data "+dir)...)
			if code != exitOK {
				t.Fatalf("%s: exit %d: %s", what, code, errText)
			}
			if err := json.Unmarshal([]byte(out), to); err != nil {
				t.Fatal(err)
			}
		}
		var plan struct{ Usable int64 }
		var status struct{ Capacity int64 }
		run("create --dry-run "+args, &plan)
		run("create --yes "+args, &struct{}{})
		run("status", &status)
		if plan.Usable != status.Capacity || plan.Usable == 0 {
			t.Errorf("disks of %d: %d planned, %d there", sizes, plan.Usable, status.Capacity)
		}
	}
}
