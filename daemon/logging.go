package main

import (
	"io"
	"log/slog"
)

// newLogger writes to w in the given format, from the level that level holds at that time.
func newLogger(w io.Writer, format string, level slog.Leveler) *slog.Logger {
	opt := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, opt))
	}
	return slog.New(slog.NewTextHandler(w, opt))
}
