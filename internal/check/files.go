package check

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// fileChecks are about keys, secrets and the state folder.
var fileChecks = []check{
	{"private-key-missing", "Without its key the gateway has no tunnels.", func(s *subject) []fault {
		if !errors.Is(s.Key.Err, fs.ErrNotExist) {
			return nil
		}
		return one(Error, "fabric-site keygen "+s.Key.Path+"  # and its public key into the document", "%s is not there", s.Key.Path)
	}},
	{"private-key-mode", "Who can read the key can be this gateway.", func(s *subject) []fault {
		if s.Key.Err == nil || errors.Is(s.Key.Err, fs.ErrNotExist) || unreadable(s.Key.Err) {
			return nil
		}
		return one(Error, secretMend(s.Key.Path), "%v", s.Key.Err)
	}},
	{"private-key-mismatch", "The others know this gateway by the public key of the document: no handshake comes about.", func(s *subject) []fault {
		if s.Key.PublicKey == "" || s.Key.PublicKey == s.gw.WireGuard.PublicKey {
			return nil
		}
		return one(Error, "# in the document, wireguard of gateway "+s.Gateway+": public-key: "+s.Key.PublicKey,
			"%s belongs to public key %s, the document says %s", s.Key.Path, s.Key.PublicKey, s.gw.WireGuard.PublicKey)
	}},
	{"secret-missing", "What needs the secret does not start.", func(s *subject) (faults []fault) {
		for _, f := range s.Secrets {
			if errors.Is(f.Err, fs.ErrNotExist) {
				faults = append(faults, fault{Error, fmt.Sprintf("%s: %s is not there", f.Purpose, f.Path), "install -m 600 /dev/null " + f.Path + "  # and write the secret into it"})
			}
		}
		return faults
	}},
	{"secret-mode", "A secret that others may have read is none; the daemons refuse it.", func(s *subject) (faults []fault) {
		for _, f := range s.Secrets {
			if f.Err != nil && !errors.Is(f.Err, fs.ErrNotExist) && !unreadable(f.Err) {
				faults = append(faults, fault{Error, fmt.Sprintf("%s: %v", f.Purpose, f.Err), secretMend(f.Path)})
			}
		}
		return faults
	}},
	{"state-not-writable", "Generations and the checkpoint are kept there: no change is taken, and a restart is cold.", func(s *subject) []fault {
		if s.State.Err == nil || s.State.Missing {
			return nil
		}
		return one(Error, "install -d -m 700 "+s.State.Path+" && touch "+s.State.Path+"/.check && rm "+s.State.Path+"/.check", "%s cannot be written to: %v", s.State.Path, s.State.Err)
	}},
	{"state-space", "When the disk is full no change is taken, and a restart is cold.", func(s *subject) []fault {
		switch {
		case s.State.Free >= 0 && s.State.Free < minFree:
			return one(Warning, "df -h "+s.State.Path, "%s has %d MiB free, less than %d", s.State.Path, s.State.Free>>20, minFree>>20)
		case s.State.FreeFiles >= 0 && s.State.FreeFiles < minFreeFiles:
			return one(Warning, "df -i "+s.State.Path, "%s has room for %d more files, less than %d", s.State.Path, s.State.FreeFiles, minFreeFiles)
		}
		return nil
	}},
}

// What the state folder should have room for: 128 generations of a large document, and a checkpoint.
const (
	minFree      = 64 << 20
	minFreeFiles = 512
)

// secretMend makes a secret file what the daemons want.
func secretMend(path string) string {
	return "chown root: " + path + " && chmod 600 " + path + "  # and change the secret if others may have read it"
}

// denied reports whether a question was refused for lack of rights, which says nothing of the host.
func denied(err error) bool { return errors.Is(err, fs.ErrPermission) }

// unreadable reports whether a file was not opened at all for lack of rights. config.ReadSecretFile wraps fs.ErrPermission for
// too wide modes and foreign owners as well; those it read.
func unreadable(err error) bool {
	var path *fs.PathError
	return errors.As(err, &path) && denied(err) && strings.Contains(path.Op, "open")
}
