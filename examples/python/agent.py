"""An agent in plain Python: it needs nats-py (pip install nats-py) and no code of the mesh.

It registers, takes work from its inboxes, completes it, calls another agent while it works, and says that it lives.
Every message is JSON as docs/protocol.md describes it.

    python3 agent.py [--name python_agent] [--depends-on AGENT[/CAPABILITY]]        stop it with Ctrl-C or SIGTERM
"""

import argparse
import asyncio
import json
import os
import secrets
import signal
import time

import nats
from nats.errors import NoRespondersError, TimeoutError

SLOTS = 8  # four of them wait at the inboxes, one at each
PRIORITIES = ["p0", "p1", "p2", "p3"]


async def register(nc, registration, patience=30.0):
    """Asks a coordinator until one answers; gives the terms, or raises with every problem."""
    until = time.monotonic() + patience
    while True:
        try:
            answer = await nc.request("mesh.register", json.dumps(registration).encode(), timeout=5)
            verdict = json.loads(answer.data)
            if verdict["accepted"]:
                return verdict["terms"]
            if any(p["field"] != "mesh" for p in verdict["problems"]) or time.monotonic() > until:
                problems = ("  {field}: {message}; {fix}".format(**p) for p in verdict["problems"])
                raise SystemExit("refused:\n" + "\n".join(problems))
        except (NoRespondersError, TimeoutError):
            if time.monotonic() > until:
                raise
        await asyncio.sleep(0.2)


