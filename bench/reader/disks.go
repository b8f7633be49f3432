package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
)

// This file is docs/format.md up to section Superblock copy.

const block = 4096

var le = binary.LittleEndian

type id [16]byte

// disk is a device of the array.
type disk struct {
	f      *os.File
	size   int64
	copies [4][]byte // bytes 0..n+63 of those whose SHA-256 is right
	super  *super    // what two copies agree on
}

type member struct {
	disk    id
	state   byte
	extents uint32
	since   uint64
	before  [8]byte
}

type epoch struct {
	num uint64
	id  [8]byte
	cut uint64
}

// super is a superblock copy.
type super struct {
	array, disk id
	slot, k, m  int
	extent      int64
	size        int64
	clean       bool
	last        uint64
	members     []member
	history     []epoch
	keyArea     []byte
}

// array is an array of which some disks are there.
type array struct {
	keys  *keyring
	head  *super
	slots []*disk // nil: missing
	mac   []byte  // cell key
	bands []*band
	files []*os.File
	mark  uint64 // the highest of any cell header seen
}

func (a *array) close() {
	for _, f := range a.files {
		f.Close()
	}
}

// open finds out which of the disks belong to the array and reads their bands.
func open(paths []string, s secrets) (_ *array, err error) {
	a := &array{}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	var disks []*disk
	for _, p := range paths {
		d, err := openDisk(p)
		if err != nil {
			return nil, err
		}
		a.files = append(a.files, d.f)
		disks = append(disks, d)
	}
	// The key area is hostile until a slot has opened it: try what the disks offer, the newest first.
	var offers []*super
	for _, d := range disks {
		if d.super, _ = d.agree(nil); d.super != nil {
			offers = append(offers, d.super)
		}
	}
	slices.SortStableFunc(offers, func(x, y *super) int { return int(int64(y.history[0].num - x.history[0].num)) })
	err = errors.New("no disk has a superblock")
	for _, o := range offers {
		if a.keys, err = openArea(o.keyArea, o.array, s); err == nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	var proven []*super
	for _, d := range disks {
		if d.super, err = d.agree(a.keys.ofRoot("coffer superblock mac v1")); err != nil {
			return nil, err
		}
		if d.super != nil && d.super.array == a.keys.array {
			proven = append(proven, d.super)
		}
	}
	if a.head, err = choose(proven); err != nil {
		return nil, err
	}
	if a.keys, err = openArea(a.head.keyArea, a.head.array, s); err != nil { // what was opened first may be an older one
		return nil, err
	}
	a.slots = make([]*disk, len(a.head.members))
	for _, d := range disks {
		if s := d.super; s != nil && s.array == a.head.array && a.head.confirms(s) && d.size >= s.size {
			a.slots[s.slot] = d
		}
	}
	a.mac = a.keys.cell
	return a, a.scan()
}

func openDisk(path string) (*disk, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	d := &disk{f: f}
	if d.size, err = f.Seek(0, 2); err != nil {
		return nil, err
	}
	for i := range d.copies {
		b := make([]byte, 64<<10)
		if _, err := f.ReadAt(b, int64(i)*256<<10); err != nil {
			continue
		}
		n := le.Uint32(b[12:])
		if string(b[:8]) != "COFFERSB" || le.Uint16(b[8:]) < 1 || le.Uint16(b[8:]) > 2 || int(b[10]) != i || n < 144 || n > 64<<10-64 {
			continue
		}
		if sum := sha256.Sum256(b[:n+32]); bytes.Equal(sum[:], b[n+32:n+64]) {
			d.copies[i] = b[:n+64]
		}
	}
	return d, nil
}

// agree is the state with the highest epoch that two copies agree on. With a key, copies whose MAC fails do not count.
func (d *disk) agree(key []byte) (*super, error) {
	var best *super
	for i, b := range d.copies {
		for _, c := range d.copies[:i] {
			if b == nil || c == nil || !verified(b, key) || !verified(c, key) {
				continue
			}
			n, m := len(b)-64, len(c)-64
			x, y := parseSuper(b[:n]), parseSuper(c[:m])
			if x == nil || y == nil {
				continue
			}
			if x.disk != y.disk {
				return nil, nil // copies that name two disks: no superblock
			}
			if b[11] == c[11] && bytes.Equal(b[16:n], c[16:m]) && (best == nil || x.history[0].num > best.history[0].num) {
				best = x
			}
		}
	}
	return best, nil
}

func verified(b, key []byte) bool {
	if key == nil {
		return true
	}
	h := hmac.New(sha256.New, key)
	h.Write(b[:len(b)-64])
	return hmac.Equal(h.Sum(nil), b[len(b)-64:len(b)-32])
}

// parseSuper reads the fields of a copy of n bytes, or returns nil.
func parseSuper(b []byte) *super {
	s := &super{slot: int(b[11]), array: id(b[16:]), disk: id(b[32:]), k: int(b[48]), m: int(b[49]), extent: int64(le.Uint64(b[56:])),
		size: int64(le.Uint64(b[64:])), clean: b[80]&1 != 0, last: le.Uint64(b[88:])}
	members, epochs, area := int(b[50]), int(b[51]), int(le.Uint32(b[52:]))
	if s.k < 1 || s.k+s.m > 32 || members < s.k+s.m || members > 64 || epochs < 1 || epochs > 64 || area > 57344 || s.slot >= members ||
		s.extent < 1<<20 || s.extent > 1<<30 || s.extent%block != 0 || len(b) != 144+40*members+32*epochs+area {
		return nil
	}
	p := b[144:]
	for range members {
		s.members = append(s.members, member{id(p), p[16], le.Uint32(p[20:]), le.Uint64(p[24:]), [8]byte(p[32:])})
		p = p[40:]
	}
	for range epochs {
		s.history = append(s.history, epoch{le.Uint64(p), [8]byte(p[8:]), le.Uint64(p[16:])})
		p = p[32:]
	}
	s.keyArea = p
	return s
}

// knows says whether o is no stranger to s: see Choosing.
func (s *super) knows(o *super) bool {
	e := o.history[0]
	if o.slot < len(s.members) {
		if m := s.members[o.slot]; (m.state == 2 || m.state == 4) && m.since == e.num+1 && m.before == e.id {
			return true
		}
	}
	return slices.ContainsFunc(s.history, func(h epoch) bool { return h.num == e.num && h.id == e.id })
}

// counts says whether the disk holds data: it is neither a spare nor retired.
func (m member) counts() bool { return m.state != 5 && m.state != 6 }

// confirms says whether o is of a disk that holds data of the array, and no stranger.
func (s *super) confirms(o *super) bool {
	return o.slot < len(s.members) && s.members[o.slot].disk == o.disk && s.members[o.slot].counts() && s.knows(o)
}

// choose finds the superblock that speaks for the array. That it could be a stale half is the operator's worry here.
func choose(proven []*super) (*super, error) {
	var head *super
	for _, s := range proven {
		known, members := 0, 0
		for _, o := range proven {
			if s.confirms(o) {
				known++
			}
		}
		for _, m := range s.members {
			if m.counts() {
				members++
			}
		}
		if known < members-s.m {
			continue
		}
		if head == nil || s.history[0].num > head.history[0].num {
			s, head = head, s
		}
		if s != nil && !head.knows(s) {
			return nil, errors.New("two histories")
		}
	}
	if head == nil {
		return nil, fmt.Errorf("%d superblocks do not make an array", len(proven))
	}
	return head, nil
}
