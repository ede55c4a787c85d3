// Package version says which build this is.
package version

// Version is set by the linker: what `git describe` says of the source.
var Version = "unknown"
