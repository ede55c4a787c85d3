// Package alibaba writes the route tables of an Alibaba Cloud VPC, through the vendor's SDK.
//
// What the API does to its callers, and what is done about it here:
//
//   - A write is only accepted when it returns; it is over when the entry is Available or gone, and may vanish before.
//     Every accepted write is followed to its end, with a deadline.
//   - A VPC takes one write at a time, whichever table it is for. One write is in flight per VPC; TaskConflict and its
//     kin, from others' writes, are waited out.
//   - A lost answer says nothing. The table is read before anything is repeated, and a repeat has the same ClientToken.
//   - Batch calls, ModifyRouteEntry and DescribeRouteEntryList may be forbidden to our role. A call that was is not
//     made again for a while, and another way is taken.
//   - The SDK's client races with itself, knows no context, and puts keys into the texts of its errors. Calls are
//     serialised, carried by a transport with a context, and no error of the SDK leaves this package as it is.
package alibaba

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	"fabric/cloud"
)

// Provider is the name in the document.
const Provider = "alibaba"

// Options are for tests and unusual places; the zero value is right on an instance.
type Options struct {
	// Metadata is the base URL of the metadata service. The SDK's own credentials chain does not follow it.
	Metadata string
	Timing   Timing
}

// Timing are the waits. Zero fields have defaults.
type Timing struct {
	// Call bounds one API call; 10 s.
	Call time.Duration
	// Poll is the first wait between two looks at a running change, which grows fourfold; 500 ms.
	Poll time.Duration
	// Grace is how long a read may lag behind an accepted write; 5 s.
	Grace time.Duration
	// Follow bounds how long an accepted write may take; 2 min.
	Follow time.Duration
	// Patience bounds how long a refused or failed call is repeated; 2 min.
	Patience time.Duration
	// BackoffMin and BackoffMax bound the wait before a repeat, which has full jitter; 500 ms and 15 s.
	BackoffMin, BackoffMax time.Duration
	// Remember is how long a forbidden call, or a learnt quota, is believed; 10 min.
	Remember time.Duration
	// Describe is how long the VPC's own description is believed; 1 min.
	Describe time.Duration
}

func (t Timing) defaults() Timing {
	return Timing{
		Call: cmp.Or(t.Call, 10*time.Second), Poll: cmp.Or(t.Poll, 500*time.Millisecond), Grace: cmp.Or(t.Grace, 5*time.Second),
		Follow: cmp.Or(t.Follow, 2*time.Minute), Patience: cmp.Or(t.Patience, 2*time.Minute),
		BackoffMin: cmp.Or(t.BackoffMin, 500*time.Millisecond), BackoffMax: cmp.Or(t.BackoffMax, 15*time.Second),
		Remember: cmp.Or(t.Remember, 10*time.Minute), Describe: cmp.Or(t.Describe, time.Minute),
	}
}

// Open is the cloud.Opener of this vendor. What the wish leaves open comes from the metadata service (instance, region,
// VPC) and the API (tables). It needs vpc:DescribeVpcs and either vpc:DescribeRouteEntryList or vpc:DescribeRouteTables.
func Open(ctx context.Context, w cloud.Wish, log *slog.Logger) (cloud.VPC, error) {
	return Options{}.Open(ctx, w, log)
}

// Open is Open with options.
func (o Options) Open(ctx context.Context, w cloud.Wish, log *slog.Logger) (cloud.VPC, error) {
	o.Timing = o.Timing.defaults()
	o.Metadata = cmp.Or(o.Metadata, metadataURL)
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	creds := newCredentials(w.CredentialsFile)
	place, err := o.locate(ctx, w, creds, log)
	if err != nil {
		return nil, err
	}
	c, err := newClient(place.region, w, creds, o.Timing, log)
	if err != nil {
		return nil, err
	}
	v := &vpc{client: c, wish: w, place: place, timing: o.Timing, tables: map[string]*table{}, log: log}
	if _, err := v.Describe(ctx); err != nil {
		c.close()
		return nil, fmt.Errorf("VPC %s in %s: %w", place.vpc, place.region, err)
	}
	return v, nil
}
