"""What became of a session or of the keys under a prefix, with the evidence for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Any, Literal, cast

from memkit.history.changes import plain_seconds, time_of, time_text
from memkit.history.states import SAME_SECOND_MS, KeyEvent, KeyState, Moment
from memkit.render import duration, printable, utc_text

Cause = Literal["expired", "evicted", "deleted", "overwritten", "renamed", "flushed", "exists", "never_seen", "unknown"]
Confidence = Literal["proven", "likely", "possible"]
ENDS = frozenset({"expired", "evicted", "deleted", "renamed", "flushed"})


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a session, as of the end of its last source.

    ``at`` is when, and ``at_is`` how well that is known: ``"exact"``, or ``"between"`` it and ``not_before``,
    which is None if nothing bounds it. ``either`` lists the causes that the sources cannot tell apart.
    """

    cause: Cause
    sentence: str
    confidence: Confidence
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


def fate_of(
    key: bytes, events: Sequence[KeyEvent], state: KeyState | None, *, db: int = 0, ends_ms: int | None = None
) -> Fate:
    """Return what became of one key.

    Args:
        key: Its name.
        events: What happened to it, in order.
        state: The key at the end of the sources, None if it does not exist then.
        db: The number of its database.
        ends_ms: When the sources end, as a Unix time, if that is known.
    """
    name = printable(key.decode("utf-8", "replace")) + (f" in database {db}" if db else "")
    if not events and state is None:
        return Fate("never_seen", f"never seen: the sources do not contain {name}", "likely")
    last = None if state is not None or events[-1].name not in ENDS else events[-1]
    events = events if last is None else events[:-1]
    events = list(takewhile(lambda event: event.name not in ENDS, reversed(events)))[::-1]  # since it was created
    given = None  # the event that gave the key its last TTL, if that TTL is known
    for event in events:
        if event.ttl_ms is not None:
            given = event
        elif given is not None and event.deadline_ms not in (None, given.deadline_ms):
            given = None
    known: dict[str, Any] = {}
    if given is not None:
        at = given.ttl_given or given.moment
        set_at = at.earliest_ms if at.is_exact or at.earliest_ms == at.latest_ms else None
        known = {"ttl_s": plain_seconds(given.ttl_ms), "ttl_set_at": time_of(set_at)}
    if state is not None:
        return _fate_of_existing(name, events, state, known, ends_ms)
    if last is None:
        return _fate(("unknown",), f"{name} does not exist at the end, and no source shows why", known)
    if last.name != "renamed" or last.possible:
        was_past = any(
            event.deadline_ms is not None and event.deadline_ms == event.moment.earliest_ms for event in events[-1:]
        )
        return _fate_of_deleted(name, last, known, was_past=was_past)
    return _fate(("renamed",), f"{name} was {_how_renamed(last)}{_when(last.moment)}", known, "proven", last.moment)


def _how_renamed(event: KeyEvent) -> str:
    if event.target == event.key or event.command == "MOVE":
        return f"moved to another database by {event.command}"
    if event.target is not None:
        return f"renamed to {printable(event.target.decode('utf-8', 'replace'))}"
    return f"renamed by {event.command}" if event.command else "renamed, or moved to another database or server"


