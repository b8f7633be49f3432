//go:build race

package cbc

const raceEnabled = true
