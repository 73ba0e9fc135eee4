"""Walk the elements of a list one at a time: each parsed, turned into a message and let go of again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from operator import eq
from typing import Any

import orjson

from memkit.formats.model import Item, Problem, Run, Turn
from memkit.formats.parsing.bounded_json import Fault, parse
from memkit.formats.parsing.chat import Columns, columns
from memkit.formats.parsing.element_shapes import store_of
from memkit.formats.parsing.encodings import encoding_of
from memkit.readonly.values import RedisValue

SAID_PER_CAUSE = 5
_SMALL = 64 << 10
BLOCK = 100
_BLOCK_BYTES = 1 << 20
Convert = Callable[[dict[str, Any], str], Turn | str | None]
Plain = Callable[[list[Any]], Columns | None]


def sample(raw: RedisValue) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects among the first and last three elements: one may be corrupt, one may be huge."""
    ends = [*raw.elements[:3], *raw.elements[3:][-3:]]
    ends = [element for element in ends if len(element) <= _SMALL] or ends[:1]
    for value in (parse(element).value for element in ends):
        if isinstance(value, dict):
            yield value


def votes(raw: RedisValue) -> Counter[str]:
    """Return how many of a list's sampled elements look like each store's."""
    return Counter(store for value in sample(raw) if (store := store_of(value)))


def turns(
    raw: RedisValue, convert: Convert, *, store: str = "", plain: Plain | None = None, newest_first: bool = False
) -> Iterator[Item]:
    """Yield a list's messages, oldest first, and a problem for each element that is not one.

    ``convert`` answers with None where an element of ``store`` is no part of the dialogue, and with words where it
    lacks something. ``plain`` answers with the columns of parsed elements that all have the shapes that the library
    writes, and with None where it is not sure.
    """
    faults = Faults(raw, len(raw.elements), store)
    step = -1 if newest_first else 1
    elements, indexes = raw.elements[::step], range(len(raw.elements))[::step]
    previous = b""
    for start in range(0, len(elements), BLOCK):
        block = elements[start : start + BLOCK]
        run = _run(block, previous, raw.name, convert, plain)
        if run:
            yield run
        else:
            yield from _one_by_one(block, indexes[start : start + BLOCK], faults, convert, previous)
        previous = block[-1]
    yield from faults.problems()


def _run(block: Sequence[bytes], previous: bytes, key: str, convert: Convert, plain: Plain | None) -> Run | None:
    """Return a block of elements as columns, where all are well-formed messages, small and different."""
    if previous == block[0] or any(map(eq, block, block[1:])):
        return None
    values = parsed(block)
    if values is None:
        return None
    columns = (plain and plain_columns(values, plain)) or _converted(values, key, convert)
    if columns is None:
        return None
    roles, texts, at_s, tools, uids = columns
    return Run(roles, texts, key, at_s, tools, uids)


def _converted(values: list[Any], key: str, convert: Convert) -> Columns | None:
    """Return what ``convert`` makes of parsed elements, as columns; None where one of them needs a closer look."""
    if set(map(type, values)) != {dict}:
        return None
    found = [convert(value, key) for value in values]
    said = [turn for turn in found if isinstance(turn, Turn)]
    if not said or len(said) + found.count(None) < len(found):
        return None
    roles, texts, tools, at_s, uids, _ = map(list, zip(*said, strict=True))
    made = columns(roles, texts, tools, uids)
    return made and made._replace(at_s=None if at_s.count(None) == len(at_s) else at_s)


def parsed(block: Sequence[bytes]) -> list[Any] | None:
    """Return a block of elements parsed, or None where one is not well-formed or they are large."""
    if sum(map(len, block)) > _BLOCK_BYTES:
        return None
    try:
        return list(map(orjson.loads, block))
    except ValueError:
        return None


def plain_columns(values: list[Any], plain: Plain) -> Columns | None:
    """Return what ``plain`` makes of parsed elements; None where one of them has another form."""
    try:
        return plain(values)
    except (KeyError, TypeError, AttributeError, IndexError):
        return None


