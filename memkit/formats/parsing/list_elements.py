"""Decode list elements one at a time, so that only one is in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from memkit.formats.model import Item, LikeProblems, Problem, Turn
from memkit.formats.parsing.bounded_json import Fault, parse
from memkit.formats.parsing.element_shapes import store_of
from memkit.formats.parsing.encodings import encoding_of, looks_like, unreadable_cause
from memkit.readonly.values import RedisValue

_SAMPLED_BYTES = 64 << 10
UNREADABLE = ("corrupt", "truncated", "encoding_changed", "partly_decoded")
Convert = Callable[[dict[str, Any], str], Sequence[Turn] | str | None]


def sample(raw: RedisValue) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects among the first and last three elements: one may be corrupt, one may be huge."""
    ends = [*raw.elements[:3], *raw.elements[3:][-3:]]
    ends = [element for element in ends if len(element) <= _SAMPLED_BYTES] or ends[:1]
    for value in (parse(element).value for element in ends):
        if isinstance(value, dict):
            yield value


def most_are(raw: RedisValue, looks: Callable[[Mapping[str, Any]], bool], *, named: bool = False) -> bool:
    """Return whether most of a list's elements are a store's; its name, if it is the store's, counts as one more.

    So one foreign element changes nothing, and the name decides if no element can be read.
    """
    found = [looks(value) for value in sample(raw)]
    return 2 * sum(found) + named > len(found)


def turns(raw: RedisValue, convert: Convert, *, store: str = "", newest_first: bool = False) -> Iterator[Item]:
    """Yield a list's messages, oldest first, and a problem for each element that is not one.

    Args:
        raw: The list.
        convert: Turns an element and the key's name into messages; None if the element of ``store`` is not part of the
            dialogue, and the reason as text if it lacks something.
        store: The store that wrote the list, for the problems.
        newest_first: Whether the head of the list is the newest message.
    """
    faults = Faults(raw, len(raw.elements), store)
    step = -1 if newest_first else 1
    indexes = range(len(raw.elements))[::step]
    previous = None
    for index, element in zip(indexes, raw.elements[::step], strict=True):
        value = faults.read(index, element)
        found = convert(value, faults.key) if value is not None else None
        if isinstance(found, str):
            faults.foreign(index, value or {}, found)
        elif found is not None:
            if element == previous:
                faults.add("duplicate", index, "is byte for byte the one before it: a write that was sent twice?")
            yield from found
        previous = element
        found = value = None  # a text may have 10 MB: release it before the next one is parsed
    yield from faults.problems()


class Faults:
    """Collects the faults of a list's elements: five of a cause, then a count."""

    def __init__(self, raw: RedisValue, count: int, store: str) -> None:
        self.key = raw.name
        self._raw, self._count, self._store = raw, count, store
        self._bad = 0
        self._found = LikeProblems()

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
        cause = "truncated" if fault.byte is None else unreadable_cause(element)

        def reason() -> str:
            if cause == "encoding_changed":
                return f"is {encoding_of(element)}, and not the store's JSON"
            place = "" if fault.byte is None else f" at byte {fault.byte + after:,} of {len(element) + after:,}"
            return f"is unreadable: {fault.message}{place}{looks_like(element)}"

        self._bad += 1
        self.add(cause, index, reason)

    def foreign(self, index: int, value: Any, lacks: str) -> None:
        """Note an element that is JSON and no message of this store."""
        self._bad += 1
        looks = store_of(value)
        hint = f"; it looks like one of {looks}" if looks and looks != self._store else ""
        of = f" of {self._store}" if self._store else ""
        self.add("corrupt", index, f"is not a message{of}: {lacks}{hint}")

    def add(self, cause: str, index: int, reason: str | Callable[[], str]) -> None:
        """Note one fault of an element."""
        place = f"element {index:,} of {self._raw.total:,} (counted from the head) "
        self._found.add(cause, self.key, lambda: place + (reason if isinstance(reason, str) else reason()))

    def problems(self) -> Iterator[Problem]:
        """Yield the faults as problems."""
        readable = f" ({self._count - self._bad:,} of {self._count:,} elements are readable)"
        problems = list(self._found.report("more elements"))
        # One other text among the store's own elements is damage.
        mixed = self._bad < self._count or any(problem.cause == "corrupt" for problem in problems)
        for problem in problems:
            cause = "corrupt" if problem.cause == "partly_decoded" and mixed else problem.cause
            tail = readable if cause in UNREADABLE else ""
            yield problem._replace(cause=cause, message=problem.message + tail)
