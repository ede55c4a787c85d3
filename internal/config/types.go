// Package config holds the intent: one document that says what the whole fabric shall be. It knows how to read it
// strictly, with positions, how to fill in defaults, how to validate it as a whole, how to change it by mutations and
// how to keep its generations. It starts nothing and touches nothing but the state folder it is given.
package config

import (
	"net/netip"
	"time"
)

// Document is the intent for a whole fabric. Every gateway reads the same document and knows itself by name.
type Document struct {
	// Fabric names the fabric and holds what is the same at every gateway.
	Fabric Fabric `yaml:"fabric" json:"fabric"`
	// VRFs are the routing domains of the fabric.
	VRFs []VRF `yaml:"vrfs" json:"vrfs"`
	// Policies are named route policies that peers and clouds refer to.
	Policies []Policy `yaml:"policies,omitempty" json:"policies,omitempty"`
	// Sites are the places that the fabric joins.
	Sites []Site `yaml:"sites" json:"sites"`
	// Links says which gateways are joined by which tunnels. Absent: full mesh of one WireGuard tunnel each.
	Links Links `yaml:"links,omitempty" json:"links,omitempty"`
}

// Fabric holds the settings shared by all gateways.
type Fabric struct {
	// Name is the fabric's name: 1 to 32 of a-z, 0-9 and '-'. It marks objects outside this host (cloud entries).
	Name string `yaml:"name" json:"name"`
	// VTEPFamily is "ipv4" (default) or "ipv6": the family of every VTEP address.
	VTEPFamily string `yaml:"vtep-family,omitempty" json:"vtep-family,omitempty" jsonschema:"enum=ipv4,enum=ipv6"`
	// UnderlayMTU is the MTU, in bytes, of the path between public addresses. Default 1500; what is left inside the
	// tunnels must be 1280 or more (RFC 8200 section 5).
	UnderlayMTU int `yaml:"underlay-mtu,omitempty" json:"underlay-mtu,omitempty"`
	// MSS is the ceiling for the TCP maximum segment size, in bytes, of everything that crosses or leaves a
	// gateway, both directions. Default 1300, or what UnderlayMTU leaves (RoomForMSS) if that is less; more than that
	// is refused. The arithmetic of a tunnel with a smaller UnderlayMTU lowers it further.
	MSS int `yaml:"mss,omitempty" json:"mss,omitempty"`
	// VXLANPort is the UDP port of VXLAN. Default 4789 (RFC 7348).
	VXLANPort int `yaml:"vxlan-port,omitempty" json:"vxlan-port,omitempty"`
	// WireGuardPort is the first UDP port that tunnels listen on; the tunnel to the k-th gateway of the document (from 0, in
	// order, linked or not) uses port+k. Each further tunnel of a link (Links.Tunnels) uses a port higher by the number of
	// gateways rounded up to a multiple of 64. Append new gateways at the end of the document: that moves no port,
	// but for further tunnels when a multiple of 64 is outgrown. Default 51820.
	WireGuardPort int `yaml:"wireguard-port,omitempty" json:"wireguard-port,omitempty"`
	// TLSTokenFile holds the secret that the tokens of "tls" tunnels are derived from, mode 0600 or stricter, the same at
	// every gateway; fabric-site tls-token makes one. Default /etc/fabric/keys/FABRIC.token where a link has a "tls" tunnel.
	TLSTokenFile string `yaml:"tls-token-file,omitempty" json:"tls-token-file,omitempty"`
	// DirectPort is the UDP port of all tunnels of kind "direct", at both ends. Default 4790.
	DirectPort int `yaml:"direct-port,omitempty" json:"direct-port,omitempty"`
	// WireGuardRekeyAge is the age at which the keys of a tunnel are replaced, without a gap, by keys made for it alone; 1h to 8760h, absent for
	// never. Replaced keys need further ports: with up to 64 gateways and 4 tunnels a link those 256 and 512 above each tunnel's own.
	WireGuardRekeyAge Duration `yaml:"wireguard-rekey-age,omitempty" json:"wireguard-rekey-age,omitempty"`
	// BFD are the timers of the sessions on tunnels, and of peers that ask for BFD without naming timers.
	BFD BFD `yaml:"bfd,omitempty" json:"bfd,omitempty"`
	// BGP are the default BGP settings for sessions between gateways and with third parties.
	BGP BGPDefaults `yaml:"bgp,omitempty" json:"bgp,omitempty"`
}

