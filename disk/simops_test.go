package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"coffer/disk/internal/blockdev"
)

// act does one random thing.
func (s *sim) act() {
	if s.kinds != simKinds && !s.hurt && s.rng.IntN(4) == 0 && len(s.suspect) > 0 {
		s.hurt = true
		s.fault()
	}
	switch often := s.bugs; { // what a bug is about, to meet it soon
	case (*simChurn || often.moveEarly || often.dropTwice) && s.rng.IntN(6) == 0:
		s.member()
		return
	case often.trustData && s.rng.IntN(3) == 0:
		s.scrub()
		return
	case often.noPin && s.rng.IntN(4) == 0:
		s.compact()
		return
	}
	switch r := s.rng.IntN(25); {
	case r == 24 && s.rng.IntN(3) == 0:
		s.replace()
	case r == 24 && s.rng.IntN(2) == 0:
		s.member()
	case r == 24 && s.rng.IntN(3) == 0:
		s.rekey()
	case r == 24:
		s.scrub()
	case r >= 22:
		s.kill()
	case r >= 20:
		s.compact()
	case r < 9:
		s.put()
	case r < 11:
		s.putBulk()
	case r < 15:
		s.step()
	case r < 17:
		s.settle()
	case r == 17:
		s.saved = s.state.clone()
	case r == 18 && len(s.suspect) > 0 && s.kinds == simKinds:
		s.fault()
	default:
		s.readOne()
	}
}

// put queues a record. Sizes repeat, so that attempts at one place look alike.
func (s *sim) put() {
	size := []int{64, 64, 700, 4096, 4096, 9000, 120 << 10}[s.rng.IntN(7)]
	s.ids++
	s.enqueue(&simOp{id: s.ids, kind: simPut, size: size})
}

// kill makes an acknowledged record vanish.
func (s *sim) kill() {
	if s.acked == 0 {
		return
	}
	op := s.ops[s.rng.IntN(s.acked)]
	r, ok := s.state.byID()[op.id]
	if !ok || op.kind == simKill || op.killed || s.compacting != 0 && r.in(s.compacting) {
		return
	}
	op.killed = true
	s.ids++
	s.enqueue(&simOp{id: s.ids, kind: simKill, victim: op})
}

func (s *sim) enqueue(op *simOp) {
	s.say("enqueue %d %c %x", op.id, op.kind, op.stripe.Band)
	body := simBody(op.kind, op.id)
	rec := Record{Essential: s.rng.IntN(2) == 0}
	switch op.kind {
	case simBulk:
		body = op.stripe.AppendBinary(body)
	case simKill:
		body = binary.LittleEndian.AppendUint64(body, s.state.byID()[op.victim.id].seq)
	default:
		rec.Data = payload(op.id, op.size)
	}
	rec.Body = body
	op.req = s.send(rec)
	s.ops = append(s.ops, op)
}

// send gives a record to the log.
func (s *sim) send(rec Record) *request {
	req := &request{rec: rec, done: make(chan struct{}, 1)}
	if err := s.a.log.enqueue(req); err != nil {
		req.err = err
		req.done <- struct{}{}
	}
	return req
}

// appendNow is send, and waits: for calls under way.
func (s *sim) appendNow(rec Record) error {
	req := s.send(rec)
	for {
		select {
		case <-req.done:
			return req.err
		default:
			s.wait()
		}
	}
}

// replace puts a new disk into the slot of one that faults are allowed on.
func (s *sim) replace() {
	if len(s.suspect) == 0 || len(s.tasks) >= maxSimTasks || s.replacing || s.kinds != simKinds {
		return
	}
	slot := s.slotOf(s.suspect[s.rng.IntN(len(s.suspect))])
	if i := slices.IndexFunc(s.a.slots(), func(d *disk) bool { return d.state == DiskForeign }); i >= 0 {
		slot = i
	}
	if slot < 0 {
		return
	}
	d := blockdev.NewSimDisk(s.world, s.simDiskSize(), blockdev.SimOptions{})
	s.disks = append(s.disks, d)
	heir := len(s.disks) - 1
	suspect := slices.IndexFunc(s.suspect, func(i int) bool { return s.slotOf(i) == slot })
	s.replacing = true
	s.spawn(func() {
		defer func() { s.replacing = false }()
		err := s.a.replace(context.Background(), slot, d)
		s.say("replace slot %d by %s: %v", slot, d.Path(), err)
		if err == nil {
			s.stats.replaced++
			if suspect >= 0 && s.rng.IntN(2) == 0 {
				s.suspect[suspect] = heir
			}
			s.rebuild()
		}
	})
}

