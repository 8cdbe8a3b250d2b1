"""A caller of outboxd that shares no code with it, and a plain Kafka consumer that reads what it published.

The stubs are generated from proto/ when it runs. Against a server with the sample catalog (deploy/catalog) it commits a
user's activation with three events, repeats the request, provokes typed errors, and compares every byte and header of
the Kafka records with what it sent. Exits 0 only if every check held. Needs the packages of deploy/requirements.txt.

    client.py --server HOST:PORT --kafka HOST:PORT
"""

import argparse
import importlib
import pathlib
import sys
import tempfile
import time
import uuid

import confluent_kafka
import grpc
import grpc_tools
from google.protobuf import duration_pb2, timestamp_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from grpc_tools import protoc

REPO = pathlib.Path(__file__).resolve().parents[3]
PROTO = REPO / "proto"
CATALOG = REPO / "deploy" / "catalog"
RPC_SECONDS = 10
TRACE_ID = uuid.uuid4().hex
checks = 0


def check(what, found, expected):
    """Ends the program unless `found` is what was expected."""
    global checks
    checks += 1
    if found != expected:
        sys.exit(f"FAILED: {what}\n  found    {found!r}\n  expected {expected!r}")


def generate_stubs(folder):
    """Makes the stubs as any foreign user of the .proto files would, and imports them."""
    sources = sorted(str(p.relative_to(PROTO)) for p in PROTO.glob("outbox/v1/*.proto"))
    well_known = str(pathlib.Path(grpc_tools.__file__).parent / "_proto")
    arguments = ["protoc", f"-I{PROTO}", f"-I{CATALOG}", f"-I{well_known}", f"--python_out={folder}",
                 f"--grpc_python_out={folder}"]
    if protoc.main(arguments + sources + ["shop.proto"]) != 0:
        sys.exit("the stubs could not be generated")
    sys.path.insert(0, folder)
    names = ["outbox_pb2", "outbox_pb2_grpc", "event_pb2", "event_pb2_grpc", "value_pb2", "inbox_pb2", "inbox_pb2_grpc"]
    modules = [f"outbox.v1.{name}" for name in names] + ["shop_pb2", "shop_pb2_grpc"]
    return [importlib.import_module(name) for name in modules]


def happened_now():
    now = timestamp_pb2.Timestamp()
    now.GetCurrentTime()
    return now


def provoke(call, request, **options):
    """Makes a call that must fail, and returns its code, its ErrorInfo and the fields its BadRequest names."""
    try:
        call(request, timeout=RPC_SECONDS, **options)
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)
        if status is None:
            sys.exit(f"FAILED: the error carries no google.rpc.Status: {error}")
        info, fields = error_details_pb2.ErrorInfo(), []
        for detail in status.details:
            detail.Unpack(info)
            bad_request = error_details_pb2.BadRequest()
            if detail.Unpack(bad_request):
                fields = [violation.field for violation in bad_request.field_violations]
        return error.code(), info, fields
    sys.exit(f"FAILED: this request was accepted: {request}")


def read_topic(brokers, topic, count):
    """Reads a topic from its start until `count` records are there and nothing more follows."""
    consumer = confluent_kafka.Consumer({
        "bootstrap.servers": brokers,
        "group.id": f"foreign-{uuid.uuid4()}",
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
    })
    partitions = consumer.list_topics(topic, timeout=RPC_SECONDS).topics[topic].partitions
    consumer.assign([confluent_kafka.TopicPartition(topic, p, confluent_kafka.OFFSET_BEGINNING) for p in partitions])
    records, deadline = [], time.monotonic() + 30
    while len(records) < count and time.monotonic() < deadline:
        records += consumer.consume(num_messages=count, timeout=1)
    records += consumer.consume(num_messages=count, timeout=1)
    consumer.close()
    for record in records:
        if record.error():
            sys.exit(f"FAILED: Kafka says {record.error()}")
    return records


