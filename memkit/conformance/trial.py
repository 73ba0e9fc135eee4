"""One session on trial: what was said, and whether it is still there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from memkit.conformance.adapter import Handle, Messages, one_line
from memkit.conformance.environment import MARGIN_S, TTL_S, Bench, messages_of
from memkit.conformance.outcomes import Forgot, Stalled

LONG_TEXT = "a pasted document " * 20_000
CLOCK_STEP_S = 0.05
"""A server reads its clock once an event loop: what it calls now may be this old on a busy machine."""


class Talk:
    """A session with a fresh id, what was said in it so far, and a handle that is opened at first use and kept."""

    def __init__(
        self, bench: Bench, label: str = "session", ttl_s: float | None = TTL_S, *, session_id: str = ""
    ) -> None:
        self.bench = bench
        self.id = session_id or bench.id(label)
        self.ttl_s = ttl_s
        self.said: Messages = []
        self._handle: Handle | None = None
        self._said_at = (0.0, 0.0)

    @property
    def handle(self) -> Handle:
        """The handle that is kept open."""
        if self._handle is None:
            self._handle = self.reopened()
        return self._handle

    def reopened(self, ttl_s: float | None = -1) -> Handle:
        """Return another handle on the session, by default with the same TTL."""
        return self.bench.open(self.id, self.ttl_s if ttl_s == -1 else ttl_s)

    def say(self, text: str = "", role: str = "user", *, by: Handle | None = None) -> None:
        """Append a message (a text of its own by default), through the kept handle unless another is given."""
        self.say_exactly(text or f"message {len(self.said) + 1} of {self.id}", role, by=by)

    def say_exactly(self, text: str, role: str = "user", *, by: Handle | None = None) -> None:
        """Append a message whose text may be empty."""
        handle = by or self.handle
        role = self.role(role)
        began = self.bench.now_s()
        handle.append(role, text)
        self._said_at = began, self.bench.now_s()
        self.said.append((role, text))

    def say_every_kind(self) -> None:
        """Append a message of each role, and a long one: a store may keep some of them in keys of their own."""
        for role in ("system", "user", "assistant", "tool"):
            self.say(role=role)
        self.say(LONG_TEXT)

    def role(self, role: str) -> str:
        """Return a role as the store has it: where it has fewer, the first of its own stands in."""
        return role if role in self.bench.roles else self.bench.roles[0]

    def say_elsewhere(self) -> None:
        """Append by a client of its own: what another has read before is out of date."""
        handle = self.reopened()
        self.say(by=handle)
        self.bench.close(handle)

    def append_only(self) -> None:
        """Append a message as fast as can be: nothing else is asked of the server."""
        text = f"message {len(self.said) + 1} of {self.id}"
        self.handle.append("user", text)
        self.said.append(("user", text))

    def tried(self, text: str, role: str = "user", *, by: Handle | None = None) -> Exception | None:
        """Append under a fault; return what the store raised, or None when it said that the message is stored."""
        try:
            self.say(text, role, by=by)
        except Exception as error:  # noqa: BLE001  # under a fault a store may raise what it likes
            return error
        return None

    def expect(self, when: str, *, by: Handle | None = None) -> None:
        """Raise Forgot unless exactly what was said is read, by a fresh handle unless one is given."""
        read = self._read(when, by)
        if read != self.said:
            raise Forgot(f"{when}: {difference(self.said, read)}")

    def _read(self, when: str, by: Handle | None) -> Messages:
        try:
            return messages_of(by) if by else self.bench.read(self.id, self.ttl_s)
        except Exception as error:  # noqa: BLE001  # no case reads so while a fault lasts
            raise Forgot(f"{when}: read() raises {one_line(error)}") from None

    def expect_either(self, when: str, maybe: str, error: Exception, role: str = "user") -> None:
        """As expect, for an append that raised: the message may be there, once, at the end, or not at all."""
        when = f"{when} (append raised {one_line(error)})"
        read = self._read(when, None)
        if read not in (self.said, [*self.said, (self.role(role), maybe)]):
            raise Forgot(f"{when}: {difference(self.said, read)}")

    def expect_gone(self, when: str, *, by: Handle | None = None) -> None:
        """Raise Forgot unless the session reads as empty."""
        read = self._read(when, by)
        if read:
            raise Forgot(f"{when}: {len(read)} of {len(self.said)} messages can still be read")

    # Deadlines, counted from the last message; ``since`` takes any earlier reading of ``said_at``.

    @property
    def said_at(self) -> tuple[float, float]:
        """The server's time before and after the last append, seconds."""
        return self._said_at

    def expect_until(
        self, ttl_s: float, when: str, *, since: tuple[float, float] | None = None, margin_s: float = MARGIN_S
    ) -> None:
        """Move time to just before a deadline and expect the session to be whole."""
        deadline_s = (since or self._said_at)[0] + ttl_s
        alive_before(self.bench, deadline_s, partial(self.expect, when), margin_s=margin_s)

    def expect_gone_after(
        self, ttl_s: float, when: str, *, since: tuple[float, float] | None = None, margin_s: float = MARGIN_S
    ) -> None:
        """Move time to just after a deadline and expect the session to be gone."""
        self.bench.move_to((since or self._said_at)[1] + ttl_s + margin_s)
        self.expect_gone(when)


def alive_before(bench: Bench, deadline_s: float, look: Callable[[], None], *, margin_s: float = MARGIN_S) -> None:
    """Look just before a deadline; raise Stalled when this machine was too slow for that."""
    latest_s = deadline_s - min(CLOCK_STEP_S, margin_s / 4)
    # Time can be moved back, but what has expired meanwhile stays gone.
    if bench.now_s() > latest_s:
        raise Stalled("the machine was busy across a deadline")
    bench.move_to(deadline_s - margin_s)
    try:
        look()
    except Exception:
        if bench.now_s() > latest_s:
            raise Stalled("the machine was busy across a deadline") from None
        raise


def difference(expected: Messages, read: Messages) -> str:
    """Say how what was read differs from what was stored."""
    if not read:
        return f"{len(expected)} messages were stored, the memory reads as empty"
    missing = [message for message in expected if read.count(message) < expected.count(message)]
    surplus = [message for message in read if read.count(message) > expected.count(message)]
    said = f"{len(expected)} messages were stored, {len(read)} read"
    if not missing and not surplus:
        return f"{said}, in another order: {_first_difference(expected, read)}"
    said += f"; missing {_some(missing)}" if missing else ""
    return said + (f"; not what was stored: {_some(surplus)}" if surplus else "")


def _first_difference(expected: Messages, read: Messages) -> str:
    at = next(index for index, pair in enumerate(zip(expected, read, strict=True)) if pair[0] != pair[1])
    return f"number {at + 1} is {_short(read[at])} instead of {_short(expected[at])}"


def _some(messages: Messages) -> str:
    more = f" and {len(messages) - 2} more" if len(messages) > 2 else ""
    return ", ".join(_short(message) for message in messages[:2]) + more


def _short(message: tuple[str, str]) -> str:
    role, text = message
    shown = repr(text)
    return f"{role}: {shown if len(shown) <= 60 else shown[:57] + '...'}"
