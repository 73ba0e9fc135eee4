"""What is asked of a key and what was read of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

JSON_KIND = "ReJSON-RL"


DOCUMENT_KINDS = ("string", JSON_KIND)
_EMPTY: Mapping[str, Any] = MappingProxyType({})


def to_name(raw: bytes) -> str:
    """Return a key or member as text, losing nothing."""
    return raw.decode("utf-8", "surrogateescape")


def to_bytes(name: str) -> bytes:
    """Return the bytes of a name made by ``to_name``."""
    return name.encode("utf-8", "surrogateescape")


class Raw(NamedTuple):
    """One key as it was read. Of the five values, the one for its kind is filled in.

    ``total`` is how much the key holds (bytes or elements); ``first`` is the index of the first list element that was
    read; ``unread`` says why nothing was read.
    """

    name: str
    kind: str
    data: bytes = b""
    elements: Sequence[bytes] = ()
    fields: Mapping[str, bytes] = _EMPTY
    members: frozenset[str] = frozenset()
    scores: Mapping[str, float] = _EMPTY
    total: int = 0
    first: int = 0
    partial: bool = False
    unread: str = ""

    @property
    def payloads(self) -> Iterable[bytes]:
        """Every payload in the key, whatever its kind."""
        if self.kind in DOCUMENT_KINDS:
            return (self.data,)
        return self.elements or self.fields.values()


class Want(NamedTuple):
    """A key that should belong to a session, by its exact name.

    ``only`` limits what is read of it: members of a set or sorted set, fields of a hash, top-level paths of a document.
    ``shared`` keys hold other sessions' entries too, and may live for ever. ``kind`` is the type that the key should
    have, where its decoder would not see that it has another.
    """

    name: str
    part: str
    only: tuple[str, ...] = ()
    shared: bool = False
    kind: str = ""
