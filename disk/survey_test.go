package disk

import (
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestLook: what is found in the places of an array's disks, without keys.
func TestLook(t *testing.T) {
	ours, theirs := newFileArray(t, 4, 2, 2, 10<<20), newFileArray(t, 4, 2, 2, 10<<20)
	for _, p := range theirs.paths {
		err := Create(t.Context(), CreateOptions{ArrayID: [16]byte{7}, Paths: []string{p}, Keys: otherKeys{}, Force: true,
			Geometry: Geometry{Data: 1, ExtentSize: 1 << 20}})
		if err != nil {
			t.Fatal(err)
		}
	}
	blank, gone := ours.paths[2], ours.paths[3]
	if err := os.WriteFile(blank, make([]byte, 10<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	paths := append(append(ours.paths[:2:2], blank, gone, t.TempDir()), theirs.paths...)
	id := hex.EncodeToString([]byte{9, 15: 0})
	states := func(s Survey) (st []SurveyState) {
		for _, d := range s.Disks {
			st = append(st, d.State)
		}
		return st
	}
	s := Look(paths, id)
	want := []SurveyState{SurveyPresent, SurveyPresent, SurveyUnreadable, SurveyMissing, SurveyUnreadable, SurveyForeign, SurveyForeign, SurveyForeign, SurveyForeign}
	if d := cmp.Diff(want, states(s)); d != "" || s.ArrayID != id || s.Data != 2 || s.Parity != 2 {
		t.Errorf("%+v: %s", s, d)
	}
	if !strings.Contains(s.Disks[2].Reason, "no valid superblock") || !strings.Contains(s.Disks[5].Reason, "array 07") {
		t.Errorf("reasons: %+v", s.Disks)
	}
	// Without an id most disks decide.
	if s := Look(paths, ""); s.Disks[0].State != SurveyForeign || s.Disks[5].State != SurveyPresent || s.Data != 1 || !strings.HasPrefix(s.ArrayID, "07") {
		t.Errorf("by majority: %+v", s)
	}
	if s := Look(paths[2:5], ""); s.ArrayID != "" || s.Data != 0 {
		t.Errorf("no disk of any array: %+v", s)
	}

	set, err := Discover(paths, true)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	for want, wrong := range map[string][]string{id: theirs.paths, "": ours.paths[:2]} {
		err := set.Only(want)
		if !errors.Is(err, ErrMembership) || strings.Count(err.Error(), "belongs to array") != len(wrong) || !strings.Contains(err.Error(), wrong[0]) {
			t.Errorf("only %q: %v", want, err)
		}
	}
}
