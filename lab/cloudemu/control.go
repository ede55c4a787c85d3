package cloudemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"time"
)

// Control is the control API below /_emu/; see the package documentation.
func (s *Server) Control() http.Handler {
	mux := http.NewServeMux()
	post := func(path string, do func(body []byte) (any, error)) {
		mux.HandleFunc("POST /_emu/"+path, func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 16<<20))
			var out any
			if err == nil {
				out, err = do(b)
			}
			reply(w, out, err)
		})
	}
	get := func(path string, do func(r *http.Request) (any, error)) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			s.mu.Lock()
			s.settle()
			out, err := do(r)
			b, encErr := json.MarshalIndent(out, "", "  ")
			s.mu.Unlock()
			reply(w, json.RawMessage(b), errors.Join(err, encErr))
		})
	}
	post("seed", func(b []byte) (any, error) {
		seed, err := ParseSeed(b)
		if err != nil {
			return nil, err
		}
		return nil, s.reseed(seed)
	})
	post("tick", func(b []byte) (any, error) {
		v, err := decode[struct {
			MS int `json:"ms"`
		}](b)
		if err == nil {
			s.Tick(time.Duration(v.MS) * time.Millisecond)
		}
		return nil, err
	})
	post("profile", s.postProfile)
	post("fault", func(b []byte) (any, error) {
		f, err := decode[Fault](b)
		if err == nil {
			s.AddFault(f)
		}
		return nil, err
	})
	post("external", func(b []byte) (any, error) {
		e, err := decode[External](b)
		if err != nil {
			return nil, err
		}
		return nil, s.Do(e)
	})
	post("instance", s.postInstance)
	post("quota", s.postQuota)
	post("vpc", s.postVPC)
	post("metadata", s.postMetadata)
	get("GET /_emu/state", func(*http.Request) (any, error) { return s.state(), nil })
	get("GET /_emu/fault", func(*http.Request) (any, error) { return s.faults, nil })
	get("DELETE /_emu/fault", func(*http.Request) (any, error) { s.faults = nil; return nil, nil })
	get("GET /_emu/requests", func(*http.Request) (any, error) {
		return obj{"requests": s.requests, "findings": s.findings()}, nil
	})
	get("DELETE /_emu/requests", func(*http.Request) (any, error) { s.requests = nil; return nil, nil })
	get("GET /_emu/fib", s.getFIB)
	return mux
}

func decode[T any](b []byte) (T, error) {
	var v T
	err := strict(b, &v)
	return v, err
}

func reply(w http.ResponseWriter, out any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		out = obj{"error": err.Error()}
	} else if out == nil {
		out = obj{"ok": true}
	}
	_ = json.NewEncoder(w).Encode(out) // the client may have left
}

// Tick moves the clock forward and ends tasks of the profile "stuck".
func (s *Server) Tick(d time.Duration) {
	s.clock.Advance(d)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.world.vpcs {
		if v.task != nil && v.task.stuck {
			s.end(v, s.clock.Now())
		}
	}
	s.settle()
	s.notify()
}

// SetProfile changes how tasks behave from the next one on.
func (s *Server) SetProfile(p Profile) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.profile = p
}

func (s *Server) postProfile(b []byte) (any, error) {
	var named struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(b, &named); err != nil {
		return nil, err
	}
	s.mu.Lock()
	p := s.profile
	s.mu.Unlock()
	if named.Name != "" {
		var err error
		if p, err = ProfileNamed(named.Name); err != nil {
			return nil, err
		}
	}
	if err := strict(b, &p); err != nil {
		return nil, err
	}
	s.SetProfile(p)
	return p, nil
}

// AddFault orders a fault; faults are tried in the order they were added.
func (s *Server) AddFault(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &f)
}

// External is a change another user makes. It happens at once, without a task.
type External struct {
	Op          string `json:"op"` // create, delete or modify
	Table       string `json:"table"`
	CIDR        string `json:"cidr"`
	NextHopType string `json:"nextHopType,omitempty"`
	NextHopID   string `json:"nextHopId,omitempty"`
	Name        string `json:"name,omitempty"`
	Description string `json:"description,omitempty"`
}

// Do makes a change as another user.
func (s *Server) Do(x External) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	t := s.world.tables[x.Table]
	if t == nil {
		return fmt.Errorf("external: route table %q does not exist", x.Table)
	}
	p, err := netip.ParsePrefix(x.CIDR)
	if err != nil || p != p.Masked() {
		return fmt.Errorf("external: %q is no CIDR without host bits", x.CIDR)
	}
	now := s.clock.Now()
	e := t.entry(p)
	switch {
	case x.Op == "create" && e == nil:
		e = &entry{table: t, cidr: p, typ: "Custom", status: statusAvailable, origin: "CustomCreate", name: x.Name,
			description: x.Description, hops: []Hop{{Type: x.NextHopType, ID: x.NextHopID}}, modified: now, owner: "external"}
		s.world.add(e, s.rng)
		t.record(now, e, "active")
	case x.Op == "create":
		return fmt.Errorf("external: %s has an entry for %s", x.Table, p)
	case e == nil:
		return fmt.Errorf("external: %s has no entry for %s", x.Table, p)
	case e.status != statusAvailable:
		return fmt.Errorf("external: entry %s is %s; wait until it is Available", p, e.status)
	case x.Op == "delete":
		t.record(now, e, "removed")
		s.world.remove(e)
	case x.Op == "modify":
		if x.NextHopID != "" {
			e.hops = []Hop{{Type: x.NextHopType, ID: x.NextHopID}}
		}
		e.name, e.description, e.modified = x.Name, x.Description, now
		t.record(now, e, "active")
	default:
		return fmt.Errorf("external: op %q is unknown; use create, delete or modify", x.Op)
	}
	s.commit(t, now)
	s.notify()
	return nil
}