// BFD are the timers of Bidirectional Forwarding Detection (RFC 5880). A neighbour is called down when nothing was heard of it for
// the negotiated interval times its multiplier.
type BFD struct {
	// Interval is how often packets are sent and wanted, at most; 10ms to 60s. Default 300ms.
	Interval Duration `yaml:"interval,omitempty" json:"interval,omitempty"`
	// Multiplier is the detect multiplier, 1 to 255. Default 3.
	Multiplier int `yaml:"multiplier,omitempty" json:"multiplier,omitempty"`
}

// PeerBFD asks for a BFD session with a third-party peer: single hop, or over several (RFC 5883) where the peer has multihop, which
// needs update-source as well. Timers that are absent are the fabric's; "bfd: {}" takes all of them from there.
type PeerBFD struct {
	BFD `yaml:",inline"`
	// Auth is "simple", "sha1" or "meticulous-sha1" (RFC 5880 section 6.7), absent for none.
	Auth string `yaml:"auth,omitempty" json:"auth,omitempty" jsonschema:"enum=simple,enum=sha1,enum=meticulous-sha1"`
	// KeyID is the number that both ends know the key by, 0 to 255. Default 0.
	KeyID int `yaml:"key-id,omitempty" json:"key-id,omitempty"`
	// KeyFile is the whole path of the file that holds the key, mode 0600 or stricter; needed with Auth.
	KeyFile string `yaml:"key-file,omitempty" json:"key-file,omitempty"`
}

// BGPDefaults are the BGP settings a peer has unless it says otherwise.
type BGPDefaults struct {
	// Port is the TCP port. Default 179.
	Port int `yaml:"port,omitempty" json:"port,omitempty"`
	// Keepalive is the keepalive interval. Default 3s.
	Keepalive Duration `yaml:"keepalive,omitempty" json:"keepalive,omitempty"`
	// Hold is the hold time (RFC 4271 section 4.2). Default 9s; at least 3s.
	Hold Duration `yaml:"hold,omitempty" json:"hold,omitempty"`
	// ConnectRetry is the time between connection attempts. Default 5s.
	ConnectRetry Duration `yaml:"connect-retry,omitempty" json:"connect-retry,omitempty"`
	// RestartTime is the graceful restart time (RFC 4724). Default 120s.
	RestartTime Duration `yaml:"restart-time,omitempty" json:"restart-time,omitempty"`
	// MaxPrefix is the number of prefixes admitted from a third-party peer per family before the table
	// freezes. Default 10000.
	MaxPrefix int `yaml:"max-prefix,omitempty" json:"max-prefix,omitempty"`
}

// Duration is a time.Duration written as in Go: 300ms, 5s, 2m.
type Duration time.Duration

// VRF is one routing domain.
type VRF struct {
	// Name is 1 to 12 of letters, digits, '-' and '_'. "default" is the main table.
	Name string `yaml:"name" json:"name"`
	// Table is the kernel's routing table number, 1 to 4294967295, not 253 to 255. 0 only for "default".
	Table uint32 `yaml:"table,omitempty" json:"table,omitempty"`
	// VNI is the VXLAN network identifier of the VRF in the fabric (L3VNI), 1 to 16777215.
	VNI uint32 `yaml:"vni" json:"vni"`
	// ImportRT are the route targets whose routes come in; ASN:N or IP:N. Default: 64512:VNI.
	ImportRT []string `yaml:"import-rt,omitempty" json:"import-rt,omitempty"`
	// ExportRT are the route targets our routes carry. Default: 64512:VNI.
	ExportRT []string `yaml:"export-rt,omitempty" json:"export-rt,omitempty"`
	// AllowDefault lets a default route live in this VRF. Default false: default routes are dropped.
	AllowDefault bool `yaml:"allow-default,omitempty" json:"allow-default,omitempty"`
}

// Site is one place: a data centre or a cloud VPC.
type Site struct {
	// Name is 1 to 32 of a-z, 0-9 and '-'.
	Name string `yaml:"name" json:"name"`
	// Cloud is set for a site in a cloud VPC.
	Cloud *Cloud `yaml:"cloud,omitempty" json:"cloud,omitempty"`
	// Gateways are the fabric's routers at this site, at least one.
	Gateways []Gateway `yaml:"gateways" json:"gateways"`
}

