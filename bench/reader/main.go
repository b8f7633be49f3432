// Command reader is a second reader of arrays: it was written from docs/format.md, docs/keys-format.md and docs/object-format.md, shares
// no code with the engine and exists to prove that these pages are enough. It promises to show what the disks hold as the pages
// say, or an error; it never writes, repairs or caches, and reads everything again each time it is asked.
//
//	go run ./bench/reader -recovery-key FILE DISK...            lists the objects
//	go run ./bench/reader -recovery-key FILE -get B/K DISK...   writes one to standard output
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "reader:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	fs := flag.NewFlagSet("reader", flag.ContinueOnError)
	file := fs.String("key-file", "", "`FILE` of the file slot")
	recovery := fs.String("recovery-key", "", "`FILE` with the recovery key as printed")
	get := fs.String("get", "", "`BUCKET/KEY` to write to standard output")
	if err := fs.Parse(args); err != nil {
		return err
	}
	s := secrets{}
	if *file != "" {
		key, err := os.ReadFile(*file)
		if err != nil {
			return err
		}
		s["file"] = key
	}
	if *recovery != "" {
		text, err := os.ReadFile(*recovery)
		if err != nil {
			return err
		}
		if s["recovery"], err = parseRecovery(string(text)); err != nil {
			return err
		}
	}
	a, err := open(fs.Args(), s)
	if err != nil {
		return err
	}
	defer a.close()
	x, err := a.replay()
	if err != nil {
		return err
	}
	for _, l := range x.lost {
		fmt.Fprintf(os.Stderr, "reader: packed stripes %d to %d are not there\n", l[0], l[1])
	}
	if *get == "" {
		for _, o := range x.list() {
			fmt.Fprintf(out, "%12d %s %q\n", o.size, x.buckets[o.bucket].name, o.key)
		}
		return nil
	}
	bucket, key, _ := strings.Cut(*get, "/")
	for _, o := range x.list() {
		if x.buckets[o.bucket].name == bucket && o.key == key {
			return a.read(x, o, nil, out)
		}
	}
	return fmt.Errorf("get %s: no such object", *get)
}
