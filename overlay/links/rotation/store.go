package rotation

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Store keeps records and keys in a folder of mode 0700, in files of mode 0600: DEVICE.json for each tunnel, and for each generation of keys
// DEVICE-N-XXXX.key and .psk. Key files are written once, under names of their own, before a record names them; the record decides.
type Store struct{ dir string }

// OpenStore makes the folder where it is missing. Where others could get at it, it is closed to them and log says so; what is in it is judged file
// by file. An error is a folder that is not ours.
func OpenStore(dir string, log *slog.Logger) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("folder of tunnel keys: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return nil, fmt.Errorf("folder of tunnel keys: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("folder of tunnel keys: %s is not a folder; remove it", dir)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("folder of tunnel keys: %s belongs to user %d: %w; chown it", dir, st.Uid, os.ErrPermission)
	}
	if mode := info.Mode().Perm(); mode != 0o700 {
		if err := os.Chmod(dir, 0o700); err != nil {
			return nil, fmt.Errorf("folder of tunnel keys has mode %04o: %w; chmod 700 it", mode, err)
		}
		log.Warn("the folder of tunnel keys was closed to others", "dir", dir, "mode", fmt.Sprintf("%04o", mode), "now", "0700")
	}
	return &Store{dir}, nil
}

// maxRecord is the size of the largest record, in bytes.
const maxRecord = 16 << 10

// Load reads the record of a tunnel; identity "" is not known. Without one, and when the identity keys are others by now, it is a fresh one, of
// generation 0, and kept is false. A record or key that cannot be used is an error beside the fresh one: the other end finds its way back to
// generation 0 too.
func (s *Store) Load(device, identity string, now time.Time) (r Record, kept bool, err error) {
	fresh := Record{Identity: identity, Current: Key{Made: now.Round(0)}}
	name := s.record(device)
	data, err := readPrivate(name, maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return fresh, false, nil
	}
	if err == nil {
		if err = json.Unmarshal(data, &r); err == nil {
			err = s.check(device, r)
		}
	}
	if err != nil {
		return fresh, false, fmt.Errorf("keys of tunnel %s cannot be used, so it goes back to the identity keys: %s: %w", device, name, err)
	}
	if identity != "" && r.Identity != identity {
		return fresh, false, nil
	}
	return r, true, nil
}

// check says what is wrong with a record, the key files it names included.
func (s *Store) check(device string, r Record) error {
	keys := []Key{r.Current}
	if r.Next != nil {
		if r.Next.Generation == 0 {
			return errors.New("generation 0 cannot be next")
		}
		keys = append(keys, *r.Next)
	}
	for _, k := range keys {
		if k.Generation < 0 {
			return fmt.Errorf("generation %d is none", k.Generation)
		}
		if k.Generation == 0 {
			continue
		}
		if _, err := wgtypes.ParseKey(k.Public); err != nil {
			return fmt.Errorf("generation %d: public key is none", k.Generation)
		}
		private, err := s.readKey(device, k.PrivateKeyFile)
		if err != nil {
			return fmt.Errorf("generation %d: %w", k.Generation, err)
		}
		if private.PublicKey().String() != k.Own {
			return fmt.Errorf("generation %d: %s is not the key that was agreed", k.Generation, k.PrivateKeyFile)
		}
		if _, err := s.readKey(device, k.PresharedKeyFile); err != nil {
			return fmt.Errorf("generation %d: %w", k.Generation, err)
		}
	}
	return nil
}

func (s *Store) readKey(device, name string) (wgtypes.Key, error) {
	if filepath.Dir(name) != s.dir || !strings.HasPrefix(filepath.Base(name), device+"-") {
		return wgtypes.Key{}, fmt.Errorf("%q is not a key file of the tunnel in %s", name, s.dir)
	}
	data, err := readPrivate(name, 256)
	if err != nil {
		return wgtypes.Key{}, err
	}
	k, err := wgtypes.ParseKey(strings.TrimSpace(string(data)))
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("%s does not hold a key", name)
	}
	return k, nil
}

