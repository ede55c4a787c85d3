package config

import (
	"errors"
	"time"
)

// Std returns d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String writes d as Go does: 1m30s.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes d as in the document.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a duration such as 300ms, 5s or 2m; a bare number is refused.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || string(b) == "0" {
		return errors.New("not a duration")
	}
	*d = Duration(v)
	return nil
}
