//go:build race

package chacha

const raceEnabled = true
