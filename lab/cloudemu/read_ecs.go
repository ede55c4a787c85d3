package cloudemu

import (
	"encoding/json"
	"slices"
)

// describeRegions lists the regions; the endpoint of each is this emulator.
func (s *Server) describeRegions(c *call) (any, *apiError) {
	all := []obj{}
	for _, r := range s.world.seed.Regions {
		all = append(all, obj{"RegionId": r.ID, "LocalName": r.Name, "RegionEndpoint": c.host, "Status": "available"})
	}
	return obj{"Regions": obj{"Region": all}}, nil
}

// jsonList reads a filter given as a JSON array of texts; none passes all.
func jsonList(p params, name string) (func(...string) bool, *apiError) {
	text := p[name]
	if text == "" {
		return func(...string) bool { return true }, nil
	}
	var want []string
	if err := json.Unmarshal([]byte(text), &want); err != nil {
		return nil, refuse("InvalidParameter."+name, "The specified "+name+" is not a JSON array of strings.")
	}
	return func(values ...string) bool {
		return slices.ContainsFunc(values, func(v string) bool { return v != "" && slices.Contains(want, v) })
	}, nil
}

func (s *Server) describeInstances(c *call) (any, *apiError) {
	p := c.params
	match := map[string]func(...string) bool{}
	for _, name := range []string{"InstanceIds", "PublicIpAddresses", "EipAddresses", "PrivateIpAddresses"} {
		f, err := jsonList(p, name)
		if err != nil {
			return nil, err
		}
		match[name] = f
	}
	all := []obj{}
	for _, i := range s.world.instances {
		if i.vpc.Region != c.region || !match["InstanceIds"](i.ID) || !match["PublicIpAddresses"](i.PublicIP) ||
			!match["EipAddresses"](i.EIP) || !match["PrivateIpAddresses"](i.PrivateIP) ||
			!is(p["VpcId"], i.vpc.ID) || !is(p["VSwitchId"], i.VSwitch) || !is(p["Status"], i.Status) {
			continue
		}
		all = append(all, s.instanceObj(i))
	}
	rows, out, err := s.tokenPage(c, all)
	if err != nil {
		return nil, err
	}
	out["Instances"] = obj{"Instance": rows}
	return out, nil
}

func (s *Server) instanceObj(i *instance) obj {
	nics := []obj{}
	for _, n := range s.world.enis {
		if n.owner == i {
			nics = append(nics, obj{"NetworkInterfaceId": n.ID, "Type": n.Type, "PrimaryIpAddress": n.PrivateIP, "VSwitchId": n.vswitch,
				"MacAddress": i.MAC, "Ipv6Sets": obj{"Ipv6Set": v6Objs(n.IPv6)}})
		}
	}
	eip := obj{"AllocationId": "", "IpAddress": i.EIP}
	if i.EIP != "" {
		eip["AllocationId"] = "eip-" + i.ID
	}
	public := []string{}
	if i.PublicIP != "" {
		public = append(public, i.PublicIP)
	}
	return obj{"InstanceId": i.ID, "InstanceName": i.Name, "HostName": i.ID, "RegionId": i.vpc.Region, "Status": i.Status,
		"ZoneId": i.vpc.vswitch(i.VSwitch).Zone, "InstanceNetworkType": "vpc",
		"VpcAttributes": obj{"VpcId": i.vpc.ID, "VSwitchId": i.VSwitch, "PrivateIpAddress": obj{"IpAddress": []string{i.PrivateIP}}},
		"EipAddress":    eip, "PublicIpAddress": obj{"IpAddress": public},
		"MetadataOptions":   obj{"HttpEndpoint": "enabled", "HttpTokens": i.HTTPTokens},
		"NetworkInterfaces": obj{"NetworkInterface": nics}}
}

func v6Objs(addr string) []obj {
	if addr == "" {
		return []obj{}
	}
	return []obj{{"Ipv6Address": addr}}
}

// tokenPage pages by MaxResults and NextToken, or by PageNumber and PageSize
// when the call has those.
func (s *Server) tokenPage(c *call, all []obj) ([]obj, obj, *apiError) {
	p := c.params
	if p["MaxResults"] == "" && p["NextToken"] == "" {
		rows, out, err := page(p, 100, all)
		if err == nil {
			out["NextToken"] = ""
		}
		return rows, out, err
	}
	size, err := number(p, "MaxResults", 10)
	if err != nil {
		return nil, nil, err
	}
	size = min(size, 100)
	filters := filterKey(c, "MaxResults")
	from, err := s.resume(p["NextToken"], filters)
	if err != nil {
		return nil, nil, err
	}
	from = min(from, len(all))
	to := min(from+size, len(all))
	out := obj{"TotalCount": len(all), "PageSize": size, "PageNumber": 1, "NextToken": ""}
	if to < len(all) {
		out["NextToken"] = s.nextToken(filters, to)
	}
	return all[from:to], out, nil
}

func (s *Server) describeNetworkInterfaces(c *call) (any, *apiError) {
	p, all := c.params, []obj{}
	ids, addrs := p.list("NetworkInterfaceId"), p.list("PrivateIpAddress")
	for _, n := range s.world.enis {
		owner, status := "", statusAvailable
		if n.owner != nil {
			owner, status = n.owner.ID, "InUse"
		}
		if n.vpc.Region != c.region || len(ids) > 0 && !slices.Contains(ids, n.ID) || len(addrs) > 0 && !slices.Contains(addrs, n.PrivateIP) ||
			!is(p["InstanceId"], owner) || !is(p["VpcId"], n.vpc.ID) || !is(p["VSwitchId"], n.vswitch) || !is(p["Type"], n.Type) ||
			!is(p["Status"], status) || !is(p["PrimaryIpAddress"], n.PrivateIP) {
			continue
		}
		all = append(all, obj{"NetworkInterfaceId": n.ID, "Type": n.Type, "VpcId": n.vpc.ID, "VSwitchId": n.vswitch, "Status": status,
			"InstanceId": owner, "PrivateIpAddress": n.PrivateIP, "SourceDestCheck": n.SourceDestCheck,
			"ZoneId": n.vpc.vswitch(n.vswitch).Zone, "Attachment": obj{"InstanceId": owner},
			"PrivateIpSets": obj{"PrivateIpSet": []obj{{"PrivateIpAddress": n.PrivateIP, "Primary": true}}},
			"Ipv6Sets":      obj{"Ipv6Set": v6Objs(n.IPv6)}})
	}
	rows, out, err := s.tokenPage(c, all)
	if err != nil {
		return nil, err
	}
	out["NetworkInterfaceSets"] = obj{"NetworkInterfaceSet": rows}
	return out, nil
}
