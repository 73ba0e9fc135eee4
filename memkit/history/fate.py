"""What became of a session or of the keys under a prefix, with the evidence for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Any, Literal, cast

from memkit.history.changes import plain_seconds, time_of, time_text
from memkit.history.states import SAME_SECOND_MS, KeyEvent, KeyState, Moment
from memkit.render import duration, printable, utc_text

Cause = Literal["expired", "evicted", "deleted", "overwritten", "renamed", "flushed", "exists", "never_seen", "unknown"]
ENDS = frozenset({"expired", "evicted", "deleted", "renamed", "flushed"})


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a session, as of the end of its last source.

    ``at`` is when, and ``at_is`` how well that is known: ``"exact"``, or ``"between"`` it and ``not_before``,
    which is None if nothing bounds it. ``either`` lists the causes that the sources cannot tell apart.
    """

    cause: Cause
    sentence: str
    confidence: Literal["proven", "likely", "possible"]
    at: datetime | None = None
    at_is: Literal["exact", "between"] | None = None
    not_before: datetime | None = None
    either: tuple[Cause, ...] | None = None
    ttl_s: float | None = None
    ttl_set_at: datetime | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fate as ``history --json`` shows it."""
        return {
            "cause": self.cause,
            "at": time_text(self.at),
            "at_is": self.at_is,
            "not_before": time_text(self.not_before),
            "either": None if self.either is None else list(self.either),
            "ttl_s": self.ttl_s,
            "ttl_set_at": time_text(self.ttl_set_at),
            "confidence": self.confidence,
            "sentence": self.sentence,
        }


def fate_of(key: bytes, events: Sequence[KeyEvent], state: KeyState | None) -> Fate:
    """Return what became of one key.

    Args:
        key: Its name.
        events: What happened to it, in order.
        state: The key at the end of the sources, None if it does not exist then.
    """
    name = printable(key.decode("utf-8", "replace"))
    if not events and state is None:
        sentence = f"never seen: {name} does not occur in the sources: nothing was written in the time that they cover"
        return Fate("never_seen", sentence, "likely")
    if state is not None:
        events = list(takewhile(lambda event: event.name not in ENDS, reversed(events)))[::-1]
    given = next((event for event in reversed(events) if event.ttl_ms is not None), None)
    known: dict[str, Any] = {}
    if given is not None:
        known = {"ttl_s": plain_seconds(given.ttl_ms), "ttl_set_at": time_of(given.moment.earliest_ms)}
    if state is not None:
        return _fate_of_existing(name, events, state, known)
    last = next((event for event in reversed(events) if event.name in ENDS), None)
    if last is None:
        return Fate(
            "unknown", f"unknown: {name} does not exist at the end, and no source shows why", "possible", **known
        )
    if last.possible:
        return _fate_of_deleted(name, last, known)
    what = "was renamed" if last.name == "renamed" else f"was deleted by {last.command or 'a flush of the database'}"
    target = f" to {printable((last.target or b'').decode('utf-8', 'replace'))}" if last.target is not None else ""
    cause: Cause = "renamed" if last.name == "renamed" else "flushed"
    return Fate(cause, f"{cause}: {name} {what}{target}{_when(last.moment)}", "proven", **_at(last.moment), **known)


def _fate_of_existing(name: str, events: Sequence[KeyEvent], state: KeyState, known: Mapping[str, Any]) -> Fate:
    last_write = next((event for event in reversed(events) if event.name in ("overwritten", "renewed")), None)
    if last_write is not None and last_write.name == "overwritten" and state.deadline_ms is None:
        when, at = _when(last_write.moment), _at(last_write.moment)
        if len(last_write.possible) > 1:
            sentence = f"overwritten or exists: {name} exists, but lost its TTL{when}, by a write or by PERSIST"
            return Fate("unknown", sentence, "possible", either=("overwritten", "exists"), **at, **known)
        writer = last_write.command or "a write"
        sentence = f"overwritten: {name} exists, but {writer} replaced it{when} and dropped its TTL: it never expires"
        return Fate("overwritten", sentence, "proven", **at, **known)
    confidence: Literal["proven", "likely"] = "likely" if state.may_be_empty else "proven"
    until = "without a TTL" if state.deadline_ms is None else f"until {utc_text(time_of(state.deadline_ms))}"
    return Fate("exists", f"exists: {name} exists at the end of the sources, {until}", confidence, **known)


def _fate_of_deleted(name: str, last: KeyEvent, known: Mapping[str, Any]) -> Fate:
    deadline = last.deadline_ms
    ttl = f" with a TTL of {duration(known['ttl_s'] * 1_000)}" if "ttl_s" in known else ""
    if last.possible[0] == "expired" and deadline is not None:
        only = last.possible == ("expired",)
        proven = only and last.moment.stated
        if only or _is_exact(last.moment):  # within a second of the deadline an expiry is far likelier than a deletion
            at = time_of(deadline)
            sentence = f"expired: {name}, written{ttl}, reached its deadline at {utc_text(at)}"
            exact: Literal["exact", "between"] = "exact" if last.moment.stated else "between"
            return Fate("expired", sentence, "proven" if proven else "likely", at, exact, **known)
    if len(last.possible) == 1:
        cause = cast("Cause", last.possible[0])
        what = "expired with its last field" if cause == "expired" else f"was {cause}"
        sentence = f"{cause}: {name} {what}{_by(last)}{_when(last.moment)}"
        return Fate(cause, sentence + _before_deadline(deadline), "proven", **_at(last.moment), **known)
    choices = " or ".join(last.possible)
    sentence = f"{choices}: {name} ceased to exist{_by(last)}{_when(last.moment)}" + _before_deadline(deadline)
    either = cast("tuple[Cause, ...]", last.possible)
    return Fate("unknown", sentence, "possible", either=either, **_at(last.moment), **known)


def _by(event: KeyEvent) -> str:
    return f" by {event.command}" if event.command else ""


def _before_deadline(deadline_ms: int | None) -> str:
    return "" if deadline_ms is None else f"; its deadline was {utc_text(time_of(deadline_ms))}"


def _is_exact(moment: Moment) -> bool:
    if moment.earliest_ms is None or moment.latest_ms is None:
        return False
    return moment.stated and moment.latest_ms - moment.earliest_ms < SAME_SECOND_MS


def _at(moment: Moment) -> dict[str, Any]:
    if _is_exact(moment):
        return {"at": time_of(moment.earliest_ms), "at_is": "exact"}
    return {"at": time_of(moment.latest_ms), "at_is": "between", "not_before": time_of(moment.earliest_ms)}


def _when(moment: Moment) -> str:
    at = _at(moment)
    if at["at"] is not None and at["at_is"] == "exact":
        return f" at {utc_text(at['at'])}"
    bounds = [f"after {utc_text(at['not_before'])}"] if at.get("not_before") else []
    bounds += [f"before {utc_text(at['at'])}"] if at["at"] else []
    return f" ({' and '.join(bounds)})" if bounds else ""
