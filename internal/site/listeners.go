package site

import (
	"fmt"
	"net/netip"

	"fabric/internal/config"
)

// listeners are the TCP listeners that the document asks for beside BGP's.
type listeners struct {
	api     config.API
	metrics netip.AddrPort
}

func listenersOf(in *intent) listeners {
	l := listeners{metrics: in.gw.Metrics}
	if in.gw.API != nil {
		l.api = *in.gw.API
	}
	return l
}

// outdated says which listeners a newer intent wants otherwise.
func (l listeners) outdated(in *intent) (problems []string) {
	want := listenersOf(in)
	const mend = "takes effect with a restart (systemctl restart fabric-site)"
	if want.api != l.api {
		problems = append(problems, fmt.Sprintf("generation %d: the change of gateway %s's api %s", in.generation, in.gw.Name, mend))
	}
	if want.metrics != l.metrics {
		problems = append(problems, fmt.Sprintf("generation %d: the change of gateway %s's metrics address %s", in.generation, in.gw.Name, mend))
	}
	return problems
}
