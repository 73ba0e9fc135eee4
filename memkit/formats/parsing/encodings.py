"""What a payload of an unknown store looks like: its encoding, layer by layer, without trusting a byte of it.

Nothing is ever unpickled: ``pickletools`` names the opcodes. Decompression stops after 64 KB, so a bomb stays folded.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import pickletools
import re
import zlib
from collections import Counter
from collections.abc import Callable

from memkit.formats.parsing import msgpack
from memkit.formats.parsing.bounded_json import parse

MAX_LAYERS = 4
PEEK_BYTES = 64 << 10
HEX_BYTES = 256
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{16,}={0,2}")
_OPCODES = 2_000
_OLD_PICKLES = b"(]})cVSUXILFG"
"""What a pickle of protocol 0 or 1 of more than one plain value begins with: a mark, a container, a class, a scalar."""


def encoding_of(data: bytes) -> str:
    """Return the guessed encoding, outermost layer first: ``json``, ``gzip > json``, ``pickle``."""
    layers: list[str] = []
    while True:
        name, inner = _layer(data, outermost=not layers)
        layers.append(name)
        if not inner or len(layers) == MAX_LAYERS:
            return " > ".join(layers)
        data = inner


def is_packed(encoding: str) -> bool:
    """Return whether an encoding hides its text from a reader of the bytes: compressed, encoded or binary."""
    return encoding not in ("json", "text", "empty")


def _layer(data: bytes, *, outermost: bool) -> tuple[str, bytes]:
    if not data:
        return "empty", b""
    for name, magic, unpack in _COMPRESSED:
        if data.startswith(magic):
            inner = unpack(data[:PEEK_BYTES])
            if inner is not None:
                return name, inner
    if data[:1] in b'{["' and _is_json(data, outermost=outermost):
        return "json", b""
    return _plain(data)


def _plain(data: bytes) -> tuple[str, bytes]:
    if _is_pickle(data):
        return "pickle", b""
    if len(data) <= PEEK_BYTES * 16 and _BASE64.fullmatch(data):
        inner = _unbase64(data[: PEEK_BYTES // 4 * 4])
        if inner and _says_something(inner):
            return "base64", inner
    if _is_text(data):
        return "text", b""
    if msgpack.looks_like(data):
        return "msgpack", b""
    return ("protobuf?", b"") if _is_protobuf(data) else ("binary", b"")


def _is_json(data: bytes, *, outermost: bool) -> bool:
    # An inner layer may have been cut by PEEK_BYTES: its beginning is all there is to go by.
    return parse(data).fault is None or (not outermost and len(data) >= PEEK_BYTES)


def _is_text(data: bytes) -> bool:
    try:
        text = data[:PEEK_BYTES].decode()
    except UnicodeDecodeError as error:
        if len(data) <= PEEK_BYTES or error.start < PEEK_BYTES - 4:
            return False
        text = data[: error.start].decode()
    return not any(mark < " " and mark not in "\t\n\r\x1b" for mark in text[:4096])


def _unbase64(data: bytes) -> bytes:
    try:
        return base64.b64decode(data.translate(bytes.maketrans(b"-_", b"+/")) + b"=" * (-len(data) % 4))
    except binascii.Error:
        return b""


def _says_something(inner: bytes) -> bool:
    """Return whether the inside of what may be base64 is more than noise (a hex digest is base64 too)."""
    name, _ = _layer(inner, outermost=True)
    return name in ("json", "gzip", "zlib", "zstd", "lz4", "pickle", "msgpack") and len(inner) > 8


def _unzlib(data: bytes, wbits: int) -> bytes | None:
    folded = zlib.decompressobj(wbits)
    try:
        inner = folded.decompress(data, PEEK_BYTES)
    except zlib.error:
        return None
    return inner if inner or folded.eof else None


def _by_library(module: str, unpack: Callable[[object, bytes], bytes]) -> Callable[[bytes], bytes | None]:
    """Return a decompressor that answers with nothing when its library is not installed."""

    def peek(data: bytes) -> bytes | None:
        try:
            return unpack(importlib.import_module(module), data)
        except ImportError:
            return b""
        except Exception:  # noqa: BLE001 - each library raises its own kind of error for bytes that are not its own
            return None

    return peek


def _zstd(library: object, data: bytes) -> bytes:
    decompressor = library.ZstdDecompressor().decompressobj()  # type: ignore[attr-defined]
    return bytes(decompressor.decompress(data[:4096]))[:PEEK_BYTES]


def _lz4(library: object, data: bytes) -> bytes:
    return bytes(library.LZ4FrameDecompressor().decompress(data, PEEK_BYTES))  # type: ignore[attr-defined]


_COMPRESSED: tuple[tuple[str, bytes, Callable[[bytes], bytes | None]], ...] = (
    ("gzip", b"\x1f\x8b", lambda data: _unzlib(data, 31)),
    ("zlib", b"\x78", lambda data: _unzlib(data, 15)),
    ("zstd", b"\x28\xb5\x2f\xfd", _by_library("zstandard", _zstd)),
    ("lz4", b"\x04\x22\x4d\x18", _by_library("lz4.frame", _lz4)),
)


def _is_pickle(data: bytes) -> bool:
    """Return whether the bytes are a pickle: by its frame from protocol 2 on, before that by its opcodes to the end."""
    if len(data) <= 2 or not (data[-1:] == b"." or len(data) > PEEK_BYTES):
        return False
    return (data[0] == 0x80 and 2 <= data[1] <= 5) or (data[0] in _OLD_PICKLES and _is_old_pickle(data))


def _is_old_pickle(data: bytes) -> bool:
    """Return whether bytes, which may be words, are a pickle of protocol 0 or 1: such a one fills a memo."""
    found = pickle_opcodes(data)
    ended = found["STOP"] == 1 or len(data) > PEEK_BYTES or found.total() == _OPCODES
    return ended and bool(found["PUT"] or found["BINPUT"])


def pickle_opcodes(data: bytes) -> Counter[str]:
    """Return how often each opcode occurs in the first 64 KB of a pickle, which is disassembled and never loaded."""
    found: Counter[str] = Counter()
    try:
        for opcode, _argument, _at in pickletools.genops(data[:PEEK_BYTES]):
            found[opcode.name] += 1
            if found.total() >= _OPCODES:
                break
    except (ValueError, IndexError, OverflowError, EOFError):
        pass
    return found


def _is_protobuf(data: bytes) -> bool:
    """Return whether the bytes read as protobuf fields, end to end (the first 64 of them for long payloads)."""
    at, fields = 0, 0
    while at < len(data) and fields < 64:
        tag, at = _varint(data, at)
        if tag <= 7 or tag >> 3 > 4096 or at < 0:
            return False
        at = _skip(data, at, tag & 7)
        if at < 0:
            return False
        fields += 1
    return fields > 0 and at <= len(data)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            return 0, -1
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    return 0, -1


def _skip(data: bytes, at: int, wire: int) -> int:
    """Return where the field ends, or -1."""
    if wire == 0:
        return _varint(data, at)[1]
    if wire == 2:
        length, at = _varint(data, at)
        end = at + length if at >= 0 else -1
    else:
        end = {1: at + 8, 5: at + 4}.get(wire, -1)
    return end if end <= len(data) else -1


def hex_view(data: bytes) -> str:
    """Return the first 256 bytes as hex and ASCII, sixteen a line."""
    lines = []
    for at in range(0, min(len(data), HEX_BYTES), 16):
        row = data[at : at + 16]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{at:08x}  {row.hex(' '):<47}  {shown}")
    return "\n".join(lines)