def _fate_of_existing(
    name: str, events: Sequence[KeyEvent], state: KeyState, known: Mapping[str, Any], ends_ms: int | None
) -> Fate:
    lost: KeyEvent | None = None
    doubts: list[KeyEvent] = []  # after which the key may have ended and been created anew
    for event in events:
        if event.name != "written" or event.deadline_ms is not None:
            lost, doubts = event if event.name == "overwritten" else None, []
        doubts += [event] if len(event.possible) > 1 else []
    cause: Cause = "exists" if lost is None else "overwritten"
    if state.is_sure and state.least and lost is None:
        at = state.deadline_ms
        until = ", without a TTL" if at is None else f"; its deadline is {utc_text(time_of(at))}"
        until += "; fields of it have TTLs of their own" if state.fields_expire else ""
        confidence: Confidence = "proven" if all(event.proven for event in events) else "likely"
        return _fate(("exists",), f"{name} exists at the end of the sources{until}", known, confidence)
    if state.is_sure and state.least and lost is not None and not doubts:
        what = f"{lost.command or 'a write'} replaced it{_when(lost.moment)} and dropped its TTL: it never expires"
        confidence = "proven" if lost.proven else "likely"
        return _fate(("overwritten",), f"{name} exists, but {what}", known, confidence, lost.moment)
    if not state.least:
        by = f"{events[-1].command}{_when(events[-1].moment)}" if events else "a command"
        created_anew = lost is not None and doubts[:1] not in ([], [events[-1]])
        is_past = state.deadline_ms is not None and ends_ms is not None and state.deadline_ms <= ends_ms
        expires = is_past or state.fields_expire or (bool(events) and "expired" in events[-1].possible)
        either: tuple[Cause, ...] = (cause, "exists", "deleted") if created_anew else (cause, "deleted")
        either += ("expired",) if expires else ()
        otherwise = "it was deleted or expired" if expires else "it was deleted"
        left = "left an element in it" + (" and its deadline does not apply" if is_past else "")
        return _fate(either, f"{name} exists if {by} {left}; otherwise {otherwise}", known)
    if lost is not None:
        how = f"{lost.command}, or it was deleted and created again" if lost.command else "a write or by PERSIST"
        how += ", or it expired and was created again" if "expired" in lost.possible else ""
        text = f"{name} exists, but lost its TTL{_when(lost.moment)}, by {how}"
        return _fate(("overwritten", "exists"), text, known, moment=lost.moment)
    if state.deadline_ms is not None and ends_ms is not None and state.deadline_ms <= ends_ms:
        text = f"{name} had a deadline at {utc_text(time_of(state.deadline_ms))}; the sources do not show whether "
        return _fate(("exists", "expired"), text + "this deadline still applied", known)
    text = f"{name} exists at the end of the sources; its deadline is not known"
    return _fate(("exists",), text, known, "likely")


def _fate_of_deleted(name: str, last: KeyEvent, known: Mapping[str, Any], *, was_past: bool) -> Fate:
    deadline, moment = last.deadline_ms, last.moment
    possible = cast("tuple[Cause, ...]", last.possible or (last.name,))
    ttl = f" with a TTL of {duration(known['ttl_s'] * 1_000)}" if "ttl_s" in known else ""
    if possible[0] == "expired" and deadline is not None:
        only = possible == ("expired",)
        # Within a second of the deadline an expiry is far likelier than a deletion.
        is_close = moment.is_exact and abs(deadline - (moment.earliest_ms or 0)) < 2 * SAME_SECOND_MS
        if only or is_close:
            at = time_of(deadline)
            sentence = f"expired: {name}, written{ttl}, reached its deadline at {utc_text(at)}"
            if was_past:
                sentence = f"expired: {name} was given a deadline at {utc_text(at)} that was already past"
            exact: Literal["exact", "between"] = "exact" if moment.stated else "between"
            confidence: Confidence = "proven" if only and moment.stated and last.proven else "likely"
            return Fate("expired", sentence, confidence, at, exact, **known)
    by = f" by {last.command}" if last.command else ""
    tail = _when(moment) + ("" if deadline is None else f"; its deadline was {utc_text(time_of(deadline))}")
    if len(possible) > 1:
        is_by_slot = "renamed" in possible and last.command in ("DEL", "UNLINK")
        tail += f"; {last.command} also removes the keys of a slot that moves to another server" if is_by_slot else ""
        return _fate(possible, f"{name} was removed{by}{tail}", known, moment=moment)
    (cause,) = possible
    what = {"expired": "expired with its last field", "flushed": "was deleted"}.get(cause, f"was {cause}")
    by = by or (" by a flush of the database" if cause == "flushed" else "")
    return _fate(possible, f"{name} {what}{by}{tail}", known, "proven" if last.proven else "likely", moment)


def _fate(
    causes: tuple[Cause, ...],
    text: str,
    known: Mapping[str, Any],
    confidence: Confidence = "possible",
    moment: Moment | None = None,
) -> Fate:
    """Return the fate with a cause, or with several that the sources cannot tell apart."""
    sentence, at = f"{' or '.join(causes)}: {text}", _at(moment) if moment else {}
    if len(causes) > 1:
        return Fate("unknown", sentence, confidence, either=causes, **at, **known)
    return Fate(causes[0], sentence, confidence, **at, **known)


def _at(moment: Moment) -> dict[str, Any]:
    if moment.is_exact:
        return {"at": time_of(moment.earliest_ms), "at_is": "exact"}
    return {"at": time_of(moment.latest_ms), "at_is": "between", "not_before": time_of(moment.earliest_ms)}


def _when(moment: Moment) -> str:
    at = _at(moment)
    if at["at"] is not None and at["at_is"] == "exact":
        return f" at {utc_text(at['at'])}"
    bounds = [f"after {utc_text(at['not_before'])}"] if at.get("not_before") else []
    bounds += [f"before {utc_text(at['at'])}"] if at["at"] else []
    return f" ({' and '.join(bounds)})" if bounds else ""
