"""Read an RDB file as a stream: every key's name, type, deadline and idle time, without its value.

The memory is bounded, whatever the size of the file. Values are passed over, module data too, and the checksum is
verified. The format is that of ``src/rdb.c`` in Redis (versions 1 to 12) and Valkey (``VALKEY080``); a later version is
read as long as the file holds nothing that these versions do not have.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import anycrc

from memkit.errors import SourceError
from memkit.readonly.values import JSON_KIND

CHUNK_BYTES = 1 << 20
MAGIC_BYTES = 9
_MAGIC = re.compile(rb"REDIS([0-9]{4})|VALKEY([0-9]{3})")
MAX_KEY_BYTES = 512 << 20
"""A key is at most 512 MiB (the limit of a Redis string)."""
MAX_AUX_BYTES = 1 << 20
"""The header's fields are short texts; Lua scripts, which old versions store there, are under 1 MiB in practice."""
AUX_NAMES = frozenset({"ctime", "redis-ver", "valkey-ver", "aof-preamble"})
MOST_DATABASES = 10_000
"""A server has 16 databases if its configuration does not state another number."""
LONGEST_INTEGER_BYTES = 20
"""``-9223372036854775808``: a string that is a 64-bit integer."""
CTIME_DIGITS = 11
"""Until the year 5138."""
OLDEST_VERSION_WITH_CHECKSUM = 5
DOCUMENTED_VERSION = 12
NEWEST_VERSIONS = {"redis": 14, "valkey": 81}
"""What Redis 8.8 and Valkey 9.2 write."""

_SLOT_IMPORT, _SLOT_INFO, _FUNCTION2, _MODULE_AUX = 243, 244, 245, 247
_IDLE, _FREQUENCY, _AUX, _RESIZE_DB, _EXPIRE_MS, _EXPIRE_S, _SELECT_DB, _EOF = range(248, 256)
_STRING, _MODULE = 0, 7
KINDS: dict[int, str] = {
    **dict.fromkeys((1, 10, 14, 18), "list"),
    **dict.fromkeys((2, 11, 20), "set"),
    **dict.fromkeys((3, 5, 12, 17), "zset"),
    **dict.fromkeys((4, 9, 13, 16, 22, 24, 25), "hash"),
    **dict.fromkeys((15, 19, 21), "stream"),
}
_WITH_FIELD_TTLS = frozenset({22, 24, 25})
_S, _N, _SCORE, _MODULE_DATA = "string", "number", "score", "module data"
_Parts = tuple[str | int | tuple[Any, ...], ...]
"""What a value consists of: the above, so many bytes, or a tuple: a number, and that many times the tuple's parts."""
_PENDING, _CONSUMER = (16 + 8, _N), (_S, 8, (16,))  # id, time, deliveries; name, time, ids of its pending entries
_PARTS: dict[int, _Parts] = {
    **dict.fromkeys((9, 10, 11, 12, 13, 16, 17, 20), (_S,)),
    **dict.fromkeys((1, 2, 14), ((_S,),)),
    3: ((_S, _SCORE),),
    4: ((_S, _S),),
    5: ((_S, 8),),
    18: ((_N, _S),),  # nodes: a container format and a listpack
    # Entries, then lengths and ids, then groups: name, last id, entries read, pending entries, consumers.
    15: ((_S, _S), *(_N,) * 3, (_S, _N, _N, _PENDING, _CONSUMER)),
    19: ((_S, _S), *(_N,) * 8, (_S, _N, _N, _N, _PENDING, _CONSUMER)),
    21: ((_S, _S), *(_N,) * 8, (_S, _N, _N, _N, _PENDING, (_S, 16, (16,)))),
    _FREQUENCY: (1,),
    _RESIZE_DB: (_N, _N),
    _AUX: (_S,),  # after the name
    _FUNCTION2: (_S,),
    _SLOT_INFO: (_N, _N, _N),
    _MODULE_AUX: (_N, _N, _N, _MODULE_DATA),  # the module's id, the opcode and the value of "when"
}
"""What follows the number of a type (below ``_SLOT_IMPORT``) and the key's name, or the number of an opcode."""
_PARTS_OF_SERVER: dict[str, dict[int, _Parts]] = {
    # Hashes with TTLs: the earliest deadline; of a field 0 or 1 + the distance to it, or its deadline.
    "redis": {24: (8, (_N, _S, _S)), 25: (8, _S)},
    "valkey": {22: ((_S, _S, 8),), _SLOT_IMPORT: (_S, (_N, _N))},
}
_MODULE_PARTS: dict[int, _Parts] = {1: (_N,), 2: (_N,), 3: (4,), 4: (8,), 5: (_S,)}
_MODULE_NAME = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_MODULE_KINDS = {"ReJSON-RL": JSON_KIND}
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
}
ENCRYPTED = (b"Salted__", b"age-encryption", b"-----BEGIN PGP")
"""What files of OpenSSL, age and GnuPG begin with."""


