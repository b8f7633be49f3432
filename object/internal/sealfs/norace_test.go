//go:build !race

package sealfs

const raceEnabled = false