func (s *Server) postInstance(b []byte) (any, error) {
	v, err := decode[struct {
		ID  string `json:"id"`
		Op  string `json:"op"`
		ENI string `json:"eni"`
		To  string `json:"to"`
	}](b)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.notify()
	i := s.world.instance(v.ID)
	if i == nil && v.Op != "moveEni" {
		return nil, fmt.Errorf("instance %q does not exist", v.ID)
	}
	switch v.Op {
	case "start":
		i.Status = "Running"
	case "stop":
		i.Status = "Stopped"
	case "release":
		w := s.world
		w.instances = slices.DeleteFunc(w.instances, func(o *instance) bool { return o == i })
		w.enis = slices.DeleteFunc(w.enis, func(n *eni) bool { return n.owner == i && n.Type == "Primary" })
		for _, n := range w.enis {
			if n.owner == i {
				n.owner = nil
			}
		}
	case "moveEni":
		n, to := s.world.eni(v.ENI), s.world.instance(v.To)
		if n == nil || n.Type == "Primary" {
			return nil, fmt.Errorf("%q is no secondary interface", v.ENI)
		}
		if v.To != "" && to == nil {
			return nil, fmt.Errorf("instance %q does not exist", v.To)
		}
		if n.owner = to; to != nil {
			n.Device = to.Device
		}
	default:
		return nil, fmt.Errorf("op %q is unknown; use start, stop, release or moveEni", v.Op)
	}
	return nil, nil
}

func (s *Server) postQuota(b []byte) (any, error) {
	v, err := decode[struct {
		Table string `json:"table"`
		Quotas
	}](b)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.world.tables[v.Table]
	if t == nil {
		return nil, fmt.Errorf("route table %q does not exist", v.Table)
	}
	if v.RouteEntries != 0 {
		t.quotas.RouteEntries = v.RouteEntries
	}
	if v.HaVipRouteEntries != 0 {
		t.quotas.HaVipRouteEntries = v.HaVipRouteEntries
	}
	return t.quotas, nil
}

func (s *Server) postVPC(b []byte) (any, error) {
	v, err := decode[struct {
		ID     string `json:"id"`
		Status string `json:"status"`
	}](b)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.world.vpcs {
		if p.ID == v.ID {
			p.Status = v.Status
			return nil, nil
		}
		if w := p.vswitch(v.ID); w != nil {
			w.Status = v.Status
			return nil, nil
		}
	}
	for _, h := range s.world.havips {
		if h.ID == v.ID {
			h.Status = v.Status
			return nil, nil
		}
	}
	if t := s.world.tables[v.ID]; t != nil {
		t.Status = v.Status
		return nil, nil
	}
	return nil, fmt.Errorf("%q is no VPC, vSwitch, route table or HaVip", v.ID)
}

// state is the world as it is, without secrets.
func (s *Server) state() obj {
	var vpcs []obj
	for _, v := range s.world.vpcs {
		var tables []obj
		for _, t := range v.tables {
			var entries []obj
			for _, e := range t.entries {
				o := entryObj(e)
				o["Hops"], o["PendingHops"], o["Owner"] = e.hops, e.pendingHops, e.owner
				entries = append(entries, o)
			}
			tables = append(tables, obj{"id": t.ID, "type": t.Type, "status": t.Status, "quotas": t.quotas, "entries": entries})
		}
		vpcs = append(vpcs, obj{"id": v.ID, "status": v.Status, "busy": v.task != nil, "tables": tables})
	}
	var instances []obj
	for _, i := range s.world.instances {
		instances = append(instances, obj{"id": i.ID, "status": i.Status, "vpc": i.vpc.ID, "privateIp": i.PrivateIP})
	}
	return obj{"now": s.clock.Now(), "profile": s.profile, "tasks": s.tasks, "vpcs": vpcs, "instances": instances}
}

// getFIB answers where a packet to dst goes now, and what changed about it.
func (s *Server) getFIB(r *http.Request) (any, error) {
	t := s.world.tables[r.FormValue("table")]
	if t == nil {
		return nil, fmt.Errorf("route table %q does not exist", r.FormValue("table"))
	}
	dst, err := netip.ParseAddr(r.FormValue("dst"))
	if err != nil {
		return nil, fmt.Errorf("dst: %w", err)
	}
	out := obj{"now": s.clock.Now(), "route": nil}
	if e := t.lookup(dst); e != nil {
		f := s.world.fibEntry(e)
		out["route"] = f
		out["forwards"] = f.Via.IsValid() || e.typ == "System"
	}
	history := []FIBEvent{}
	for _, h := range t.history {
		if h.Destination.Contains(dst) {
			history = append(history, h)
		}
	}
	out["history"] = history
	return out, nil
}
