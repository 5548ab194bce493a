// Prints events, one JSON object a line, and survives restarts of the daemon.
//
//	protoc -I ../../../proto --go_out=. --go-grpc_out=. --go_opt=module=example.com/watch --go-grpc_opt=module=example.com/watch \
//	  --go_opt=Mkwitness/v1alpha1/kwitness.proto=example.com/watch/kwitnessv1alpha1 \
//	  --go-grpc_opt=Mkwitness/v1alpha1/kwitness.proto=example.com/watch/kwitnessv1alpha1 \
//	  kwitness/v1alpha1/kwitness.proto
//	go run . unix:///run/kwitness/kwitness.sock [COUNT]
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	kwitness "example.com/watch/kwitnessv1alpha1"
)

// watch calls handle for each event until it returns false.
func watch(ctx context.Context, target string, handle func(*kwitness.Event) bool) error {
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	client := kwitness.NewKwitnessClient(connection)
	request := &kwitness.WatchRequest{
		Filter: &kwitness.Filter{Kinds: []kwitness.EventKind{
			kwitness.EventKind_EVENT_KIND_STARTED,
			kwitness.EventKind_EVENT_KIND_STOPPED,
		}},
		Since: &timestamppb.Timestamp{}, // everything in the journal
	}
	for {
		err := stream(ctx, client, request, handle)
		switch status.Code(err) {
		case codes.OK:
			return nil
		case codes.Unavailable, codes.Canceled:
			// The daemon is restarting: resume after the last event.
			time.Sleep(time.Second)
		default:
			return err
		}
	}
}

// stream handles one stream, and makes the request resume after the last event that it has seen.
func stream(ctx context.Context, client kwitness.KwitnessClient, request *kwitness.WatchRequest, handle func(*kwitness.Event) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := client.Watch(ctx, request)
	if err != nil {
		return err
	}
	for {
		message, err := events.Recv()
		if err != nil {
			return err
		}
		if message.BeginsAfter != nil {
			// Another epoch: the daemon was restarted, and a gap says so.
			request.After, request.Since = message.BeginsAfter, nil
		}
		for _, event := range message.Events {
			// Events of a container that has just been named come late, with lower numbers.
			if event.Position.Seq > request.After.Seq {
				request.After = event.Position
			}
			if !handle(event) {
				return nil
			}
		}
	}
}

func main() {
	limit := -1
	if len(os.Args) > 2 {
		var err error
		if limit, err = strconv.Atoi(os.Args[2]); err != nil {
			log.Fatal(err)
		}
	}
	err := watch(context.Background(), os.Args[1], func(event *kwitness.Event) bool {
		if gap := event.GetGap(); gap != nil {
			log.Printf("events are missing: %v", gap)
		}
		fmt.Println(protojson.MarshalOptions{}.Format(event))
		limit--
		return limit != 0
	})
	if err != nil {
		log.Fatal(err)
	}
}
