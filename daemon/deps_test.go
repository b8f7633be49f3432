package main

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// allowedImports is the direction of the architecture: which top-level directories each may import, beside its own. An absent key is
// a directory that does not belong here.
var allowedImports = map[string][]string{
	"asm":    {},
	"hw":     {"asm"},
	"tpm":    {},
	"hsm":    {},
	"kms":    {"tpm", "hsm", "hw"},
	"disk":   {"hw"},
	"object": {"disk", "kms", "hw"},
	"s3":     {"object"},
	"daemon": {"s3", "object", "disk", "kms", "tpm", "hsm", "hw"},
	"bench":  {"daemon", "s3", "object", "disk", "kms", "tpm", "hsm", "hw", "asm"},
}

// forbiddenNames say nothing about what is in a package.
var forbiddenNames = []string{"util", "utils", "common", "types", "pkg", "misc", "helpers", "shared", "base"}

// listed is the part of `go list -json` that the tests use.
type listed struct {
	Dir, ImportPath, Name              string
	GoFiles                            []string
	Imports, TestImports, XTestImports []string
}

// packages lists this module's packages.
func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=Dir,ImportPath,Name,GoFiles,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []listed
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 5 {
		t.Fatalf("go list found %d packages", len(pkgs))
	}
	return pkgs
}

// top returns the top-level directory of an import path of this module, "" for other modules.
func top(importPath string) string {
	rest, ok := strings.CutPrefix(importPath, "coffer/")
	if !ok {
		return ""
	}
	dir, _, _ := strings.Cut(rest, "/")
	return dir
}

func TestImportDirection(t *testing.T) {
	for _, p := range packages(t) {
		from := top(p.ImportPath)
		allowed, ok := allowedImports[from]
		if !ok {
			t.Errorf("%s: the architecture has no directory %q", p.ImportPath, from)
			continue
		}
		for _, imp := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			if to := top(imp); to != "" && to != from && !slices.Contains(allowed, to) {
				t.Errorf("%s imports %s: %s may import %v", p.ImportPath, imp, from, allowed)
			}
		}
	}
}

func TestPackageNames(t *testing.T) {
	for _, p := range packages(t) {
		if slices.Contains(forbiddenNames, p.Name) {
			t.Errorf("%s: the name %s says nothing", p.ImportPath, p.Name)
		}
	}
}

// Every package has a comment that tells what it promises, and no init function: wiring is explicit.
func TestPackageForm(t *testing.T) {
	const least = 80 // bytes: more than "Package x does x."
	for _, p := range packages(t) {
		if len(p.GoFiles) == 0 {
			continue // tests only
		}
		comment := ""
		for _, file := range p.GoFiles {
			path := filepath.Join(p.Dir, file)
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil && len(f.Doc.Text()) > len(comment) {
				comment = f.Doc.Text()
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" && top(p.ImportPath) != "asm" {
					t.Errorf("%s has an init function", path)
				}
			}
		}
		want := "Package " + p.Name + " "
		if p.Name == "main" {
			want = "Command "
		}
		if !strings.HasPrefix(comment, want) || len(comment) < least {
			t.Errorf("%s: want a package comment that begins with %q and says what the package promises, got %q", p.ImportPath, want, comment)
		}
	}
}

// Links in the documents lead somewhere.
func TestDocumentLinks(t *testing.T) {
	docs, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	for _, doc := range append(docs, "../README.md") {
		for _, m := range link.FindAllStringSubmatch(string(readFile(t, doc)), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", doc, m[1], err)
			}
		}
	}
}
