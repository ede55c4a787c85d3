package alibaba

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"time"

	alivpc "github.com/aliyun/alibaba-cloud-sdk-go/services/vpc"

	"fabric/cloud"
	"fabric/internal/reconcile"
)

type op = reconcile.Op[netip.Prefix, cloud.Route]

// run is one Apply. It goes round until nothing is left:
//
//	read the table, when it is at rest ─► decide per op ─► one call ─► accepted: follow to the end
//	        ▲                                                        ├► refused for now: wait
//	        └────────────────────────────────────────────────────────┴► answer lost: give it time to show
//
// so that nothing is ever repeated without a look at what the last try did.
type run struct {
	*table
	ops  []op
	errs []error
	done []bool
	// moving are ops whose entry was removed because it could not be changed in place.
	moving map[int]bool
	single map[int]bool // not in a batch: the batch call refused it
	wait   *backoff
	size   int // entries in a batch
}

// maxBatch is the API's limit of entries in a batch call.
const maxBatch = 50

// Apply implements cloud.Table.
func (t *table) Apply(ctx context.Context, ops []op) []error {
	t.vpc.writing.Lock()
	defer t.vpc.writing.Unlock()
	r := &run{
		table: t, ops: ops, errs: make([]error, len(ops)), done: make([]bool, len(ops)),
		moving: map[int]bool{}, single: map[int]bool{}, wait: t.vpc.client.newBackoff(), size: maxBatch,
	}
	for {
		es, err := r.rest(ctx)
		if err != nil {
			r.fail(err, r.open()...)
			return r.errs
		}
		c := r.next(es)
		if c == nil {
			return r.errs
		}
		r.settle(ctx, c, es, c.send(ctx))
	}
}

// rest reads the table until none of its entries is on its way somewhere.
func (r *run) rest(ctx context.Context) ([]entry, error) {
	until := time.Now().Add(r.vpc.timing.Follow)
	for poll := r.vpc.timing.Poll; ; poll = min(2*poll, 4*r.vpc.timing.Poll) {
		es, err := r.list(ctx)
		if err != nil {
			return nil, err
		}
		moving := ""
		for _, e := range es {
			if e.typ == "Custom" && e.status != available {
				moving = fmt.Sprintf("%v is %s", e.prefix, e.status)
			}
		}
		if moving == "" {
			return es, nil
		}
		if time.Now().After(until) {
			return nil, fmt.Errorf("route table %s does not come to rest: %s", r.id, moving)
		}
		if err := sleep(ctx, poll); err != nil {
			return nil, err
		}
	}
}

func (r *run) open() []int {
	var is []int
	for i, d := range r.done {
		if !d {
			is = append(is, i)
		}
	}
	return is
}

func (r *run) fail(err error, is ...int) {
	for _, i := range is {
		r.done[i], r.errs[i] = true, err
	}
}

// call is one write.
type call struct {
	action string
	step   step
	ops    []int
	send   func(ctx context.Context) error
	// refused are the items of a batch that were not accepted.
	refused map[int]error
}

// next decides every open op and returns the next write: next hops first, which bring back what is broken, then creates,
// then deletes. nil: nothing is left.
func (r *run) next(es []entry) *call {
	steps := map[step][]int{}
	at := map[int]*entry{}
	for _, i := range r.open() {
		s, e, err := r.decide(r.ops[i], es)
		switch {
		case err != nil:
			r.fail(err, i)
		case s == nothing:
			r.done[i] = true
			r.forget(r.ops[i])
		default:
			steps[s] = append(steps[s], i)
			at[i] = e
		}
	}
	if len(steps[move]) > 0 {
		i := steps[move][0]
		if !r.vpc.client.may("ModifyRouteEntry " + r.id) {
			return r.deletes([]int{i}, at)
		}
		return r.modify(i, at[i])
	}
	// What had to be removed in order to be changed is made again before anything else.
	for i := range r.moving {
		if !r.done[i] {
			return r.creates([]int{i})
		}
	}
	if len(steps[create]) > 0 {
		return r.creates(steps[create])
	}
	if len(steps[remove]) > 0 {
		return r.deletes(steps[remove], at)
	}
	return nil
}

