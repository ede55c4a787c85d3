// Package layout has tests only: what may import what, what must be documented, how long a file may be. They read the whole
// module and fail on anything that is not in their tables; a new package or a new import is entered there on purpose.
package layout
