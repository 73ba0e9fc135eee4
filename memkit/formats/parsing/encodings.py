"""Name a payload's encodings, layer by layer, and report what a format itself proves to be damaged.

Nothing is ever unpickled: ``pickletools`` names the opcodes. Only the first 64 KB of a compressed payload are kept, so
a decompression bomb stays small. A fault needs proof by the format: an end that comes too early, or a checksum that
fails. Bytes that merely look unusual have no fault.
"""

import ast
import base64
import binascii
import codecs
import importlib
import io
import json
import pickletools
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice, pairwise
from typing import NamedTuple

from memkit.formats.parsing import msgpack
from memkit.formats.parsing.bounded_json import json_start, parse

MAX_LAYERS = 4
PEEK_BYTES = 64 << 10
MOST_CHECKED_BYTES = 64 << 20
"""A payload is decompressed up to here to find its end; a bomb of 1 GB takes 0.05 s."""
HEX_BYTES = 256
ENCRYPTED = "fernet (encrypted)"

MOST_DOCUMENTS = 10_000
"""At most this many JSON documents of one payload are read: 0.03 s."""
MOST_OPCODES = 500_000
"""At most this much of a pickle is disassembled: 0.2 s."""
FEWEST_OPCODES = 8
"""Random bytes begin with this many valid pickle opcodes in one of 40,000 cases (68 of 256 bytes are opcodes)."""
MOST_FRAME_BYTES = 1 << 24
"""Python's pickler ends a frame at 64 KB, or after the object that exceeds it."""
FEWEST_INFLATED_BYTES = 8
"""Random bytes have a zlib header and inflate to this much readable text in one of ten million cases."""
FEWEST_NAMES = 2
"""Two names of fields in broken msgpack maps: random bytes hold them in one of ten million cases."""

_GZIP_HEAD_BYTES, _FRAME_HEAD_BYTES = 10, 11
_HEAD_BYTES = 1 << 10
_OPCODES = 2_000
_OLD_PICKLES = b"(]})cVSUXILFG"
"""What a pickle of protocol 0 or 1 of more than one plain value begins with: a mark, a container, a class, a scalar."""
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{16,}={0,2}")
_BASE64_HEAD_BYTES = 64
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_FERNET = re.compile(rb"gAAAAA[A-Za-z0-9_-]{60,}={0,2}")
_UTF_16_START = re.compile(rb"\xff\xfe|\xfe\xff|(\0?)[\[{]\0[\s\"\[{\]}]")
"""A byte order mark, or the beginning of JSON, by which the order of the bytes is known without one."""
_PREFIXED = re.compile(rb"[A-Za-z][A-Za-z0-9_.-]{0,15}[:|$]")
_PHP = re.compile(rb"(?:\w{1,99}\|)?(?:[aO]:\d+:[{\"]|s:\d+:\")|\w{1,99}\|(?:[bdi]:[\d.-]+|N);")
"""What serialize() writes, or session_encode(): the name of each value before it."""
_JSON_OBJECT = re.compile(r'[\s\[]*\{\s*"(?:[^"\\]|\\.)*"\s*:|"[\s\[]*\{\s*\\"')
"""The beginning of a JSON object, or of one in a JSON string: text and templates have no quoted name there."""
_JSON_START = re.compile(rb'\s*[\[{]\s*["\]}]')
_BETWEEN = re.compile(r"[\s\x1e\ufeff]*(?=\S)")
_REPR = re.compile(rb"[\[({]+\s*'|\[?\w{0,99}Message\w{0,99}\(\w+=")
_STRINGIFIED = re.compile(
    r"(\[object [A-Z]\w*\],?)+"  # JavaScript
    r"|<[\w.]+( [\w.<>]+)* at 0x[0-9a-f]+>|\[<[\w. ]+ at 0x[0-9a-f]+>(, <[\w. ]+ at 0x[0-9a-f]+>)*\]"  # Python
    r"|#<[A-Z][\w:]*:0x[0-9a-f]+.*>"  # Ruby
    r"|System\.[\w.]*[A-Z]\w*(`\d\[.+\]|\[\])"  # .NET
    r"|(\[L)?([a-z]\w*\.)+[A-Z]\w*;?@[0-9a-f]+"  # Java
    r"|\[([a-z]\w*\.)+[A-Z][\w$]*@[0-9a-f]+(, ([a-z]\w*\.)+[A-Z][\w$]*@[0-9a-f]+)*\]"
)
STRINGIFIED_BYTES = 1 << 10
_LOST_TEXT = re.compile(rb'[:\[,]\s*"\[object [A-Z]\w*\]"')
_REPR_NODES = (ast.Dict, ast.List, ast.Tuple, ast.Set, ast.Constant, ast.UnaryOp, ast.unaryop, ast.expr_context)
_REPR_CALLS = (ast.Call, ast.keyword, ast.Attribute, ast.Name)
"""A repr holds literals, and calls such as ``datetime.datetime(2026, 11, 3)``."""
_REPLACEMENT = "\ufffd".encode()
_REPLACED_MAGIC = re.compile(b"%b[\2-\5]|%b%b\0\5" % (3 * (_REPLACEMENT,)))
"""What the first bytes of a pickle and of a serialized Java object become."""
FEWEST_REPLACED, REPLACED_SHARE = 8, 0.2
"""Compressed bytes that are decoded as UTF-8 become replacement characters to 40 %; text has hardly any."""
_PHP_TOKEN = re.compile(rb"N;|[bidrR]:[^;]*;|s:(\d+):\"|a:\d+:\{|O:\d+:\"[^\"]*\":\d+:\{|\}")
_CUT_PHP_TOKEN = re.compile(rb"[abdiNOrRs](:[\d.eE+-]*)?(:\"?)?|O:\d+:[^:]*(:\d*)?:?|")
_CUT_WORD = re.compile(r"-?|t|tr|tru|f|fa|fal|fals|n|nu|nul")
_NAMED = frozenset(("json", "gzip", "zlib", "zstd", "lz4", "pickle", "msgpack", "java"))


