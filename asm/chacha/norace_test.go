//go:build !race

package chacha

const raceEnabled = false
