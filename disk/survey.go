package disk

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"coffer/disk/internal/blockdev"
)

// surveyWait is how long Survey waits, for all disks together, for those that an attempt to open them has just given back.
const surveyWait = time.Second

// Survey is what disks say of themselves to somebody without keys: superblocks are read by their plain checksums, and nothing of it
// is proven. It is for telling why an array does not open.
type Survey struct {
	ArrayID string // "" if unknown
	Data    int    // 0 if no disk tells
	Parity  int
	Disks   []SurveyedDisk
}

// SurveyedDisk is one of the places that were looked at.
type SurveyedDisk struct {
	Path   string      `json:"path"`
	State  SurveyState `json:"state"`
	Reason string      `json:"reason,omitempty"`
}

// SurveyState is what was found in a place.
type SurveyState string

const (
	SurveyPresent    SurveyState = "present"    // has a superblock of the array
	SurveyMissing    SurveyState = "missing"    // there is nothing
	SurveyForeign    SurveyState = "foreign"    // has a superblock of another array
	SurveyRetired    SurveyState = "retired"    // was a member of the array, and was removed
	SurveyUnreadable SurveyState = "unreadable" // does not open, cannot be read, or has no valid superblock
)

// Look surveys the devices at paths, as those of the array id, or with id "" of the array that most of them name. It changes nothing.
func Look(paths []string, id string) Survey {
	s := Survey{ArrayID: id, Disks: make([]SurveyedDisk, len(paths))}
	deadline := time.Now().Add(surveyWait)
	set := &Set{}
	var place []int // of each device of the set
	for i, p := range paths {
		s.Disks[i].Path = p
		d, err := blockdev.OpenFile(p, blockdev.OpenOptions{ReadOnly: true, Wait: time.Until(deadline)})
		switch {
		case err == nil:
			set.devs, place = append(set.devs, d), append(place, i)
			defer d.Close()
		case errors.Is(err, fs.ErrNotExist):
			s.Disks[i].State, s.Disks[i].Reason = SurveyMissing, "not found"
		default:
			s.Disks[i].State, s.Disks[i].Reason = SurveyUnreadable, err.Error()
		}
	}
	if err := set.read(0); err != nil {
		for _, i := range place {
			s.Disks[i].State, s.Disks[i].Reason = SurveyUnreadable, err.Error()
		}
		return s
	}
	if best := set.newest(); best != nil && id == "" {
		s.ArrayID = hex.EncodeToString(best.array[:])
	}
	var head *superblock
	for k, i := range place {
		d, sb := &s.Disks[i], set.found[k]
		switch {
		case sb == nil:
			d.State, d.Reason = SurveyUnreadable, set.faults[k].Error()
		case hex.EncodeToString(sb.array[:]) != s.ArrayID:
			d.State, d.Reason = SurveyForeign, fmt.Sprintf("belongs to array %x", sb.array)
		default:
			if d.State = SurveyPresent; sb.retired() {
				d.State, d.Reason = SurveyRetired, "removed from the array"
			}
			if head == nil || sb.epoch().num > head.epoch().num {
				head = sb
			}
		}
	}
	if head != nil {
		s.Data, s.Parity = head.geo.Data, head.geo.Parity
	}
	return s
}

// Only returns an error if a device has a superblock of another array than id, or with id "" of another than most of them name. Open
// refuses such a set in any case; to ask before the keys are unlocked tells foreign disks from a wrong key, as which the key area
// of another array would look.
func (s *Set) Only(id string) error {
	if id == "" {
		want := s.ArrayID()
		id = hex.EncodeToString(want[:])
	}
	var err error
	for i, sb := range s.found {
		if sb != nil && hex.EncodeToString(sb.array[:]) != id {
			err = errors.Join(err, fmt.Errorf("%w: %s belongs to array %x, not %s", ErrMembership, s.devs[i].Path(), sb.array, id))
		}
	}
	return err
}
