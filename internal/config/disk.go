package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// disk writes files so that after a crash or on a full disk the old file is there or the new one, whole.
type disk struct {
	// before, where set, is asked before every step and may fail it; tests fail each step in turn.
	before func(step string) error
}

func (k disk) step(name string) error {
	if k.before == nil {
		return nil
	}
	return k.before(name)
}

// temporary marks files that are being written.
const temporary = ".tmp"

// write replaces the file at path by data: into a file beside it, synced, renamed over it, folder synced. After an
// error the folder is as it was.
func (k disk) write(path string, data []byte) (err error) {
	temp := path + temporary
	_, statErr := os.Lstat(path)
	isNew := os.IsNotExist(statErr)
	renamed := false
	defer func() {
		if err == nil {
			return
		}
		_ = os.Remove(temp)
		if renamed && isNew {
			_ = os.Remove(path)
		}
		err = fmt.Errorf("write %s: %w; free space or mend the file system, what was there is untouched", path, err)
	}()
	if err := k.fill(temp, data); err != nil {
		return err
	}
	if err := k.step("rename"); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	renamed = true
	return k.syncFolder(filepath.Dir(path))
}

// fill writes and syncs a new file.
func (k disk) fill(path string, data []byte) error {
	if err := k.step("create"); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := k.step("write"); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := k.step("sync"); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := k.step("close"); err != nil {
		return err
	}
	return f.Close()
}

// syncFolder makes a rename in the folder last.
func (k disk) syncFolder(path string) error {
	if err := k.step("sync folder"); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Lock takes a state folder that no Store has open, so that none opens it until unlock is called. A folder that does not
// exist needs no lock.
func Lock(folder string) (unlock func(), err error) {
	f, err := lock(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// lock takes the state folder for this process until the returned file is closed.
func lock(folder string) (*os.File, error) {
	path := filepath.Join(folder, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state folder: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		owner, _ := os.ReadFile(path)
		f.Close()
		return nil, fmt.Errorf("state folder %s is in use by process %s: %w; stop that one or use another folder",
			folder, strings.TrimSpace(string(owner)), err)
	}
	// The number is for people; a full disk may not keep the daemon from starting.
	if f.Truncate(0) == nil {
		_, _ = fmt.Fprintln(f, os.Getpid())
	}
	return f, nil
}