// Cloud says where the site's VPC tables are and which of them the fabric keeps.
type Cloud struct {
	// Provider is "alibaba".
	Provider string `yaml:"provider" json:"provider" jsonschema:"enum=alibaba"`
	// VRF whose routes go into the VPC's tables.
	VRF string `yaml:"vrf" json:"vrf"`
	// Region, VPC and RouteTables are discovered through the metadata service and the API where absent (A9).
	Region      string   `yaml:"region,omitempty" json:"region,omitempty"`
	VPC         string   `yaml:"vpc,omitempty" json:"vpc,omitempty"`
	RouteTables []string `yaml:"route-tables,omitempty" json:"route-tables,omitempty"`
	// Endpoint overrides the API's address: host or host:port; CAFile names the PEM file that it is verified with.
	Endpoint string `yaml:"endpoint,omitempty" json:"endpoint,omitempty"`
	CAFile   string `yaml:"ca-file,omitempty" json:"ca-file,omitempty"`
	// CredentialsFile is a JSON file {"access-key-id","access-key-secret"} of mode 0600. Absent: the instance's role.
	CredentialsFile string `yaml:"credentials-file,omitempty" json:"credentials-file,omitempty"`
	// Quota caps the number of entries the fabric may own in a table. Default 200 (the vendor's default limit).
	Quota int `yaml:"quota,omitempty" json:"quota,omitempty"`
	// Resync is the interval of full comparison. Default 60s.
	Resync Duration `yaml:"resync,omitempty" json:"resync,omitempty"`
	// Export is the name of a policy that chooses which routes go into the VPC's tables. Absent: all of the VRF's
	// remote routes that the guard lets pass.
	Export string `yaml:"export,omitempty" json:"export,omitempty"`
}

// Gateway is one router of the fabric.
type Gateway struct {
	// Name is unique in the fabric: 1 to 32 of a-z, 0-9 and '-'.
	Name string `yaml:"name" json:"name"`
	// ASN is the gateway's AS number, unique in the fabric, 1 to 4294967294 (RFC 6793).
	ASN uint32 `yaml:"asn" json:"asn"`
	// VTEP is the tunnel endpoint loopback, unique in the fabric, of the fabric's VTEP family.
	VTEP netip.Addr `yaml:"vtep" json:"vtep"`
	// RouterID is the BGP identifier, an IPv4 address, unique in the fabric. Default: the VTEP if that is IPv4;
	// required otherwise.
	RouterID netip.Addr `yaml:"router-id,omitzero" json:"router-id,omitempty,omitzero"`
	// RouterMAC is the hardware address that others put on packets for this gateway inside VXLAN, 02:00:5e:10:00:01, which its EVPN routes
	// name (RFC 9135 section 8.1). Default: derived from the VTEP. For a router of another make write its own; a route of it that names
	// another is not used.
	RouterMAC string `yaml:"router-mac,omitempty" json:"router-mac,omitempty"`
	// Endpoints are the public addresses other gateways can dial, in rank order. None: this gateway only dials (X15, A6).
	Endpoints []Endpoint `yaml:"endpoints,omitempty" json:"endpoints,omitempty"`
	// WireGuard are the gateway's tunnel keys.
	WireGuard WireGuard `yaml:"wireguard" json:"wireguard"`
	// TLS says how this gateway takes part in tunnels of kind "tls".
	TLS *TLS `yaml:"tls,omitempty" json:"tls,omitempty"`
	// Instance is the cloud instance id; discovered through the metadata service where absent.
	Instance string `yaml:"instance,omitempty" json:"instance,omitempty"`
	// Drained withdraws all that this gateway originates, so that traffic moves away before maintenance.
	Drained bool `yaml:"drained,omitempty" json:"drained,omitempty"`
	// API, when set, serves gRPC over TCP with mutual TLS beside the unix socket.
	API *API `yaml:"api,omitempty" json:"api,omitempty"`
	// Metrics is the address:port of the Prometheus listener. Absent: none.
	Metrics netip.AddrPort `yaml:"metrics,omitzero" json:"metrics,omitempty,omitzero"`
	// VRFs are the VRFs present at this gateway.
	VRFs []GatewayVRF `yaml:"vrfs,omitempty" json:"vrfs,omitempty"`
}

