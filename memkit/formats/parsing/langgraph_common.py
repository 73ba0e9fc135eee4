"""What LangGraph's savers share: names of keys, the state's messages, chains of checkpoints, serialised values."""

import base64
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from memkit.formats.model import Item, Note, Problem, SessionValues, a_dict, few, one_of, text_or_none
from memkit.formats.parsing import msgpack
from memkit.formats.parsing.any_message import read_any
from memkit.formats.parsing.bounded_json import Fault, Parsed, parse
from memkit.formats.parsing.documents import corrupt, messages, misshapen, peek, read, read_with
from memkit.formats.parsing.element_shapes import TYPES, is_constructed, kind_of, langchain_lacks, missing
from memkit.readonly.values import DOCUMENT_KINDS, RedisValue

KNOWN_VERSION = 4
ROOT = "__empty__"
"""How Python's saver writes the namespace of the graph itself."""
_SHALLOW = ":shallow"
REDIS_PARTS = {"checkpoint": "checkpoint", "checkpoint_write": "write", "checkpoint_latest": "pointer",
               "checkpoint_blob": "blob", "write_keys_zset": "write list", "write_registry": "write list"}  # fmt: skip
"""The keys of langgraph-checkpoint-redis for Python and for JavaScript: their kinds, and their parts in a session."""
REDIS_KINDS = tuple(REDIS_PARTS)
MAX_NESTED = 4
"""Extensions inside extensions of msgpack; each is unpacked anew, so their depth must be bounded."""
_PYDANTIC = (4, 5)
_BY_KEYWORDS = 2
_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_NAMED_SUBGRAPH = re.compile(rf"(?<!:):[^:]+(?::{_UUID})?$")
_UUID6 = "[0-9a-f]{8}-[0-9a-f]{4}-6[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"
_KEPT_KINDS = "checkpoint|checkpoint_write|write_keys_zset|writes|cp|wr"
# A prefix of the user's own stands instead of the kind.
_CHECKPOINT = re.compile(rf"(?:(?:.*[:/])?(?:{_KEPT_KINDS})|[^:]*):(?P<thread>.*?):(?P<id>{_UUID6})(?::|$)", re.DOTALL)
_CHANNEL = re.compile(r"(?P<channel>(?:.*[:/])?(?:checkpoint_blob|blob):.*):(?P<version>[\d.]+)$", re.DOTALL)
_VERSION_DIGITS = 64
_WRITE_NAME = re.compile(rf".*:{_UUID}:{_UUID}:-?\d+", re.DOTALL)
_PENDING_NAME = re.compile(r":-\d$")
"""LangGraph's numbers of an interrupt, an error and the like are negative: these wait for the thread to go on."""
_UUID6_BEGINS = 0x01B21DD213814000
"""1970 in the time of a UUID: steps of 100 ns since 1582 (RFC 9562)."""


class Pieces(NamedTuple):
    """A key's name taken apart: what stands before the kind, the kind, and what follows it."""

    prefix: str
    kind: str
    rest: str


def name_parts(name: str, kinds: tuple[str, ...]) -> Pieces | None:
    """Return the pieces of a key's name, or None when it is of none of these kinds.

    The first word that is a kind is the key's: a thread may be called ``checkpoint:1``.
    """
    found = _kinds(kinds).match(name)
    return Pieces(found[1], found[2], found[3]) if found else None


@cache
def _kinds(kinds: tuple[str, ...]) -> re.Pattern[str]:
    # A prefix ends with one of these marks, so that "checkpoint" is not found inside "my_checkpoint".
    return re.compile(rf"((?:.*?[:/|{{}}.])??)({'|'.join(sorted(kinds, key=len, reverse=True))}):(.*)", re.DOTALL)


# A subgraph's namespace: ``node:task``, several joined by ``|``; the task is a UUID.
_SUBGRAPH = r"[^:|]+:[0-9a-fA-F-]{36}(?:\|[^:|]+:[0-9a-fA-F-]{36})*"


