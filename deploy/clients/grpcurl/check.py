"""Tries outboxd with grpcurl, which knows nothing of it but what server reflection says.

Needs a server with the sample catalog (deploy/catalog). Exits 0 only if every check held.

    check.py --grpcurl PROGRAM --server HOST:PORT
"""

import argparse
import base64
import json
import re
import subprocess
import sys
import uuid

FAILED_PRECONDITION = 9
checks = 0


def check(what, found, expected):
    """Ends the program unless `found` is what was expected."""
    global checks
    checks += 1
    if found != expected:
        sys.exit(f"FAILED: {what}\n  found    {found!r}\n  expected {expected!r}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grpcurl", default="grpcurl", help="the program")
    parser.add_argument("--server", required=True, help="address of outboxd, HOST:PORT")
    flags = parser.parse_args()

    def run(*words, data=None, headers=()):
        options = ["-plaintext", "-max-time", "10"] + (["-d", json.dumps(data)] if data is not None else [])
        options += [word for header in headers for word in ("-H", header)]
        return subprocess.run([flags.grpcurl, *options, flags.server, *words], capture_output=True, text=True, timeout=30)

    def call(method, data, headers=()):
        done = run(method, data=data, headers=headers)
        check(f"{method} succeeds ({done.stderr.strip()})", done.returncode, 0)
        return json.loads(done.stdout)

    services = set(run("list").stdout.split())
    expected = {"outbox.v1.OutboxService", "outbox.v1.EventService", "outbox.v1.StateService",
                "outbox.v1.CommandService", "outbox.v1.InboxService", "grpc.health.v1.Health", "shop.v1.Users"}
    check("the services that reflection lists", services & expected, expected)
    check("the server's health", call("grpc.health.v1.Health/Check", {}), {"status": "SERVING"})

    user, request_id = f"user-{uuid.uuid4()}", str(uuid.uuid4())
    request = {
        "request_id": request_id,
        "operations": [{"command": {"name": "create_user", "parameters": {
            "user_id": {"text": user}, "email": {"text": f"{user}@example.com"}}}}],
        "events": [{"topic": "grpcurl", "type": "com.example.user.created", "text": json.dumps({"user": user})}],
    }
    answer = call("outbox.v1.OutboxService/Commit", request)
    check("the disposition", answer.pop("disposition"), "DISPOSITION_APPLIED")
    check("the row", answer["results"][0]["rows"][0]["values"][0], {"text": user})
    repeat = call("outbox.v1.OutboxService/Commit", request)
    check("the disposition of the repeat", repeat.pop("disposition"), "DISPOSITION_REPLAYED")
    check("the answer to the repeat", repeat, answer)

    reused = run("outbox.v1.OutboxService/Commit", data={**request, "events": []})
    check("the code of a reused request id", reused.returncode, 64 + FAILED_PRECONDITION)
    # A detail whose type reflection does not describe is shown as its bytes.
    raw = [base64.b64decode(value) for value in re.findall(r'"@value": "(.*?)"', reused.stderr)]
    check("its reason is shown", '"REQUEST_ID_REUSED"' in reused.stderr or any(b"REQUEST_ID_REUSED" in v for v in raw), True)

    # JSON names are the descriptors' choice; both spellings are valid protobuf JSON.
    event_ids = answer.get("eventIds") or answer.get("event_ids")
    check("the number of event ids", len(event_ids or []), 1)
    call("outbox.v1.OutboxService/Commit", {"request_id": str(uuid.uuid4()), "operations": [
        {"put_document": {"collection": "carts", "id": user, "json": '{"items": []}', "precondition": {"exists": False}}},
        {"merge_document": {"collection": "carts", "id": user, "patch": '{"items": [1]}'}}]})
    linked = call("outbox.v1.OutboxService/Commit", {
        "request_id": str(uuid.uuid4()),
        "operations": [{"command": {"name": "activate_user", "parameters": {"user_id": {"text": user}}}}],
        "events": [{"topic": "grpcurl", "type": "com.example.user.activated", "key_from": {"column": "id"},
                    "json": {"template": '{"status": "?"}', "values": {"/status": {"column": "status"}}},
                    "only_if": {"operation": 0}}]})
    built = call("outbox.v1.EventService/GetEvent", {"id": (linked.get("eventIds") or linked.get("event_ids"))[0]})["event"]
    check("the payload out of a result", base64.b64decode(built["data"]), b'{"status": "active"}')
    check("the key out of a result", base64.b64decode(built["key"]).decode(), user)
    document = call("outbox.v1.StateService/GetDocument", {"collection": "carts", "id": user})["document"]
    check("the document", document["json"], '{"items": [1]}')
    found = call("outbox.v1.StateService/Query", {"command": {"name": "find_user", "parameters": {"user_id": {"text": user}}}})
    check("the queried row", found["result"]["rows"][0]["values"][0], {"text": user})
    commands = call("outbox.v1.CommandService/ListCommands", {})["commands"]
    check("the commands", {"activate_user", "find_user"} <= {command["name"] for command in commands}, True)

    # A stream in both directions: grpcurl sends one message after the other, and prints each answer.
    find = {"name": "find_user", "parameters": {"user_id": {"text": user}}}
    steps = [{"begin": {"request_id": str(uuid.uuid4())}}, {"read": {"command": find}},
             {"commit": {"operations": [{"command": find}]}}]
    done = subprocess.run([flags.grpcurl, "-plaintext", "-max-time", "10", "-d", "@", flags.server,
                           "outbox.v1.OutboxService/Transact"], input="\n".join(map(json.dumps, steps)),
                          capture_output=True, text=True, timeout=30)
    check(f"Transact succeeds ({done.stderr.strip()})", done.returncode, 0)
    answers, rest = [], done.stdout.strip()
    while rest:
        answer, end = json.JSONDecoder().raw_decode(rest)
        answers, rest = answers + [answer], rest[end:].strip()
    check("the answers of the stream", [next(iter(answer)) for answer in answers], ["begun", "page", "committed"])
    check("its disposition", answers[2]["committed"]["disposition"], "DISPOSITION_APPLIED")

    # The shop's own RPC, described by reflection alone.
    shopper = f"shopper-{uuid.uuid4()}"
    call("outbox.v1.OutboxService/Commit", {"request_id": str(uuid.uuid4()), "operations": [{"command": {
        "name": "create_user", "parameters": {"user_id": {"text": shopper}, "email": {"text": f"{shopper}@example.com"}}}}]})
    named = (f"x-request-id: {uuid.uuid4()}",)
    active = call("shop.v1.Users/Activate", {"user_id": shopper}, headers=named)
    check("the status", active["status"], "USER_STATUS_ACTIVE")
    check("the response to the repeat", call("shop.v1.Users/Activate", {"user_id": shopper}, headers=named), active)
    check("what only reads", call("shop.v1.Users/Find", {"user_id": shopper})["user"], active)

    stored = call("outbox.v1.EventService/GetEvent", {"id": event_ids[0]})["event"]
    check("the stored type", stored["type"], "com.example.user.created")
    print(f"grpcurl: {checks} checks held; event {stored['id']} is stored")


if __name__ == "__main__":
    main()
