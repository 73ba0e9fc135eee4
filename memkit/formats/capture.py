"""Sessions that the real libraries wrote to a real Redis, kept as JSON for tests and notebooks.

One file for each store: its versions, its keys with type, PTTL in milliseconds (−1 for none) and value, and the
messages it was given. The texts are made up. Files named ``homemade-*`` are layouts that people write themselves; their
store is ``unknown``.
"""

import base64
import json
from functools import cache
from importlib import resources
from typing import Any

from memkit.errors import DecodeError, MemkitError
from memkit.readonly.values import JSON_KIND, to_bytes

_FOLDER = resources.files("memkit.formats") / "captures"


@cache
def names() -> tuple[str, ...]:
    """Return the captures' names."""
    return tuple(sorted(path.name.removesuffix(".json") for path in _FOLDER.iterdir() if path.name.endswith(".json")))


def capture(name: str) -> dict[str, Any]:
    """Return one capture; raises DecodeError for a name there is none of."""
    if name not in names():
        raise DecodeError(f"there is no capture {name!r}; there are {', '.join(names())}")
    loaded: dict[str, Any] = json.loads((_FOLDER / f"{name}.json").read_text("utf-8"))
    return loaded


def payload_of(value: Any) -> bytes:
    """Return a value of a capture as bytes: text, or ``{"b64": …}`` for bytes that are not text."""
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else to_bytes(value)


def load_capture(client: Any, name: str, *, json_as_text: bool = False) -> str:
    """Write a captured session to a Redis, by value, with its TTLs, and return its id. Existing keys are replaced.

    Args:
        client: A client of a server that may be written to.
        name: One of ``names()``.
        json_as_text: Write keys of the JSON module as strings. No library does so, but ``inspect_session`` reads both.

    Raises:
        MemkitError: The capture has keys of the JSON module and the server does not have it.
        DecodeError: There is no such capture.
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
        "string": lambda: [("SET", name, payload_of(value))],
        "list": lambda: [("RPUSH", name, *map(payload_of, value))],
        "hash": lambda: [
            ("HSET", name, *(part for field, each in value.items() for part in (field, payload_of(each))))
        ],
        "set": lambda: [("SADD", name, *value)],
        "zset": lambda: [("ZADD", name, *(part for member, score in value for part in (score, member)))],
        "stream": lambda: [
            ("XADD", name, uid, *(part for field, each in fields.items() for part in (field, payload_of(each))))
            for uid, fields in value
        ],
        JSON_KIND: lambda: [("SET", name, value) if json_as_text else ("JSON.SET", name, "$", value)],
    }
    expiry = [("PEXPIRE", name, entry["pttl"])] if entry["pttl"] > 0 else []
    return [("UNLINK", name), *writes[kind](), *expiry]
