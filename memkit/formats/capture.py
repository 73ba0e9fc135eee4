"""Sessions that the real libraries wrote to a real Redis, kept as JSON; for tests, notebooks and the curious.

One file a store: its versions, its keys with type, PTTL in milliseconds (−1 for none) and value, and the messages it
was given. The texts are made up.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from memkit.errors import DecodeError, MemkitError
from memkit.readonly.values import JSON_KIND, RedisValue, to_bytes


@cache
def names() -> tuple[str, ...]:
    """Return the captures' names."""
    return tuple(sorted(path.name.removesuffix(".json") for path in _folder().iterdir() if path.name.endswith(".json")))


def capture(name: str) -> dict[str, Any]:
    """Return one capture; raises DecodeError for a name there is none of."""
    if name not in names():
        raise DecodeError(f"there is no capture {name!r}; there are {', '.join(names())}")
    loaded: dict[str, Any] = json.loads((_folder() / f"{name}.json").read_text("utf-8"))
    return loaded


def _folder() -> Any:
    return resources.files("memkit.formats") / "captures"


def raw_of(entry: dict[str, Any]) -> RedisValue:
    """Return a capture's key as if it had just been read."""
    name, kind, value = entry["key"], entry["type"], entry["value"]
    if kind in ("string", JSON_KIND):
        return RedisValue(name, kind, data=to_bytes(value), total=len(to_bytes(value)))
    if kind == "list":
        return RedisValue(name, kind, elements=[to_bytes(element) for element in value], total=len(value))
    if kind == "hash":
        return RedisValue(name, kind, fields={field: to_bytes(text) for field, text in value.items()}, total=len(value))
    if kind == "set":
        return RedisValue(name, kind, members=frozenset(value), total=len(value))
    return RedisValue(name, kind, scores=dict(value), total=len(value))


def load_capture(client: Any, name: str, *, json_as_text: bool = False) -> str:
    """Write a captured session to a Redis, by value, with its TTLs, in place of what was there; return its id.

    Keys of the JSON module need a server that has it (MemkitError otherwise); ``json_as_text`` writes them as plain
    strings instead, which no library would do but ``inspect_session`` reads alike. It writes: the caller answers for
    the server.
    """
    session = capture(name)
    pipe = client.pipeline(transaction=False)
    for entry in session["keys"]:
        for command in _commands(entry, json_as_text=json_as_text):
            pipe.execute_command(*command)
    failed = [answer for answer in pipe.execute(raise_on_error=False) if isinstance(answer, Exception)]
    if any("unknown command" in str(error).lower() for error in failed):
        reason = f"{name} is made of JSON documents and this server has no JSON module"
        raise MemkitError(f"{reason}; use Redis 8 with its modules, or json_as_text=True")
    if failed:
        raise failed[0]
    return str(session["session_id"])


def _commands(entry: dict[str, Any], *, json_as_text: bool) -> list[tuple[Any, ...]]:
    name, kind, value = entry["key"], entry["type"], entry["value"]
    writes: dict[str, Any] = {
        "string": lambda: ("SET", name, value),
        "list": lambda: ("RPUSH", name, *value),
        "hash": lambda: ("HSET", name, *(part for pair in value.items() for part in pair)),
        "set": lambda: ("SADD", name, *value),
        "zset": lambda: ("ZADD", name, *(part for member, score in value for part in (score, member))),
        JSON_KIND: lambda: ("SET", name, value) if json_as_text else ("JSON.SET", name, "$", value),
    }
    expiry = [("PEXPIRE", name, entry["pttl"])] if entry["pttl"] > 0 else []
    return [("UNLINK", name), writes[kind](), *expiry]