// API configures gRPC over TCP; all three files are PEM and clients must present a certificate of the CA.
type API struct {
	Listen   netip.AddrPort `yaml:"listen" json:"listen"`
	CertFile string         `yaml:"cert-file" json:"cert-file"`
	KeyFile  string         `yaml:"key-file" json:"key-file"`
	CAFile   string         `yaml:"ca-file" json:"ca-file"`
}

// Endpoint is one public address of a gateway (F2, F3).
type Endpoint struct {
	// Address is what others dial: an IP address.
	Address netip.Addr `yaml:"address" json:"address"`
	// PublicPort is the first port others dial where NAT maps it to another than the one listened on; the k-th gateway of
	// the document dials PublicPort+k, further tunnels are counted as for WireGuardPort. 0: the same as listened on.
	PublicPort int `yaml:"public-port,omitempty" json:"public-port,omitempty"`
}

// WireGuard are a gateway's keys.
type WireGuard struct {
	// PublicKey is the base64 Curve25519 public key.
	PublicKey string `yaml:"public-key" json:"public-key"`
	// PrivateKeyFile is read on the gateway only; mode 0600 or stricter (X38). Default /etc/fabric/keys/NAME.key.
	PrivateKeyFile string `yaml:"private-key-file,omitempty" json:"private-key-file,omitempty"`
	// Keepalive is the persistent keepalive of the dialling side. Default 5s (X16).
	Keepalive Duration `yaml:"keepalive,omitempty" json:"keepalive,omitempty"`
}

// TLS is a gateway's part in tunnels of kind "tls" (A8, X13). One gateway of a link takes the connection and the other dials; of two
// that both listen the one with a proxy dials, else the one with the higher VTEP.
type TLS struct {
	// Listen, when set, takes the connections of other gateways. "listen: {}" takes them on port 443 of the endpoints.
	Listen *TLSListen `yaml:"listen,omitempty" json:"listen,omitempty"`
	// Proxy is the HTTP proxy that this gateway dials through (CONNECT, RFC 9110 section 9.3.6): http://HOST[:PORT], without
	// credentials.
	Proxy string `yaml:"proxy,omitempty" json:"proxy,omitempty"`
	// ProxyCredentialsFile holds USER:PASSWORD for the proxy, mode 0600 or stricter.
	ProxyCredentialsFile string `yaml:"proxy-credentials-file,omitempty" json:"proxy-credentials-file,omitempty"`
}

// TLSListen is where a gateway takes connections of "tls" tunnels, and how the others know that it is the one.
type TLSListen struct {
	// Port is the TCP port that is listened on, on all addresses. Default 443.
	Port int `yaml:"port,omitempty" json:"port,omitempty"`
	// PublicPort is what others dial where NAT maps it to another port. Default Port.
	PublicPort int `yaml:"public-port,omitempty" json:"public-port,omitempty"`
	// Host is the name that others dial and ask for in TLS. Absent: they dial the endpoints' addresses.
	Host string `yaml:"host,omitempty" json:"host,omitempty"`
	// Pin is the certificate's key, sha256:BASE64, as fabric-site tls-certificate prints it: others trust this key and no authority.
	// Absent, which needs Host: the certificate must be Host's and lead to an authority that the others' systems trust.
	Pin string `yaml:"pin,omitempty" json:"pin,omitempty"`
	// CertificateFile and KeyFile are PEM and read on the gateway only, anew when they change; the key's mode is 0600 or stricter.
	// Default /etc/fabric/keys/NAME-tls.crt and NAME-tls.key.
	CertificateFile string `yaml:"certificate-file,omitempty" json:"certificate-file,omitempty"`
	KeyFile         string `yaml:"key-file,omitempty" json:"key-file,omitempty"`
}

