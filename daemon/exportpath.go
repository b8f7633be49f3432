package main

import (
	"fmt"
	"path"
	"strings"
	"unicode/utf8"
)

// maxComponent is how long a component of an exported path may get before it is split; file systems take 255 bytes.
const maxComponent = 240

// exportPath is the file of an object below the directory of an export. It is one to one, and unescapePath its inverse: `%XX` is a
// byte, a component `%` is an empty one, `%+` at the end of a component says that the next continues it, and `%~` at the end of the
// last that it is a file beside a directory of the same name. None of these can be meant otherwise, as each % of a key is escaped.
func exportPath(bucket, key string, besideDirectory bool) string {
	parts := escapeComponent(bucket)
	for c := range strings.SplitSeq(key, "/") {
		parts = append(parts, escapeComponent(c)...)
	}
	if besideDirectory {
		parts[len(parts)-1] += "%~"
	}
	return path.Join(parts...)
}

// escapeComponent returns what stands for one component of a key: several if it is too long for a file name.
func escapeComponent(c string) (parts []string) {
	switch c {
	case "":
		return []string{"%"}
	case ".":
		return []string{"%2E"}
	case "..":
		return []string{"%2E%2E"}
	}
	var b strings.Builder
	for len(c) > 0 {
		r, n := utf8.DecodeRuneInString(c)
		token := c[:n]
		if r == '%' || r == '\\' || r < 0x20 || r == 0x7f || r == utf8.RuneError && n == 1 {
			token = fmt.Sprintf("%%%02X", c[0])
		}
		if c = c[n:]; b.Len()+len(token) > maxComponent {
			parts = append(parts, b.String()+"%+")
			b.Reset()
		}
		b.WriteString(token)
	}
	return append(parts, b.String())
}

// unescapePath returns the bucket and the key that a path of an export stands for.
func unescapePath(p string) (bucket, key string, err error) {
	var names []string
	open := false // the last name goes on
	for c := range strings.SplitSeq(strings.TrimSuffix(p, "%~"), "/") {
		c, more := strings.CutSuffix(c, "%+")
		var b strings.Builder
		for i := 0; i < len(c); i++ {
			if c[i] != '%' || c == "%" {
				b.WriteByte(c[i])
				continue
			}
			var v byte
			if _, err := fmt.Sscanf(c[i:min(i+3, len(c))], "%%%02X", &v); err != nil {
				return "", "", fmt.Errorf("path %q: not one of an export", p)
			}
			b.WriteByte(v)
			i += 2
		}
		name := b.String()
		if c == "%" {
			name = ""
		}
		if open {
			names[len(names)-1] += name
		} else {
			names = append(names, name)
		}
		open = more
	}
	if len(names) < 2 {
		return "", "", fmt.Errorf("path %q: not one of an export", p)
	}
	return names[0], strings.Join(names[1:], "/"), nil
}
