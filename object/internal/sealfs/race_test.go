//go:build race

package sealfs

const raceEnabled = true // sync.Pool drops items at random then