class Agent:
    def __init__(self, nc, name, handlers):
        self.nc, self.js, self.name, self.handlers = nc, nc.jetstream(), name, handlers
        self.instance = f"{secrets.randbits(63):016x}"
        self.slots = asyncio.Semaphore(SLOTS)
        self.running, self.alone = set(), asyncio.Lock()
        self.stopping = asyncio.Event()

    async def take(self, priority):
        """Pulls from one inbox, never more than there are free slots."""
        inbox = await self.js.pull_subscribe_bind(consumer=self.name, stream=f"MESH_OUT_{priority.upper()}")
        while not self.stopping.is_set():
            await self.slots.acquire()
            try:
                [message] = await inbox.fetch(1, timeout=5)
            except TimeoutError:
                self.slots.release()
                continue
            task = asyncio.create_task(self.run(message))
            self.running.add(task)
            task.add_done_callback(lambda done: (self.running.discard(done), self.slots.release()))

    async def run(self, message):
        """One inbox message is one dispatch: handle it, complete it, then acknowledge it."""
        dispatch = json.loads(message.data)
        attempt = message.metadata.num_delivered
        renewal = asyncio.create_task(self.renew(message))
        if attempt > 1:
            is_open, alone = await self.ask(message, dispatch)
            if is_open and alone:
                # Instances were lost with it: it runs with no other such beside it, and is asked for by itself.
                async with self.alone:
                    if (await self.ask(message, dispatch, alone=True))[0]:
                        return await self.handle(message, dispatch, attempt, renewal)
            elif is_open:
                return await self.handle(message, dispatch, attempt, renewal)
            renewal.cancel()
            return await message.ack()
        await self.handle(message, dispatch, attempt, renewal)

    async def handle(self, message, dispatch, attempt, renewal):
        begun = time.monotonic()
        completion = {"id": dispatch["id"], "attempt": min(attempt, 255)}
        handler = self.handlers.get(dispatch["capability"] or dispatch.get("topic"))
        try:
            if handler is None:
                raise LookupError("this agent has no handler for it")
            completion |= {"outcome": "success", "payload": await handler(self, dispatch)}
        except Exception as error:  # whatever a handler raises is the failure that its caller sees
            completion |= {"outcome": "failure", "error": f"{type(error).__name__}: {error}"}
            if dispatch["kind"] == "event":
                completion["inbox"] = message.reply  # its home decides: another attempt, or the dead-letter queue
        completion["ran_ms"] = (time.monotonic() - begun) * 1000
        # A completion counts when the broker has confirmed it; then the message may go.
        await self.publish(dispatch["done"], completion, f"{self.instance}:{dispatch['id']}:{attempt}")
        renewal.cancel()
        if "inbox" not in completion:
            await message.ack()

    async def publish(self, subject, body, message_id):
        """Publishes until the broker has confirmed it; it recognises what it has seen by the message id."""
        while True:
            try:
                return await self.js.publish(subject, json.dumps(body).encode(), headers={"Nats-Msg-Id": message_id})
            except (TimeoutError, NoRespondersError):
                await asyncio.sleep(0.5)

    async def ask(self, message, dispatch, alone=False):
        """Asks the home of the source whether a redelivered dispatch still waits for its outcome, and is to be run alone."""
        question = {"runs": [[dispatch["id"], 1]], "delivered": message.metadata.num_delivered, "runner": self.instance}
        question = json.dumps(question | {"alone": alone, "inbox": message.reply}).encode()
        while True:
            try:
                answer = await self.nc.request(f"mesh.open.{dispatch['source']}", question, timeout=2)
                answer = json.loads(answer.data)
                if "open" in answer:
                    return answer["open"][0][0], any(map(any, answer.get("alone", [])))
            except (TimeoutError, NoRespondersError):
                pass
            await asyncio.sleep(0.5)

    async def renew(self, message):
        while True:
            await asyncio.sleep(1)
            await message.in_progress()

    async def call(self, parent, target, capability, payload, timeout=35):
        """A request while a dispatch runs: its `lineage` goes along unchanged, which makes it a child."""
        token = secrets.token_hex(8)
        replies = await self.nc.subscribe(f"mesh.reply.{self.name}.{token}", max_msgs=1)
        request = {"capability": capability, "payload": payload, "reply": token, "lineage": parent["lineage"]}
        if "conversation" in parent:
            request["conversation"] = parent["conversation"]
        await self.publish(f"mesh.in.p2.{self.name}.{target}", request, token)
        reply = await replies.next_msg(timeout=timeout)
        await reply.respond(b"")  # confirmed: it does not come again
        reply = json.loads(reply.data)
        if reply["outcome"] != "success":
            raise RuntimeError(f"{target}/{capability}: {reply['outcome']} ({reply['reason']}): {reply['payload']}")
        return reply["payload"]

    async def beat(self, leaving=False):
        body = {"instance": self.instance, "slots": SLOTS, "running": len(self.running), "leaving": leaving}
        await self.nc.publish(f"mesh.beat.{self.name}", json.dumps(body).encode())

    async def live(self):
        while True:
            await self.beat()
            await asyncio.sleep(1)

    async def serve(self):
        beats = asyncio.create_task(self.live())
        takers = [asyncio.create_task(self.take(p)) for p in PRIORITIES]
        await self.stopping.wait()
        for taker in takers:
            taker.cancel()
        await asyncio.gather(*takers, return_exceptions=True)
        while self.running:  # what runs is finished and confirmed
            await asyncio.wait(self.running)
        beats.cancel()
        await self.beat(leaving=True)
        await self.nc.flush()
        await self.nc.close()


async def reverse(agent, dispatch):
    return dispatch["payload"]["text"][::-1]


async def delegate(agent, dispatch):
    """Calls whom the payload names; what is not among the dependencies is rejected by the mesh."""
    wish = dispatch["payload"]
    return await agent.call(dispatch, wish["target"], wish["capability"], wish["payload"])


async def note(agent, dispatch):
    print("event:", dispatch["payload"], flush=True)


async def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--nats-url", default=os.environ.get("MESH_NATS_URL", "nats://127.0.0.1:4222"))
    arguments.add_argument("--name", default="python_agent")
    arguments.add_argument("--depends-on", action="append", default=[], help="what `delegate` may call")
    arguments = arguments.parse_args()

    nc = await nats.connect(arguments.nats_url.split(","), max_reconnect_attempts=-1)
    handlers = {"reverse": reverse, "delegate": delegate, "note": note}
    agent = Agent(nc, arguments.name, handlers | {"example_leads": note})
    terms = await register(nc, {
        "agent": arguments.name,
        "capabilities": list(handlers),
        "topics": ["example_leads"],
        "dependencies": arguments.depends_on,
        "max_concurrent": SLOTS,
        "sla_p95_ms": 500,
        "encoding": "json",
    })
    print(f"{arguments.name} is registered: role {terms['role']}, {terms['rate_per_s']} per second", flush=True)
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, agent.stopping.set)
    await agent.serve()


asyncio.run(main())
