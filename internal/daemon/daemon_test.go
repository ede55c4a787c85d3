package daemon

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

const asProgram = "FABRIC_TEST_DAEMON"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		program()
		return
	}
	os.Exit(m.Run())
}

// program is a daemon that logs a line and then does as it is told.
func program() {
	var log Log
	root := &cobra.Command{Use: "thing", SilenceUsage: true, SilenceErrors: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	log.Flags(root.PersistentFlags())
	root.AddCommand(&cobra.Command{Use: "run RESULT", Args: cobra.ExactArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		l, err := log.Logger()
		if err != nil {
			return err
		}
		l.Info("hello")
		if args[0] != "well" {
			return errors.New(args[0])
		}
		return nil
	}})
	Main(root)
}

// The exit codes, what is said of an error, and the form of the log.
func TestMainExits(t *testing.T) {
	for _, c := range []struct {
		name   string
		args   []string
		env    string
		code   int
		stderr string
		not    string
	}{
		{"done", []string{"run", "well"}, "", 0, "time=", "thing:"},
		{"failed", []string{"run", "badly"}, "", 1, "thing: badly\n", ""},
		{"no argument", []string{"run"}, "", 2, "thing: accepts 1 arg", "hello"},
		{"no such flag", []string{"run", "--colour"}, "", 2, "thing: unknown flag: --colour", "hello"},
		{"no such command", []string{"dance"}, "", 2, `thing: unknown command "dance"`, "hello"},
		{"level", []string{"run", "well", "--log-level", "loud"}, "", 2, `thing: --log-level "loud": want debug, info, warn or error`, "hello"},
		{"format", []string{"run", "well", "--log-format", "xml"}, "", 2, `thing: --log-format "xml": want text or json`, "hello"},
		{"quiet", []string{"run", "well", "--log-level", "warn"}, "", 0, "", "hello"},
		{"json", []string{"run", "well", "--log-format", "json"}, "", 0, `"msg":"hello"`, ""},
		{"journal", []string{"run", "well"}, "JOURNAL_STREAM=8:1", 0, "level=INFO msg=hello", "time="},
	} {
		t.Run(c.name, func(t *testing.T) {
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(self, c.args...)
			cmd.Env = append(os.Environ(), asProgram+"=1", "JOURNAL_STREAM=", c.env)
			var stderr strings.Builder
			cmd.Stderr = &stderr
			_ = cmd.Run()
			out := stderr.String()
			if code := cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(out, c.stderr) || c.not != "" && strings.Contains(out, c.not) {
				t.Errorf("exit %d, want %d; stderr %q, want %q and no %q", code, c.code, out, c.stderr, c.not)
			}
		})
	}
}
