package object

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"coffer/disk"
)

// freedName is the system record that lists the packed stripes which compaction freed: pairs of uvarints, first and last number of a
// run. Runs ascend and do not touch.
const freedName = "disk/freed"

// Freed returns the packed stripes that compaction freed.
func (s *Store) Freed() ([]disk.StripeRange, error) {
	r, err := s.loadConfig(freedName)
	if errors.Is(err, errAbsent) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return decodeFreed(r.value)
}

// recordFreed adds stripes to those that are freed. It comes before the bands are: stripes in the list that are there do no harm.
func (s *Store) recordFreed(ctx context.Context, add []disk.StripeRange) error {
	l := s.locks.key(0, freedName)
	l.Lock()
	defer l.Unlock()
	have, err := s.Freed()
	if err != nil {
		return err
	}
	all := mergeRanges(append(slices.Clone(have), add...))
	if slices.Equal(all, have) {
		return nil
	}
	r := configRecord{name: freedName, value: appendFreed([]byte{}, all)}
	if err := s.append(ctx, disk.Record{Body: r.appendTo(nil), Essential: true}); err != nil {
		return fmt.Errorf("record freed stripes: %w", err)
	}
	return nil
}

// mergeRanges sorts ranges and joins those that touch.
func mergeRanges(list []disk.StripeRange) []disk.StripeRange {
	slices.SortFunc(list, func(a, b disk.StripeRange) int {
		if a.From < b.From {
			return -1
		}
		return 1
	})
	out := list[:0]
	for _, r := range list {
		if n := len(out); n > 0 && r.From <= out[n-1].To+1 {
			out[n-1].To = max(out[n-1].To, r.To)
			continue
		}
		out = append(out, r)
	}
	return out
}

func appendFreed(b []byte, list []disk.StripeRange) []byte {
	for _, r := range list {
		b = binary.AppendUvarint(binary.AppendUvarint(b, r.From), r.To)
	}
	return b
}

func decodeFreed(b []byte) (list []disk.StripeRange, err error) {
	d := decoder{s: string(b)}
	for len(d.s) > 0 {
		r := disk.StripeRange{From: d.uint(1<<64 - 1), To: d.uint(1<<64 - 1)}
		n := len(list)
		if d.bad || r.To < r.From || (n > 0 && (list[n-1].To == 1<<64-1 || r.From <= list[n-1].To+1)) {
			return nil, errRecord
		}
		list = append(list, r)
	}
	return list, d.err()
}
