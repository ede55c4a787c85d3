package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	fabricv1 "fabric/proto/fabric/v1"
)

// event is one message of a watch.
type event[M any] interface {
	*M
	proto.Message
	GetKind() fabricv1.EventKind
}

// watch makes a command follow a stream until it is interrupted, which is its regular end, or for --timeout if that is given. The
// words of an event follow its time and kind.
func watch[M any, P event[M]](a *app, cmd *cobra.Command, open func(context.Context, fabricv1.FabricServiceClient, []string) (grpc.ServerStreamingClient[M], error), words func(P) string) *cobra.Command {
	cmd.RunE = a.do(func(ctx context.Context, c fabricv1.FabricServiceClient, args []string) error {
		if cmd.Flags().Changed("timeout") {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, a.timeout)
			defer cancel()
		}
		seen := false
		err := each(ctx, 0, func(ctx context.Context) (grpc.ServerStreamingClient[M], error) {
			return open(ctx, c, args)
		}, func(m *M) error {
			seen = true
			ev := P(m)
			return a.printEvent(ev, fmt.Sprintf("%s  %-9s  %s", a.now().Format(time.TimeOnly), kindWord(ev.GetKind()), words(ev)))
		})
		// The daemon knows the limit too, and its clock may be the first to say so.
		if errors.Is(ctx.Err(), context.Canceled) || seen && (ctx.Err() != nil || status.Code(err) == codes.DeadlineExceeded) {
			return nil
		}
		return err
	})
	return cmd
}

func kindWord(k fabricv1.EventKind) string {
	return map[fabricv1.EventKind]string{
		fabricv1.EventKind_EVENT_KIND_ADDED:     "added",
		fabricv1.EventKind_EVENT_KIND_CHANGED:   "changed",
		fabricv1.EventKind_EVENT_KIND_WITHDRAWN: "withdrawn",
	}[k]
}
