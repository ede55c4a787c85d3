// Command gen writes the manual pages and completions of fabric-site, fabric-links and fabricctl: gen DIR, from the module's root.
//
// The commands are in packages main, which nothing can import. So each program is built once more with one file added by the go
// command's -overlay: that file hands the commands to package pages before main runs. What is installed does not contain it.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// programs says for each program how its package spells its root command.
var programs = map[string]string{
	"fabric-site":  "command()",
	"fabric-links": "command()",
	"fabricctl":    "(&app{}).command()",
}

const hook = `package main

import (
	"fmt"
	"os"

	"fabric/systemd/packaging/gen/pages"
)

func init() {
	if err := pages.Write(%s, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "gen: "+err.Error())
		os.Exit(1)
	}
	os.Exit(0)
}
`

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: gen DIR")
		os.Exit(2)
	}
	for name, root := range programs {
		if err := generate(name, root, os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, "gen: "+name+": "+err.Error())
			os.Exit(1)
		}
	}
}

// generate runs the program with the hook in place of its main.
func generate(name, root, dir string) error {
	tmp, err := os.MkdirTemp("", "gen")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	added, err := filepath.Abs(filepath.Join("cmd", name, "gen_pages.go"))
	if err != nil {
		return err
	}
	file := filepath.Join(tmp, "hook.go")
	if err := os.WriteFile(file, fmt.Appendf(nil, hook, root), 0o600); err != nil {
		return err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {added: file}})
	if err != nil {
		return err
	}
	list := filepath.Join(tmp, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		return err
	}
	c := exec.Command("go", "run", "-overlay", list, "./cmd/"+name, dir)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	// What the environment says must not become a default in the pages.
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "FABRIC_GATEWAY=")
	return c.Run()
}