def _one_by_one(
    block: Sequence[bytes], indexes: Sequence[int], faults: Faults, convert: Convert, previous: bytes
) -> Iterator[Turn]:
    for index, element in zip(indexes, block, strict=True):
        value = faults.read(index, element)
        turn = convert(value, faults.key) if value is not None else None
        if isinstance(turn, str):
            faults.foreign(index, value, turn)
        elif turn is not None:
            if element == previous:
                faults.add("duplicate", index, "is byte for byte the one before it: a write that was sent twice?")
            yield turn
        previous = element
        del turn, value  # a text may have 10 MB: let go of it before the next is parsed


class Faults:
    """Collects what is wrong with a list's elements, and says it briefly: five of a cause, then a count."""

    def __init__(self, raw: RedisValue, count: int, store: str) -> None:
        self.key = raw.name
        self._raw, self._count, self._store = raw, count, store
        self._bad = 0
        self._said: dict[str, list[str]] = {}
        self._counted: dict[str, int] = {}

    def read(self, index: int, element: bytes) -> dict[str, Any] | None:
        """Return the element as a JSON object; else note the fault and return None."""
        value = self.value(index, element)
        if value is None or isinstance(value, dict):
            return value
        self._corrupt(index, element, Fault("no JSON object", 0))
        return None

    def value(self, index: int, element: bytes, *, after: int = 0) -> Any:
        """Return the element's JSON object, array or text, which begins ``after`` bytes; else note the fault."""
        parsed = parse(element)
        if parsed.nan:
            self.add("nan", index, "holds NaN or Infinity, which is not JSON: other readers will refuse it")
        if parsed.fault or not isinstance(parsed.value, dict | list | str):
            self._corrupt(index, element, parsed.fault or Fault("no JSON object", 0), after)
            return None
        return parsed.value

    def _corrupt(self, index: int, element: bytes, fault: Fault, after: int = 0) -> None:
        cause = "truncated" if fault.byte is None else "corrupt"
        if self._enough(cause):
            return
        where = "" if fault.byte is None else f" at byte {fault.byte + after:,} of {len(element) + after:,}"
        looks = encoding_of(element)
        hint = "" if looks in ("text", "binary", "json", "empty") else f"; it looks like {looks}"
        self.add(cause, index, f"is unreadable: {fault.says}{where}{hint}")

    def foreign(self, index: int, value: Any, lacks: str) -> None:
        """Note an element that is JSON and no message of this store."""
        if self._enough("corrupt"):
            return
        looks = store_of(value)
        hint = f"; it looks like one of {looks}" if looks and looks != self._store else ""
        of = f" of {self._store}" if self._store else ""
        self.add("corrupt", index, f"is no message{of}: {lacks}{hint}")

    def _enough(self, cause: str) -> bool:
        """Count an element that cannot be read; return whether enough is said of such."""
        self._bad += 1
        enough = len(self._said.get(cause, ())) >= SAID_PER_CAUSE
        if enough:
            self._counted[cause] += 1
        return enough

    def add(self, cause: str, index: int, says: str) -> None:
        """Note one fault of an element."""
        said = self._said.setdefault(cause, [])
        self._counted[cause] = self._counted.get(cause, 0) + 1
        if len(said) < SAID_PER_CAUSE:
            said.append(f"element {index:,} of {self._raw.total:,} (counted from the head) {says}")

    def problems(self) -> Iterator[Problem]:
        """Yield what was noted."""
        for cause, said in self._said.items():
            readable = f"{self._count - self._bad:,} of {self._count:,} elements are readable"
            tail = f" ({readable})" if cause in ("corrupt", "truncated") else ""
            for line in said:
                yield Problem(cause, self._raw.name, line + tail)
            if self._counted[cause] > len(said):
                yield Problem(cause, self._raw.name, f"… and {self._counted[cause] - len(said):,} more elements{tail}")
