"""A caller in plain Python: it needs nats-py (pip install nats-py) and no code of the mesh.

It registers what it is going to call, sends one request, waits for the reply and confirms it.

    python3 caller.py TARGET CAPABILITY JSON [--priority p1] [--event]

Exit code: 0 when the request succeeded or a fallback answered, 1 when it ended otherwise, 2 when nothing is known.
"""

import argparse
import asyncio
import json
import os
import secrets
import sys
import time

import nats
from nats.errors import NoRespondersError, TimeoutError
from nats.js.errors import APIError


async def register(nc, registration, patience=30.0):
    until = time.monotonic() + patience
    while True:
        try:
            verdict = json.loads((await nc.request("mesh.register", json.dumps(registration).encode(), timeout=5)).data)
            if verdict["accepted"] or any(p["field"] != "mesh" for p in verdict["problems"]):
                return verdict
        except (NoRespondersError, TimeoutError):
            pass
        if time.monotonic() > until:
            raise SystemExit("no coordinator answers")
        await asyncio.sleep(0.2)


async def publish(js, subject, dispatch, message_id, patience=10.0):
    """Until the broker has confirmed it, under one message id: then it is accepted, once."""
    until = time.monotonic() + patience
    while True:
        try:
            return await js.publish(subject, json.dumps(dispatch).encode(), headers={"Nats-Msg-Id": message_id})
        except (TimeoutError, NoRespondersError):
            if time.monotonic() > until:
                raise
        except APIError as refusal:
            if refusal.err_code != 10077 or time.monotonic() > until:  # 10077: the lane for this target is full
                raise
        await asyncio.sleep(0.1)


async def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("target")
    arguments.add_argument("capability")
    arguments.add_argument("payload", type=json.loads)
    arguments.add_argument("--priority", choices=["p0", "p1", "p2", "p3"], default="p2")
    arguments.add_argument("--event", action="store_true", help="send an event: it is accepted, and no reply comes")
    arguments.add_argument("--name", default="python_caller")
    arguments.add_argument("--nats-url", default=os.environ.get("MESH_NATS_URL", "nats://127.0.0.1:4222"))
    arguments = arguments.parse_args()

    nc = await nats.connect(arguments.nats_url.split(","))
    dependency = f"{arguments.target}/{arguments.capability}"
    verdict = await register(nc, {"agent": arguments.name, "dependencies": [dependency]})
    if not verdict["accepted"]:
        sys.exit("\n".join("{field}: {message}; {fix}".format(**p) for p in verdict["problems"]))

    token = secrets.token_hex(8)
    replies = await nc.subscribe(f"mesh.reply.{arguments.name}.{token}")
    dispatch = {
        "kind": "event" if arguments.event else "request",
        "capability": arguments.capability,
        "payload": arguments.payload,
        "budget_ms": 10_000,
        "conversation": f"python-{token}",
    }
    if not arguments.event:
        dispatch["reply"] = token
    subject = f"mesh.in.{arguments.priority}.{arguments.name}.{arguments.target}"
    accepted = await publish(nc.jetstream(), subject, dispatch, token)
    if arguments.event:
        print(json.dumps({"accepted": True, "stream": accepted.stream, "sequence": accepted.seq}))
        return 0
    try:
        message = await replies.next_msg(timeout=20)
    except TimeoutError:
        print("no reply came; the audit knows how it ended", file=sys.stderr)
        return 2
    await message.respond(b"")  # confirmed: it does not come again
    reply = json.loads(message.data)
    print(json.dumps(reply))
    return 0 if reply["outcome"] == "success" or reply["reason"] == "fallback_static" else 1


code = asyncio.run(main())
sys.exit(code)