def murmur2_partition(brokers, topic, key):
    """The partition that a producer with the Java clients' partitioner puts a key into: it really sends a record."""
    producer = confluent_kafka.Producer({"bootstrap.servers": brokers, "partitioner": "murmur2_random"})
    landed = []
    producer.produce(topic, b"probe", key, on_delivery=lambda error, record: landed.append((error, record.partition())))
    producer.flush(RPC_SECONDS)
    (error, partition), = landed
    check("the probe was delivered", error, None)
    return partition


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="address of outboxd, HOST:PORT")
    parser.add_argument("--kafka", required=True, help="addresses of Kafka, HOST:PORT,…")
    flags = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        outbox, outbox_grpc, event, event_grpc, value, inbox, inbox_grpc, shop, shop_grpc = generate_stubs(folder)
    channel = grpc.insecure_channel(flags.server)
    grpc.channel_ready_future(channel).result(timeout=RPC_SECONDS)
    commits = outbox_grpc.OutboxServiceStub(channel)
    events = event_grpc.EventServiceStub(channel)
    claims = inbox_grpc.InboxServiceStub(channel)

    def command(name, **parameters):
        values = {k: value.Value(text=v) for k, v in parameters.items()}
        return outbox.Operation(command=outbox.CommandCall(name=name, parameters=values))

    # One commit: a user is made and activated, three events say so.
    user = f"user-{uuid.uuid4()}"
    topic = f"foreign.{uuid.uuid4()}"
    mail = f"{user}@example.com"
    key = user.encode()
    happened = timestamp_pb2.Timestamp(seconds=1772606096, nanos=789012000)
    happened_text = "2026-03-04T06:34:56.789012Z"
    json_text = '{"user": "%s", "greeting": "Grüße, 世界"}' % user
    every_byte = bytes(range(256))
    request = outbox.CommitRequest(
        request_id=str(uuid.uuid4()),
        operations=[command("create_user", user_id=user, email=mail), command("activate_user", user_id=user)],
        events=[
            event.NewEvent(topic=topic, key=key, source="urn:example:foreign", type="com.example.user.activated",
                           subject=user, text=json_text, time=happened, headers={"tenant": "blue", "empty": ""}),
            event.NewEvent(topic=topic, key=key, source="urn:example:foreign", type="com.example.user.scored",
                           data=every_byte, content_type="application/x-bytes", time=happened),
            event.NewEvent(topic=topic, source="urn:example:foreign", type="com.example.user.forgotten", time=happened),
        ],
    )
    traced = (("traceparent", f"00-{TRACE_ID}-00f067aa0ba902b7-01"),)
    answer = commits.Commit(request, timeout=RPC_SECONDS, metadata=traced)
    check("the disposition", answer.disposition, outbox.DISPOSITION_APPLIED)
    check("the request id", answer.request_id, request.request_id)
    check("the number of event ids", len(set(answer.event_ids)), 3)
    check("the versions of the event ids", {uuid.UUID(i).version for i in answer.event_ids}, {7})
    check("the rows changed", [r.rows_affected for r in answer.results], [1, 1])
    check("the columns", [c.name for c in answer.results[1].columns], ["id", "email", "status", "activated_at"])
    check("the row", [v.text for v in answer.results[1].rows[0].values[:3]], [user, mail, "active"])

    # The same request again changes nothing and gets the same answer.
    replay = commits.Commit(request, timeout=RPC_SECONDS)
    check("the disposition of the repeat", replay.disposition, outbox.DISPOSITION_REPLAYED)
    replay.disposition = answer.disposition
    check("the answer to the repeat", replay, answer)
    remembered = commits.GetCommit(outbox.GetCommitRequest(request_id=request.request_id), timeout=RPC_SECONDS).commit
    check("the remembered disposition", remembered.disposition, outbox.DISPOSITION_REPLAYED)
    check("the remembered event ids", remembered.event_ids, answer.event_ids)

    # A delivery that comes again has one effect, and gets the first answer.
    delivery = outbox.Consume(consumer="scorer", source="urn:example:foreign", event_id=answer.event_ids[0],
                              event_time=happened_now())
    handle = lambda: commits.Commit(outbox.CommitRequest(
        request_id=str(uuid.uuid4()), consume=delivery,
        operations=[command("find_user", user_id=user)]), timeout=RPC_SECONDS)
    handled, again = handle(), handle()
    check("the dispositions of a delivery and its repeat", [handled.disposition, again.disposition],
          [outbox.DISPOSITION_APPLIED, outbox.DISPOSITION_DUPLICATE])
    check("the answer to the repeat of a delivery", again.results, handled.results)

    # An effect outside the database, under a lease: one holder, one result, and a repeat gets it.
    lease = duration_pb2.Duration(seconds=60)

    def claim(**changed):
        fields = {"consumer": "mailer", "source": "urn:example:foreign", "event_id": answer.event_ids[1],
                  "event_time": happened_now(), "content_hash": b"scored", "lease": lease, **changed}
        answered = claims.Claim(inbox.ClaimRequest(**fields), timeout=RPC_SECONDS)
        outcome = answered.WhichOneof("outcome")
        return outcome, getattr(answered, outcome)

    outcome, granted = claim()
    check("the outcome of a claim", (outcome, granted.attempt), ("granted", 1))
    outcome, held = claim()
    check("the outcome of another", (outcome, 50 < held.left.seconds <= 60), ("held", True))
    check("the outcome of another event under its id", claim(content_hash=b"other")[0], "conflict")
    check("the outcome of an ancient event", claim(event_id=str(uuid.uuid4()),
                                                   event_time=timestamp_pb2.Timestamp(seconds=1))[0], "too_old")
    released = claims.Release(inbox.ReleaseRequest(lease=granted.lease), timeout=RPC_SECONDS)
    check("the hold of a lease that is given back", released.hold, inbox.HOLD_KEPT)
    outcome, second = claim()
    check("the outcome of the next claim", (outcome, second.attempt), ("granted", 2))
    late = claims.Complete(inbox.CompleteRequest(lease=granted.lease, result=b"late"), timeout=RPC_SECONDS)
    check("the hold of a late completion", late.hold, inbox.HOLD_LOST)
    extended = claims.Extend(inbox.ExtendRequest(lease=second.lease, duration=lease), timeout=RPC_SECONDS)
    check("the hold of an extended lease", extended.hold, inbox.HOLD_KEPT)
    done = claims.Complete(inbox.CompleteRequest(lease=second.lease, result=b"sent"), timeout=RPC_SECONDS)
    check("the hold of a completion", done.hold, inbox.HOLD_KEPT)
    outcome, completed = claim()
    check("what a repeat gets", (outcome, completed.result), ("completed", b"sent"))
    code, info, fields = provoke(claims.Claim, inbox.ClaimRequest(consumer="mailer", event_id="7", lease=lease))
    check("the code of a wrong claim", code, grpc.StatusCode.INVALID_ARGUMENT)
    check("the fields it names", sorted(fields), ["event_id", "source"])

    # A transaction on a stream: read, decide, write; begun again it gets the first answer.
    def transact(steps):
        return [getattr(r, r.WhichOneof("step")) for r in commits.Transact(iter(steps), timeout=RPC_SECONDS)]

    begin = outbox.TransactRequest(begin=outbox.Begin(request_id=str(uuid.uuid4())))
    steps = [begin,
             outbox.TransactRequest(read=outbox.Read(command=command("find_user", user_id=user).command)),
             outbox.TransactRequest(commit=outbox.Run(operations=[command("find_user", user_id=user)]))]
    _, page, committed = transact(steps)
    check("the row that was read", page.result.rows[0].values[0].text, user)
    check("the disposition of the transaction", committed.disposition, outbox.DISPOSITION_APPLIED)
    again, = transact([begin])
    check("the disposition of its repeat", again.disposition, outbox.DISPOSITION_REPLAYED)
    check("the answer to its repeat", again.results, committed.results)

    # The shop's own RPC: its messages and names, and nothing of the outbox but metadata.
    users = shop_grpc.UsersStub(channel)
    shopper = f"shopper-{uuid.uuid4()}"
    commits.Commit(outbox.CommitRequest(request_id=str(uuid.uuid4()), operations=[
        command("create_user", user_id=shopper, email=f"{shopper}@example.com")]), timeout=RPC_SECONDS)
    named = (("x-request-id", str(uuid.uuid4())),)
    activate = lambda: users.Activate.with_call(shop.ActivateRequest(user_id=shopper), timeout=RPC_SECONDS, metadata=named)
    (active, first_call), (again, second_call) = activate(), activate()
    told = [dict(call.initial_metadata()) for call in (first_call, second_call)]
    check("the user", (active.id, active.status), (shopper, shop.USER_STATUS_ACTIVE))
    check("the response to the repeat", again, active)
    check("the dispositions", [t["x-outbox-disposition"] for t in told], ["APPLIED", "REPLAYED"])
    check("the events of the repeat", told[1]["x-outbox-event-ids"], told[0]["x-outbox-event-ids"])
    own = events.GetEvent(event.GetEventRequest(id=told[0]["x-outbox-event-ids"]), timeout=RPC_SECONDS).event
    check("the event of the RPC", (own.topic, own.type, own.key), ("users", "user.activated", shopper.encode()))
    check("what only reads", users.Find(shop.FindRequest(user_id=shopper), timeout=RPC_SECONDS).user, active)
    code, info, _ = provoke(users.Activate, shop.ActivateRequest(user_id=shopper))
    check("the reason without a request id", (code, info.reason),
          (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_MISSING"))
    code, info, _ = provoke(users.Activate, shop.ActivateRequest(user_id=shopper),
                            metadata=(("x-request-id", str(uuid.uuid4())),))
    check("the reason for a user who is active already", (code, info.reason),
          (grpc.StatusCode.FAILED_PRECONDITION, "ROW_COUNT_MISMATCH"))

    # Errors are typed.
    other = outbox.CommitRequest(request_id=request.request_id, operations=[command("find_user", user_id=user)])
    code, info, _ = provoke(commits.Commit, other)
    check("the code of a reused request id", code, grpc.StatusCode.FAILED_PRECONDITION)
    check("its reason", (info.domain, info.reason), ("outbox.v1", "REQUEST_ID_REUSED"))

    missed = outbox.CommitRequest(request_id=str(uuid.uuid4()), operations=[command("activate_user", user_id=user)],
                                  events=[event.NewEvent(topic=topic, key=key, type="com.example.never", text="{}")])
    code, info, _ = provoke(commits.Commit, missed)
    check("the code of a missed row expectation", code, grpc.StatusCode.FAILED_PRECONDITION)
    check("its reason", (info.domain, info.reason), ("outbox.v1", "ROW_COUNT_MISMATCH"))
    code, info, _ = provoke(commits.GetCommit, outbox.GetCommitRequest(request_id=missed.request_id))
    check("the code of a commit that failed", code, grpc.StatusCode.NOT_FOUND)
    check("its reason", (info.domain, info.reason), ("outbox.v1", "COMMIT_NOT_FOUND"))

    nowhere = outbox.CommitRequest(request_id=str(uuid.uuid4()), events=[event.NewEvent(type="com.example.x", text="")])
    code, info, fields = provoke(commits.Commit, nowhere)
    check("the code of an event without a topic", code, grpc.StatusCode.INVALID_ARGUMENT)
    check("its domain", info.domain, "outbox.v1")
    check("the field it names", len(fields) == 1 and "events" in fields[0] and "topic" in fields[0] or fields, True)

    # The events are stored, and settle.
    stored, deadline = [], time.monotonic() + 60
    for event_id in answer.event_ids:
        while True:
            one = events.GetEvent(event.GetEventRequest(id=event_id), timeout=RPC_SECONDS).event
            if one.settled:
                break
            if time.monotonic() > deadline:
                sys.exit(f"FAILED: event {event_id} has not reached Kafka within 60 s")
            time.sleep(0.05)
        stored.append(one)
    check("the stored ids", [e.id for e in stored], list(answer.event_ids))
    check("the stored payloads", [e.data for e in stored], [json_text.encode(), every_byte, b""])
    check("which has none", [e.HasField("data") for e in stored], [True, True, False])
    check("the stored keys", [e.key for e in stored], [key, key, b""])
    check("the lane of a key", stored[0].lane, stored[1].lane)
    check("the order of positions", stored[0].position < stored[1].position, True)
    check("the trace of each event", [e.traceparent[:36] for e in stored], [f"00-{TRACE_ID}-"] * 3)
    code, info, _ = provoke(events.GetEvent, event.GetEventRequest(id=str(uuid.uuid4())))
    check("the code of an unknown event", code, grpc.StatusCode.NOT_FOUND)
    check("its reason", (info.domain, info.reason), ("outbox.v1", "EVENT_NOT_FOUND"))

    # A plain consumer reads exactly these three records: the repeats and the failures have left none.
    records = {dict(r.headers())["ce_id"].decode(): r for r in read_topic(flags.kafka, topic, 3)}
    check("the events on Kafka", sorted(records), sorted(answer.event_ids))
    first, second, third = (records[i] for i in answer.event_ids)
    check("the values", [r.value() for r in (first, second, third)], [json_text.encode(), every_byte, None])
    check("the keys", [r.key() for r in (first, second, third)], [key, key, None])
    check("the partition of a key", first.partition(), second.partition())
    check("the order of a key", first.offset() < second.offset(), True)

    def headers(one, event_type, **further):
        names = {"ce_specversion": "1.0", "ce_id": one.id, "ce_source": "urn:example:foreign", "ce_type": event_type,
                 "ce_time": happened_text, "traceparent": one.traceparent}
        names.update({name.replace("_", "-") if name == "content_type" else name: v for name, v in further.items()})
        return sorted((name, v.encode()) for name, v in names.items())

    check("the headers of text", sorted(first.headers()),
          headers(stored[0], "com.example.user.activated", ce_subject=user, content_type="application/json",
                  tenant="blue", empty=""))
    check("the headers of bytes", sorted(second.headers()),
          headers(stored[1], "com.example.user.scored", content_type="application/x-bytes"))
    check("the headers of a tombstone", sorted(third.headers()), headers(stored[2], "com.example.user.forgotten"))
    check("the partition that Java clients choose", first.partition(), murmur2_partition(flags.kafka, topic, key))

    print(f"python client: {checks} checks held; event {stored[0].id} is at {topic}[{first.partition()}]@{first.offset()}")


if __name__ == "__main__":
    main()
