// Command coffer is an encrypted, erasure-coded S3 storage appliance.
//
// Package main wires the other packages and adds what an operator touches: the command line, the configuration file, TLS and root
// credentials, the admin listener and its metrics, start and orderly end. It promises that a process which printed that it
// serves has an open array behind it, that SIGTERM lets running requests end, and that no secret reaches the log; it prints
// secrets exactly once, on standard output, when it makes them. It holds no rule of storage, cryptography or S3.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes. docs/operations.md has the same table.
const (
	exitOK        = 0
	exitFailure   = 1 // the operation failed
	exitUsage     = 2 // wrong command, flag, argument or configuration
	exitUnhealthy = 3 // status, check or scrub: the array is degraded, damaged or not open
	exitInUse     = 4 // another coffer process works with the data directory
)

// errUnhealthy makes a command that did its work exit with exitUnhealthy.
var errUnhealthy = errors.New("the array needs attention")

// usageError is a fault of the caller's words, not of the machine.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// version is set by the linker (Makefile).
var version = "devel"

// env is what a command gets from its process.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
}

func main() {
	// The first SIGINT or SIGTERM ends the context and lets requests drain; AfterFunc restores the default, so that the second
	// one ends the process at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], env{os.Stdin, os.Stdout, os.Stderr, os.Getenv}))
}

// run executes one command line and returns the exit code. The process is hardened for all commands alike: most of them unlock keys.
func run(ctx context.Context, args []string, e env) int {
	if err := hardenProcess(); err != nil {
		fmt.Fprintf(e.stderr, "coffer: %v\n", err)
		return exitFailure
	}
	root := newRootCommand(e)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(e.stderr, "coffer: %v\n", err)
	if _, ok := errors.AsType[usageError](err); ok {
		fmt.Fprintf(e.stderr, "Run '%s --help' for usage.\n", cmd.CommandPath())
		return exitUsage
	}
	switch {
	case errors.Is(err, errUnhealthy):
		return exitUnhealthy
	case errors.Is(err, errInUse):
		return exitInUse
	}
	return exitFailure
}

const rootHelp = `Coffer turns the disks of one machine into an encrypted, erasure-coded S3 endpoint.

At boot it proves and measures the machine's crypto hardware and unseals its root key; from then on
nothing readable reaches a disk.

Exit codes:

    0  done
    1  the operation failed
    2  wrong command, flag, argument or configuration
    3  array status, check, scrub, export: the array is degraded, damaged or cannot be opened
    4  another coffer process works with the data directory`

func newRootCommand(e env) *cobra.Command {
	root := &cobra.Command{
		Use:           "coffer",
		Short:         "Encrypted, erasure-coded S3 storage appliance",
		Long:          rootHelp,
		Example:       "  coffer serve --data /var/lib/coffer\n  coffer hw\n  coffer array status --json",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(newServeCommand(e), newArrayCommand(e), newDebugCommand(e), newHWCommand(e), newVersionCommand(e), newManCommand())
	root.Version = version // adds --version
	root.SetVersionTemplate(thisVersion().String() + "\n")
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			addCompletionExamples(c)
		}
	}
	return root
}

// addCompletionExamples completes the help of the command that cobra makes.
func addCompletionExamples(completion *cobra.Command) {
	examples := map[string]string{
		"bash":       "  source <(coffer completion bash)",
		"zsh":        "  coffer completion zsh > \"${fpath[1]}/_coffer\"",
		"fish":       "  coffer completion fish | source",
		"powershell": "  coffer completion powershell | Out-String | Invoke-Expression",
	}
	completion.Example = examples["bash"] + "\n" + examples["fish"]
	for _, c := range completion.Commands() {
		c.Example = examples[c.Name()]
	}
}

// noArgs refuses arguments as a usage error.
func noArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return usageError{err}
	}
	return nil
}

// versionInfo is the document of `coffer version --json`.
type versionInfo struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	Commit  string `json:"commit,omitempty"` // if the build noted it
}

func thisVersion() versionInfo {
	v := versionInfo{Version: version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v.Commit = s.Value
			}
		}
	}
	return v
}

func (v versionInfo) String() string {
	return strings.TrimSpace(fmt.Sprintf("coffer %s %s %s/%s %s", v.Version, v.Go, v.OS, v.Arch, v.Commit))
}

func newVersionCommand(e env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Long:    "Print the version of coffer, of the Go release it was built with, and the commit if it is known.",
		Example: "  coffer version\n  coffer version --json | jq -r .commit",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			v := thisVersion()
			return show(e.stdout, asJSON, v, func(w io.Writer) { fmt.Fprintln(w, v) })
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