class Encoding(NamedTuple):
    """The layers of a payload, outermost first, and ``fault``: what a format proves to be wrong, or nothing.

    ``inner`` are the bytes below the layers that could be opened, of compressed ones no more than were asked for.
    """

    layers: tuple[str, ...]
    fault: str = ""
    inner: bytes = b""

    def __str__(self) -> str:
        return " > ".join(self.layers)


class _Layer(NamedTuple):
    """One layer: its name, what it holds, what is wrong with it; ``whole`` False: only the beginning was opened."""

    name: str
    inner: bytes = b""
    fault: str = ""
    whole: bool = True


_Read = Callable[[bytes, int], _Layer | None]
"""Opens a layer: its bytes, and how many of those inside are kept."""


def examine(data: bytes, *, keep_bytes: int = PEEK_BYTES) -> Encoding:
    """Return a payload's encoding and what is proven to be wrong with it.

    Args:
        data: The payload's bytes; they may be hostile.
        keep_bytes: How much of a compressed layer is kept; the rest is only checked.

    Returns:
        The layers, outermost first: ``("gzip", "json")``, ``("pickle",)``.
    """
    layers: list[str] = []
    whole = True
    while True:
        layer = _layer(data, keep_bytes, whole=whole)
        layers.append(layer.name)
        if layer.fault or not layer.inner or len(layers) == MAX_LAYERS:
            # Of a large layer only the beginning is kept: that it ends early is not a fault of what it holds.
            fault = f"{layer.name} {layer.fault}" if layer.fault and whole else ""
            return Encoding(tuple(layers), fault, layer.inner or data)
        data, whole = layer.inner, whole and layer.whole


def encoding_of(data: bytes) -> str:
    """Return the guessed encoding, outermost layer first: ``json``, ``gzip > json``, ``pickle``."""
    return str(examine(data))


def unreadable_cause(data: bytes) -> str:
    """Return why a known store's decoder cannot read a payload.

    ``encoding_changed`` for one that is whole in another known encoding, ``partly_decoded`` for other text or bytes,
    and ``corrupt`` for what begins like the store's JSON, or what its own format proves to be damaged.
    """
    if _JSON_START.match(data):
        return "corrupt"
    found = examine(data)
    if found.fault or found.layers[-1] in ("stringified object", "empty"):
        return "corrupt"
    if found.layers[0] in ("text", "binary"):
        return "partly_decoded" if parse(data).fault else "corrupt"  # null, or a number
    return "corrupt" if found.layers[0] == "json" else "encoding_changed"


def has_lost_text(data: bytes) -> bool:
    """Return whether a text in JSON is JavaScript's name of an object; a text that speaks of it has more words."""
    return b'"[object ' in data and _LOST_TEXT.search(data) is not None  # the expression takes 10 ns a byte