def thread_of(rest: str, root: str, wanted: str | None) -> str | None:
    """Return the thread of ``<thread>:<namespace>[:…]``; both may hold colons, so the namespace must look like one.

    ``root`` is how the graph's own namespace is written; ``wanted`` is the thread that is looked for, if any.
    """
    if wanted:
        fits = rest.startswith(f"{wanted}:") and _after(root).match(rest, len(wanted))
        return wanted if fits else None
    found = [at.start() for at in _after(root).finditer(rest) if at.start()]
    return rest[: found[-1]] if found else None


@cache
def _after(root: str) -> re.Pattern[str]:
    return re.compile(rf":(?={re.escape(root)}(?::|$)|{_SUBGRAPH}(?::|$))")


def thread_of_named(rest: str, wanted: str | None) -> str | None:
    """Return the thread of ``<thread>:<namespace>[:<checkpoint>]`` if the namespace is one word.

    Such a namespace looks like the end of an id, so that the key's content must show that the key is a saver's.
    """
    found = _NAMED_SUBGRAPH.search(rest, len(wanted) if wanted else 1)
    thread = rest[: found.start()] if found else ""
    return thread if thread and wanted in (None, thread) else None


def is_javascript(document: Mapping[str, Any]) -> bool:
    """Return whether JavaScript's saver wrote a document: Python's names a type in the checkpoint and writes blobs."""
    checkpoint = a_dict(document.get("checkpoint"))
    return "value" in document or ("channel_versions" in checkpoint and "type" not in checkpoint)


def lists_of_javascript(raw: RedisValue, rest: str) -> bool:
    """Return whether JavaScript's saver wrote a list of writes: it orders them by time, Python's by counting them.

    ``rest`` is what follows the kind in the name of the list, and in those of its writes.
    """
    return any(f":{rest}:" in name and score > len(raw.scores) for name, score in raw.scores.items())


def blobs(stored: SessionValues, name: str, document: Mapping[str, Any]) -> dict[str, str]:
    """Return the key of each channel's value, of a checkpoint that does not hold the values itself."""
    pieces = pieces_of(name, stored.owner.session)
    versions = a_dict(a_dict(document.get("checkpoint")).get("channel_versions"))
    if pieces is None:
        return {}
    base = f"{pieces.prefix}checkpoint_blob:{pieces.rest.rpartition(':')[0]}"
    return {channel: f"{base}:{channel}:{version}" for channel, version in versions.items()}


def deletes_own_keys(name: str) -> bool:
    """Return whether a key belongs to a saver that deletes keys by itself: a shallow one, by its name."""
    return bool(_thread_of_shallow(name))


def _thread_of_shallow(name: str) -> str:
    """Return the thread and the namespace of a shallow saver's checkpoint or list of writes; empty for other keys."""
    pieces = name_parts(name, REDIS_KINDS) or Pieces("", "", "")
    if pieces.kind not in ("checkpoint", "write_registry"):
        return ""
    ends = f"{pieces.rest}{ROOT}{_SHALLOW}" if pieces.rest.endswith(":") else pieces.rest
    return ends.removesuffix(_SHALLOW) if ends.endswith(_SHALLOW) else ""


def superseded(names: Iterable[str]) -> dict[str, float | None]:
    """Return the keys of LangGraph's checkpoints that later ones of the same thread have replaced.

    No saver renews them: they are needed to go back in time only. An id is a UUID of version 6, which begins with the
    time: it is returned for each key, in milliseconds. A channel's value has a version of its own and no time, and the
    latest checkpoint needs the last one. A shallow saver writes its only checkpoint after the writes that led to it. It
    needs no writes then and no list of them, unless a task was interrupted and has not written since.
    """
    series: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    shallow: dict[str, str] = {}
    for name in names:
        if found := _CHECKPOINT.match(name):
            series[found["thread"]].append((found["id"], name))
        elif found := _CHANNEL.match(name):
            series[found["channel"]].append((found["version"].zfill(_VERSION_DIGITS), name))
        elif thread := _thread_of_shallow(name):
            shallow[name] = thread
    newest = {key: max(order for order, _ in each) for key, each in series.items()}
    last = [(key, name) for key, each in series.items() for order, name in each if order == newest[key]]
    written = {name.rpartition(":")[0] for _, name in last if not _PENDING_NAME.search(name)}
    waiting = {key for key, name in last if _PENDING_NAME.search(name) and name.rpartition(":")[0] not in written}
    waiting |= newest.keys() - set(shallow.values())
    replaced = {
        name: _written_ms(order)
        for key, each in series.items()
        for order, name in each
        if order < newest[key] or key not in waiting
    }
    lists = {name: key for name, key in shallow.items() if "write_registry:" in name and key in newest.keys() - waiting}
    return replaced | {name: _written_ms(newest[key]) for name, key in lists.items()}


