package cloudemu

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
)

// Seed is the world an emulator starts with. See the package documentation for
// an example.
type Seed struct {
	Account  string   `json:"account,omitempty"`  // owner account id; used in resource names
	RandSeed uint64   `json:"randSeed,omitempty"` // seeds every choice the emulator makes
	Regions  []Region `json:"regions"`
	Keys     []Key    `json:"keys,omitempty"`
	Roles    []Role   `json:"roles,omitempty"`
	VPCs     []VPC    `json:"vpcs"`
	Quotas   Quotas   `json:"quotas,omitzero"`
	Rates    Rates    `json:"rates,omitzero"`
	Settings Settings `json:"settings,omitzero"`
	// MetadataInstance answers metadata requests from an address that is no
	// instance's private address; empty means such requests get 404.
	MetadataInstance string `json:"metadataInstance,omitempty"`
}

// Region is a region the account may use.
type Region struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
}

// Key is a static access key, or a temporary one when Token is set.
type Key struct {
	ID       string      `json:"id"`
	Secret   string      `json:"secret"`
	Token    string      `json:"token,omitempty"`    // security token of an STS key (id begins with "STS.")
	Disabled bool        `json:"disabled,omitempty"` // answers InvalidAccessKeyId.Inactive
	Policy   []Statement `json:"policy,omitempty"`   // what it may do; nothing when empty
}

// Statement allows actions such as "vpc:CreateRouteEntry", where "*" matches
// any text, on resources such as "acs:vpc:*:*:routetable/vtb-1". No resources
// means all.
type Statement struct {
	Actions   []string `json:"actions"`
	Resources []string `json:"resources,omitempty"`
}

// Role is a RAM role whose temporary keys the metadata service hands out.
type Role struct {
	Name       string      `json:"name"`
	TTLSeconds int         `json:"ttlSeconds,omitempty"` // life of a key; default 3600
	Policy     []Statement `json:"policy,omitempty"`
}

// VPC is one virtual network with everything in it.
type VPC struct {
	ID               string       `json:"id"`
	Region           string       `json:"region"`
	CIDR             string       `json:"cidr"`
	SecondaryCIDRs   []string     `json:"secondaryCidrs,omitempty"`
	UserCIDRs        []string     `json:"userCidrs,omitempty"`
	IPv6CIDR         string       `json:"ipv6Cidr,omitempty"`
	VRouterID        string       `json:"vrouterId,omitempty"` // default: "vrt-" and the VPC id
	Status           string       `json:"status,omitempty"`    // default Available
	VSwitches        []VSwitch    `json:"vswitches,omitempty"`
	RouteTables      []RouteTable `json:"routeTables,omitempty"` // without a System one, it is added as "vtb-" and the VPC id
	Instances        []Instance   `json:"instances,omitempty"`
	HaVips           []HaVip      `json:"haVips,omitempty"`
	RouterInterfaces []string     `json:"routerInterfaces,omitempty"` // ids; the only hops ECMP is allowed over
}

// VSwitch is a subnet of one zone.
type VSwitch struct {
	ID       string `json:"id"`
	CIDR     string `json:"cidr"`
	IPv6CIDR string `json:"ipv6Cidr,omitempty"`
	Zone     string `json:"zone,omitempty"`
	Status   string `json:"status,omitempty"` // default Available
}

// RouteTable is a System or Custom route table.
type RouteTable struct {
	ID            string            `json:"id"`
	Name          string            `json:"name,omitempty"`
	Type          string            `json:"type,omitempty"`          // System or Custom (default)
	AssociateType string            `json:"associateType,omitempty"` // VSwitch (default) or Gateway
	VSwitches     []string          `json:"vswitches,omitempty"`     // those a Custom table serves
	Status        string            `json:"status,omitempty"`        // default Available
	Tags          map[string]string `json:"tags,omitempty"`
	Entries       []Entry           `json:"entries,omitempty"`
}

// Entry is a route entry that is there from the start.
type Entry struct {
	ID          string `json:"id,omitempty"`
	CIDR        string `json:"cidr"`
	Type        string `json:"type,omitempty"` // Custom (default), CEN, ECR or BGP
	ServiceType string `json:"serviceType,omitempty"`
	NextHopType string `json:"nextHopType"`
	NextHopID   string `json:"nextHopId"`
	Name        string `json:"name,omitempty"`
	Description string `json:"description,omitempty"`
}

// Instance is an ECS instance.
type Instance struct {
	ID         string `json:"id"`
	Name       string `json:"name,omitempty"`
	VSwitch    string `json:"vswitch"`
	Status     string `json:"status,omitempty"` // Running (default), Stopped, Starting, ...
	PrivateIP  string `json:"privateIp"`
	IPv6       string `json:"ipv6,omitempty"`
	EIP        string `json:"eip,omitempty"`
	PublicIP   string `json:"publicIp,omitempty"`
	MAC        string `json:"mac,omitempty"`
	Role       string `json:"role,omitempty"`       // RAM role, a name of Seed.Roles
	HTTPTokens string `json:"httpTokens,omitempty"` // "required": metadata only with a token
	Device     string `json:"device,omitempty"`     // device of the VPC router towards it; default: where the kernel routes PrivateIP
	ENIs       []ENI  `json:"enis,omitempty"`       // a primary one is added when there is none
}

// ENI is a network interface.
type ENI struct {
	ID              string `json:"id"`
	Type            string `json:"type,omitempty"` // Primary or Secondary (default)
	PrivateIP       string `json:"privateIp,omitempty"`
	IPv6            string `json:"ipv6,omitempty"`
	Device          string `json:"device,omitempty"`
	SourceDestCheck bool   `json:"sourceDestCheck,omitempty"`
}