// member changes the set of disks.
func (s *sim) member() {
	if len(s.tasks) >= maxSimTasks || s.kinds != simKinds || s.changing {
		return
	}
	slot := s.rng.IntN(len(s.a.slots()))
	var d *blockdev.SimDisk
	what := s.rng.IntN(5)
	if what < 2 {
		if len(s.disks) >= maxSimDisks {
			return
		}
		d = blockdev.NewSimDisk(s.world, s.simDiskSize(), blockdev.SimOptions{})
		s.disks = append(s.disks, d)
	}
	s.changing = true
	s.spawn(func() {
		defer func() { s.changing = false }()
		var err error
		switch what {
		case 0, 1:
			_, err = s.a.add(context.Background(), d, what == 1)
			s.say("add %s as spare %t: %v", d.Path(), what == 1, err)
		case 2, 3:
			err = s.a.Remove(context.Background(), slot)
			s.say("remove slot %d: %v", slot, err)
		case 4:
			err = s.a.Keep(context.Background(), slot)
			s.say("keep slot %d: %v", slot, err)
		}
		if err == nil {
			s.stats.members++
			s.rebuild()
		}
	})
}

// rekey begins a key epoch, as a keyring does: it is used once all disks know it.
func (s *sim) rekey() {
	if len(s.tasks) >= maxSimTasks || s.rekeying {
		return
	}
	s.rekeying = true
	s.spawn(func() {
		defer func() { s.rekeying = false }()
		s.keys.known++
		err := s.a.WriteKeyArea()
		s.say("key epoch %d: %v", s.keys.known, err)
		if err == nil {
			s.keys.current = s.keys.known
			s.stats.rekeyed++
		}
	})
}

// promote lets a spare take the place of a disk that is away.
func (s *sim) promote() {
	for _, d := range s.a.away() {
		if err := s.a.promote(d); err == nil {
			s.say("spare promoted to slot %d", d.slot)
			s.stats.promoted++
		}
	}
}

// slotOf is the slot that a disk has now, -1 for none.
func (s *sim) slotOf(disk int) int {
	for _, d := range s.a.slots() {
		if d.path == s.disks[disk].Path() {
			return d.slot
		}
	}
	return -1
}

// rebuild goes on with the disks that are being rebuilt.
func (s *sim) rebuild() {
	for _, d := range s.a.slots() {
		if d.state == DiskRebuilding && d.rebuild != nil {
			s.spawn(func() { s.a.rebuildDisk(s.a.ctx, d, d.rebuild) })
		}
		if r := d.drain; d.draining && r != nil && !s.draining[r] {
			s.draining[r] = true
			s.spawn(func() {
				s.a.drainDisk(s.a.ctx, d, r)
				delete(s.draining, r)
				s.say("drain of slot %d: %s", d.slot, d.state)
				if d.state == DiskRetired {
					s.stats.drained++
				}
			})
		}
	}
}

// compact empties a random band and frees it, as the object store does.
func (s *sim) compact() {
	if s.compacting != 0 || len(s.tasks) >= maxSimTasks {
		return
	}
	var closed []Band
	for _, b := range s.a.Bands() {
		if b.Closed {
			closed = append(closed, b)
		}
	}
	if len(closed) == 0 {
		return
	}
	b := closed[s.rng.IntN(len(closed))]
	s.compacting = b.Num
	s.spawn(func() {
		defer func() { s.compacting = 0 }()
		run, err := s.empty(b)
		if err == nil {
			err = s.release(b, run)
		}
		s.say("compacted band %x: %v", b.Num, err)
		if err == nil {
			s.stats.freed++
		}
	})
}

// empty moves all that is live out of a band.
func (s *sim) empty(b Band) (run StripeRange, err error) {
	for _, op := range s.ops {
		if r, ok := s.state.byID()[op.id]; ok && op.killed && r.in(b.Num) {
			return run, errSimLive // it is about to vanish
		}
	}
	if b.Bulk {
		for _, r := range s.state.sorted() {
			if r.kind == simBulk && r.bulk.Band == b.Num {
				if err := s.moveStripe(r); err != nil {
					return run, err
				}
			}
		}
		return run, nil
	}
	var found []Record
	run, err = s.a.EachRecord(context.Background(), b.Num, func(e Entry, data []byte) error {
		r, ok := s.state.recs[e.Seq]
		if s.bugs.noShadow && r.kind == simKill {
			ok = false
			delete(s.state.recs, e.Seq)
		}
		if ok && r.band == b.Num && (r.data.IsZero() || r.data == e.Data) {
			found = append(found, Record{Seq: e.Seq, Body: []byte(r.body), Data: bytes.Clone(data), Essential: true})
		}
		return nil
	})
	for _, rec := range found {
		if err == nil {
			err = s.appendNow(rec)
		}
	}
	return run, err
}

