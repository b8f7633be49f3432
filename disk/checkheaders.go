package disk

import (
	"context"
	"fmt"
	"slices"

	"coffer/disk/internal/blockdev"
)

// bandHeader verifies the header block of a band on one member. Any one of them would do to find the band.
func (p *pass) bandHeader(ctx context.Context, b *band, pos int) error {
	refused, err := p.header(ctx, b, pos)
	if err == nil && refused != nil {
		err = p.a.log.fail([]*disk{refused})
	}
	return err
}

// header is bandHeader, and returns the disk if that refuses to be repaired.
func (p *pass) header(ctx context.Context, b *band, pos int) (*disk, error) {
	a, m := p.a, b.members[pos]
	const looks = 3 // each has a block: a disk that hangs keeps its own
	buf, err := a.meta.Get(ctx, looks*BlockSize)
	if err != nil {
		return nil, err
	}
	var ops []blockdev.Op
	defer func() { release(&buf, ops) }()
	p.note(func(r *CheckReport) { r.Cells++ })
	op, ok := a.op(b, pos, 0, 0, buf.Bytes()[:BlockSize])
	if !ok {
		if a.current(b) {
			p.count(m.slot, CellMissing)
		}
		return nil, nil
	}
	d := a.slots()[m.slot]
	last := &op
	look := func() (bool, error) {
		op.Buf = buf.Bytes()[len(ops)*BlockSize:][:BlockSize]
		ops = append(ops, op)
		last = &ops[len(ops)-1]
		if err := p.run(ops[len(ops)-1:]); err != nil || last.Err != nil {
			return false, err
		}
		got, at, err := a.codec.parseBand(op.Buf, d.id)
		return err == nil && at == pos && got.num == b.num && got.nonce == b.nonce && slices.Equal(got.members, b.members) && got.revision() == b.revision(), nil
	}
	good, err := look()
	if err != nil {
		return nil, err
	}
	if !good && !last.Stuck {
		// Unless it is that of a band which moves to another disk just now: no header is written while this is held.
		a.lockGate()
		defer a.gate.Unlock()
		if !a.current(b) {
			return nil, nil
		}
		if good, err = look(); err != nil {
			return nil, err
		}
	}
	v := CellGood
	switch {
	case last.Stuck:
		v = CellMissing
	case last.Err != nil:
		v = CellUnreadable
	case !good:
		want := make([]byte, BlockSize)
		a.codec.putBand(want, b, pos, d.id)
		like, err := a.codec.peek(want)
		if err != nil {
			panic("disk: a band header that was just made does not verify")
		}
		v = a.judge(op.Buf, want, &like, m)
	}
	p.count(m.slot, v)
	if v == CellGood || v == CellMissing {
		return nil, nil
	}
	p.note(func(r *CheckReport) { r.fault("%s: band %x: its header is %s", d.path, b.num, v) })
	if !p.opt.Repair {
		return nil, nil
	}
	if err := a.rewriteBandHeader(ctx, b, pos, d); err != nil {
		return d, nil
	}
	if good, err = look(); err == nil {
		p.rewritten(m.slot, good, fmt.Sprintf("header of band %x", b.num))
	}
	return nil, err
}

// superblocks verifies all copies on all disks.
func (p *pass) superblocks() error {
	failed, err := p.superblocksNow()
	if err == nil && len(failed) > 0 {
		err = p.a.log.fail(failed)
	}
	return err
}

// superblocksNow is superblocks with no epoch beginning meanwhile. It returns the disks that refused a copy.
func (p *pass) superblocksNow() (failed []*disk, err error) {
	a := p.a
	a.rlockGate()
	defer a.gate.RUnlock()
	shared := new(superblock)
	var devs []int
	var live []*disk
	a.mu.RLock()
	*shared = a.super
	for _, d := range a.slots() {
		if d.present() || d.state == DiskSpare {
			devs, live = append(devs, d.gi), append(live, d)
		}
	}
	a.mu.RUnlock()
	raws, _, err := readSupers(a.group, a.meta, devs)
	if err != nil {
		return nil, err
	}
	p.read.Add(superMemory(len(devs)))
	verdicts := make([][superCopies]copyVerdict, len(live))
	wants := make([]*superblock, len(live))
	for i, d := range live {
		if wants[i] = d.super; a.opt.ReadOnly {
			continue // nothing was written to it
		}
		s := *shared
		s.disk, s.slot, s.diskSize = d.id, d.slot, d.dev.Limits().Size
		wants[i] = &s
		for c, raw := range raws[i] {
			verdicts[i][c].Verdict = judgeSuper(raw, &s, c, a.opt.Keys.SuperblockKey())
		}
	}
	if a.opt.ReadOnly {
		verdicts = judgeSupers(raws, wants, a.opt.Keys.SuperblockKey())
	}
	for i, d := range live {
		for c := range superCopies {
			ok, err := p.superCopy(d, wants[i], c, raws[i][c], verdicts[i][c])
			if err != nil {
				return failed, err
			}
			if !ok {
				failed = append(failed, d)
			}
		}
	}
	for _, d := range a.slots() {
		if d.role != roleNone && !slices.Contains(live, d) {
			for range superCopies {
				p.note(func(r *CheckReport) { r.Superblocks++ })
				p.count(d.slot, CellMissing)
			}
		}
	}
	return failed, nil
}

// superCopy verifies one copy, rewrites it if it is bad, and reports whether the disk took that.
func (p *pass) superCopy(d *disk, want *superblock, c int, raw []byte, found copyVerdict) (bool, error) {
	a, key, v := p.a, p.a.opt.Keys.SuperblockKey(), found.Verdict
	p.note(func(r *CheckReport) {
		r.Superblocks++
		if found.unfinished {
			r.Unfinished++
			r.fault("%s: superblock copy %d is %s, or was being written", d.path, c, v)
		}
	})
	if found.unfinished {
		return true, nil
	}
	p.count(d.slot, v)
	if v == CellGood {
		return true, nil
	}
	p.note(func(r *CheckReport) { r.fault("%s: superblock copy %d is %s", d.path, c, v) })
	if got, err := decodeSuperblock(raw, c); err == nil && got.epoch().num > want.epoch().num || !p.opt.Repair || a.log.stopped() != nil {
		return true, nil // an epoch that did not come to be is for the next opening to judge
	}
	buf, err := a.meta.Get(context.WithoutCancel(a.ctx), superSize)
	if err != nil {
		return true, err
	}
	ops := []blockdev.Op{{Dev: d.gi, Write: true, Durable: true, Off: int64(c) * superStride, Buf: buf.Bytes()[:superSize]}}
	defer func() { release(&buf, ops) }()
	copy(ops[0].Buf, want.encode(c, key))
	if err := a.group.Run(ops); err != nil || ops[0].Err != nil {
		return false, err
	}
	kept, reads, err := a.readBack(p, ops, func(op *blockdev.Op) bool { return judgeSuper(trimSuper(op.Buf), want, c, key) == CellGood })
	ops = append(ops, reads...)
	if err == nil {
		p.rewritten(d.slot, kept[0], fmt.Sprintf("superblock copy %d", c))
	}
	return true, err
}