func (r *run) modify(i int, e *entry) *call {
	client := r.vpc.client
	return &call{action: "ModifyRouteEntry", step: move, ops: []int{i}, send: func(ctx context.Context) error {
		return client.once(ctx, "ModifyRouteEntry", func() (string, error) {
			q := alivpc.CreateModifyRouteEntryRequest()
			q.RouteEntryId, q.NewNextHopType, q.NewNextHopId = e.id, "Instance", r.ops[i].New.NextHop
			out, err := client.vpc.ModifyRouteEntry(q)
			if err != nil {
				return "", err
			}
			return out.RequestId, nil
		})
	}}
}

// creates makes a batch of the ops that may be in one, or a single call for the first.
func (r *run) creates(is []int) *call {
	var batch []int
	for _, i := range is {
		if !r.single[i] && !r.holdsSwitch(r.ops[i].Key) && len(batch) < r.size {
			batch = append(batch, i)
		}
	}
	if len(batch) > 1 && r.vpc.client.may("CreateRouteEntries "+r.id) {
		return r.createBatch(batch)
	}
	return r.createOne(is[0])
}

// holdsSwitch says whether a destination covers a vSwitch or more: the batch call refuses those.
func (r *run) holdsSwitch(p netip.Prefix) bool {
	r.vpc.mu.Lock()
	defer r.vpc.mu.Unlock()
	for _, c := range r.vpc.info.CIDRs {
		if c.Overlaps(p) {
			return true
		}
	}
	return false
}

func (r *run) createOne(i int) *call {
	client, want := r.vpc.client, r.ops[i]
	token := r.token(want)
	return &call{action: "CreateRouteEntry", step: create, ops: []int{i}, send: func(ctx context.Context) error {
		return client.once(ctx, "CreateRouteEntry", func() (string, error) {
			q := alivpc.CreateCreateRouteEntryRequest()
			q.RouteTableId, q.DestinationCidrBlock, q.NextHopType, q.NextHopId = r.id, want.Key.String(), "Instance", want.New.NextHop
			q.RouteEntryName, q.Description, q.ClientToken = r.vpc.wish.Mark(), r.vpc.wish.Mark(), token
			out, err := client.vpc.CreateRouteEntry(q)
			if err != nil {
				return "", err
			}
			return out.RequestId, nil
		})
	}}
}

// token is the ClientToken of a create: one for as long as its outcome is not known, and a new one after that, since
// the API answers a known token from memory and does nothing.
func (t *table) token(o op) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := o.Key.String() + " " + o.New.NextHop
	if t.tokens[k] == "" {
		t.tokens[k] = rand.Text()
	}
	return t.tokens[k]
}

func (t *table) forget(o op) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.tokens, o.Key.String()+" "+o.New.NextHop)
}

func (r *run) createBatch(is []int) *call {
	client := r.vpc.client
	c := &call{action: "CreateRouteEntries", step: create, ops: is}
	c.send = func(ctx context.Context) error {
		return client.once(ctx, c.action, func() (string, error) {
			var items []alivpc.CreateRouteEntriesRouteEntries
			for _, i := range is {
				items = append(items, alivpc.CreateRouteEntriesRouteEntries{
					RouteTableId: r.id, DstCidrBlock: r.ops[i].Key.String(), IpVersion: "IPv4", NextHopType: "Instance",
					NextHop: r.ops[i].New.NextHop, Name: r.vpc.wish.Mark(), Description: r.vpc.wish.Mark(),
				})
			}
			q := alivpc.CreateCreateRouteEntriesRequest()
			q.RouteEntries = &items
			out, err := client.vpc.CreateRouteEntries(q)
			if err != nil {
				return "", err
			}
			c.refuse(r, out.FailedRouteEntries, func(i int, f alivpc.FailedRouteEntriesItem) bool {
				return f.DstCidrBlock == r.ops[i].Key.String() && (f.NextHop == "" || f.NextHop == r.ops[i].New.NextHop)
			})
			return out.RequestId, nil
		})
	}
	return c
}

// refuse takes in the items of a batch that failed, each matched to its op: HTTP says 200 all the same.
func (c *call) refuse(r *run, items []alivpc.FailedRouteEntriesItem, is func(i int, f alivpc.FailedRouteEntriesItem) bool) {
	c.refused = map[int]error{}
	for _, f := range items {
		for _, i := range c.ops {
			if is(i, f) {
				message := r.vpc.client.creds.scrub(f.FailedMessage)
				c.refused[i] = &Error{Action: c.action, Code: f.FailedCode, Message: fmt.Sprintf("%.300s", message), HTTP: 200}
			}
		}
	}
}