class SnapshotKey(NamedTuple):
    """One key of an RDB file, without its value.

    ``deadline_ms`` is a Unix time, None for a persistent key. ``idle_s`` is None if the file has no idle times (it
    has them only under a ``*-lru`` maxmemory-policy). ``string_bytes`` is the length of a string's value; None for an
    integer and for other types. ``fields_expire`` is whether it is a hash with TTLs of its fields.
    """

    db: int
    name: bytes
    kind: str
    deadline_ms: int | None
    idle_s: int | None
    string_bytes: int | None
    fields_expire: bool = False


@dataclass(frozen=True, slots=True)
class RdbHeader:
    """What an RDB file states before its first key.

    ``server`` (``"redis"`` or ``"valkey"``) and ``version`` are those of the format; ``aux`` are fields of the header:
    redis-ver or valkey-ver, ctime (Unix time of the save), and aof-preamble (1: an append-only file begins with it).
    """

    server: str
    version: int
    aux: Mapping[str, str] = field(default_factory=dict)

    @property
    def created_s(self) -> int | None:
        """The Unix time of the save, if the file states it."""
        text = self.aux.get("ctime", "")
        return int(text) if text.isdecimal() and len(text) <= CTIME_DIGITS else None

    @property
    def flavour(self) -> str:
        """The server that wrote the file: Valkey before 9.0 wrote the format of Redis."""
        return "valkey" if "valkey-ver" in self.aux else self.server

    @property
    def server_version(self) -> str:
        """The version of that server; "?" if the file does not state it."""
        return self.aux.get("valkey-ver") or self.aux.get("redis-ver") or "?"

    @property
    def format_name(self) -> str:
        """The format as its first bytes state it: ``REDIS0012``, ``VALKEY080``."""
        return f"VALKEY{self.version:03}" if self.server == "valkey" else f"REDIS{self.version:04}"


def is_rdb(path: Path) -> bool:
    """Return whether a file begins as an RDB file."""
    with path.open("rb") as file:
        return _MAGIC.match(file.read(MAGIC_BYTES)) is not None


def read_header(path: str | Path) -> RdbHeader:
    """Return what an RDB file states before its first key; raises SourceError if it is not an RDB file."""
    with RdbReader(path) as reader:
        return reader.header