// GatewayVRF is a VRF at one gateway: what is attached to it there.
type GatewayVRF struct {
	// VRF names one of the document's VRFs.
	VRF string `yaml:"vrf" json:"vrf"`
	// Multipath is how many equal BGP paths with different next hops share the traffic to a prefix (X9), 1 to 8. They
	// tie up to MED and may lead through different ASes. Default 1.
	Multipath int `yaml:"multipath,omitempty" json:"multipath,omitempty" jsonschema:"minimum=1,maximum=8"`
	// Prefixes are originated into the fabric from here.
	Prefixes []Prefix `yaml:"prefixes,omitempty" json:"prefixes,omitempty"`
	// Interfaces are devices of this host that belong to the VRF. The daemon owns their addresses (X33).
	Interfaces []Interface `yaml:"interfaces,omitempty" json:"interfaces,omitempty"`
	// Loopbacks are host addresses (/32, /128) that the gateway answers to in this VRF and originates (X24).
	Loopbacks []netip.Prefix `yaml:"loopbacks,omitempty" json:"loopbacks,omitempty"`
	// Peers are third-party BGP neighbours in this VRF.
	Peers []Peer `yaml:"peers,omitempty" json:"peers,omitempty"`
}

// Prefix is a route originated by a gateway.
type Prefix struct {
	// Prefix without host bits.
	Prefix netip.Prefix `yaml:"prefix" json:"prefix"`
	// NextHop is where this gateway sends the prefix's traffic (X2, X6). Absent: the prefix is attached (a
	// connected or more specific route exists) and only announced.
	NextHop netip.Addr `yaml:"next-hop,omitzero" json:"next-hop,omitempty,omitzero"`
	// Interface is the device of the next hop; needed where the next hop is not on a connected network (X7).
	Interface string `yaml:"interface,omitempty" json:"interface,omitempty"`
	// Shared marks a prefix that more than one site originates on purpose.
	Shared bool `yaml:"shared,omitempty" json:"shared,omitempty"`
	// Announce false keeps the route local to this gateway. Default true.
	Announce *bool `yaml:"announce,omitempty" json:"announce,omitempty"`
	// Communities are attached when announced: ASN:N.
	Communities []string `yaml:"communities,omitempty" json:"communities,omitempty"`
}

// Interface is a device of the host that belongs to a VRF.
type Interface struct {
	// Name of the device, which must exist.
	Name string `yaml:"name" json:"name"`
	// Addresses with prefix length, e.g. 172.20.0.9/24.
	Addresses []netip.Prefix `yaml:"addresses,omitempty" json:"addresses,omitempty"`
	// MTU of the device in bytes; 0 leaves it as it is.
	MTU int `yaml:"mtu,omitempty" json:"mtu,omitempty"`
}

