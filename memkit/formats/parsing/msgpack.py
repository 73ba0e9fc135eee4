"""A bounded msgpack reader: hostile bytes must not cost more than themselves.

After the specification at https://github.com/msgpack/msgpack/blob/master/spec.md. The library msgpack limits the length
of each container (``max_array_len``), not the number of all values: 8 MB of small arrays in arrays would become eight
million objects.
"""

import struct
from typing import Any, NamedTuple

MAX_NODES = 200_000
MAX_DEPTH = 64

_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i",
            0xD3: ">q"}  # fmt: skip
_FIXED_EXTS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_BINS = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_EXTS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_TEXTS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAYS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}
_LENGTHS = {**_BINS, **_EXTS, **_TEXTS, **_ARRAYS, **_MAPS}
"""How many bytes the length takes that follows the first byte."""


class Ext(NamedTuple):
    """An extension value: its application's code and its bytes, not interpreted."""

    code: int
    data: bytes


class MsgpackFault(ValueError):
    """Bytes that are not msgpack, or too much of it; ``byte`` is where reading stopped.

    ``names`` is how many names of fields were read before: random bytes hardly hold one.
    """

    def __init__(self, message: str, byte: int, names: int) -> None:
        super().__init__(message)
        self.message, self.byte, self.names = message, byte, names


def unpack(data: bytes) -> Any:
    """Return the one value that the bytes hold; raises MsgpackFault."""
    reader = _Reader(data)
    value = reader.value(0)
    if reader.at != len(data):
        raise reader.fault("bytes after the end of the value", reader.at)
    return value


def begins_container(data: bytes) -> bool:
    """Return whether the first byte is that of a map or an array with something in it."""
    return data[:1] not in (b"\x80", b"\x90") and (0x80 <= data[0] <= 0x9F or data[0] in (*_ARRAYS, *_MAPS))


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self.at, self._nodes, self._names = data, 0, 0, 0

    def fault(self, message: str, byte: int) -> MsgpackFault:
        return MsgpackFault(message, byte, self._names)

    def value(self, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            raise self.fault("nested too deeply" if depth > MAX_DEPTH else f"over {MAX_NODES:,} values", self.at)
        lead = self._take(1)[0]
        if lead < 0x80:
            return lead
        if lead >= 0xE0:
            return lead - 256
        if lead < 0x90:
            return self._map(lead & 0x0F, depth)
        if lead < 0xA0:
            return self._array(lead & 0x0F, depth)
        return self._text(lead & 0x1F) if lead < 0xC0 else self._typed(lead, depth)

    def _typed(self, lead: int, depth: int) -> Any:
        if lead in _CONSTANTS:
            return _CONSTANTS[lead]
        if lead in _NUMBERS:
            return struct.unpack(_NUMBERS[lead], self._take(struct.calcsize(_NUMBERS[lead])))[0]
        if lead not in _FIXED_EXTS and lead not in _LENGTHS:
            raise self.fault("a byte that msgpack never uses", self.at - 1)
        length = _FIXED_EXTS.get(lead) or int.from_bytes(self._take(_LENGTHS[lead]), "big")
        if lead in _TEXTS:
            return self._text(length)
        if lead in _BINS:
            return self._take(length)
        if lead in _ARRAYS:
            return self._array(length, depth)
        return self._map(length, depth) if lead in _MAPS else Ext(self._take(1)[0], self._take(length))

    def _take(self, count: int) -> bytes:
        start, self.at = self.at, self.at + count
        if self.at > len(self._data):
            raise self.fault("cut short", start)
        return self._data[start : self.at]

    def _text(self, length: int) -> str:
        start = self.at
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise self.fault("text that is not UTF-8", start + error.start) from None

    def _array(self, count: int, depth: int) -> list[Any]:
        self._check_room(count)
        return [self.value(depth + 1) for _ in range(count)]

    def _map(self, count: int, depth: int) -> dict[str, Any]:
        self._check_room(2 * count)
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            name = key if isinstance(key, str) else repr(key)
            self._names += name is key and len(name) > 1 and name.isascii() and name.isprintable()
            found[name] = self.value(depth + 1)
        return found

    def _check_room(self, count: int) -> None:
        if count > len(self._data) - self.at:
            raise self.fault("cut short", self.at)
