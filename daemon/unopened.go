package main

import (
	"errors"

	"coffer/disk"
)

// unopened is the document that --json prints of an array that is not open, instead of that of the command: a program that watches
// the array always gets one, and it names the disks that are to blame.
type unopened struct {
	ArrayID  string              `json:"array_id"` // "": unknown
	Data     int                 `json:"data"`     // 0: unknown
	Parity   int                 `json:"parity"`
	State    string              `json:"state"` // "unopened", or "unknown" with a daemon that does not answer for the array
	Reason   string              `json:"reason"`
	Running  bool                `json:"running"`  // a daemon has the data directory
	Verified bool                `json:"verified"` // false: superblocks were read without the keys that prove them
	Disks    []disk.SurveyedDisk `json:"disks"`
}

// explain describes an array that could not be opened, or asked for, because of cause, which it returns.
func (f *arrayFlags) explain(e env, s disk.Survey, running bool, cause error) error {
	if !f.json {
		return cause
	}
	doc := unopened{ArrayID: s.ArrayID, Data: s.Data, Parity: s.Parity, State: "unopened", Reason: cause.Error(), Running: running, Disks: s.Disks}
	if running {
		doc.State = "unknown"
	}
	return errors.Join(writeJSON(e.stdout, doc), cause)
}

// held is the survey of disks that a daemon works with: they are its own, and not looked at.
func held(paths []string, id string) disk.Survey {
	s := disk.Survey{ArrayID: id, Disks: []disk.SurveyedDisk{}}
	for _, p := range paths {
		s.Disks = append(s.Disks, disk.SurveyedDisk{Path: p, State: disk.SurveyUnreadable, Reason: "held by a running daemon"})
	}
	return s
}