func (r *run) deletes(is []int, at map[int]*entry) *call {
	client := r.vpc.client
	if len(is) > 1 && client.may("DeleteRouteEntries "+r.id) {
		is = is[:min(len(is), maxBatch)]
		c := &call{action: "DeleteRouteEntries", step: remove, ops: is}
		c.send = func(ctx context.Context) error {
			return client.once(ctx, c.action, func() (string, error) {
				var items []alivpc.DeleteRouteEntriesRouteEntries
				for _, i := range is {
					items = append(items, alivpc.DeleteRouteEntriesRouteEntries{RouteTableId: r.id, RouteEntryId: at[i].id})
				}
				q := alivpc.CreateDeleteRouteEntriesRequest()
				q.RouteEntries = &items
				out, err := client.vpc.DeleteRouteEntries(q)
				if err != nil {
					return "", err
				}
				c.refuse(r, out.FailedRouteEntries, func(i int, f alivpc.FailedRouteEntriesItem) bool {
					return f.RouteEntryId == at[i].id || f.RouteEntryId == "" && f.DstCidrBlock == r.ops[i].Key.String()
				})
				return out.RequestId, nil
			})
		}
		return c
	}
	i := is[0]
	return &call{action: "DeleteRouteEntry", step: remove, ops: []int{i}, send: func(ctx context.Context) error {
		return client.once(ctx, "DeleteRouteEntry", func() (string, error) {
			q := alivpc.CreateDeleteRouteEntryRequest()
			q.RouteEntryId = at[i].id
			out, err := client.vpc.DeleteRouteEntry(q)
			if err != nil {
				return "", err
			}
			return out.RequestId, nil
		})
	}}
}

// settle takes in what became of a call.
func (r *run) settle(ctx context.Context, c *call, es []entry, err error) {
	if err == nil {
		var accepted []int
		for _, i := range c.ops {
			if c.refused[i] == nil {
				accepted = append(accepted, i)
			}
		}
		r.vpc.log.Debug("write accepted", "action", c.action, "table", r.id, "entries", len(accepted), "refused", len(c.refused))
		if len(accepted) > 0 {
			r.wait = r.vpc.client.newBackoff()
			r.follow(ctx, c, accepted)
		}
		for i, err := range c.refused {
			r.refusedOne(ctx, c, i, err, len(accepted) > 0)
		}
		return
	}
	switch kindOf(err) {
	case busy, throttled, badKey:
		if !r.wait.again(ctx, err, r.vpc.client) {
			r.fail(err, c.ops...)
		}
	case unclear:
		// It may have been done: what shows within the grace decides.
		r.vpc.log.Info("the answer to a write was lost; looking what it did", "table", r.id, "error", err)
		if r.shows(ctx, c) {
			return
		}
		if !r.wait.again(ctx, err, r.vpc.client) {
			r.fail(err, c.ops...)
		}
	case denied:
		r.denied(c, err)
	case duplicate, notFound, unchanged:
		// Others are at work, or we were and did not hear of it. The next reading tells; a read may lag behind it.
		if !r.shows(ctx, c) && !r.wait.again(ctx, &Error{Code: "TaskConflict"}, r.vpc.client) {
			r.fail(err, c.ops...)
		}
	case full:
		r.learnFull(es)
		r.fail(fmt.Errorf("%w: %w", cloud.ErrQuota, err), c.ops...)
		r.forgetAll(c)
	default:
		r.fail(err, c.ops...)
		r.forgetAll(c)
	}
}

func (r *run) forgetAll(c *call) {
	for _, i := range c.ops {
		r.forget(r.ops[i])
	}
}

