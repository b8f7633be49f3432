package s3

import (
	"os"
	"strings"
	"testing"
)

// TestDocumentation keeps the table of docs/s3.md equal to the table of operations, and its tests real.
func TestDocumentation(t *testing.T) {
	doc, err := os.ReadFile("../docs/s3.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(doc), "\n## Calls\n")
	if !ok {
		t.Fatal("docs/s3.md has no section Calls")
	}
	rows := make(map[string][]string)
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 6 || strings.Contains(line, "---") || strings.TrimSpace(cells[1]) == "call" {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows[cells[1]] = cells
	}
	sources := testSources(t)
	for _, op := range operations() {
		row := rows[op.name]
		delete(rows, op.name)
		if row == nil {
			t.Errorf("docs/s3.md does not mention %s", op.name)
			continue
		}
		request := op.method + " " + [...]string{"/", "/bucket", "/bucket/key"}[op.level]
		sub, isCopy := strings.CutSuffix(op.sub, selCopy)
		if sub != "" {
			request += "?" + sub
		}
		if isCopy {
			request += " with x-amz-copy-source"
		}
		if row[2] != "`"+request+"`" {
			t.Errorf("%s: documented as %s, is %s", op.name, row[2], request)
		}
		if (row[3] == "NotImplemented") != (op.handle == nil) {
			t.Errorf("%s: documented as %s", op.name, row[3])
		}
		tests := 0
		for word := range strings.FieldsFuncSeq(row[4], func(r rune) bool { return strings.ContainsRune(" ,;", r) }) {
			if strings.HasPrefix(word, "Test") {
				tests++
				if !strings.Contains(sources, "func "+word+"(") {
					t.Errorf("%s: there is no %s", op.name, word)
				}
			}
		}
		if op.handle != nil && tests == 0 {
			t.Errorf("%s: no test is named", op.name)
		}
	}
	for name := range rows {
		t.Errorf("docs/s3.md documents %s, which is not in the table", name)
	}
}

func testSources(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), "_test.go") {
			src, err := os.ReadFile(e.Name())
			if err != nil {
				t.Fatal(err)
			}
			b.Write(src)
		}
	}
	return b.String()
}