// moveStripe writes a stripe again and the record that names it.
func (s *sim) moveStripe(r simRecord) error {
	w, err := s.a.NewReservedStripe(context.Background(), int(r.bulk.Segments))
	if err != nil {
		return err
	}
	filled := false
	defer func() {
		if !filled {
			w.Discard()
		}
	}()
	v, err := s.a.ReadVerified(context.Background(), r.bulk)
	if err != nil {
		return err
	}
	s.say("move record %d (%x) from %x", r.id, r.seq, r.bulk.Band)
	for i := range int(r.bulk.Segments) {
		copy(w.Slot(i), v.Bytes(i))
	}
	v.Release()
	if err := w.Sealed(int(r.bulk.Segments)); err != nil {
		panic(err)
	}
	filled = true
	st, err := w.Commit(context.Background())
	if err != nil {
		return err
	}
	defer s.a.Unpin(st.Band)
	return s.appendNow(Record{Seq: r.seq, Body: st.AppendBinary(simBody(simBulk, r.id)), Essential: true})
}

// release frees a band in which nothing is live.
func (s *sim) release(b Band, run StripeRange) error {
	for _, r := range s.state.recs {
		if r.in(b.Num) {
			return errSimLive
		}
	}
	if !b.Bulk && run != (StripeRange{}) {
		all := run
		var rest []StripeRange
		for _, f := range s.state.freed {
			if f.To+1 == all.From || f.From == all.To+1 {
				all = StripeRange{min(f.From, all.From), max(f.To, all.To)}
			} else {
				rest = append(rest, f)
			}
		}
		s.ids++
		rec := Record{Body: encodeRanges(simBody(simFreed, s.ids), append(rest, all)), Essential: true}
		if err := s.appendNow(rec); err != nil {
			return err
		}
	}
	s.saved = s.state.clone()
	if err := s.a.Free(context.Background(), b.Num); err != nil {
		return err
	}
	s.state.dropShadows(s.a.Horizon())
	return nil
}

// scrub begins a sweep that repairs what it finds.
func (s *sim) scrub() {
	if s.scrubbing != nil || len(s.tasks) >= maxSimTasks {
		return
	}
	s.spawn(func() {
		s.scrubbing = s.running
		defer func() { s.scrubbing = nil }()
		rep, err := s.a.Check(context.Background(), CheckOptions{Repair: true, Sample: 1})
		s.say("scrubbed: %+v, %v", rep, err)
		if err != nil || s.world.Off() {
			return
		}
		s.stats.scrubs++
		s.stats.mended += rep.Repaired
		if rep.Lost > 0 || rep.Mismatched > 0 || rep.Unopened > 0 || len(s.suspect) == 0 && !rep.OK() {
			panic(fmt.Sprintf("scrub: %+v", rep))
		}
	})
}

// putBulk begins to write a stripe, among others, and to queue the record that names it.
func (s *sim) putBulk() {
	if len(s.tasks) >= maxSimTasks {
		s.resume()
		return
	}
	s.ids++
	id := s.ids
	n := 1 + s.rng.IntN(min(s.a.MaxStripeSegments(), []int{4, 4, 4, 12, 12, 64}[s.rng.IntN(6)]))
	w, err := s.a.NewStripe(context.Background(), n)
	if err != nil {
		return
	}
	if s.rng.IntN(4) == 0 {
		n = 1 + s.rng.IntN(n) // the body ends early
	}
	for i := range n {
		copy(w.Slot(i), payload(id<<20|1+uint64(i), SegmentSize))
		if err := w.Sealed(i + 1); err != nil {
			panic(err)
		}
	}
	s.spawn(func() {
		st, err := w.Commit(context.Background())
		if err != nil {
			return
		}
		s.stats.stripes++
		defer s.a.Unpin(st.Band)
		op := &simOp{id: id, kind: simBulk, stripe: st}
		s.enqueue(op)
		for i := 0; !op.acked && op.req.err == nil && i < 10000; i++ {
			s.wait()
		}
	})
}