// refusedOne takes in an item of a batch that was not accepted.
func (r *run) refusedOne(ctx context.Context, c *call, i int, err error, progress bool) {
	switch kindOf(err) {
	case wrongCIDR:
		if r.single[i] = true; c.step == remove {
			r.fail(err, i)
		}
	case full:
		if es, lerr := r.list(ctx); lerr == nil {
			r.learnFull(es)
		}
		r.fail(fmt.Errorf("%w: %w", cloud.ErrQuota, err), i)
	case busy, throttled, unclear, duplicate, notFound:
		// Left open: the next reading tells. Without any progress only for so long.
		if !progress && !r.wait.again(ctx, &Error{Code: "TaskConflict"}, r.vpc.client) {
			r.fail(err, i)
		}
	case denied:
		r.vpc.client.forbid(c.action+" "+r.id, "single calls")
	default:
		r.fail(err, i)
	}
}

// denied takes in that our role may not make a call: there is another for all but the single create and delete.
func (r *run) denied(c *call, err error) {
	what := c.action + " " + r.id
	switch c.action {
	case "ModifyRouteEntry":
		r.vpc.client.forbid(what, "a delete and a create, with a gap between")
	case "CreateRouteEntries", "DeleteRouteEntries":
		r.vpc.client.forbid(what, "single calls")
	default:
		// The rest would be denied as well.
		for _, i := range r.open() {
			if (r.ops[i].Kind == reconcile.Delete) == (c.step == remove) || r.moving[i] {
				r.fail(err, i)
			}
		}
		r.fail(err, c.ops...)
		r.forgetAll(c)
	}
}

var (
	errVanished = errors.New("the API accepted the entry, and then it vanished")
	errFellBack = errors.New("the API accepted the change, and then the entry was as before")
)

// follow watches accepted ops to their end.
func (r *run) follow(ctx context.Context, c *call, is []int) {
	start := time.Now()
	begun := map[int]bool{}
	for poll := r.vpc.timing.Poll; ; poll = min(2*poll, 4*r.vpc.timing.Poll) {
		es, err := r.list(ctx)
		if err != nil && ctx.Err() != nil {
			r.fail(err, is...)
			return
		}
		var open []int
		for _, i := range is {
			if err != nil {
				open = append(open, i) // unread: look again
				continue
			}
			switch end, status := r.progress(c.step, i, es); {
			case end:
				r.ended(c, i)
			case status != "" && status != available:
				begun[i] = true
				open = append(open, i)
			case begun[i] || time.Since(start) > r.vpc.timing.Grace:
				r.forget(r.ops[i])
				if status == "" {
					r.fail(fmt.Errorf("%s: %w", c.action, errVanished), i)
				} else {
					r.fail(fmt.Errorf("%s: %w", c.action, errFellBack), i)
				}
			default:
				open = append(open, i)
			}
		}
		if is = open; len(is) == 0 {
			return
		}
		if time.Since(start) > r.vpc.timing.Follow {
			r.fail(fmt.Errorf("%s was accepted, but is not done after %v", c.action, r.vpc.timing.Follow), is...)
			return
		}
		if err := sleep(ctx, poll); err != nil {
			r.fail(err, is...)
			return
		}
	}
}

// progress says whether a step has come to its end, and the status of the entry, "" where there is none.
func (r *run) progress(s step, i int, es []entry) (end bool, status string) {
	own, _ := r.at(es, r.ops[i].Key)
	if own == nil {
		return s == remove, ""
	}
	if s == remove {
		return false, own.status
	}
	there := own.status == available && len(own.hops) == 1 && own.hops[0] == r.ops[i].New.NextHop
	return there, own.status
}

// ended closes an op, unless what ended is only the first half of a change.
func (r *run) ended(c *call, i int) {
	if c.step == remove && r.ops[i].Kind != reconcile.Delete {
		r.moving[i] = true
		return
	}
	delete(r.moving, i)
	r.done[i] = true
	r.forget(r.ops[i])
}

// shows waits for the effect of a call whose answer was lost, for as long as a read may lag.
func (r *run) shows(ctx context.Context, c *call) bool {
	until := time.Now().Add(r.vpc.timing.Grace)
	for poll := r.vpc.timing.Poll; ; poll = min(2*poll, 4*r.vpc.timing.Poll) {
		es, err := r.list(ctx)
		for _, i := range c.ops {
			if err != nil {
				break
			}
			if end, status := r.progress(c.step, i, es); end || status != "" && status != available {
				return true // the next round sees it through
			}
		}
		if time.Now().After(until) || sleep(ctx, poll) != nil {
			return false
		}
	}
}