def looks_like(data: bytes) -> str:
    """Return what a damaged payload looks like, as the end of a sentence; empty if that explains nothing."""
    looks = encoding_of(data)
    return "" if looks in ("text", "binary", "json", "empty") else f"; it looks like {looks}"


def _layer(data: bytes, keep_bytes: int = PEEK_BYTES, *, whole: bool = True) -> _Layer:
    if not data:
        return _Layer("empty")
    if found := _utf_16(data):
        return found
    replaced = data[:PEEK_BYTES].count(_REPLACEMENT)
    if _REPLACED_MAGIC.match(data) or replaced >= max(FEWEST_REPLACED, REPLACED_SHARE * (len(data) - 2 * replaced)):
        return _Layer("text", fault="with replacement characters: bytes were decoded as text, and are lost")
    if json_start(data) in (b"{", b"[", b'"') and (found := _document(data, whole=whole)):
        return found
    return _text_layer(data) if _is_text(data) else _binary_layer(data, keep_bytes)


def _utf_16(data: bytes) -> _Layer | None:
    """Return the layer of text in UTF-16, as .NET and Java may write it."""
    found = _UTF_16_START.match(data)
    codec = "utf-16" if not found or found[1] is None else "utf-16-be" if found[1] else "utf-16-le"
    inner = ((found and _decoded(data, codec)) or "").encode()
    return _Layer("utf-16", inner) if inner and _is_text(inner) else None


def _document(data: bytes, *, whole: bool) -> _Layer | None:
    """Return the layer of what begins like JSON; None for other text."""
    parsed = parse(data)
    if parsed.fault is None:
        inner = parsed.value.encode("utf-8", "surrogatepass") if isinstance(parsed.value, str) else b""
        if _is_document(inner):
            return _Layer("json string", inner)
        return _Layer("json")
    if parsed.fault.byte is None or (not whole and _is_text(data)):
        return _Layer("json")  # too large to be parsed, or the beginning of a larger document
    if _REPR.match(data) and _is_repr(data):
        return _Layer("python repr")
    text = _decoded(data)
    return None if text is None else _documents(text)


def _is_document(data: bytes) -> bool:
    """Return whether this is a JSON object or array, or one in any number of JSON strings."""
    value = parse(data).value if json_start(data) in (b"{", b"[", b'"') else None
    nested = isinstance(value, str) and _is_document(value.encode("utf-8", "surrogatepass"))
    return nested or isinstance(value, dict | list)


def _is_repr(data: bytes) -> bool:
    """Return whether the bytes are the Python repr of a container or of an object with fields."""
    if len(data) > PEEK_BYTES:
        return data.rstrip()[-1:] in (b"}", b"]", b")")
    tree = _expression(data)
    nodes = list(ast.walk(tree)) if tree else []
    names, heads = (sum(isinstance(one, kind) for one in nodes) for kind in (ast.Name, ast.Call | ast.Attribute))
    known = all(isinstance(one, (*_REPR_NODES, *_REPR_CALLS)) for one in nodes)
    return known and names <= heads and isinstance(tree, ast.Dict | ast.List | ast.Tuple | ast.Call)


def _bytes_repr(data: bytes) -> _Layer | None:
    tree = _expression(data) if data[:2] in (b"b'", b'b"') and len(data) <= PEEK_BYTES else None
    inner = tree.value if isinstance(tree, ast.Constant) else None
    return _Layer("python repr", inner) if isinstance(inner, bytes) and _layer(inner).name in _NAMED else None


def _expression(data: bytes) -> ast.expr | None:
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(data.decode(), mode="eval").body
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _documents(text: str) -> _Layer | None:
    """Return the layer of several JSON documents, or of one that ends early; None for other text."""
    decoder, at, value = json.JSONDecoder(), 0, None
    for _ in range(MOST_DOCUMENTS):
        found = _BETWEEN.match(text, at)
        if not found:
            break
        at = found.end()
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            cut = _ends_early(error, text) and (isinstance(value, dict) or _JSON_OBJECT.match(text, at))
            return _Layer("json", fault="ends early") if cut else None
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict | list):
            return None
    return _Layer("ndjson")


def _ends_early(error: json.JSONDecodeError, text: str) -> bool:
    """Return whether all that a JSON parser complains about is the end."""
    rest = text[error.pos :].rstrip()
    if error.msg.startswith("Unterminated string"):
        return True
    return _CUT_WORD.fullmatch(rest) is not None or (error.msg.startswith("Invalid \\") and len(rest) < len(r"\u1234"))


