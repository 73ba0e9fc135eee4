"""How long an inspection takes, as a multiple of reading the same bytes with redis-py.

    python tests/benchmarks/bench_inspect.py [--messages 10000]

Each figure is the least of several runs, interleaved with the reading they are compared with. The texts have the sizes
of a chat's (200 bytes), a model's answer (1.2 KB) and a page (4 KB); the captures' own elements have 120 to 290 bytes.

Processor time (Redis 7.0.15, redis-py 8.1, orjson 3.11): 10,000 messages of langchain-community 44 ms, of a homemade
list 67 ms; 90,000 of them 0.41 and 0.61 s. The 51 captures together take 0.15 s.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import redis

from memkit.formats import capture
from memkit.inspect import inspect_session
from memkit.server import RedisServer
from memkit.store import MemoryStore

ROUNDS = 7


def load(client: redis.Redis, count: int, size: int) -> dict[str, Callable[[], object]]:
    """Write one session a store; return what reads its bytes, by key."""
    client.flushall()
    texts = [(f"{at} " + "lorem ipsum dolor sit amet " * (size // 27 + 1))[:size] for at in range(count)]
    roles = ["user" if at % 2 == 0 else "assistant" for at in range(count)]
    kinds = {"user": "human", "assistant": "ai"}
    extra = {"additional_kwargs": {}, "response_metadata": {}, "name": None, "id": None}
    pairs = list(zip(roles, texts, strict=True))
    client.rpush("agents:session:s:messages", *[json.dumps({"role": role, "content": text}) for role, text in pairs])
    messages = [{"type": kinds[role], "data": {"content": text, "type": kinds[role]} | extra} for role, text in pairs]
    client.lpush("message_store:s", *map(json.dumps, messages))
    MemoryStore(client, prefix="session:", ttl="7d").save(
        "s", [{"role": role, "content": text} for role, text in pairs]
    )
    pipe = client.pipeline(transaction=False)
    for at, (role, text) in enumerate(pairs):
        fields = {
            "entry_id": f"v:{at}",
            "role": role,
            "content": text,
            "session_tag": "v",
            "timestamp": str(1.7e9 + at),
        }
        pipe.hset(f"chat:v:{1_700_000_000 + at}:{at:08x}", mapping=fields)
    pipe.execute()
    lists = ("agents:session:s:messages", "message_store:s", "session:s")
    return {name: lambda name=name: client.lrange(name, 0, -1) for name in lists} | {"v": lambda: hashes(client)}


def load_captures(client: redis.Redis, count: int) -> dict[str, Callable[[], object]]:
    """Write each captured list's own elements again and again: a question, the call of a tool, its result."""
    client.flushall()
    reads: dict[str, Callable[[], object]] = {}
    for name in ("langchain-community", "llama-index", "openai-agents", "agent-framework-redis", "ag2"):
        entry = next((entry for entry in capture.capture(name)["keys"] if entry["type"] == "list"), None)
        if entry is None:
            continue
        newest_first = name == "langchain-community"
        elements = entry["value"][::-1] if newest_first else entry["value"]
        said = [
            elements[at % 3].replace("call_1", f"call_{at // 3}").replace("weather in", f"weather {at} in")
            for at in range(count)
        ]
        (client.lpush if newest_first else client.rpush)(entry["key"], *said)
        reads[entry["key"]] = lambda key=entry["key"]: client.lrange(key, 0, -1)
    return reads


def hashes(client: redis.Redis) -> object:
    pipe = client.pipeline(transaction=False)
    for name in client.scan_iter("chat:v:*", count=1000):
        pipe.hgetall(name)
    return pipe.execute()


def timed_ms(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure inspect_session against reading the same bytes.")
    parser.add_argument("--messages", type=int, default=10_000)
    count = parser.parse_args().messages
    with RedisServer() as server, server.client() as client:
        print(f"{server.flavour} {server.version}, {count:,} messages")
        for size in (200, 1200, 4000):
            report(client, f"{size} B", load(client, count, size))
        report(client, "captured", load_captures(client, count))
        every_capture(client)


def every_capture(client: redis.Redis) -> None:
    """Print how long the inspection of each captured session takes: all together, and the slowest."""
    took_ms: dict[str, float] = {}
    for name in capture.names():
        client.flushall()
        session = capture.load_capture(client, name, json_as_text=True)
        took_ms[name] = min(timed_ms(lambda session=session: inspect_session(client, session)) for _ in range(ROUNDS))
    slowest = max(took_ms, key=took_ms.__getitem__)
    print(f"{len(took_ms)} captures: {sum(took_ms.values()):.1f} ms, the slowest {slowest} {took_ms[slowest]:.1f} ms")


def report(client: redis.Redis, what: str, reads: dict[str, Callable[[], object]]) -> None:
    for key, read in reads.items():
        runs = [(timed_ms(read), timed_ms(lambda key=key: inspect_session(client, key))) for _ in range(ROUNDS)]
        reading, inspecting = (min(column) for column in zip(*runs, strict=True))
        ratio = inspecting / reading
        print(f"{what:>8}  {key[:26]:26} read {reading:7.1f} ms  inspect {inspecting:7.1f} ms  {ratio:5.1f} x")


if __name__ == "__main__":
    main()
