package linux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"fabric/internal/kernel"
	"fabric/internal/reconcile"
)

// sysctlEdge is kernel.Sysctls of the keys named.
type sysctlEdge struct {
	h    *Host
	keys func() []string
}

// Sysctls are the keys that keys returns at each Observe. As in sysctl(8) a slash stands for a dot inside a name:
// net.ipv4.conf.eth0/100.rp_filter.
func (h *Host) Sysctls(keys func() []string) kernel.Sysctls { return &sysctlEdge{h, keys} }

// Equal implements reconcile.Equaler: runs of white space are one blank.
func (e *sysctlEdge) Equal(_ string, want, have string) bool { return plain(want) == plain(have) }

func plain(s string) string { return strings.Join(strings.Fields(s), " ") }

func sysctlPath(key string) (string, error) {
	p := strings.NewReplacer(".", "/", "/", ".").Replace(key)
	if p == "" || !filepath.IsLocal(p) {
		return "", fmt.Errorf("%q is no sysctl", key)
	}
	return filepath.Join("/proc/sys", p), nil
}

// Observe implements reconcile.Edge. A key this kernel has not is not in the result.
func (e *sysctlEdge) Observe(context.Context) (map[string]string, error) {
	found := map[string]string{}
	err := e.h.within(func() error {
		for _, k := range e.keys() {
			p, err := sysctlPath(k)
			if err != nil {
				return err
			}
			b, err := os.ReadFile(p)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("read sysctl %s: %w", k, explain(err))
			}
			found[k] = plain(string(b))
		}
		return nil
	})
	return found, err
}

// Apply implements reconcile.Edge. A delete leaves the value.
func (e *sysctlEdge) Apply(_ context.Context, ops []reconcile.Op[string, string]) []error {
	errs := make([]error, len(ops))
	err := e.h.within(func() error {
		for i, op := range ops {
			if op.Kind == reconcile.Delete {
				continue
			}
			p, err := sysctlPath(op.Key)
			if err == nil {
				err = os.WriteFile(p, []byte(op.New), 0)
			}
			if err != nil {
				errs[i] = fmt.Errorf("set sysctl %s to %q: %w", op.Key, op.New, explain(err))
			}
		}
		return nil
	})
	if err != nil {
		return failAll(len(ops), err)
	}
	return errs
}