class RdbReader:
    """An open RDB file: its header, then its keys as a stream.

    Args:
        path: The file. It is only read.

    Attributes:
        keys_read: How many keys have been read.
        is_of_a_cluster: A server of a cluster wrote the keys that have been read (known from Redis 7.4, Valkey 8).

    Raises:
        SourceError: The file is not an RDB file, or its version is unknown.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: BinaryIO = self.path.open("rb")
        self._size = os.fstat(self._file.fileno()).st_size
        self._checksum = anycrc.Model("CRC64-REDIS")
        self._buffer, self._at, self._before, self._crc = b"", 0, 0, 0
        self.keys_read, self.is_of_a_cluster = 0, False
        try:
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def bytes_read(self) -> int:
        """How far the file has been read."""
        return self._before + self._at

    def __iter__(self) -> Iterator[SnapshotKey]:
        """Yield every key, in the file's order; verify the checksum after the last one.

        Raises:
            SourceError: The file ends early, has a wrong checksum, or holds something that is not documented.
        """
        db, deadline, idle = 0, None, None
        while True:
            opcode = self._byte()
            if opcode < _SLOT_IMPORT:
                name, size = self._string(MAX_KEY_BYTES), None
                if opcode == _STRING:
                    kind, size = "string", self._pass_over_string_value()
                elif opcode == _MODULE:
                    kind = self._pass_over_module()
                else:
                    self._pass_over_rest(opcode)
                    kind = KINDS[opcode]
                self.keys_read += 1
                yield SnapshotKey(db, name, kind, deadline, idle, size, opcode in _WITH_FIELD_TTLS)
                deadline = idle = None
            elif opcode == _EXPIRE_MS:
                deadline = self._int(8)
            elif opcode == _EXPIRE_S:
                deadline = self._int(4) * 1_000
            elif opcode == _IDLE:
                idle = self._length()
            elif opcode == _SELECT_DB:
                db = self._database()
            elif opcode == _EOF:
                self._verify()
                return
            else:
                name = self._string(MAX_AUX_BYTES) if opcode == _AUX else b""  # Valkey names the slots in a field
                self.is_of_a_cluster = self.is_of_a_cluster or opcode == _SLOT_INFO or name == b"slot-info"
                self._pass_over_rest(opcode)

    def _read_header(self) -> RdbHeader:
        if not self._size:
            raise SourceError(f"{self.path}: the file is empty")
        start = self._file.read(16)
        self._file.seek(0)
        magic = _MAGIC.match(start)
        if not magic:
            raise SourceError(f"{self.path}: {_what_else(start)}")
        self._skip(MAGIC_BYTES)
        server, version = ("valkey", int(magic[2])) if magic[2] else ("redis", int(magic[1]))
        if not version:
            raise SourceError(f"{self.path}: RDB version 0 does not exist")
        if version > NEWEST_VERSIONS[server]:
            raise SourceError(f"{self.path}: the format {magic[0].decode()} is newer than this memkit reads")
        aux: dict[str, str] = {}
        while self._peek() == _AUX:
            self._byte()
            name = self._string(MAX_AUX_BYTES).decode("utf-8", "replace")
            if name in AUX_NAMES:
                aux[name] = self._string(MAX_AUX_BYTES).decode("utf-8", "replace")
            else:
                self._pass_over_string()
        return RdbHeader(server, version, aux)

    def _pass_over_string_value(self) -> int | None:
        """Pass over the value of a string; return its length, None for an integer."""
        if self._peek() > LONGEST_INTEGER_BYTES:
            return self._pass_over_string()
        text = self._string(LONGEST_INTEGER_BYTES)
        return None if text.removeprefix(b"-").isdigit() else len(text)

    def _pass_over_rest(self, number: int) -> None:
        """Pass over what follows the number of a type and the key's name, or the number of an opcode."""
        parts = _PARTS.get(number) or _PARTS_OF_SERVER[self.header.server].get(number)
        if parts is None:
            raise self._undocumented(f"the {'value type' if number < _SLOT_IMPORT else 'opcode'} {number}")
        self._pass_over(parts)

    def _pass_over(self, parts: _Parts, times: int = 1) -> None:
        for _ in range(times):
            for part in parts:
                if part is _S:
                    self._pass_over_string()
                elif part is _N:
                    self._length()
                elif isinstance(part, int):
                    self._skip(part)
                elif isinstance(part, tuple):
                    self._pass_over(part, self._length())
                elif part is _SCORE:
                    length = self._byte()
                    self._skip(length if length < 253 else 0)  # 253, 254, 255: NaN and the infinities
                else:
                    self._pass_over_module_data()

    def _pass_over_module(self) -> str:
        """Pass over a module's value; return the key's type."""
        module_id = self._length()  # nine characters of six bits, then ten bits of version
        self._pass_over_module_data()
        name = "".join(_MODULE_NAME[module_id >> (10 + 6 * place) & 0x3F] for place in reversed(range(9)))
        return _MODULE_KINDS.get(name, name)

    def _pass_over_module_data(self) -> None:
        while opcode := self._length():  # 0: the end
            if opcode not in _MODULE_PARTS:
                raise self._undocumented(f"the module opcode {opcode}")
            self._pass_over(_MODULE_PARTS[opcode])

    def _database(self) -> int:
        number = self._length()
        if number >= MOST_DATABASES:
            raise self._damaged(f"the number of a database, {number:,}, is larger than any in use")
        return number

    def _length(self) -> int:
        first = self._byte()
        form = first >> 6
        if form == 0:
            return first
        if form == 1:
            return (first & 0x3F) << 8 | self._byte()
        if first == 0x80:
            return int.from_bytes(self._take(4), "big")
        if first == 0x81:
            return int.from_bytes(self._take(8), "big")
        raise self._damaged("a length has an unknown form")

    def _string_head(self) -> tuple[int, int | None, bool]:
        """Return how many bytes hold a string, its length (None: an integer), and whether it is compressed."""
        first = self._peek()
        if first < 0xC0:
            length = self._length()
            return length, length, False
        self._byte()
        if first <= 0xC2:  # an integer of 1, 2 or 4 bytes
            return 1 << (first & 3), None, False
        if first != 0xC3:
            raise self._damaged("a string has an unknown encoding")
        return self._length(), self._length(), True  # LZF

    def _pass_over_string(self) -> int | None:
        """Pass over a string; return its length, None for an integer."""
        stored, length, _ = self._string_head()
        self._skip(stored)
        return length

    def _string(self, most_bytes: int) -> bytes:
        stored, length, is_compressed = self._string_head()
        if length is None:
            return b"%d" % self._int(stored)
        if max(stored, length) > most_bytes:
            raise self._damaged(f"a name of {max(stored, length):,} bytes is longer than Redis allows")
        data = self._take(stored)
        try:
            return decompress_lzf(data, length) if is_compressed else data
        except ValueError:
            raise self._damaged("a compressed string does not decompress") from None

    def _int(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little", signed=True)

    def _peek(self) -> int:
        if self._at >= len(self._buffer):
            self._refill()
        return self._buffer[self._at]

    def _byte(self) -> int:
        if self._at >= len(self._buffer):
            self._refill()
        self._at += 1
        return self._buffer[self._at - 1]

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end <= len(self._buffer):
            taken = self._buffer[self._at : end]
            self._at = end
            return taken
        return b"".join(self._chunks(count))

    def _skip(self, count: int) -> None:
        end = self._at + count
        if end <= len(self._buffer):
            self._at = end
        else:
            for _ in self._chunks(count):
                pass

    def _chunks(self, count: int) -> Iterator[bytes]:
        if count > self._size - self.bytes_read:
            raise self._ends_early()
        while count:
            if self._at >= len(self._buffer):
                self._refill()
            part = self._buffer[self._at : self._at + count]
            self._at += len(part)
            count -= len(part)
            yield part

    def _refill(self) -> None:
        """Read the next chunk; the bytes before it are in the checksum then."""
        self._crc = self._checksum.calc(self._buffer, self._crc)
        self._before += len(self._buffer)
        self._buffer, self._at = self._file.read(CHUNK_BYTES), 0
        if not self._buffer:
            raise self._ends_early()

    def _verify(self) -> None:
        crc = self._checksum.calc(self._buffer[: self._at], self._crc)
        if self.header.version < OLDEST_VERSION_WITH_CHECKSUM:
            return
        stored = int.from_bytes(self._take(8), "little")
        if stored and stored != crc:  # 0: written with rdbchecksum no
            raise self._damaged("its checksum is wrong")

    def _ends_early(self) -> SourceError:
        return SourceError(
            f"{self.path}: the RDB file is truncated: it ends after {self._size:,} bytes, in the middle of a key "
            f"({self.keys_read:,} keys are complete)"
        )

    def _damaged(self, why: str) -> SourceError:
        return SourceError(f"{self.path}: the RDB file is damaged near byte {self.bytes_read:,}: {why}")

    def _undocumented(self, what: str) -> SourceError:
        if self.header.server == "valkey" or self.header.version > DOCUMENTED_VERSION:
            return SourceError(
                f"{self.path}: the format {self.header.format_name} is newer than this memkit reads: "
                f"the file holds {what}"
            )
        return self._damaged(f"{what} does not exist in version {self.header.version}")


def _what_else(start: bytes) -> str:
    """Return what a file is that is not an RDB file, as far as its first bytes show."""
    for magic, name in COMPRESSED.items():
        if start.startswith(magic):
            return f"the file is compressed with {name}; decompress it first"
    if start.startswith(ENCRYPTED):
        return "the file is encrypted; decrypt it first"
    if start.startswith((b"*", b"#TS:")):
        return "the file is a single append-only file; give the directory that holds its manifest"
    return "the file is not an RDB file: it does not begin with REDIS or VALKEY and a version (is it encrypted?)"


def decompress_lzf(data: bytes, length: int) -> bytes:
    """Return LZF data decompressed.

    Args:
        data: The compressed bytes.
        length: How many bytes they decompress to.

    Raises:
        ValueError: The data is damaged.
    """
    out = bytearray()
    at, end = 0, len(data)
    try:
        while at < end:
            control = data[at]
            at += 1
            if control < 32:  # that many bytes and one, as they are
                out += data[at : at + control + 1]
                at += control + 1
                continue
            count = control >> 5
            if count == 7:
                count += data[at]
                at += 1
            start = len(out) - ((control & 0x1F) << 8) - data[at] - 1
            at += 1
            if start < 0:
                raise ValueError("a reference before the first byte")
            part = out[start : start + count + 2]
            out += (part * (-(-(count + 2) // len(part))))[: count + 2]  # the copy may overlap itself
            if len(out) > length:
                raise ValueError("more bytes than stated")
    except IndexError:
        raise ValueError("the data ends early") from None
    if len(out) != length:
        raise ValueError("fewer bytes than stated")
    return bytes(out)
