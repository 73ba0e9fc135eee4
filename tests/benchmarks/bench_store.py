"""How fast MemoryStore is, as ratios to what Redis itself takes for the same bytes, measured in turns in one run.

``python tests/benchmarks/bench_store.py`` prints each ratio with its target, on a unix socket and on TCP. Keep the
cores awake meanwhile (``chrt -i 0 sh -c 'while :; do :; done' &``, once a core), or each figure contains waking up.
``--peer NAME=PYTHON`` runs this file with another interpreter, in whose environment NAME is installed, on the same
server: langchain-community, openai-agents or llama-index.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count as count_from
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve()
MESSAGE = {"role": "user", "content": "x" * 272}
"""300 bytes as JSON."""
ROUNDS, BEST = 150, 7


def us_per_call(do: Callable[[], object], calls: int) -> float:
    begun = time.perf_counter()
    for _ in range(calls):
        do()
    return (time.perf_counter() - begun) / calls * 1e6


def in_turns(one: Callable[[], object], other: Callable[[], object], calls: int) -> tuple[float, float]:
    """Return the time of each, in microseconds: in the best of many short turns, since a busy machine only adds.

    Both from the same turns: a round trip takes 22 us or 65 us here, as the scheduler places client and server.
    """
    turns = sorted(((us_per_call(one, calls), us_per_call(other, calls)) for _ in range(ROUNDS)), key=sum)
    return median(a for a, _ in turns[: 2 * BEST]), median(b for _, b in turns[: 2 * BEST])


def ratio(name: str, target: float, one: Callable[[], object], other: Callable[[], object], calls: int = 20) -> bool:
    mine, raw = in_turns(one, other, calls)
    return report(name, mine / raw, target, f"{mine:.0f} / {raw:.0f} us")


def apart(client: Any, name: str, do: Callable[[], object]) -> None:
    """Print the time of one call on the server, by its own count, and this process's CPU time, without waiting."""
    best = [float("inf"), float("inf")]
    for _ in range(BEST):
        client.config_resetstat()
        begun = time.process_time()
        for _ in range(200):
            do()
        cpu_us = (time.process_time() - begun) / 200 * 1e6
        # What a script calls is counted in the script's own time.
        stats = client.info("commandstats")
        commands = (stats[one]["usec"] for one in ("cmdstat_evalsha", "cmdstat_rpush", "cmdstat_set") if one in stats)
        best = [min(best[0], next(commands) / 200), min(best[1], cpu_us)]
    print(f"    {name}: {best[0]:.1f} us on the server, {best[1]:.0f} us of the client's CPU time", flush=True)


def report(name: str, measured: float, target: float, how: str) -> bool:
    met = measured <= target
    print(f"  {name:<44} {measured:5.2f}  (target {target:.2f}{'' if met else ', MISSED'})  {how}", flush=True)
    return met


