"""Open a payload layer by layer: compression, base64, msgpack, JSON, and one JSON object a line.

Serialised objects (pickle, Java, PHP) are named and never loaded. Every step is bounded: a compressed payload is not
unfolded beyond ``MAX_OPEN_BYTES``.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import re
import zlib
from typing import Any, NamedTuple

from memkit.formats.model import Problem
from memkit.formats.parsing import msgpack
from memkit.formats.parsing.bounded_json import parse
from memkit.formats.parsing.documents import corrupt, read
from memkit.formats.parsing.encodings import encoding_of
from memkit.readonly.values import DOCUMENT_KINDS, RedisValue

MAX_OPEN_BYTES = 8 << 20
"""A chat of 8 MB has some 10,000 messages of a model's size; 64 MB are the most that an inspection may take."""
MAX_LINES = 20_000
_MAX_LAYERS = 4
_PREFIX = re.compile(rb"[\w.-]{1,40}[:|#](?=[{\[])")
"""A version, a time or an id before a JSON document: members of a sorted set are made unique so."""


class Opened(NamedTuple):
    """What a payload holds (None if that is unknown), its encoding, outermost layer first, and whether it was cut."""

    value: Any
    encoding: str
    cut: bool = False


def open_payload(data: bytes) -> Opened:
    """Return the value in a payload.

    Args:
        data: The bytes as Redis has them.
    """
    if data[:1] in (b"{", b"["):
        parsed = parse(data)
        if parsed.fault is None:
            return Opened(parsed.value, "json")
        lines = _lines(data)
        return Opened(lines, "json lines") if lines else Opened(None, "text")
    encoding = encoding_of(data)
    if encoding == "text" and (prefix := _PREFIX.match(data)) and (parsed := parse(data[prefix.end() :])).fault is None:
        return Opened(parsed.value, "prefix > json")
    for layer in encoding.split(" > ")[:_MAX_LAYERS]:
        unfolded = _unfolded(layer, data)
        if unfolded is None:
            break
        data = unfolded
    if len(data) > MAX_OPEN_BYTES:
        return Opened(None, encoding, cut=True)
    return Opened(_value(data, encoding.rpartition(" > ")[2]), encoding)


def _unfolded(layer: str, data: bytes) -> bytes | None:
    """Return the inside of a compressed or encoded layer, at most one byte over the limit; None of any other."""
    try:
        if layer in ("gzip", "zlib"):
            return zlib.decompressobj(31 if layer == "gzip" else 15).decompress(data, MAX_OPEN_BYTES + 1)
        if layer == "json string":
            inner = parse(data).value
            return inner.encode("utf-8", "surrogatepass") if isinstance(inner, str) else None
        if layer == "prefix":
            return re.sub(rb"^[\w.-]+[:|$]", b"", data)
        if layer == "base64":
            return base64.b64decode(data.translate(bytes.maketrans(b"-_", b"+/")) + b"=" * (-len(data) % 4))
        if layer == "zstd":
            reader = importlib.import_module("zstandard").ZstdDecompressor().stream_reader(data)
            return bytes(reader.read(MAX_OPEN_BYTES + 1))
        if layer == "lz4":
            frame = importlib.import_module("lz4.frame").LZ4FrameDecompressor()
            return bytes(frame.decompress(data, MAX_OPEN_BYTES + 1))
    except (ImportError, zlib.error, binascii.Error, ValueError, EOFError, RuntimeError):
        return None
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("zstandard", "lz4"):
            return None
        raise
    return None


def _value(data: bytes, encoding: str) -> Any:
    if data[:1] in (b"{", b"[", b'"'):
        parsed = parse(data)
        return _lines(data) if parsed.fault else parsed.value
    try:
        return msgpack.unpack(data) if encoding == "msgpack" else None
    except msgpack.MsgpackFault:
        return None


def _lines(data: bytes) -> list[Any] | None:
    """Return the objects of JSON lines; None if one of the first lines is none."""
    lines = [line for line in data.split(b"\n", MAX_LINES) if line.strip()]
    if len(lines) < 2 or any(parse(line).fault for line in lines[:3]):
        return None
    return [parsed.value for line in lines if not (parsed := parse(line)).fault]


def read_document(raw: RedisValue) -> tuple[Any, list[Problem]]:
    """Return the value of a document, and the problems if it is damaged; None if it is not JSON or msgpack."""
    if raw.kind not in DOCUMENT_KINDS or raw.unread_reason or raw.data[:1] == b"{":
        return read(raw)
    opened = open_payload(raw.data)
    if opened.value is None and opened.encoding in ("text", "empty", "binary"):
        return None, [corrupt(raw.name, raw.data, parse(raw.data))]
    return opened.value, []
