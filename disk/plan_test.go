package disk

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// sizes makes requests of the given costs.
func sizes(costs ...int) (reqs []*request) {
	zeros := make([]byte, MaxBody+MaxPacked)
	for _, c := range costs {
		body := min(c-recordHead, 200)
		reqs = append(reqs, &request{rec: Record{Body: zeros[:body], Data: zeros[:c-recordHead-body]}})
	}
	return reqs
}

func repeat(n, cost int) (costs []int) {
	for range n {
		costs = append(costs, cost)
	}
	return costs
}

// checkLayout verifies what every layout promises: order, a place for each record, and room for it.
func checkLayout(reqs []*request, l layout, maxData, maxBlocks int) error {
	if len(l.ends) < 1 || len(l.ends) > maxData || l.blocks < 1 || l.blocks > maxBlocks {
		return fmt.Errorf("%d cells of %d blocks, want at most %d of %d", len(l.ends), l.blocks, maxData, maxBlocks)
	}
	first := 0
	for i, end := range l.ends {
		if end <= first || end > len(reqs) {
			return fmt.Errorf("cell %d takes records %d to %d", i, first, end)
		}
		used := cellOverhead
		for _, r := range reqs[first:end] {
			used += r.cost()
		}
		if used > l.blocks*BlockSize {
			return fmt.Errorf("cell %d: %d bytes in %d blocks", i, used, l.blocks)
		}
		first = end
	}
	return nil
}

func TestPlan(t *testing.T) {
	room := BlockSize - cellOverhead
	for _, test := range []struct {
		name            string
		costs           []int
		data, parity    int
		maxBlocks       int
		taken           int
		cells, perCell  int
		atMostTotalCost int // blocks, parity included
	}{
		{"a lone small record writes one data cell", []int{300}, 4, 2, 256, 1, 1, 1, 3},
		{"a lone 4 KiB object", []int{4096 + 300}, 4, 2, 256, 1, 1, 2, 6},
		{"a record that fills its block", []int{room}, 4, 2, 256, 1, 1, 1, 3},
		{"one byte more", []int{room + 1}, 4, 2, 256, 1, 1, 2, 6},
		{"two that fill one block together", []int{room / 2, room / 2}, 4, 2, 256, 2, 1, 1, 3},
		{"two that each fill a block share parity", []int{room, room}, 4, 2, 256, 2, 2, 1, 4},
		{"four at full width", repeat(4, room), 4, 2, 256, 4, 4, 1, 6},
		{"many small ones", repeat(64, 4096), 4, 2, 256, 64, 4, 0, 4*18 + 2*18},
		{"mirror", repeat(3, room), 1, 1, 256, 3, 1, 3, 6},
		{"no parity", repeat(3, room), 3, 0, 256, 3, 0, 0, 4},
		{"the largest record", []int{recordHead + MaxBody + MaxPacked}, 4, 2, 256, 1, 1, 105, 315},
		{"more than fits: a prefix", repeat(100, 100<<10), 4, 2, 256, 40, 4, 0, 6 * 256},
	} {
		t.Run(test.name, func(t *testing.T) {
			reqs := sizes(test.costs...)
			l := plan(reqs, test.data, test.parity, test.maxBlocks)
			if err := checkLayout(reqs, l, test.data, test.maxBlocks); err != nil {
				t.Fatal(err)
			}
			if n := l.ends[len(l.ends)-1]; n != test.taken {
				t.Errorf("takes %d records, want %d", n, test.taken)
			}
			if test.cells > 0 && len(l.ends) != test.cells || test.perCell > 0 && l.blocks != test.perCell {
				t.Errorf("%d cells of %d blocks, want %d of %d", len(l.ends), l.blocks, test.cells, test.perCell)
			}
			if n := (len(l.ends) + test.parity) * l.blocks; n > test.atMostTotalCost {
				t.Errorf("%d blocks, want at most %d", n, test.atMostTotalCost)
			}
		})
	}
}