// Save keeps a record, all or nothing, and then removes the tunnel's key files that neither it nor keep name.
func (s *Store) Save(device string, r Record, keep []Key) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := s.write(s.record(device), append(data, '\n')); err != nil {
		return fmt.Errorf("keep keys of tunnel %s: %w", device, err)
	}
	named := map[string]bool{s.record(device): true}
	keys := append(keep[:len(keep):len(keep)], r.Current)
	if r.Next != nil {
		keys = append(keys, *r.Next)
	}
	for _, k := range keys {
		named[k.PrivateKeyFile], named[k.PresharedKeyFile] = true, true
	}
	return s.sweep(device, named)
}

// Forget removes what is kept of all tunnels that known does not name.
func (s *Store) Forget(known func(device string) bool) error {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("folder of tunnel keys: %w", err)
	}
	var errs []error
	for _, f := range files {
		device, _, _ := strings.Cut(strings.TrimSuffix(f.Name(), ".json"), "-")
		if !known(device) {
			errs = append(errs, os.Remove(filepath.Join(s.dir, f.Name())))
		}
	}
	return errors.Join(errs...)
}

// NewKeys makes a private and a preshared key, keeps them in files and returns the key but for the other end's part. Preshared is base64, or ""
// to make one; either way the one in the file is returned beside.
func (s *Store) NewKeys(device string, generation int, preshared string, now time.Time) (Key, string, error) {
	fail := func(err error) (Key, string, error) {
		return Key{}, "", fmt.Errorf("make keys of tunnel %s: %w", device, err)
	}
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return fail(err)
	}
	psk, err := wgtypes.GenerateKey()
	if err == nil && preshared != "" {
		psk, err = wgtypes.ParseKey(preshared)
	}
	if err != nil {
		return fail(errors.New("no preshared key"))
	}
	// The name need not be secret, only new.
	public := private.PublicKey()
	base := filepath.Join(s.dir, fmt.Sprintf("%s-%d-%x", device, generation, public[:4]))
	k := Key{Generation: generation, Made: now, Own: public.String(), PrivateKeyFile: base + ".key", PresharedKeyFile: base + ".psk"}
	for name, key := range map[string]wgtypes.Key{k.PrivateKeyFile: private, k.PresharedKeyFile: psk} {
		if err := s.write(name, []byte(key.String()+"\n")); err != nil {
			return fail(err)
		}
	}
	return k, psk.String(), nil
}

func (s *Store) record(device string) string { return filepath.Join(s.dir, device+".json") }

// sweep removes the tunnel's files that are not named, those of interrupted writes too.
func (s *Store) sweep(device string, named map[string]bool) error {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		name := filepath.Join(s.dir, f.Name())
		mine := strings.HasPrefix(f.Name(), device+"-") || strings.HasPrefix(f.Name(), device+".json")
		if mine && !named[name] {
			errs = append(errs, os.Remove(name))
		}
	}
	return errors.Join(errs...)
}

// write makes a file of mode 0600, all or nothing, and it is on the disk when write returns.
func (s *Store) write(name string, data []byte) error {
	f, err := os.CreateTemp(s.dir, filepath.Base(name)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readPrivate reads a regular file of at most so many bytes that nobody but us can read.
func readPrivate(name string, most int64) ([]byte, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	st, _ := info.Sys().(*syscall.Stat_t)
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", name)
	case mode.Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s has mode %04o, others could read it: %w", name, mode.Perm(), os.ErrPermission)
	case st != nil && int(st.Uid) != os.Geteuid() && st.Uid != 0:
		return nil, fmt.Errorf("%s belongs to user %d: %w", name, st.Uid, os.ErrPermission)
	case info.Size() > most:
		return nil, fmt.Errorf("%s has %d bytes, more than %d", name, info.Size(), most)
	}
	data := make([]byte, info.Size())
	if _, err := f.ReadAt(data, 0); err != nil {
		return nil, err
	}
	return data, nil
}
