package disk

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"coffer/disk/internal/blockdev"
)

// A disk is slow when its mean latency over an interval is slowFactor times the median of its peers', and above slowFloor: no disk that
// works takes so long on average, and what is merely uneven stays below. It is suspect from then on: reads are answered from
// the others where parity bears it. After fenceAfter such intervals it is fenced, for every write waits for it; one that is not slow takes half of
// one back, so that a disk which is slow now and then is fenced as well. The same befalls a disk of which at least half of the reads fail; as
// others answer for it then, it is asked for a few blocks in each interval, so that it can prove itself.
//
// A disk that answers nothing for an interval while others answer is suspect too, and fenced after silentAfter of them: disks meant for arrays
// give up on a sector after 7 s at most (SCT ERC), and a disk that looks for one is not to be lost. Where all are silent the cause is not a disk.
// A fenced disk is not waited for any longer.
const (
	healthEvery = 500 * time.Millisecond
	slowFactor  = 10
	slowFloor   = 50 * time.Millisecond
	fenceAfter  = 3
	silentAfter = 16
	askedBlocks = 8
)

// Why a disk is suspect, and fenced at last.
const (
	tooSlow   = "slower than its peers"
	readsFail = "most of its reads fail"
	noAnswer  = "does not answer"
)

// pulse is what was seen of a disk's latency.
type pulse struct {
	reads, writes blockdev.Latency                       // at the end of the last interval
	slow, unread  int                                    // half intervals
	good, failed  uint64                                 // reads, at the end of the last interval
	sizes         [blockdev.SizeClasses]blockdev.Latency // what the bounds of late reads take into account
}

// mean returns the mean latency since before, 0 without any operation.
func meanSince(before, now blockdev.Latency) time.Duration {
	n := now.Count - before.Count
	if n == 0 || now.Count < before.Count {
		return 0
	}
	return (now.Sum - before.Sum) / time.Duration(n)
}

// slowStart is the latency from which on a start is made without a disk: it reads much one after the other, and waits for every disk.
const slowStart = 200 * time.Millisecond

// leaveSlow finds out before anything is read which disks are far slower than their peers, and fences them at once where the others do: while
// the array is open that takes some seconds, but a start would take minutes. Of each disk the fastest read counts, but for the first, as it may have slept.
func (a *Array) leaveSlow(ctx context.Context) error {
	buf, err := a.meta.Get(ctx, len(a.slots())*BlockSize)
	if err != nil {
		return err
	}
	ops := make([]blockdev.Op, len(a.slots())) // the last of each disk
	took := make([]time.Duration, len(a.slots()))
	var wg sync.WaitGroup
	for i, d := range a.slots() {
		if !d.present() || !d.counts() {
			continue
		}
		wg.Go(func() {
			for c := range superCopies {
				began := time.Now()
				ops[i] = blockdev.Op{Dev: d.gi, Off: int64(c) * superStride, Buf: buf.Bytes()[i*BlockSize:][:BlockSize]}
				if a.group.Run(ops[i:i+1]) != nil || ops[i].Err != nil {
					took[i] = 0
					return // it is not slow but bad, and others will see
				}
				if t := time.Since(began); c == 1 || c > 1 && t < took[i] {
					took[i] = t
				}
			}
		})
	}
	wg.Wait()
	release(&buf, ops)
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, d := range a.slots() {
		var peers []time.Duration
		whole := 0
		for j, p := range a.slots() {
			if j != i && took[j] > 0 && p.usable() {
				peers = append(peers, took[j])
			}
			if j != i && p.counts() && p.present() && !p.hollow {
				whole++
			}
		}
		slices.Sort(peers)
		if took[i] < slowStart || len(peers) == 0 || took[i] < slowFactor*peers[len(peers)/2] || whole < a.super.counted()-a.geo.Parity || whole <= a.geo.Parity {
			continue
		}
		d.state, d.reason = DiskFenced, fmt.Sprintf("%s: a read took %v at the start", tooSlow, took[i].Round(time.Millisecond))
		a.logger.Error("disk is left out: it is far slower than the others", "path", d.path, "slot", d.slot, "read", took[i])
	}
	return nil
}

