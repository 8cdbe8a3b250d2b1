// A caller of outboxd in Go, by generated code only.
//
// Against a server with the sample catalog (deploy/catalog) it commits, holds a transaction open on a stream, and calls
// the sample's own RPC as a service of the shop would, which knows nothing of the outbox. Exits 0 only if every check
// held. deploy/clients/go/run generates the code and runs it.
//
//	client --server HOST:PORT
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"reflect"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"outboxd.test/client/gen/outboxv1"
	"outboxd.test/client/gen/shopv1"
)

const callTimeout = 10 * time.Second

var checks int

// check ends the program unless found is what was expected.
func check(what string, found, expected any) {
	checks++
	same := reflect.DeepEqual(found, expected)
	if message, ok := found.(proto.Message); ok {
		same = proto.Equal(message, expected.(proto.Message))
	}
	if !same {
		fail("%s\n  found    %v\n  expected %v", what, found, expected)
	}
}

func fail(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, "FAILED: "+format+"\n", arguments...)
	os.Exit(1)
}

// must ends the program when something failed that must not.
func must[T any](value T, err error) T {
	if err != nil {
		fail("%v", err)
	}
	return value
}

func text(value string) *outboxv1.Value {
	return &outboxv1.Value{Kind: &outboxv1.Value_Text{Text: value}}
}

func command(name string, parameters map[string]*outboxv1.Value) *outboxv1.CommandCall {
	return &outboxv1.CommandCall{Name: name, Parameters: parameters}
}

func operation(call *outboxv1.CommandCall) *outboxv1.Operation {
	return &outboxv1.Operation{Kind: &outboxv1.Operation_Command{Command: call}}
}

func main() {
	server := flag.String("server", "", "address of outboxd, HOST:PORT")
	flag.Parse()
	connection := must(grpc.NewClient(*server, grpc.WithTransportCredentials(insecure.NewCredentials())))
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 6*callTimeout)
	defer cancel()

	user := fmt.Sprintf("user-go-%d", time.Now().UnixNano())
	outbox := outboxv1.NewOutboxServiceClient(connection)
	commit(ctx, outbox, user)
	transact(ctx, outbox, user)
	typed(ctx, shopv1.NewUsersClient(connection), user)
	fmt.Printf("go client: %d checks held\n", checks)
}

// commit makes the user, and sends the same again.
func commit(ctx context.Context, outbox outboxv1.OutboxServiceClient, user string) {
	parameters := map[string]*outboxv1.Value{"user_id": text(user), "email": text(user + "@example.com")}
	request := &outboxv1.CommitRequest{
		RequestId:  "create-" + user,
		Operations: []*outboxv1.Operation{operation(command("create_user", parameters))},
		Events: []*outboxv1.NewEvent{{
			Topic: "go", Key: []byte(user), Type: "user.created",
			Payload: &outboxv1.NewEvent_Text{Text: `{"user": "` + user + `"}`},
		}},
	}
	answer := must(outbox.Commit(ctx, request))
	check("the disposition", answer.Disposition, outboxv1.Disposition_DISPOSITION_APPLIED)
	check("the row", answer.Results[0].Rows[0].Values[0].GetText(), user)
	check("the number of event ids", len(answer.EventIds), 1)
	repeat := must(outbox.Commit(ctx, request))
	check("the disposition of the repeat", repeat.Disposition, outboxv1.Disposition_DISPOSITION_REPLAYED)
	repeat.Disposition = answer.Disposition
	check("the answer to the repeat", repeat, answer)
}

// transact reads the user, decides, and commits; begun again it gets the first answer.
func transact(ctx context.Context, outbox outboxv1.OutboxServiceClient, user string) {
	find := command("find_user", map[string]*outboxv1.Value{"user_id": text(user)})
	begin := &outboxv1.TransactRequest{Step: &outboxv1.TransactRequest_Begin{
		Begin: &outboxv1.Begin{RequestId: "transact-" + user},
	}}
	stream := must(outbox.Transact(ctx))
	step := func(request *outboxv1.TransactRequest) *outboxv1.TransactResponse {
		if err := stream.Send(request); err != nil {
			fail("a step cannot be sent: %v", err)
		}
		return must(stream.Recv())
	}
	check("the transaction is open", step(begin).GetBegun() != nil, true)
	page := step(&outboxv1.TransactRequest{Step: &outboxv1.TransactRequest_Read{Read: &outboxv1.Read{Command: find}}}).GetPage()
	check("the row that was read", page.GetResult().GetRows()[0].Values[2].GetText(), "pending")
	run := &outboxv1.Run{Operations: []*outboxv1.Operation{operation(find)}}
	done := step(&outboxv1.TransactRequest{Step: &outboxv1.TransactRequest_Commit{Commit: run}}).GetCommitted()
	check("the disposition of the transaction", done.GetDisposition(), outboxv1.Disposition_DISPOSITION_APPLIED)
	_, err := stream.Recv()
	check("the stream's end", err, io.EOF)

	stream = must(outbox.Transact(ctx))
	again := step(begin).GetCommitted()
	check("the disposition of its repeat", again.GetDisposition(), outboxv1.Disposition_DISPOSITION_REPLAYED)
	check("the answer to its repeat", again.GetResults()[0], done.GetResults()[0])
}

// typed calls the shop's own RPC: its messages, its names, and nothing of the outbox but metadata.
func typed(ctx context.Context, users shopv1.UsersClient, user string) {
	request := &shopv1.ActivateRequest{UserId: user}
	_, err := users.Activate(ctx, request)
	check("the reason without a request id", reason(err), "REQUEST_ID_MISSING")

	named := metadata.AppendToOutgoingContext(ctx, "x-request-id", "activate-"+user)
	var told, toldAgain metadata.MD
	active := must(users.Activate(named, request, grpc.Header(&told)))
	check("the status", active.Status, shopv1.UserStatus_USER_STATUS_ACTIVE)
	check("the disposition", told.Get("x-outbox-disposition"), []string{"APPLIED"})
	again := must(users.Activate(named, request, grpc.Header(&toldAgain)))
	check("the response to the repeat", again, active)
	check("the disposition of the repeat", toldAgain.Get("x-outbox-disposition"), []string{"REPLAYED"})
	check("the events of the repeat", toldAgain.Get("x-outbox-event-ids"), told.Get("x-outbox-event-ids"))

	anew := metadata.AppendToOutgoingContext(ctx, "x-request-id", "activate-again-"+user)
	_, err = users.Activate(anew, request)
	check("the code of a user who is active already", status.Code(err), codes.FailedPrecondition)
	check("its reason", reason(err), "ROW_COUNT_MISMATCH")
	found := must(users.Find(ctx, &shopv1.FindRequest{UserId: user}))
	check("the user who is found", found.User, active)
}

// reason is what an error's google.rpc.ErrorInfo says.
func reason(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.Domain == "outbox.v1" {
			return info.Reason
		}
	}
	return fmt.Sprintf("none in %v", err)
}