def _decoded(data: bytes, codec: str = "utf-8", *, whole: bool = False) -> str | None:
    """Return a text, unless ``whole`` without a last character that is incomplete; None for other bytes."""
    with suppress(UnicodeDecodeError):
        return codecs.getincrementaldecoder(codec)().decode(data, final=whole)
    return None


def _is_text(data: bytes) -> bool:
    text = _decoded(data[:PEEK_BYTES], whole=len(data) <= PEEK_BYTES)
    return text is not None and not any(mark < " " and mark not in "\t\n\r\x1b" for mark in text[:4096])


def _text_layer(data: bytes) -> _Layer:
    if len(data) < STRINGIFIED_BYTES and _STRINGIFIED.fullmatch(data.decode(errors="replace").strip()):
        return _Layer("stringified object", fault="holds the name of an object instead of its content")
    if _FERNET.fullmatch(data):
        return _Layer(ENCRYPTED)
    if data[0] in _OLD_PICKLES and _is_old_pickle(data):
        return _Layer("pickle")
    if _REPR.match(data) and _is_repr(data):
        return _Layer("python repr")
    if _PHP.match(data):
        return _Layer("php", fault="ends early" if _php_ends_early(data) else "")
    if found := _bytes_repr(data):
        return found
    prefix = _PREFIXED.match(data)
    inner = data[prefix.end() :] if prefix else b""
    if _FERNET.fullmatch(inner) or (inner and _unbase64(inner)):
        return _Layer("prefix", inner)
    return _unbase64(data) or _Layer("text")


def _php_ends_early(data: bytes) -> bool:
    """Return whether PHP's serialize() format ends inside a value: it states lengths, and arrays end with a brace."""
    at = depth = 0
    while at < len(data):
        token = _PHP_TOKEN.match(data, at)
        if not token:
            return bool(_CUT_PHP_TOKEN.fullmatch(data, at))
        at = token.end() + (int(token[1]) + len('";') if token[1] else 0)
        depth += token[0].endswith(b"{") - (token[0] == b"}")
        if not depth:
            return at > len(data)
    return True


def _unbase64(data: bytes) -> _Layer | None:
    """Return base64 of something that can be named: a digest in hex is base64 too, and holds nothing."""
    if len(data) > MOST_CHECKED_BYTES or not _begins_named(data) or not _BASE64.fullmatch(data):
        return None
    letters = data.rstrip(b"=").translate(_URL_SAFE)
    left = len(letters) % 4  # no number of bytes becomes 4 n + 1 letters
    try:
        inner = base64.b64decode(letters[:-1] if left == 1 else letters + b"=" * (-left % 4))
    except binascii.Error:
        return None
    layer = _layer(inner)
    if len(inner) <= 8 or layer.name not in _NAMED:
        return None
    return _Layer("base64", fault="ends early") if left == 1 else _Layer("base64", inner)