// watchHealth judges the disks by their latency and their errors until the array closes.
func (a *Array) watchHealth() {
	every := a.opt.HealthEvery
	if every == 0 {
		every = healthEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	pulses := map[*disk]*pulse{}
	for {
		select {
		case <-a.ctx.Done():
			return
		case <-tick.C:
		}
		a.tryCramped()
		for _, d := range a.takePulse(pulses, every) {
			if !a.canSpare(d) { // another one was fenced just now
				continue
			}
			a.group.GiveUp(d.gi)
			if err := a.log.fail([]*disk{d}); err != nil {
				a.logger.Error("suspect disk not fenced", "path", d.path, "err", err)
			}
		}
	}
}

// takePulse takes the pulse of every disk and returns those to be fenced.
func (a *Array) takePulse(pulses map[*disk]*pulse, every time.Duration) (fence []*disk) {
	var live []*disk
	var reads, writes []time.Duration
	a.mu.RLock()
	for _, d := range a.slots() {
		if d.usable() {
			live = append(live, d)
		}
	}
	a.mu.RUnlock()
	stats := make([]blockdev.Stats, len(live))
	for i, d := range live {
		p := pulses[d]
		if p == nil {
			p = &pulse{}
			pulses[d] = p
		}
		s := d.dev.Stats()
		stats[i] = s
		reads = append(reads, meanSince(p.reads, s.ReadLatency))
		writes = append(writes, meanSince(p.writes, s.DurableLatency))
		p.reads, p.writes = s.ReadLatency, s.DurableLatency
		switch good, failed := s.Reads-p.good, s.ReadErrors-p.failed; {
		case failed > 0 && failed >= good:
			p.unread += 2
		case good > 0:
			p.unread = max(p.unread-1, 0)
		}
		p.good, p.failed = s.Reads, s.ReadErrors
	}
	a.hedges.measure(live, stats, pulses)
	silence := a.silence(live)
	for i, d := range live {
		p := pulses[d]
		switch {
		case slowest(reads, i) || slowest(writes, i):
			p.slow += 2
		case reads[i] > 0 || writes[i] > 0:
			p.slow = max(p.slow-1, 0)
		}
		why := ""
		switch {
		case p.unread > 0:
			why = readsFail
			a.tasks.Go(func() { a.ask(d) })
		case p.slow > 0:
			why = tooSlow
		case silence[i] >= every:
			why = noAnswer
		}
		if sick := why != ""; d.suspect.Swap(sick) != sick {
			a.logger.Warn("disk suspect", "path", d.path, "slot", d.slot, "suspect", sick, "reason", why, "read", reads[i], "write", writes[i], "silent", silence[i])
		}
		a.mu.Lock()
		d.symptom = why
		a.mu.Unlock()
		if (max(p.slow, p.unread) >= 2*fenceAfter || silence[i] >= silentAfter*every) && a.canSpare(d) {
			fence = append(fence, d)
		}
	}
	return fence
}

// silence is how long each disk has owed an answer while a peer gave one, and most are not as silent.
func (a *Array) silence(live []*disk) []time.Duration {
	silent, since := make([]time.Duration, len(live)), make([]time.Duration, len(live))
	for i, d := range live {
		silent[i], since[i] = a.group.Silence(d.gi)
	}
	out := make([]time.Duration, len(live))
	for i, s := range silent {
		var answered, silentToo int
		for k := range live {
			switch {
			case k == i:
			case silent[k] > s/2:
				silentToo++
			case since[k] < s:
				answered++
			}
		}
		if answered > 0 && silentToo <= (len(live)-1)/2 {
			out[i] = s
		}
	}
	return out
}

// ask reads a few blocks of a disk that must be there: the headers of bands, or its superblock where it has none. The counters of the device
// tell what came of it.
func (a *Array) ask(d *disk) {
	if !d.asked.CompareAndSwap(false, true) {
		return // it has not answered yet
	}
	defer d.asked.Store(false)
	buf, err := a.meta.Get(a.ctx, askedBlocks*BlockSize)
	if err != nil {
		return
	}
	var ops []blockdev.Op
	defer func() { release(&buf, ops) }()
	read := func(off int64) {
		ops = append(ops, blockdev.Op{Dev: d.gi, Off: off, Buf: buf.Bytes()[len(ops)*BlockSize:][:BlockSize]})
	}
	a.mu.RLock()
	for _, b := range a.bands { // in no order
		if pos := b.position(d.slot); pos >= 0 && len(ops) < askedBlocks {
			read(a.geo.extentOffset(b.members[pos].extent))
		}
	}
	a.mu.RUnlock()
	if len(ops) == 0 {
		read(0)
	}
	a.group.Run(ops) // what fails is counted
}

// slowest reports whether the i-th of the means is far from the others.
func slowest(means []time.Duration, i int) bool {
	var peers []time.Duration
	for k, m := range means {
		if k != i && m > 0 {
			peers = append(peers, m)
		}
	}
	if len(peers) == 0 {
		return false
	}
	slices.Sort(peers)
	return means[i] > max(slowFloor, slowFactor*peers[len(peers)/2])
}

// canSpare reports whether parity bears the loss of the disk beside those that are not whole.
func (a *Array) canSpare(d *disk) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	out := 0
	for _, o := range a.slots() {
		if o != d && o.counts() && !o.whole() {
			out++
		}
	}
	return out < a.geo.Parity
}

// avoid reports whether a member of a band lags, and enough others are there to answer for it.
func (a *Array) avoid(b *band, pos int) bool {
	slots := a.slots()
	if !slots[b.members[pos].slot].lags() || b.parity == 0 {
		return false
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	out := 0
	for i, m := range b.members {
		if d := slots[m.slot]; i == pos || !d.present() || b.isHollow(i) || d.lags() {
			out++
		}
	}
	return out <= b.parity
}