// Peer is a third-party BGP neighbour in a VRF.
type Peer struct {
	// Name is unique in the VRF at this gateway; default: the address.
	Name string `yaml:"name,omitempty" json:"name,omitempty"`
	// Address of the neighbour; link-local IPv6 needs Interface.
	Address netip.Addr `yaml:"address" json:"address"`
	// ASN of the neighbour.
	ASN uint32 `yaml:"asn" json:"asn"`
	// LocalASN is ours towards this peer; default the gateway's.
	LocalASN uint32 `yaml:"local-asn,omitempty" json:"local-asn,omitempty"`
	// Interface binds the session to a device of the VRF.
	Interface string `yaml:"interface,omitempty" json:"interface,omitempty"`
	// UpdateSource is our address of the session.
	UpdateSource netip.Addr `yaml:"update-source,omitzero" json:"update-source,omitempty,omitzero"`
	// Families of the session: "ipv4", "ipv6". Default: the family of Address.
	Families []string `yaml:"families,omitempty" json:"families,omitempty"`
	// Passive waits for the neighbour to connect.
	Passive bool `yaml:"passive,omitempty" json:"passive,omitempty"`
	// Multihop is the TTL of an eBGP session that is not directly connected; 0 means directly connected (TTL 1).
	Multihop int `yaml:"multihop,omitempty" json:"multihop,omitempty"`
	// TTLSecurity accepts only packets that came at most this many hops (RFC 5082); not with Multihop. 0 is off.
	TTLSecurity int `yaml:"ttl-security,omitempty" json:"ttl-security,omitempty"`
	// PasswordFile holds the TCP MD5 key (RFC 2385), mode 0600 or stricter.
	PasswordFile string `yaml:"password-file,omitempty" json:"password-file,omitempty"`
	// BFD, when set, watches the neighbour: its paths are unusable while the session is not up.
	BFD *PeerBFD `yaml:"bfd,omitempty" json:"bfd,omitempty"`
	// Port is the neighbour's TCP port; default the fabric's.
	Port int `yaml:"port,omitempty" json:"port,omitempty"`
	// Keepalive and Hold override the defaults. With Hold alone, Keepalive is the default or a third of Hold,
	// whichever is less.
	Keepalive Duration `yaml:"keepalive,omitempty" json:"keepalive,omitempty"`
	Hold      Duration `yaml:"hold,omitempty" json:"hold,omitempty"`
	// Import and Export name policies. Absent: the guard alone.
	Import string `yaml:"import,omitempty" json:"import,omitempty"`
	Export string `yaml:"export,omitempty" json:"export,omitempty"`
	// NextHop is what the neighbour is told as next hop; default our address of the session.
	NextHop netip.Addr `yaml:"next-hop,omitzero" json:"next-hop,omitempty,omitzero"`
	// ExtendedNextHop takes and announces IPv4 routes with IPv6 next hops (RFC 8950), which the neighbour must be set to do as well: the session is
	// over IPv6 and carries both families, and neither end needs an IPv4 address on the link.
	ExtendedNextHop bool `yaml:"extended-next-hop,omitempty" json:"extended-next-hop,omitempty"`
	// ASOverride replaces the neighbour's ASN in announced paths by ours (dual-homed customers with one ASN).
	ASOverride bool `yaml:"as-override,omitempty" json:"as-override,omitempty"`
	// AllowOwnAS is how often our own ASN may occur in a received path. Default 0.
	AllowOwnAS int `yaml:"allow-own-as,omitempty" json:"allow-own-as,omitempty"`
	// MaxPrefix is the number of prefixes admitted per family; beyond it new prefixes are frozen out while
	// admitted ones keep updating. Default the fabric's.
	MaxPrefix int `yaml:"max-prefix,omitempty" json:"max-prefix,omitempty"`
	// Disabled keeps the peer configured but down.
	Disabled bool `yaml:"disabled,omitempty" json:"disabled,omitempty"`
}

// Policy is an ordered list of terms; the first term that matches decides.
type Policy struct {
	// Name is unique in the document.
	Name string `yaml:"name" json:"name"`
	// Terms in order.
	Terms []Term `yaml:"terms" json:"terms"`
	// Default is what happens when no term matches: "accept" or "reject". Default "reject".
	Default string `yaml:"default,omitempty" json:"default,omitempty" jsonschema:"enum=accept,enum=reject"`
}

// Term is one step of a policy: all of its conditions must hold.
type Term struct {
	// Name says what the term is for; shown by explain.
	Name string `yaml:"name" json:"name"`
	// Match holds the conditions; empty matches everything.
	Match Match `yaml:"match,omitempty" json:"match,omitempty"`
	// Then is "accept", "reject" or "next".
	Then string `yaml:"then" json:"then" jsonschema:"enum=accept,enum=reject,enum=next"`
	// Set rewrites the path when the term matches and does not reject.
	Set *Set `yaml:"set,omitempty" json:"set,omitempty"`
}

// Match are the conditions of a term; every one that is given must hold.
type Match struct {
	// Prefixes: any of them. "10.0.0.0/8" exact; "10.0.0.0/8 le 24", "10.0.0.0/8 ge 16 le 24" ranges; "::/0 le 128".
	Prefixes []string `yaml:"prefixes,omitempty" json:"prefixes,omitempty"`
	// Communities: any of them, ASN:N.
	Communities []string `yaml:"communities,omitempty" json:"communities,omitempty"`
	// ASPath: any of these ASNs occurs in the path.
	ASPath []uint32 `yaml:"as-path,omitempty" json:"as-path,omitempty"`
	// OriginAS: any of these is the last ASN of the path.
	OriginAS []uint32 `yaml:"origin-as,omitempty" json:"origin-as,omitempty"`
	// Source: any of "connected", "static", "peer", "fabric".
	Source []string `yaml:"source,omitempty" json:"source,omitempty"`
	// Peers: any of these peer names.
	Peers []string `yaml:"peers,omitempty" json:"peers,omitempty"`
}