// TestPlanRandom: layouts of random queues are valid, take everything when that fits for sure, and never less than one record.
func TestPlanRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 9))
	for i := range 1000 {
		data, parity := 1+rng.IntN(12), rng.IntN(5)
		maxBlocks := 110 + rng.IntN(maxCellBlocks-110)
		var costs []int
		for range 1 + rng.IntN(60) {
			costs = append(costs, recordHead+[]int{rng.IntN(300), rng.IntN(300), rng.IntN(5000), rng.IntN(5000), rng.IntN(MaxPacked), MaxBody + MaxPacked}[rng.IntN(6)])
		}
		reqs := sizes(costs...)
		l := plan(reqs, data, parity, maxBlocks)
		if err := checkLayout(reqs, l, data, maxBlocks); err != nil {
			t.Fatalf("queue %d: %v", i, err)
		}
		total, largest := 0, 0
		for _, c := range costs {
			total, largest = total+c, max(largest, c)
		}
		// Each cell but the last is left with less room than the largest record needs.
		if total <= data*(maxBlocks*BlockSize-cellOverhead-largest) && l.ends[len(l.ends)-1] != len(reqs) {
			t.Fatalf("queue %d: %d of %d records taken, though %d bytes fit", i, l.ends[len(l.ends)-1], len(reqs), total)
		}
	}
}

// TestDensest: where space is scarce, records that would make the cells longer for all are left to the next stripe.
func TestDensest(t *testing.T) {
	const cost = 8*BlockSize + 200 // nine blocks alone
	for _, test := range []struct {
		records, taken, blocks int
	}{{1, 1, 9}, {3, 3, 9}, {4, 4, 9}, {5, 4, 9}, {7, 4, 9}, {8, 8, 17}, {9, 8, 17}, {17, 16, 33}} {
		reqs := sizes(repeat(test.records, cost)...)
		l := densest(reqs, plan(reqs, 4, 2, maxCellBlocks), 4, 2, maxCellBlocks)
		if err := checkLayout(reqs, l, 4, maxCellBlocks); err != nil {
			t.Errorf("%d records: %v", test.records, err)
		}
		if n := l.ends[len(l.ends)-1]; n != test.taken || l.blocks != test.blocks {
			t.Errorf("%d records: takes %d in cells of %d blocks, want %d in %d", test.records, n, l.blocks, test.taken, test.blocks)
		}
	}
	rng := rand.New(rand.NewPCG(3, 1))
	for range 300 {
		data := 1 + rng.IntN(8)
		var costs []int
		for range 1 + rng.IntN(40) {
			costs = append(costs, recordHead+rng.IntN(MaxPacked))
		}
		reqs := sizes(costs...)
		l := densest(reqs, plan(reqs, data, 2, maxCellBlocks), data, 2, maxCellBlocks)
		if err := checkLayout(reqs, l, data, maxCellBlocks); err != nil {
			t.Error(err)
		}
	}
}

// TestWorthwhile: what may become a stripe, by what waits, what is on its way, and whether space is scarce.
func TestWorthwhile(t *testing.T) {
	s := newSimArray(t, 6, 4, 2, 12)
	a := s.open()
	defer a.Close()
	one, four, few, full := []int{300}, repeat(4, 300), repeat(maxPatient-1, 300), repeat(50, 100<<10)
	for _, test := range []struct {
		name            string
		queue           []int
		patient, scarce bool
		inflight, due   bool
		want            bool
	}{
		{"a lone record", one, false, false, false, false, true},
		{"a lone record, others on their way", one, false, false, true, false, true},
		{"a patient one", one, true, false, false, false, false},
		{"a patient one whose time has come", one, true, false, false, true, true},
		{"patient ones, not enough", few, true, false, false, false, false},
		{"patient ones that fill a stripe", full, true, false, true, false, true},
		{"scarce: a lone record", one, false, true, false, false, false},
		{"scarce: its time has come", one, false, true, false, true, true},
		{"scarce: its time has come, others on their way", one, false, true, true, true, false},
		{"scarce: one for each cell", four, false, true, false, false, true},
		{"scarce: one for each cell, others on their way", four, false, true, true, false, false},
		{"scarce: a full stripe", full, false, true, true, false, true},
	} {
		p := newPackedLog(a)
		p.queue, p.due = sizes(test.queue...), test.due
		for _, r := range p.queue {
			r.rec.Patient = test.patient
		}
		if test.inflight {
			p.inflight = []*packedStripe{{}}
		}
		a.slack.Store(test.scarce)
		a.SetDear(true)
		if got := p.worthwhile(a.scarce()); got != test.want {
			t.Errorf("%s: %t", test.name, got)
		}
	}
	a.slack.Store(true)
	a.SetDear(false)
	p := newPackedLog(a)
	if p.queue = sizes(one...); !p.worthwhile(a.scarce()) {
		t.Error("a lone record waits though space is cheap")
	}
}