def _written_ms(order: str) -> float | None:
    """Return the time of a UUID of version 6; None for anything else."""
    digits = order.replace("-", "")
    is_timed = re.fullmatch(_UUID6, order) is not None
    return (int(digits[:12] + digits[13:16], 16) - _UUID6_BEGINS) / 10_000 if is_timed else None


def is_housekeeping(name: str) -> bool:
    """Return whether a saver deletes a key while its thread goes on: a pending write or a list of them.

    Under any prefix the ids of checkpoint and task and a number end the name of a write.
    """
    pieces = name_parts(name, ("write_keys_zset", "write_registry", "checkpoint_write"))
    return pieces is not None or _WRITE_NAME.fullmatch(name) is not None


def pieces_of(name: str, thread: str) -> Pieces | None:
    """Return the pieces of the name of a thread's key under the library's own kinds or any other prefix.

    A saver takes prefixes of the user's own for checkpoints and writes: the kind is then the word before the thread.
    """
    pieces = name_parts(name, REDIS_KINDS)
    if pieces and pieces.rest.startswith(f"{thread}:"):
        return pieces
    at = name.find(f":{thread}:")
    if at < 1:
        return None
    prefix, mark, kind = name[:at].rpartition(":")
    return Pieces(prefix + mark, kind, name[at + 1 :])


def deserialised(kind: str, encoded: str, raw: RedisValue) -> tuple[Any, list[Problem]]:
    """Return the value that a saver serialised, messages as plain objects, and the problem if it is damaged.

    Args:
        kind: The serialiser's name for the encoding: ``msgpack`` or ``json``; values of others are not read.
        encoded: The bytes in base64.
        raw: The key they come from.
    """
    data = b""
    try:
        data = base64.b64decode(encoded, validate=True)
        if kind == "json":
            return parse(data).value, []
        return (_plain(msgpack.unpack(data)), []) if kind == "msgpack" else (None, [])
    except msgpack.MsgpackFault as error:
        cause = Parsed(None, Fault(f"msgpack {error.message} at its byte {error.byte:,}", error.byte))
        return None, [corrupt(raw.name, data, cause)]
    except ValueError:
        return None, [corrupt(raw.name, raw.data, Parsed(None, Fault("not valid base64", 0)))]


def _plain(value: Any, nested: int = 0) -> Any:
    if isinstance(value, msgpack.Ext):
        return _constructed(value, nested)
    if isinstance(value, list):
        return [_plain(entry, nested) for entry in value]
    if isinstance(value, dict):
        return {key: _plain(entry, nested) for key, entry in value.items()}
    return value


def _constructed(value: msgpack.Ext, nested: int) -> Any:
    """Return a LangChain message from its extension, ``[module, class, fields, …]``; no other class is opened."""
    if value.code not in (*_PYDANTIC, _BY_KEYWORDS) or nested == MAX_NESTED:
        return None
    inner = msgpack.unpack(value.data)
    if not (isinstance(inner, list) and len(inner) >= 3 and isinstance(inner[2], dict)):
        return None
    return {"lc": 1, "id": [inner[0], inner[1]], "kwargs": _plain(inner[2], nested + 1)}


def message_items(channels: Mapping[str, Any], key: str) -> Iterator[Item]:
    """Yield the messages of a graph's state: channel ``messages``, else the first that holds some."""
    for name in sorted(channels, key=lambda channel: channel != "messages"):
        value = channels[name]
        if name == "__start__" and isinstance(value, dict):
            value = value.get("messages")  # the very first checkpoint: the input, not yet taken up
        if isinstance(value, list) and _are_messages(value, name):
            yield from messages(value, key, lambda entry, key: langchain_lacks(entry) or read_any(entry, key))
            return
    yield Note("no channel of the graph's state holds messages")