// Set are the rewrites of a term.
type Set struct {
	// NextHop replaces the next hop.
	NextHop           netip.Addr `yaml:"next-hop,omitzero" json:"next-hop,omitempty,omitzero"`
	LocalPref         *uint32    `yaml:"local-pref,omitempty" json:"local-pref,omitempty"`
	MED               *uint32    `yaml:"med,omitempty" json:"med,omitempty"`
	Prepend           int        `yaml:"prepend,omitempty" json:"prepend,omitempty"`
	AddCommunities    []string   `yaml:"add-communities,omitempty" json:"add-communities,omitempty"`
	RemoveCommunities []string   `yaml:"remove-communities,omitempty" json:"remove-communities,omitempty"`
}

// Links says which gateways are joined.
type Links struct {
	// Mesh is "full" (default), "communities" (F6), or "hub": every gateway is linked with each of Hubs, and with no other.
	Mesh string `yaml:"mesh,omitempty" json:"mesh,omitempty" jsonschema:"enum=full,enum=communities,enum=hub"`
	// Hubs are gateways that two others which are not linked reach each other over, in order of preference, wherever both are linked
	// with it. A hub forwards between tunnels what the two send each other, and does not look into it.
	Hubs []string `yaml:"hubs,omitempty" json:"hubs,omitempty"`
	// Communities are sets of sites whose gateways are joined pairwise, when Mesh is "communities".
	Communities []Community `yaml:"communities,omitempty" json:"communities,omitempty"`
	// Tunnels is what a link has unless Pairs says otherwise, the preferred first. Default one "wireguard". Their ports depend on
	// the order of gateways in the document: see Fabric.WireGuardPort.
	Tunnels []Tunnel `yaml:"tunnels,omitempty" json:"tunnels,omitempty"`
	// Pairs override the tunnels of single links.
	Pairs []LinkPair `yaml:"pairs,omitempty" json:"pairs,omitempty"`
}

// Community is a set of sites joined pairwise.
type Community struct {
	Name  string   `yaml:"name" json:"name"`
	Sites []string `yaml:"sites" json:"sites"`
}

// LinkPair names the tunnels between two gateways.
type LinkPair struct {
	// Between are exactly two gateway names.
	Between []string `yaml:"between" json:"between"`
	// Tunnels, the preferred first; an empty list means that these two gateways are not linked. With Mesh "hub" a pair of two that are no
	// hubs links them directly.
	Tunnels []Tunnel `yaml:"tunnels" json:"tunnels"`
	// PresharedKeyFile is the whole path, the same at both gateways, of the file with a WireGuard preshared key that both hold besides their
	// own keys; mode 0600 or stricter. It goes with the keys of the document; those that follow them have one of their own.
	PresharedKeyFile string `yaml:"preshared-key-file,omitempty" json:"preshared-key-file,omitempty"`
}

// Tunnel is one way between two gateways.
type Tunnel struct {
	// Kind is "wireguard" (over UDP); "tls": WireGuard's packets inside TLS over TCP, for where UDP does not get through; or
	// "direct": unencrypted, for gateways on a trusted network such as one VPC, each of which reaches an endpoint of the other
	// without address translation. The direct tunnel in the n-th place of the list joins the n-th endpoints, or the first where
	// there are fewer.
	Kind string `yaml:"kind" json:"kind" jsonschema:"enum=wireguard,enum=tls,enum=direct"`
	// Encryption is "none", and has to be written, with kind "direct"; absent with every other.
	Encryption string `yaml:"encryption,omitempty" json:"encryption,omitempty" jsonschema:"enum=none"`
	// Rank says which tunnels of a link are preferred: 0 first. Those of equal rank share traffic, by flow. Default: the place in the
	// list, from 0. Ranks count up without a gap. Ports depend on the place alone.
	Rank *int `yaml:"rank,omitempty" json:"rank,omitempty" jsonschema:"minimum=0"`
	// UnderlayMTU overrides the fabric's for this way. Not with "tls": TCP cuts its stream by itself.
	UnderlayMTU int `yaml:"underlay-mtu,omitempty" json:"underlay-mtu,omitempty"`
	// BFD overrides the fabric's timers for this way.
	BFD *BFD `yaml:"bfd,omitempty" json:"bfd,omitempty"`
}