def _begins_named(data: bytes) -> bool:
    """Return whether base64 begins like something that can be named, which is known before all of it is decoded."""
    letters = data[:_BASE64_HEAD_BYTES].rstrip(b"=").translate(_URL_SAFE)
    try:
        head = base64.b64decode(letters[: len(letters) // 4 * 4], validate=True)
    except binascii.Error:
        return False
    if not head:  # too short to be taken for base64
        return False
    is_binary = any(head.startswith(magic) for magic, _ in _MAGIC) or msgpack.begins_container(head)
    return is_binary or head[0] in _OLD_PICKLES or json_start(head) in (b"", b"{", b"[", b'"')


def _binary_layer(data: bytes, keep_bytes: int) -> _Layer:
    for magic, read in _MAGIC:
        if data.startswith(magic) and (found := read(data, keep_bytes)):
            return found
    if msgpack.begins_container(data):
        try:
            msgpack.unpack(data)
            return _Layer("msgpack")
        except msgpack.MsgpackFault as fault:
            if fault.message == "cut short" and fault.names >= FEWEST_NAMES:
                return _Layer("msgpack", fault="ends early")
    prefix = _PREFIXED.match(data)  # a short version or name before bytes with a magic number
    inner = data[prefix.end() :] if prefix else b""
    if any(inner.startswith(magic) for magic, _ in _MAGIC):
        return _Layer("prefix", inner)
    if data[0] in _OLD_PICKLES and _is_old_pickle(data):
        return _Layer("pickle")
    if (found := _deflate("deflate", -15)(data, keep_bytes)) and not found.fault and _is_text(found.inner):
        return found
    if 0xA1 <= data[0] <= 0xB7 and _cbor_end(data, 0, 0) == len(data):
        return _Layer("cbor")
    return _Layer("binary")


def _deflate(name: str, wbits: int) -> _Read:
    """Return a reader of zlib's formats, which checks the whole payload and keeps its beginning."""

    def read(data: bytes, keep_bytes: int) -> _Layer | None:
        stream, inner, size, fault = zlib.decompressobj(wbits), bytearray(), 0, ""
        try:
            head, view = min(_HEAD_BYTES, len(data)), memoryview(data)
            # Small steps first: zlib keeps nothing of a step that fails.
            steps = (*range(0, head, 16), *range(head, len(data), PEEK_BYTES), len(data))
            for begin, end in pairwise(steps):
                chunk = stream.decompress(view[begin:end], PEEK_BYTES)
                while chunk:
                    inner += chunk[: keep_bytes - len(inner)]
                    size += len(chunk)
                    chunk = stream.decompress(stream.unconsumed_tail, PEEK_BYTES)
                if stream.eof or size > MOST_CHECKED_BYTES:
                    break
            else:
                fault = "ends early"
        except zlib.error as error:
            fault = "fails its checksum" if "check" in str(error) else "does not decompress to its end"
        if not fault:
            # Without a header, the end of the payload and so much inside it prove the format.
            proven = wbits > 0 or (stream.eof and not stream.unused_data and size >= FEWEST_INFLATED_BYTES)
            return _Layer(name, bytes(inner), whole=len(inner) < keep_bytes) if proven else None
        named = len(inner) >= FEWEST_INFLATED_BYTES and _layer(bytes(inner), whole=False).name != "binary"
        return _Layer(name, fault=fault) if named or (wbits > 15 and len(data) > _GZIP_HEAD_BYTES) else None

    return read


def _zstd(data: bytes, keep_bytes: int) -> _Layer:
    """Walk the blocks of a zstd frame (RFC 8878, 3.1.1)."""
    head, window_code = data[4:6].ljust(2, b"\0")
    single = bool(head & 0x20)
    size_bytes = (int(single), 2, 4, 8)[head >> 6]
    at = 5 + (not single) + (0, 1, 2, 4)[head & 3] + size_bytes
    if head & 0x08 or len(data) < at:
        return _Layer("zstd?")
    if single:
        window = int.from_bytes(data[at - size_bytes : at], "little") + (256 if size_bytes == 2 else 0)
    else:
        window = (1 << 10 + (window_code >> 3)) * (8 + (window_code & 7)) // 8
    last = False
    while not last:
        block = int.from_bytes(data[at : at + 3].ljust(3, b"\0"), "little")
        kind, size = block >> 1 & 3, block >> 3
        if at + 3 <= len(data) and (kind == 3 or size > min(window, 128 << 10)):
            return _Layer("zstd?")
        at += 3 + (1 if kind == 1 else size)
        if at > len(data):
            return _Layer("zstd", fault="ends early")
        last = bool(block & 1)
    if at + (4 if head & 4 else 0) > len(data):
        return _Layer("zstd", fault="ends early")
    # With the id of a dictionary in its head, a frame cannot be decompressed without that.
    return _Layer("zstd") if head & 3 else _opened("zstd", "zstandard", data, keep_bytes)


def _lz4(data: bytes, keep_bytes: int) -> _Layer:
    """Walk the blocks of an lz4 frame (the frame format's description, 1.6.1)."""
    flags, size_code = data[4:6].ljust(2, b"\0")
    at = 7 + (8 if flags & 8 else 0) + (4 if flags & 1 else 0)
    if flags >> 6 != 1 or flags & 2 or size_code & 0x8F or not 4 <= size_code >> 4 <= 7:
        return _Layer("lz4?")
    while True:
        if at + 4 > len(data):
            return _Layer("lz4", fault="ends early")
        size = int.from_bytes(data[at : at + 4], "little") & 0x7FFFFFFF
        if size > 1 << (8 + 2 * (size_code >> 4)):
            return _Layer("lz4?")
        at += 4
        if not size:
            break
        at += size + (4 if flags & 16 else 0)
    if at + (4 if flags & 4 else 0) > len(data):
        return _Layer("lz4", fault="ends early")
    return _Layer("lz4") if flags & 1 else _opened("lz4", "lz4.frame", data, keep_bytes)


def _opened(name: str, module: str, data: bytes, keep_bytes: int) -> _Layer:
    """Return a complete frame with its content, if the library for it is installed."""
    try:
        library = importlib.import_module(module)
    except ImportError:
        return _Layer(name)
    try:
        inner = library.open(io.BytesIO(data), "rb").read(keep_bytes)
    except Exception:  # noqa: BLE001 - each library has its own errors; the frame's blocks were complete
        return _Layer(name, fault="does not decompress to its end")
    return _Layer(name, inner, whole=len(inner) < keep_bytes)


def _pickle(data: bytes, _keep_bytes: int) -> _Layer | None:
    """Return the layer of a pickle of protocol 2 to 5, by its opcodes."""
    if len(data) < 3 or not 2 <= data[1] <= 5:
        return None
    # From protocol 4 on a frame states its length; of random bytes one in 10^14 has such a head.
    if data[2:3] == b"\x95" and len(data) - _FRAME_HEAD_BYTES < int.from_bytes(data[3:11], "little") < MOST_FRAME_BYTES:
        return _Layer("pickle", fault="ends early")
    stream, count = io.BytesIO(data), 0
    for count, name in enumerate(_opcodes(stream), 1):
        if count == MOST_OPCODES:
            return _Layer("pickle")
        if name == "STOP":
            return _Layer("pickle") if stream.tell() == len(data) else None
    return _Layer("pickle", fault="ends early") if not stream.read(1) and count >= FEWEST_OPCODES else None


def _opcodes(pickled: bytes | io.BytesIO) -> Iterator[str]:
    """Yield the names of the opcodes up to the first that is invalid or cut."""
    with suppress(ValueError, IndexError, OverflowError, EOFError):
        for opcode, _argument, _at in pickletools.genops(pickled):
            yield opcode.name


_MAGIC: tuple[tuple[bytes, _Read], ...] = (
    (b"\x1f\x8b\x08", _deflate("gzip", 31)),
    (b"\x78", _deflate("zlib", 15)),
    (b"\x28\xb5\x2f\xfd", _zstd),
    (b"\x04\x22\x4d\x18", _lz4),
    (b"\x80", _pickle),
    (b"\xac\xed\x00\x05", lambda _, __: _Layer("java")),
    (b"\x04\x08{", lambda _, __: _Layer("ruby marshal")),
)


def _cbor_end(data: bytes, at: int, depth: int) -> int:
    """Return where a CBOR item ends (RFC 8949; definite lengths only), or -1."""
    if not 0 <= at < len(data) or depth > MAX_LAYERS * MAX_LAYERS:
        return -1
    major, info = data[at] >> 5, data[at] & 31
    at += 1
    if info > 27:
        return -1
    value = info
    if info > 23:
        width = 1 << (info - 24)
        value, at = int.from_bytes(data[at : at + width], "big"), at + width
    if major in (0, 1, 7):
        return at if at <= len(data) else -1
    if major in (2, 3):
        return at + value if at + value <= len(data) else -1
    for _ in range(min(len(data), {4: value, 5: 2 * value, 6: 1}[major])):
        at = _cbor_end(data, at, depth + 1)
        if at < 0:
            return -1
    return at


def _is_old_pickle(data: bytes) -> bool:
    """Return whether bytes, which may be words, are a pickle of protocol 0 or 1: such a one fills a memo."""
    found = pickle_opcodes(data)
    ended = found["STOP"] == 1 or len(data) > PEEK_BYTES or found.total() == _OPCODES
    return data[-1:] == b"." and ended and bool(found["PUT"] or found["BINPUT"])


def pickle_opcodes(data: bytes) -> Counter[str]:
    """Return how often each opcode occurs in the first 64 KB of a pickle, which is disassembled and never loaded."""
    return Counter(islice(_opcodes(data[:PEEK_BYTES]), _OPCODES))


def hex_view(data: bytes) -> str:
    """Return the first 256 bytes as hex and ASCII, sixteen a line."""
    lines = []
    for at in range(0, min(len(data), HEX_BYTES), 16):
        row = data[at : at + 16]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{at:08x}  {row.hex(' '):<47}  {shown}")
    return "\n".join(lines)