def _are_messages(entries: list[Any], channel: str) -> bool:
    """Return whether a channel holds messages; in the one of that name some may be damaged."""
    judged = [
        is_constructed(entry) or entry == {}
        or (isinstance(entry, dict) and (one_of(entry.get("type"), TYPES) or "role" in entry))
        for entry in entries
    ]  # fmt: skip
    return any(judged) if channel in ("messages", "__start__") else bool(judged) and all(judged)


def missing_parents(stored: SessionValues, parents: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each checkpoint without its parent; ``parents`` gives the parent's id by key.

    A checkpoint's id ends its key, so that one that exists and cannot be read counts as existing.
    """
    there = {name.rpartition(":")[2] for name, raw in stored.keys.items() if raw and raw.kind in DOCUMENT_KINDS}
    lost = [name for name, parent in parents.items() if parent and str(parent) not in there]
    reason = "this checkpoint's parent no longer exists: the thread cannot be rewound past it"
    for problem in few(Problem("gap", name, reason) for name in lost):
        yield problem._replace(written_ms=_written_ms(str(parents[problem.key])))


def checkpoints(
    raws: Iterable[RedisValue | None], read: Callable[[RedisValue], tuple[Any, list[Problem]]] = read
) -> tuple[dict[str, dict[str, Any]], list[Problem]]:
    """Return the checkpoints that can be read, oldest first (their ids sort by time), and the others' problems.

    ``read`` returns what a key holds and the problems; a JSON document by default.
    """
    documents: dict[str, dict[str, Any]] = {}
    problems: list[Problem] = []
    for raw in filter(None, raws):
        value, found = read(raw)
        problems += found
        checkpoint = a_dict(a_dict(value).get("checkpoint"))
        if any(isinstance(checkpoint.get(field), dict) for field in ("channel_values", "channel_versions")):
            documents[raw.name] = value
            continue
        lacks = f"it holds {kind_of(value)}"
        if isinstance(value, dict):
            lacks = missing(value, ("checkpoint",), kind=dict) or "its checkpoint has no channel_values"
        if value is not None or not (found or raw.unread_reason):
            problems.append(misshapen(raw.name, lacks))
    return dict(sorted(documents.items(), key=lambda pair: str(pair[1].get("checkpoint_id", pair[0])))), problems


def state_items(
    document: Mapping[str, Any], name: str, stored: SessionValues, blobs: Mapping[str, str] | None = None
) -> Iterator[Item]:
    """Yield the messages of a checkpoint; ``blobs`` are the keys of channels that have one of their own."""
    checkpoint = a_dict(document.get("checkpoint"))
    yield from newer_schema(checkpoint, name)
    values = dict(a_dict(checkpoint.get("channel_values")))
    for channel, blob in (blobs or {}).items():
        if raw := stored.get(blob):
            stored_value = peek(raw)
            text = text_or_none(stored_value.get("blob"))  # Python's before 0.1: a text of JSON
            value = parse(text.encode("utf-8", "surrogatepass")).value if text else stored_value.get("value")
            values[channel] = value
    yield from message_items(values, name)


def newer_schema(checkpoint: Mapping[str, Any], key: str) -> Iterator[Problem]:
    """Yield a problem for a checkpoint in a version of LangGraph's format that cannot be read completely."""
    version = checkpoint.get("v")
    if isinstance(version, int) and version > KNOWN_VERSION:
        reason = f"the checkpoint's format has version {version}, and those up to {KNOWN_VERSION} can be read"
        yield Problem("unknown_schema", key, reason)


def write_problems(writes: Mapping[str, RedisValue | None]) -> Iterator[Problem]:
    """Yield what is wrong with pending writes: those that a list names and that do not exist, and damaged ones."""
    for name, raw in writes.items():
        if raw is None:
            yield Problem("dangling", name, "a list of pending writes names this write, which no longer exists")
        else:
            yield from read_with(raw, "channel")[1]