// HaVip is a highly available virtual address with one master instance.
type HaVip struct {
	ID      string `json:"id"`
	VSwitch string `json:"vswitch"`
	IP      string `json:"ip"`
	Status  string `json:"status,omitempty"` // InUse (default with a master), Available, Pending, Associating
	Master  string `json:"master,omitempty"` // instance id
}

// Quotas are counts per route table; 0 means the vendor's default.
type Quotas struct {
	RouteEntries      int `json:"routeEntries,omitempty"`      // custom entries, default 200
	HaVipRouteEntries int `json:"haVipRouteEntries,omitempty"` // custom entries over a HaVip, default 5
}

// Rates are calls per minute for each key, region and API; 0 means the default,
// a negative number no limit.
type Rates struct {
	Write               int `json:"write,omitempty"`               // default 60
	Modify              int `json:"modify,omitempty"`              // ModifyRouteEntry, default 300 (documented)
	DescribeRouteTables int `json:"describeRouteTables,omitempty"` // default 120
	Read                int `json:"read,omitempty"`                // other reads, default 600
	Global              int `json:"global,omitempty"`              // all calls together, default no limit
}

// Settings choose between behaviours that were both seen or documented.
type Settings struct {
	CloudServiceMoreSpecific string `json:"cloudServiceMoreSpecific,omitempty"` // inside 100.64.0.0/10: deny (default) or allow
	HostBits                 string `json:"hostBits,omitempty"`                 // reject (default) or mask
	MaxResultOverflow        string `json:"maxResultOverflow,omitempty"`        // over 100: clamp (default) or error
	DryRun                   string `json:"dryRun,omitempty"`                   // heed (default), or ignore as an API that does not know it
	DuplicateSameHop         string `json:"duplicateSameHop,omitempty"`         // code for same CIDR and hop; default Duplicated.VpcNextHop
}

// LoadSeed reads a seed document from a file. The error names the file.
func LoadSeed(path string) (Seed, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Seed{}, fmt.Errorf("seed: %w", err)
	}
	seed, err := ParseSeed(b)
	if err != nil {
		return Seed{}, fmt.Errorf("seed %s: %w", path, err)
	}
	return seed, nil
}

// ParseSeed reads a seed document. Unknown keys are errors.
func ParseSeed(b []byte) (Seed, error) {
	var seed Seed
	if err := strict(b, &seed); err != nil {
		return Seed{}, err
	}
	return seed, seed.validate()
}

// strict decodes one JSON document into v and refuses unknown keys.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("text after the JSON document; remove it")
	}
	return nil
}

// validate reports everything that would make the world inconsistent.
func (s Seed) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	prefix := func(what, v string, needed bool) {
		if v == "" && !needed {
			return
		}
		if p, err := netip.ParsePrefix(v); err != nil {
			bad("%s: %q is no CIDR", what, v)
		} else if p != p.Masked() {
			bad("%s: %q has host bits set; write %s", what, v, p.Masked())
		}
	}
	addr := func(what, v string, needed bool) {
		if v == "" && !needed {
			return
		}
		if _, err := netip.ParseAddr(v); err != nil {
			bad("%s: %q is no address", what, v)
		}
	}
	seen := map[string]bool{}
	id := func(what, v string) {
		if v == "" {
			bad("%s without id", what)
		} else if seen[v] {
			bad("%s: id %q is used twice", what, v)
		}
		seen[v] = true
	}
	regions, roles := map[string]bool{}, map[string]bool{}
	for _, r := range s.Regions {
		id("region", r.ID)
		regions[r.ID] = true
	}
	for _, k := range s.Keys {
		id("key", k.ID)
		if k.Secret == "" {
			bad("key %s without secret", k.ID)
		}
	}
	for _, r := range s.Roles {
		id("role", r.Name)
		roles[r.Name] = true
	}
	for _, v := range s.VPCs {
		id("vpc", v.ID)
		if !regions[v.Region] {
			bad("vpc %s: region %q is not among the regions", v.ID, v.Region)
		}
		prefix("vpc "+v.ID, v.CIDR, true)
		prefix("vpc "+v.ID, v.IPv6CIDR, false)
		vsw := map[string]bool{}
		for _, w := range v.VSwitches {
			id("vswitch", w.ID)
			vsw[w.ID] = true
			prefix("vswitch "+w.ID, w.CIDR, true)
			prefix("vswitch "+w.ID, w.IPv6CIDR, false)
		}
		system := 0
		for _, t := range v.RouteTables {
			id("route table", t.ID)
			if t.Type == "System" {
				system++
			}
			for _, w := range t.VSwitches {
				if !vsw[w] {
					bad("route table %s: vswitch %q is not in the VPC", t.ID, w)
				}
			}
			for _, e := range t.Entries {
				prefix("entry of "+t.ID, e.CIDR, true)
			}
		}
		if system > 1 {
			bad("vpc %s has %d System route tables, a VPC has one", v.ID, system)
		}
		for _, i := range v.Instances {
			id("instance", i.ID)
			if !vsw[i.VSwitch] {
				bad("instance %s: vswitch %q is not in the VPC", i.ID, i.VSwitch)
			}
			if i.Role != "" && !roles[i.Role] {
				bad("instance %s: role %q is not among the roles", i.ID, i.Role)
			}
			addr("instance "+i.ID, i.PrivateIP, true)
			addr("instance "+i.ID, i.IPv6, false)
			for _, n := range i.ENIs {
				id("eni", n.ID)
				addr("eni "+n.ID, n.PrivateIP, false)
				addr("eni "+n.ID, n.IPv6, false)
			}
		}
		for _, h := range v.HaVips {
			id("havip", h.ID)
			addr("havip "+h.ID, h.IP, true)
		}
	}
	return errors.Join(errs...)
}