// TestLayOut: what is left of a band is used by as many as fit, in order, and a band is left only when the first does not.
func TestLayOut(t *testing.T) {
	const all = 255
	small, large := 300, 20*BlockSize
	for _, test := range []struct {
		name  string
		costs []int
		left  int
		taken int // 0: another band
	}{
		{"plenty", repeat(10, small), all, 10},
		{"the last block", repeat(3, small), 1, 3},
		{"nothing left", repeat(3, small), 0, 0},
		{"too large", []int{large}, 20, 0},
		{"just fits", []int{large}, 21, 1},
		{"a large one behind small ones", []int{small, small, large, small}, 5, 2},
		{"a large one in front", []int{large, small}, 5, 0},
		{"more than fit", repeat(100, large), 43, 8},
	} {
		for _, scarce := range []bool{false, true} {
			reqs := sizes(test.costs...)
			l, ok := layOut(reqs, 4, 2, all, test.left, scarce)
			if !ok {
				if test.taken > 0 {
					t.Errorf("%s: another band", test.name)
				}
				continue
			}
			if err := checkLayout(reqs, l, 4, test.left); err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			if n := l.ends[len(l.ends)-1]; n != test.taken && !(scarce && n >= test.taken*3/4) {
				t.Errorf("%s, scarce %t: takes %d, want %d", test.name, scarce, n, test.taken)
			}
		}
	}
	rng := rand.New(rand.NewPCG(5, 5))
	for i := range 2000 {
		var costs []int
		for range 1 + rng.IntN(40) {
			costs = append(costs, recordHead+[]int{rng.IntN(300), rng.IntN(5000), rng.IntN(MaxPacked)}[rng.IntN(3)])
		}
		reqs, data, left := sizes(costs...), 1+rng.IntN(6), rng.IntN(all+1)
		l, ok := layOut(reqs, data, 2, all, left, rng.IntN(2) == 0)
		if fits := alignUp(costs[0]+cellOverhead)/BlockSize <= left; ok != fits {
			t.Fatalf("queue %d: %t, and the first fits: %t", i, ok, fits)
		}
		if ok {
			if err := checkLayout(reqs, l, data, left); err != nil {
				t.Fatalf("queue %d: %v", i, err)
			}
		}
	}
}

// TestLoneSmallPut: a 4 KiB put into a 4+2 array costs one data cell and two of parity, not six.
func TestLoneSmallPut(t *testing.T) {
	s := newSimArray(t, 6, 4, 2, 12)
	a := s.open()
	defer a.Close()
	w := newWritten()
	if err := w.put(a, 1, 100); err != nil { // opens the band
		t.Fatal(err)
	}
	writes := func() (n uint64) {
		for _, d := range s.disks {
			n += d.Stats().Writes
		}
		return n
	}
	before := writes()
	if err := w.put(a, 2, 4096); err != nil {
		t.Fatal(err)
	}
	if n := writes() - before; n != 3 {
		t.Errorf("%d writes, want 3", n)
	}
}

func TestRotationSpreads(t *testing.T) {
	for _, width := range []int{1, 2, 3, 6, 20, 32} {
		counts := make([]int, width)
		const n = 20000
		for i := range n {
			r := rotation(3<<32|uint64(i%7), uint32(1+i*3), width)
			if r < 0 || r >= width {
				t.Fatalf("width %d: %d", width, r)
			}
			counts[r]++
		}
		for r, c := range counts {
			if want := n / width; c < want*8/10 || c > want*12/10 {
				t.Errorf("width %d: role 0 is %d times on member %d of %d", width, c, r, n)
			}
		}
	}
}

