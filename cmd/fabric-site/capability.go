package main

import (
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// needNetAdmin says before anything is begun that the right to change the network is missing. Without it, what the kernel
// offers cannot even be found out.
func needNetAdmin() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read own capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return fmt.Errorf("capability CAP_NET_ADMIN is missing; run as root, or give it as fabric-site.service does: %w", fs.ErrPermission)
	}
	return nil
}
