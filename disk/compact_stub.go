package disk

// Pinned reports whether a band is pinned. Once a closed band was seen unpinned, nothing that is not yet in the index can come to
// refer to it.
func (a *Array) Pinned(num uint64) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	b := a.bands[num]
	return b != nil && b.pins.Load() > 0
}

// CanFree reports whether enough of a band's disks are there to remember that it was freed.
func (a *Array) CanFree(num uint64) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	b := a.bands[num]
	return b != nil && a.canBury(b, a.usableIn(b))
}
