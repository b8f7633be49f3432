package object

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

// absent is the value of a key without an object.
const absent = -1

// access is a call on a key that several clients use at the same time: what a write left behind, or what a read saw.
type access struct {
	write     bool
	value     int
	call, ret int64
	maybe     bool // a write that was cut off: it happened before ret, when the process died, or never
}

// accesses are the calls of a race, by key, in the order of a clock that counts their beginnings and ends.
type accesses struct {
	mu    sync.Mutex // guards all fields
	clock int64
	byKey map[string][]access
}

func (a *accesses) now() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.clock++
	return a.clock
}

// note adds a call that began at a time and ends now.
func (a *accesses) note(key string, call int64, write bool, value int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.clock++
	a.byKey[key] = append(a.byKey[key], access{write: write, value: value, call: call, ret: a.clock})
}

// maybe adds a write that began at a time and was cut off.
func (a *accesses) maybe(key string, call int64, value int) {
	a.note(key, call, true, value)
	a.mu.Lock()
	defer a.mu.Unlock()
	ops := a.byKey[key]
	ops[len(ops)-1].maybe, ops[len(ops)-1].ret = true, 0
}

// died says that what was cut off has happened by now, or never does.
func (a *accesses) died() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.clock++
	for _, ops := range a.byKey {
		for i := range ops {
			if ops[i].ret == 0 {
				ops[i].ret = a.clock
			}
		}
	}
}

// check fails the test unless each key's calls can be put in an order. The first call of each, made before the race, reads what it held.
func (a *accesses) check(t *testing.T) {
	t.Helper()
	n := 0
	for key, ops := range a.byKey {
		n += len(ops)
		if !linearizable(ops[0].value, ops) {
			var lines strings.Builder
			for _, o := range ops {
				fmt.Fprintf(&lines, "\n%d..%d write %v: %d", o.call, o.ret, o.write, o.value)
			}
			t.Errorf("no order of the calls on %q explains what was read:%s", key, lines.String())
		}
	}
	t.Logf("%d calls on %d keys are linearizable", n, len(a.byKey))
}

// linearizable reports whether the calls on a key that held a value can be put in an order, each at a moment between its beginning and
// its end, in which every read sees what was written last (Wing and Gong, with Lowe's memory of what was tried).
func linearizable(held int, ops []access) bool {
	slices.SortFunc(ops, func(a, b access) int { return cmp.Compare(a.call, b.call) })
	done, tried := make([]byte, len(ops)), map[string]bool{}
	var rest func(held, first int) bool
	rest = func(held, first int) bool {
		for first < len(ops) && done[first] == 1 {
			first++
		}
		if first == len(ops) {
			return true
		}
		at := fmt.Sprint(held, string(done))
		if tried[at] {
			return false
		}
		tried[at] = true
		soonest := ops[first].ret // a call that begins after another's end comes after it
		for i := first; i < len(ops) && ops[i].call < soonest; i++ {
			o := ops[i]
			if done[i] == 1 {
				continue
			}
			soonest = min(soonest, o.ret)
			if !o.write && o.value != held {
				continue
			}
			done[i] = 1
			if rest(o.value, first) || o.maybe && rest(held, first) {
				return true
			}
			done[i] = 0
		}
		return false
	}
	return rest(held, 0)
}

// TestLinearizable is the control of the check.
func TestLinearizable(t *testing.T) {
	w := func(call, ret int64, v int) access { return access{write: true, value: v, call: call, ret: ret} }
	r := func(call, ret int64, v int) access { return access{value: v, call: call, ret: ret} }
	cut := func(call, ret int64, v int) access {
		return access{write: true, value: v, call: call, ret: ret, maybe: true}
	}
	for name, test := range map[string]struct {
		ops  []access
		want bool
	}{
		"in order":           {[]access{r(1, 2, absent), w(3, 4, 7), r(5, 6, 7)}, true},
		"stale read":         {[]access{w(1, 2, 7), w(3, 4, 8), r(5, 6, 7)}, false},
		"beside a write":     {[]access{w(1, 2, 7), w(3, 6, 8), r(4, 5, 7)}, true},
		"new and old again":  {[]access{w(1, 2, 7), w(3, 9, 8), r(4, 5, 8), r(6, 7, 7)}, false},
		"two writes at once": {[]access{w(1, 4, 7), w(2, 3, 8), r(5, 6, 7)}, true},
		"lost write":         {[]access{w(1, 2, 7), r(3, 4, absent)}, false},
		"cut off, done":      {[]access{w(1, 2, 7), cut(3, 4, 8), r(5, 6, 8)}, true},
		"cut off, not done":  {[]access{w(1, 2, 7), cut(3, 4, 8), r(5, 6, 7)}, true},
		"cut off, done late": {[]access{w(1, 2, 7), cut(3, 4, 8), r(5, 6, 7), r(7, 8, 8)}, false},
		"cut off, undone":    {[]access{w(1, 2, 7), cut(3, 8, 8), r(4, 5, 8), r(9, 10, 7)}, false},
		"readers disagree":   {[]access{w(1, 8, 7), w(2, 7, 8), r(9, 10, 7), r(11, 12, 8)}, false},
	} {
		if got := linearizable(absent, test.ops); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