def store_against_redis(client: Any) -> bool:
    import orjson

    from memkit.store import MemoryStore

    raw = orjson.dumps(MESSAGE)
    store = MemoryStore(client, prefix="bench:", ttl="7d")
    store.append("append", MESSAGE)
    met = ratio(
        "append / RPUSH of the same bytes",
        1.6,
        lambda: store.append("append", MESSAGE),
        lambda: client.rpush("r", raw),
        10,
    )
    apart(client, "append", lambda: store.append("append", MESSAGE))
    apart(client, "RPUSH", lambda: client.rpush("r", raw))
    met &= flatness(client)
    for count, load_target in ((100, 1.5), (1_000, 2.0)):
        dialogue = [dict(MESSAGE) for _ in range(count)]
        blob = orjson.dumps(dialogue)
        client.set("blob", blob)
        store.save("saved", dialogue)
        store.delete("appended")
        for message in dialogue:
            store.append("appended", message)
        calls = max(2, 1_000 // count)
        for how in ("saved", "appended"):
            load = partial(store.load, how)
            met &= ratio(f"load of {count} {how} / GET and parse", load_target, load, parsed(client), calls)
            met &= memory(client, f"bench:{how}", len(raw) * count, count)
        if count == 100:
            save = partial(store.save, "saved", dialogue)
            put = partial(client.set, "blob", blob, ex=604_800)
            names = (f"new {number}" for number in count_from(0))
            new = lambda: store.save(next(names), dialogue)  # noqa: B023, E731
            fresh = lambda: client.set(next(names), blob, ex=604_800)  # noqa: B023, E731
            met &= ratio("save of 100, new / SET of the same bytes", 2.5, new, fresh, calls)
            met &= ratio("save of 100 over 100 / SET of the same", 2.5, save, put, calls)
            apart(client, "save of 100 over 100", save)
            apart(client, "SET of the same", put)
    return met


def parsed(client: Any) -> Callable[[], object]:
    import orjson

    return lambda: orjson.loads(client.get("blob"))


def flatness(client: Any) -> bool:
    from memkit.store import MemoryStore

    store = MemoryStore(client, prefix="bench:", ttl="7d")
    store.append("short", MESSAGE)
    for _ in range(100):
        store.append("long", *[MESSAGE] * 100)

    def short() -> None:
        store.append("short", MESSAGE)

    long_us, short_us = in_turns(lambda: store.append("long", MESSAGE), short, 20)
    return report("append at 10,000 / at few messages", long_us / short_us, 1.15, f"{long_us:.0f} / {short_us:.0f} us")


def memory(client: Any, key: str, content: int, count: int) -> bool:
    used = client.memory_usage(key, samples=0)
    return report(
        "  its memory / (1.1 x messages + 300)", used / (1.1 * content + 300), 1.0, f"{used:,} bytes, {count} messages"
    )


# The same dialogue in the stores that people run


def memkit(url: str) -> tuple[Callable[[], object], Callable[[], object]]:
    import redis

    from memkit.store import MemoryStore

    store = MemoryStore(redis.Redis.from_url(url), prefix="memkit:", ttl="7d")
    return (lambda: store.append("s", MESSAGE)), (lambda: store.load("s"))


def langchain_community(url: str) -> tuple[Callable[[], object], Callable[[], object]]:
    from langchain_community.chat_message_histories import RedisChatMessageHistory
    from langchain_core.messages import HumanMessage

    history = RedisChatMessageHistory("s", url=url, ttl=604_800)
    return (lambda: history.add_message(HumanMessage(MESSAGE["content"]))), (lambda: history.messages)


def openai_agents(url: str) -> tuple[Callable[[], object], Callable[[], object]]:
    from agents.extensions.memory import RedisSession

    loop = asyncio.new_event_loop()
    session = RedisSession.from_url("s", url=url, ttl=604_800)
    add = lambda: loop.run_until_complete(session.add_items([MESSAGE]))  # noqa: E731
    return add, (lambda: loop.run_until_complete(session.get_items()))


def llama_index(url: str) -> tuple[Callable[[], object], Callable[[], object]]:
    from llama_index.core.llms import ChatMessage
    from llama_index.storage.chat_store.redis import RedisChatStore

    store = RedisChatStore(redis_url=url, ttl=604_800)
    add = lambda: store.add_message("llama:s", ChatMessage(role="user", content=MESSAGE["content"]))  # noqa: E731
    return add, (lambda: store.get_messages("llama:s"))


PEERS: dict[str, Callable[[str], tuple[Callable[[], object], Callable[[], object]]]] = {
    "memkit": memkit,
    "langchain-community": langchain_community,
    "openai-agents": openai_agents,
    "llama-index": llama_index,
}


def be_peer(name: str, url: str) -> None:
    """Print the times of an append to a session of 100 messages and of loading them, in microseconds."""
    append, load = PEERS[name](url)
    for _ in range(100):
        append()
    load_us = sorted(us_per_call(load, 10) for _ in range(ROUNDS))[BEST]
    append_us = sorted(us_per_call(append, 20) for _ in range(ROUNDS))[BEST]
    print(json.dumps({"append_us": append_us, "load_100_us": load_us}))


def side_by_side(url: str, pythons: dict[str, str]) -> None:
    print("  side by side, one message appended, 100 loaded, through redis-py on the same server:")
    for name, python in pythons.items():
        done = subprocess.run([python, HERE, "--be", name, url], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"    {name:<22} could not run: {done.stderr.strip().splitlines()[-1:]}")
            continue
        result = json.loads(done.stdout.splitlines()[-1])
        print(
            f"    {name:<22} append {result['append_us']:6.0f} us   load {result['load_100_us']:7.0f} us",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--server", action="append", help="a lane of tests/servers.py; may be repeated")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="; ".join(list(PEERS)[1:]))
    parser.add_argument("--be", nargs=2, metavar=("NAME", "URL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be:
        be_peer(*options.be)
        return 0
    sys.path.insert(0, str(HERE.parents[1]))
    from servers import every_server

    import memkit.server.launcher

    met = True
    for name in options.server or ["redis-8.2", "redis-7.0", "valkey-9"]:
        binary = every_server()[name]
        for transport, port in (("unix socket", None), ("TCP", 0)):
            with memkit.server.launcher.RedisServer(binary=binary.path if binary else None, port=port) as server:
                print(f"{server.flavour} {server.version}, {transport}", flush=True)
                with server.client() as client:
                    met &= store_against_redis(client)
                if options.peer and port is not None:
                    side_by_side(server.url, {"memkit": sys.executable, **dict(p.split("=", 1) for p in options.peer)})
    return not met


if __name__ == "__main__":
    sys.exit(main())
