package links

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"fabric/overlay"
	linksv1 "fabric/proto/links/v1"
)

// Client speaks to fabric-links. It connects when it is used and reconnects by itself.
type Client struct {
	socket string
	conn   *grpc.ClientConn
	links  linksv1.LinksServiceClient
}

// Result is how a plan that was taken stands after one pass.
type Result struct {
	// Digest of the plan.
	Digest string
	// Objects of the plan, each with its status.
	Objects []Object
	// Sets are the next-hop sets after the pass. None from a fabric-links that knows of none.
	Sets []SetState
}

// Problems are the objects that are not OK.
func (r Result) Problems() []Object {
	var out []Object
	for _, o := range r.Objects {
		if o.Status != OK {
			out = append(out, o)
		}
	}
	return out
}

// Dial makes a client of the fabric-links that serves socket. It does not wait for it: that is what the first call does.
func Dial(socket string) (*Client, error) {
	conn, err := grpc.NewClient("unix:"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{
			// The socket is on this host: trying costs nothing.
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: time.Second,
		}))
	if err != nil {
		return nil, fmt.Errorf("fabric-links at %s: %w", socket, err)
	}
	return &Client{socket: socket, conn: conn, links: linksv1.NewLinksServiceClient(conn)}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Apply hands fabric-links a plan and tells how each of its objects stands. An error says that the plan was not taken:
// *overlay.VersionError by its text, a plan that contradicts itself, a disk that is full, or that fabric-links does not answer.
func (c *Client) Apply(ctx context.Context, p overlay.Plan) (Result, error) {
	r, err := c.links.Apply(ctx, &linksv1.ApplyRequest{Plan: planToWire(p)})
	if err != nil {
		return Result{}, c.explain(err)
	}
	return Result{Digest: r.GetDigest(), Objects: objectsFromWire(r.GetObjects()), Sets: setStatesFromWire(r.GetSets())}, nil
}

// Get returns the state after fabric-links' last pass.
func (c *Client) Get(ctx context.Context) (State, error) {
	r, err := c.links.Get(ctx, &linksv1.GetRequest{})
	if err != nil {
		return State{}, c.explain(err)
	}
	return stateFromWire(r.GetState()), nil
}

// Drain takes traffic off the tunnel of a device, at both ends, as long as there is another that is up, or gives it back. Traffic has
// moved when it returns. A device that is no tunnel's of the plan is an error of code NotFound.
func (c *Client) Drain(ctx context.Context, device string, drained bool) error {
	if _, err := c.links.Drain(ctx, &linksv1.DrainRequest{Device: device, Drained: drained}); err != nil {
		return c.explain(err)
	}
	return nil
}

// Rotate has the keys of the tunnel of a device replaced, and returns the generation of the present ones at once; the state tells how it goes. A
// device that is no tunnel's of the plan is an error of code NotFound, a tunnel that keeps its keys one of code FailedPrecondition.
func (c *Client) Rotate(ctx context.Context, device string) (generation int, err error) {
	r, err := c.links.Rotate(ctx, &linksv1.RotateRequest{Device: device})
	if err != nil {
		return 0, c.explain(err)
	}
	return int(r.GetGeneration()), nil
}

// WaitReady waits until fabric-links answers or ctx ends.
func (c *Client) WaitReady(ctx context.Context) error {
	if _, err := c.links.Get(ctx, &linksv1.GetRequest{}, grpc.WaitForReady(true)); err != nil {
		return c.explain(err)
	}
	return nil
}

// Watch calls fn with the state at once and whenever it has changed, and with an error whenever fabric-links goes away; then it
// tries again, until ctx ends, and returns nil. After an error the next state may come from a fabric-links that was restarted: see
// its Started and Digest.
func (c *Client) Watch(ctx context.Context, fn func(State, error)) error {
	const pause = 200 * time.Millisecond
	for ctx.Err() == nil {
		err := c.watch(ctx, func(s State) { fn(s, nil) })
		if ctx.Err() != nil {
			break
		}
		fn(State{}, c.explain(err))
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil
}

func (c *Client) watch(ctx context.Context, fn func(State)) error {
	stream, err := c.links.Watch(ctx, &linksv1.WatchRequest{})
	if err != nil {
		return err
	}
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		fn(stateFromWire(r.GetState()))
	}
}

// explain says where the call went and what can be done.
func (c *Client) explain(err error) error {
	if status.Code(err) == codes.Unavailable {
		return fmt.Errorf("fabric-links at %s does not answer (is fabric-links.service running?): %w", c.socket, err)
	}
	return fmt.Errorf("fabric-links at %s: %w", c.socket, err)
}
