package check

import (
	"fmt"
	"strings"
)

// nearlyFull is the share of a table, in percent, from which it is told.
const nearlyFull = 90

// cloudChecks judge what the cloud's API has answered; without probes, or outside a cloud, they say nothing.
var cloudChecks = []check{
	{"cloud-unreachable", "The VPC's tables are kept through the metadata service and the API; without them the VPC's hosts find no remote site.", func(s *subject) []fault {
		if s.CloudErr == nil {
			return nil
		}
		mend := "fabricctl cloud list  # check the way to the API, the clock, and the instance's role"
		if c := s.site.Cloud; c != nil && c.CredentialsFile != "" {
			mend = "fabricctl cloud list  # check the way to the API, the clock, and the key in " + c.CredentialsFile
		}
		return one(Error, mend, "the VPC cannot be asked: %v", s.CloudErr)
	}},
	{"cloud-table-unreadable", "A table that cannot be read is left as it is.", func(s *subject) (faults []fault) {
		for _, t := range s.Cloud.Tables {
			if t.Err != nil {
				faults = append(faults, fault{Error, fmt.Sprintf("route table %s: %v", t.ID, t.Err), s.grant(t.ID, "vpc:DescribeRouteEntryList")})
			}
		}
		return faults
	}},
	{"cloud-permission", "Without the right to write, the VPC's tables stay as they are; without the right to modify, a next hop is deleted and made anew.", func(s *subject) (faults []fault) {
		for _, t := range s.Cloud.Tables {
			for _, c := range t.Calls {
				if !c.Denied {
					continue
				}
				severity := Error
				if c.Needless {
					severity = Warning
				}
				faults = append(faults, fault{severity, fmt.Sprintf("the role may not make the call %s on route table %s: %v", c.Action, t.ID, c.Err), s.grant(t.ID, c.Action)})
			}
		}
		return faults
	}},
	{"cloud-dry-run", "Where the API does not heed dry runs, the self-check itself may leave an entry behind that takes traffic to this gateway.", func(s *subject) (faults []fault) {
		for _, t := range s.Cloud.Tables {
			for _, c := range t.Calls {
				if !c.Carried {
					continue
				}
				faults = append(faults, fault{Error, fmt.Sprintf("the API answered a dry run of %s for %s on route table %s as if it was carried out", c.Action, c.Prefix, t.ID),
					fmt.Sprintf("aliyun vpc DescribeRouteEntryList --RegionId %s --RouteTableId %s --DestinationCidrBlock %s  # delete an entry that nobody else has made; use no --probe here",
						s.Cloud.Info.Region, t.ID, c.Prefix)})
			}
		}
		return faults
	}},
	{"cloud-refused", "What the API refuses in a dry run it refuses for good.", func(s *subject) (faults []fault) {
		for _, t := range s.Cloud.Tables {
			for _, c := range t.Calls {
				if c.Err != nil && !c.Denied && !c.Full {
					faults = append(faults, fault{Warning, fmt.Sprintf("a dry run of %s on route table %s: %v", c.Action, t.ID, c.Err),
						fmt.Sprintf("fabricctl cloud list  # the next hop is %s; \"instance\" in the document names another", s.Cloud.Info.Instance)})
				}
			}
		}
		return faults
	}},
	{"cloud-quota", "A full table keeps what it has; new prefixes are left out.", func(s *subject) (faults []fault) {
		for _, t := range s.Cloud.Tables {
			if t.Err != nil {
				continue
			}
			const mend = "# raise vpc_quota_route_entrys_num in the vendor's quota centre, or announce fewer prefixes (the site's cloud export policy)"
			full := false
			for _, c := range t.Calls {
				full = full || c.Full
			}
			quota := 0
			if s.site.Cloud != nil {
				quota = s.site.Cloud.Quota
			}
			switch all := t.Owned + t.Foreign; {
			case full || t.Limit > 0 && all >= t.Limit:
				faults = append(faults, fault{Error, fmt.Sprintf("route table %s takes no more entries: %d are ours, %d others'", t.ID, t.Owned, t.Foreign), mend})
			case t.Limit > 0 && 100*all >= nearlyFull*t.Limit:
				faults = append(faults, fault{Warning, fmt.Sprintf("route table %s has %d of %d entries", t.ID, all, t.Limit), mend})
			case quota > 0 && 100*t.Owned >= nearlyFull*quota:
				faults = append(faults, fault{Warning, fmt.Sprintf("route table %s has %d entries of ours, the document allows %d", t.ID, t.Owned, quota),
					fmt.Sprintf("# in the document: quota: %d under the site's cloud", 2*quota)})
			}
		}
		return faults
	}},
}

// grant is what to add to the role's policy.
func (s *subject) grant(table string, actions ...string) string {
	return fmt.Sprintf(`# add to the RAM policy of the instance's role: {"Effect": "Allow", "Action": ["%s"], "Resource": ["acs:vpc:%s:*:routetable/%s"]}`,
		strings.Join(actions, `", "`), s.Cloud.Info.Region, table)
}
