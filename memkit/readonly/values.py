"""A request for a key and the value that was read."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

JSON_KIND = "ReJSON-RL"
DOCUMENT_KINDS = ("string", JSON_KIND)
_EMPTY: Mapping[str, Any] = MappingProxyType({})


def to_name(raw: bytes) -> str:
    """Decode a key or member losslessly: bytes that are not UTF-8 become surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def to_bytes(name: str) -> bytes:
    """Encode a name that ``to_name`` returned."""
    return name.encode("utf-8", "surrogateescape")


class RedisValue(NamedTuple):
    """The value of one key, read completely or in part.

    Of ``data``, ``elements``, ``fields``, ``members``, ``scores`` and ``entries`` (a stream's ids and fields) only the
    attribute for the key's type is filled.
    ``total`` is the size of the whole value: bytes of a string or document, elements of any other type.
    ``unread_reason`` is empty if the value was read.
    """

    name: str
    kind: str
    data: bytes = b""
    elements: Sequence[bytes] = ()
    fields: Mapping[str, bytes] = _EMPTY
    members: frozenset[str] = frozenset()
    scores: Mapping[str, float] = _EMPTY
    entries: Sequence[tuple[str, Mapping[str, bytes]]] = ()
    total: int = 0
    partial: bool = False
    unread_reason: str = ""

    @property
    def payloads(self) -> Iterable[bytes]:
        """Every payload in the key: the document, the list elements, or the values of hash fields or stream entries."""
        if self.kind in DOCUMENT_KINDS:
            return (self.data,)
        if self.entries:
            return [value for _, fields in self.entries for value in fields.values()]
        return self.elements or self.fields.values()


class KeyRequest(NamedTuple):
    """A request to read one key of a session, by its exact name.

    ``part`` is the role of the key in its session, ``only`` limits what is read (members of a set or sorted set, fields
    of a hash, top-level paths of a document). A ``shared`` key has entries of other sessions too and may be persistent.
    ``kind`` is the type that the key must have, if its decoder cannot detect a wrong type itself.
    """

    name: str
    part: str
    only: tuple[str, ...] = ()
    shared: bool = False
    kind: str = ""
