"""One session under test: the messages that were appended, and whether the store still returns them."""

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial

from memkit.conformance.adapter import Handle, Messages, error_line
from memkit.conformance.environment import MARGIN_S, TTL_S, TestEnvironment, attempt, messages_of
from memkit.conformance.outcomes import CaseFailed, Inconclusive, Symptom
from memkit.render import counted

LONG_TEXT = "a pasted document " * 20_000
SHORTER_CHARS = 2_000
SHOWN_CHARS = 60
CLOCK_STEP_S = 0.05
"""A server reads its clock once an event loop: its present time may be this old on a busy machine."""
SAME_TTL = -1.0


class TrialSession:
    """A session with a fresh id, the messages appended to it, and a handle that is opened at first use and kept."""

    def __init__(
        self,
        env: TestEnvironment,
        label: str = "session",
        ttl_s: float | None = TTL_S,
        *,
        session_id: str | None = None,
    ) -> None:
        self.env = env
        self.id = env.new_id(label) if session_id is None else session_id
        self.ttl_s = ttl_s
        self.messages: Messages = []
        self.appended_at = (0.0, 0.0)
        """The server's time before and after the last append, in seconds."""
        self._handle: Handle | None = None
        self._clock_offset: timedelta | None = None

    @property
    def handle(self) -> Handle:
        """The handle that is kept open."""
        if self._handle is None:
            self._handle = self.open_again()
        return self._handle

    def open_again(self, ttl_s: float | None = SAME_TTL) -> Handle:
        """Return another handle on the session, by default with the same TTL."""
        return self.env.open(self.id, self.ttl_s if ttl_s == SAME_TTL else ttl_s)

    def append(self, text: str | None = None, role: str = "user", *, by: Handle | None = None) -> None:
        """Append a message (a text of its own by default), through the kept handle unless another is given."""
        handle, before = by or self.handle, self.env.now_s()
        self.append_fast(text, role, by=handle)
        self.appended_at = before, self.env.now_s()

    def append_fast(self, text: str | None = None, role: str = "user", *, by: Handle | None = None) -> None:
        """Append without asking the server for the time."""
        message = self.role(role), f"message {len(self.messages) + 1} of {self.id}" if text is None else text
        if self._clock_offset is None:
            self._clock_offset = self.env.clock.offset
        self.env.sessions_of.setdefault(message[1], set()).add(self.id)
        (by or self.handle).append(*message)
        self.messages.append(message)

    def append_every_kind(self) -> None:
        """Append a message of each role, and a long one: a store may keep some of them in keys of their own."""
        for role in ("system", "user", "assistant", "tool"):
            self.append(role=role)
        self.append(long_text(self.env))

    def role(self, role: str) -> str:
        """Return a role that the store has: the first of its own replaces the others."""
        return role if role in self.env.roles else self.env.roles[0]

    def append_by_new_client(self) -> None:
        """Append by another client: what a handle read before is then out of date."""
        handle = self.open_again()
        self.append(by=handle)
        self.env.close(handle)

    def try_append(self, text: str, role: str = "user", *, by: Handle | None = None) -> Exception | None:
        """Append under a fault; return what the store raised, or None if it reported the message as stored."""
        return attempt(partial(self.append, text, role, by=by))

    @property
    def expected(self) -> Messages:
        """The messages that a read has to return."""
        return self.env.kept(self.messages)

    def expect(self, when: str, *, by: Handle | None = None) -> None:
        """Raise CaseFailed unless exactly the expected messages are read, by a new handle unless one is given."""
        read = self._read(when, by)
        if read != self.expected:
            raise self.failure(when, read)

    def expect_after(self, text: str, error: Exception | None, when: str, role: str = "user") -> None:
        """Check an append after its fault: stored once if it was acknowledged, once or not at all if it raised."""
        if error is None:
            when = f"{when}, append reported the message as stored"
            read = self._read(when, None)
            if read != self.expected:
                hidden = read == self.env.kept(self.messages[:-1])
                raise self.failure(when, read, symptom=Symptom.REFUSAL_HIDDEN if hidden else None)
            return
        when = f"{when} (append raised {error_line(error)})"
        read = self._read(when, None)
        if read not in (self.expected, self.env.kept([*self.messages, (self.role(role), text)])):
            raise self.failure(when, read)

    def expect_empty(self, when: str, *, by: Handle | None = None) -> None:
        """Raise CaseFailed unless the session reads as empty."""
        read = self._read(when, by)
        if read:
            symptom = Symptom.NO_EXPIRY if self._time_moved else Symptom.OTHER
            symptom = Symptom.FOREIGN if self._of_others(read) else symptom
            found = f"expected an empty session, read {counted(len(read), 'message')}, such as {_short(read[0])}"
            raise CaseFailed(f"{when}: {found}", symptom=symptom)

    def _read(self, when: str, by: Handle | None) -> Messages:
        read = attempt(lambda: messages_of(by) if by else self.env.read(self.id, self.ttl_s))
        if isinstance(read, Exception):  # no case reads so while a fault lasts
            symptom = f"raised {type(read).__name__}"
            raise CaseFailed(f"{when}: read() raises {error_line(read)}", symptom=symptom)
        return read

    @property
    def _time_moved(self) -> bool:
        """Whether the clock was moved after the first append."""
        return self._clock_offset not in (None, self.env.clock.offset)

    def failure(self, when: str, read: Messages, *, symptom: Symptom | None = None) -> CaseFailed:
        """Return the failure for a read that differs from what is expected."""
        expected, count = self.expected, len(read)
        missing, surplus = Counter(expected) - Counter(read), Counter(read) - Counter(expected)
        if symptom is None and self._of_others(surplus):
            symptom = Symptom.FOREIGN
        elif symptom is None and self._time_moved and (missing or surplus):
            symptom = Symptom.NO_EXPIRY if surplus else Symptom.EARLY_EXPIRY
        elif symptom is None:
            symptom = (Symptom.LOST if read else Symptom.EMPTY) if missing else Symptom.OTHER
        newest, oldest = read == self.messages[-count:], read == expected[:count]
        kept = (count if newest else -count if oldest else None) if read else None
        return CaseFailed(f"{when}: {difference(expected, read)}", symptom=symptom, kept=kept)

    def _of_others(self, messages: Iterable[tuple[str, str]]) -> bool:
        """Return whether one of these messages was appended to other sessions, and never to this one."""
        owners = (self.env.sessions_of.get(text) for _, text in messages)
        return any(owner and self.id not in owner for owner in owners)

    # Deadlines, counted from the last append; ``since`` takes any earlier value of ``appended_at``.

    def expect_until(
        self, ttl_s: float, when: str, *, since: tuple[float, float] | None = None, margin_s: float = MARGIN_S
    ) -> None:
        """Move time to just before a deadline and expect every message."""
        deadline_s = (since or self.appended_at)[0] + ttl_s
        check_before(self.env, deadline_s, partial(self.expect, when), margin_s=margin_s)

    def expect_empty_after(
        self, ttl_s: float, when: str, *, since: tuple[float, float] | None = None, margin_s: float = MARGIN_S
    ) -> None:
        """Move time to just after a deadline and expect an empty session."""
        self.env.move_to((since or self.appended_at)[1] + ttl_s + margin_s)
        self.expect_empty(when)