func TestChooseGeometry(t *testing.T) {
	for _, test := range []struct{ n, data, parity int }{
		{1, 1, 0}, {2, 1, 1}, {3, 2, 1}, {4, 2, 2}, {6, 4, 2}, {8, 6, 2}, {9, 7, 2}, {10, 7, 3}, {12, 9, 3}, {16, 12, 4}, {20, 16, 4}, {24, 16, 4}, {64, 16, 4},
	} {
		d, p, err := ChooseGeometry(test.n)
		if err != nil || d != test.data || p != test.parity {
			t.Errorf("%d disks: %d+%d, %v; want %d+%d", test.n, d, p, err, test.data, test.parity)
		}
	}
	for n := 1; n <= MaxDisks; n++ {
		d, p, err := ChooseGeometry(n)
		if err != nil {
			t.Fatal(err)
		}
		for size := int64(64 << 20); size < 1<<45; size *= 3 {
			g := Geometry{Data: d, Parity: p, ExtentSize: ChooseExtentSize(size, d)}
			if err := g.Validate(n); err != nil {
				t.Errorf("%d disks of %d: %v", n, size, err)
			}
			if n := g.extents(size); size >= 1<<30 && (n < 100 || n > 1<<20) {
				t.Errorf("disk of %d: %d extents of %d", size, n, g.ExtentSize)
			}
			if rows := g.rows(); rows < 1 || rows > maxRows || int64(g.Data*rows)*SegmentSize+2*BlockSize > g.ExtentSize {
				t.Errorf("%d+%d, extents of %d: %d rows", d, p, g.ExtentSize, rows)
			}
		}
	}
	for _, n := range []int{-1, 0, MaxDisks + 1} {
		if _, _, err := ChooseGeometry(n); err == nil {
			t.Errorf("%d disks accepted", n)
		}
	}
}

func TestGeometryValidate(t *testing.T) {
	good := Geometry{Data: 4, Parity: 2, ExtentSize: 1 << 20}
	for _, n := range []int{6, 7, MaxDisks} {
		if err := good.Validate(n); err != nil {
			t.Errorf("%d disks: %v", n, err)
		}
	}
	for _, test := range []struct {
		g Geometry
		n int
	}{
		{good, 5}, {good, MaxDisks + 1},
		{Geometry{Data: 0, Parity: 2, ExtentSize: 1 << 20}, 6},
		{Geometry{Data: 4, Parity: -1, ExtentSize: 1 << 20}, 6},
		{Geometry{Data: 30, Parity: 3, ExtentSize: 8 << 20}, 64},
		{Geometry{Data: 4, Parity: 2, ExtentSize: 1<<20 - BlockSize}, 6},
		{Geometry{Data: 4, Parity: 2, ExtentSize: 1<<20 + 512}, 6},
		{Geometry{Data: 4, Parity: 2, ExtentSize: 2 << 30}, 6},
		{Geometry{Data: 20, Parity: 2, ExtentSize: 1 << 20}, 22},
	} {
		if test.g.Validate(test.n) == nil {
			t.Errorf("%+v on %d disks accepted", test.g, test.n)
		}
	}
	if _, err := Plan(Geometry{}, []int64{100 << 20, 100 << 20, 3 << 20}); err == nil {
		t.Error("a disk without room for extents accepted")
	}
	if g, err := Plan(Geometry{}, []int64{100 << 20, 100 << 20, 90 << 20}); err != nil || g.Data != 2 || g.Parity != 1 || g.ExtentSize != 1<<20 {
		t.Errorf("%+v, %v", g, err)
	}
	if g, err := Plan(Geometry{Parity: 3}, []int64{1 << 30, 1 << 30, 1 << 30, 1 << 30, 1 << 30, 1 << 30}); err != nil || g.Data != 3 || g.Parity != 3 {
		t.Errorf("%+v, %v", g, err)
	}
}

func BenchmarkPlan(b *testing.B) {
	for _, test := range []struct{ n, cost, data int }{{1, 4400, 4}, {64, 4400, 4}, {256, 4400, 16}, {maxPerStripe, 300, 4}, {1000, 90 << 10, 4}} {
		b.Run(fmt.Sprintf("%dx%d over %d", test.n, test.cost, test.data), func(b *testing.B) {
			reqs := sizes(repeat(test.n, test.cost)...)
			b.ReportAllocs()
			for b.Loop() {
				plan(reqs, test.data, 2, maxCellBlocks)
			}
		})
	}
}

// TestBandsOf compares the number of bands that free extents make with what taking extents on the emptiest disks comes to.
func TestBandsOf(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		free := make([]int, 1+rng.IntN(9))
		for i := range free {
			free[i] = rng.IntN(1 + rng.IntN(30))
		}
		a := &Array{geo: Geometry{Data: 1 + rng.IntN(4), Parity: rng.IntN(3)}}
		got := a.geo.bandsOf(free)
		left, want := slices.Clone(free), 0
		for w := min(a.geo.width(), len(left)); ; want++ {
			slices.SortFunc(left, func(x, y int) int { return y - x })
			if left[w-1] == 0 {
				break
			}
			for i := range w {
				left[i]--
			}
		}
		if got != want {
			t.Fatalf("%v, %d wide: %d bands, %d can be taken", free, a.geo.width(), got, want)
		}
	}
}
