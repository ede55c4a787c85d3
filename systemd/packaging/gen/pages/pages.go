// Package pages writes the manual pages and shell completions of a program from its commands.
package pages

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// Write writes, for the program whose root command is given, one manual page of section 1 per command into DIR/man, and completions into
// DIR/bash-completion, DIR/zsh and DIR/fish, under the names the shells look for. The pages carry the date of SOURCE_DATE_EPOCH
// (seconds; required, so that equal sources give equal pages).
func Write(root *cobra.Command, dir string) error {
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w; set it to the commit's time", err)
	}
	date := time.Unix(seconds, 0).UTC()
	for _, name := range []string{"man", "bash-completion", "zsh", "fish"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	name := root.Name()
	// The pages need no line on when cobra made them, and none of cobra's own command `completion`.
	root.DisableAutoGenTag = true
	root.CompletionOptions.HiddenDefaultCmd = true
	header := doc.GenManHeader{Section: "1", Date: &date, Source: "fabric", Manual: "Hybrid-cloud fabric"}
	if err := doc.GenManTree(root, &header, filepath.Join(dir, "man")); err != nil {
		return fmt.Errorf("manual pages of %s: %w", name, err)
	}
	if err := root.GenBashCompletionFileV2(filepath.Join(dir, "bash-completion", name), true); err != nil {
		return fmt.Errorf("bash completion of %s: %w", name, err)
	}
	if err := root.GenZshCompletionFile(filepath.Join(dir, "zsh", "_"+name)); err != nil {
		return fmt.Errorf("zsh completion of %s: %w", name, err)
	}
	if err := root.GenFishCompletionFile(filepath.Join(dir, "fish", name+".fish"), true); err != nil {
		return fmt.Errorf("fish completion of %s: %w", name, err)
	}
	return nil
}