def check_before(
    env: TestEnvironment, deadline_s: float, check: Callable[[], None], *, margin_s: float = MARGIN_S
) -> None:
    """Check something just before a deadline; raise Inconclusive if this machine was too slow for that."""
    latest_s = deadline_s - min(CLOCK_STEP_S, margin_s / 4)
    # Time can be moved back, but a key that expired meanwhile does not return.
    if env.now_s() > latest_s:
        raise Inconclusive("a scheduling delay crossed a deadline")
    env.move_to(deadline_s - margin_s)
    try:
        check()
    except Exception:
        if env.now_s() > latest_s:
            raise Inconclusive("a scheduling delay crossed a deadline") from None
        raise


def long_text(env: TestEnvironment) -> str:
    """Return a long text, which a store may keep apart; a shorter one if the store refuses it."""
    if not env.long_text:
        refused = TrialSession(env, "long").try_append(LONG_TEXT)
        env.long_text = LONG_TEXT[:SHORTER_CHARS] if refused else LONG_TEXT
    return env.long_text


def difference(expected: Messages, read: Messages) -> str:
    """Describe how what was read differs from what was expected."""
    if not read:
        return f"expected {counted(len(expected), 'message')}, read none"
    text = f"expected {counted(len(expected), 'message')}, read {len(read):,}"
    missing = [message for message in expected if read.count(message) < expected.count(message)]
    surplus = [message for message in read if read.count(message) > expected.count(message)]
    if not missing and not surplus:
        at = next(at for at, pair in enumerate(zip(expected, read, strict=True)) if pair[0] != pair[1])
        return f"{text}, in another order: number {at + 1} is {_short(read[at])} instead of {_short(expected[at])}"
    text += f"; missing {_some(missing)}" if missing else ""
    return text + (f"; not expected {_some(surplus)}" if surplus else "")


def _some(messages: Messages) -> str:
    more = f" and {len(messages) - 2:,} more" if len(messages) > 2 else ""
    return ", ".join(_short(message) for message in messages[:2]) + more


def _short(message: tuple[str, str]) -> str:
    return f"{message[0]}: {quoted(message[1])}"


def quoted(text: str) -> str:
    """Return a text in quotes, or the beginning of a long one and its length."""
    shown = repr(text)
    return shown if len(shown) <= SHOWN_CHARS else f"{shown[:SHOWN_CHARS]}... ({len(text):,} characters)"
