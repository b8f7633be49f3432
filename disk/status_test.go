package disk

import "testing"

// A lone small record is one block, and one for each parity cell.
func TestCommitBytes(t *testing.T) {
	s := newSimArray(t, 6, 4, 2, 12)
	a := s.open()
	defer a.Close()
	before := a.Status()
	w := newWritten()
	for id := range uint64(5) {
		if err := w.put(a, id+1, 100); err != nil {
			t.Fatal(err)
		}
	}
	st := a.Status()
	if n, bytes := st.Commits-before.Commits, st.Committed-before.Committed; n != 5 || bytes != 5*3*BlockSize {
		t.Errorf("%d commits of %d bytes", n, bytes)
	}
}

// What is left is said.
func TestDegradedReason(t *testing.T) {
	s := newSimArray(t, 6, 4, 2, 12)
	s.open().Close()
	for n, want := range []string{"", "a disk is missing", "2 disks are missing: no redundancy is left"} {
		s.state = &testState{}
		a := s.open(s.disks[n:]...)
		if got := a.Status().Reason; got != want {
			t.Errorf("%d disks gone: %q, want %q", n, got, want)
		}
		a.Close()
	}
}
