"""What only values show: payloads that are broken, pointers to keys that are gone, writes that renewed no deadline.

Values are read on connections with CLIENT NO-TOUCH. Known stores are decoded by ``memkit.formats``, session by session
(``audit_parts``); of others, what most payloads of one shape are is what all of them should be. What names sessions and
is none of theirs is looked at by ``audit_indexes``.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from memkit import formats
from memkit.audit.checks.known_stores import Loads, Parts
from memkit.audit.checks.mixed_ttl import torn_sessions
from memkit.audit.checks.session_indexes import lists_of_the_gone
from memkit.audit.finding import Finding
from memkit.audit.key_shapes import Member
from memkit.audit.sampling import KeyFacts
from memkit.config import Expectation
from memkit.formats.model import Problem, SessionValues, Turn, seconds
from memkit.readonly.reader import Reader
from memkit.readonly.values import JSON_KIND, KeyRequest, RedisValue, to_bytes, to_name
from memkit.render import duration, utc_text

FEWEST_VALUES = 5_000
BATCH_KEYS = 200
LATE_MS = 5_000
BEGUN, FOREIGN = "begins like JSON and breaks off", "is no JSON, as its neighbours are"

_TIME_NAME = re.compile(r"(^|_)(ts|at|time|timestamp|date|created|updated|datetime)s?$", re.IGNORECASE)
_ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d")
_COMMAND = re.compile(rb"\*\d+\r\n\$\d+\r\n([A-Za-z.]{2,20})\r\n(?:\$\d+\r\n([A-Z-]{3,20})\r\n)?")


@dataclass
class Values:
    """What was read: per expectation the broken keys, the dates, and the pointers to nowhere."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    read: int = 0
    sent: Counter[str] = field(default_factory=Counter)


class _Dated(NamedTuple):
    """A key with the newest date that its payload gives itself, ms; None where it gives none."""

    facts: KeyFacts
    newest: float | None


@dataclass
class _Looked:
    """What the values of one expectation showed; the values themselves are let go, batch by batch."""

    tried: int = 0
    dated: list[_Dated] = field(default_factory=list)
    faults: defaultdict[tuple[str, str], list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    parts: Parts = field(default_factory=Parts)
    notes: list[str] = field(default_factory=list)


def check_values(
    reader: Reader,
    meant: Sequence[Expectation],
    keys: Sequence[KeyFacts],
    *,
    short: Callable[[KeyFacts], bool],
    within_s: float = 0.0,
) -> Values:
    """Read values and return what they show. ``short``: keys whose TTL alone is already known to be too short.

    Values of the first FEWEST_VALUES keys of an expectation are always read; of more as long as ``within_s`` lasts.
    """
    found, loads = Values(), Loads(reader)
    _count_commands(reader, found.sent)
    there = {to_name(one.key): one for one in keys}
    looks = [_read(loads, one, one.of(keys), within_s=max(within_s, 0.5)) for one in meant]
    _tell_once(meant, looks)
    for one, looked in zip(meant, looks, strict=True):
        found.notes += looked.notes
        dated = [session for session in looked.dated if not short(session.facts)]
        found.findings += _findings(one, looked, dated, there, found.notes)
    torn = {finding.prefix for finding in found.findings if finding.cause == "dangling"}
    found.findings += lists_of_the_gone(loads, [one for one in meant if one.prefix not in torn], meant, keys)
    found.read = len(loads.names)
    return found


def _tell_once(meant: Sequence[Expectation], looks: Sequence[_Looked]) -> None:
    """Give each problem to the expectation that its key matches: parts of one session may be several's."""
    found = {key: (at, problem) for at, one in enumerate(looks) for key, problem in one.parts.problems.items()}
    for looked in looks:
        looked.parts.problems = {}
    for key, (at, problem) in found.items():
        matching = (n for n, one in enumerate(meant) if one.matches.fullmatch(to_bytes(problem.key)))
        looks[next(matching, at)].parts.problems[key] = problem


def _findings(
    meant: Expectation,
    looked: _Looked,
    dated: Sequence[_Dated],
    there: Mapping[str, KeyFacts],
    notes: list[str],
) -> list[Finding]:
    dangling = [problem for problem in looked.parts.problems.values() if problem.cause == "dangling"]
    found = (
        _corrupt(meant, _broken(looked), len(looked.dated)),
        _dangling(meant, dangling, len(looked.dated)),
        _torn_by_store(meant, looked, there),
        _not_refreshed(meant, dated, notes),
    )
    return [finding for finding in found if finding]


def _count_commands(reader: Reader, sent: Counter[str]) -> None:
    """Count what a reader sends: the proof lists every command."""
    for connection in reader.connections.values():
        send = connection.send_packed_command

        def counted(command: Iterable[bytes], check_health: bool = True, send: Any = send) -> None:
            parts = list(command)
            for name, sub in _COMMAND.findall(b"".join(parts)):
                word = name.decode().lower()
                sent[f"{word}|{sub.decode().lower()}" if word in ("object", "memory", "client") else word] += 1
            send(parts, check_health)

        connection.send_packed_command = counted  # type: ignore[method-assign]


def _read(loads: Loads, meant: Expectation, keys: Sequence[KeyFacts], *, within_s: float) -> _Looked:
    """Read values batch by batch and keep what they show; then those sessions whose parts were not in one batch."""
    until = time.monotonic() + within_s
    looked = _Looked()
    in_order = sorted(keys)  # by name, so that most sessions' keys are together
    for start in range(0, len(in_order), BATCH_KEYS):
        if looked.tried >= FEWEST_VALUES and time.monotonic() > until:
            looked.notes.append(f"values of {looked.tried:,} of {len(keys):,} keys under {meant.prefix} were read")
            break
        batch = {to_name(one.key): one for one in in_order[start : start + BATCH_KEYS]}
        looked.tried += len(batch)
        loads.afresh()
        raws = [
            raw for raw in loads.load(KeyRequest(name, "") for name in batch).values() if raw and not raw.unread_reason
        ]
        _note(looked, raws, batch)
        looked.parts.note(raws)
    done, of = looked.parts.close(loads, {to_name(one.key): one for one in keys}, within_s=within_s)
    if done < of:
        looked.notes.append(f"parts of {done:,} of {of:,} sessions under {meant.prefix} were looked for")
    return looked


def _note(looked: _Looked, raws: Sequence[RedisValue], batch: Mapping[str, KeyFacts]) -> None:
    for raw in raws:
        facts = batch[raw.name]
        looked.dated.append(_Dated(facts, _newest(raw, facts)))
        for place, payload in _payloads(raw):
            if (fault := _fault(payload)) is not None:
                looked.faults[_shape(raw), place].append((raw.name, fault))


def _shape(raw: RedisValue) -> str:
    """Return what keys of one kind have in common, roughly: type, first words, number of parts."""
    words = re.match(r"([A-Za-z_-]+[:/|])*", raw.name)
    return f"{raw.kind} {words[0] if words else ''} {len(re.findall('[:/|]', raw.name))}"


def _torn_by_store(meant: Expectation, looked: _Looked, there: Mapping[str, KeyFacts]) -> Finding | None:
    """Return the finding of sessions in parts that only the payload shows to be one session's."""
    sessions = [
        [Member(there[name], owner.session, owner.part) for name, owner in owners.items() if name in there]
        for owners in looked.parts.owners.values()
    ]
    several = [members for members in sessions if len(members) > 1]
    return torn_sessions(meant, several, sampled=len(looked.dated)).finding if meant.ttl_ms else None


# -- corrupt -----------------------------------------------------------------------------------------------------------


def _broken(looked: _Looked) -> dict[str, str]:
    """Return the keys with a payload that cannot be read, and why."""
    broken = {problem.key: problem.message for problem in looked.parts.problems.values() if problem.cause == "corrupt"}
    for found in looked.faults.values():
        documents = sum(fault == "" for _, fault in found)
        for name, fault in found:
            # What begins like JSON and is none is broken; what is something else, only where its neighbours are JSON.
            if fault == BEGUN or (fault == FOREIGN and documents > 0.6 * len(found)):
                broken.setdefault(name, fault)
    return broken


def _payloads(raw: RedisValue) -> Iterator[tuple[str, bytes]]:
    """Yield the payloads that may be documents, each with the place that its neighbours in other keys have too."""
    if raw.kind in ("string", JSON_KIND, "list"):
        yield from (("", payload) for payload in raw.payloads)
    elif raw.kind == "hash":
        yield from raw.fields.items()


def _fault(payload: bytes) -> str | None:
    """Return why a payload is no JSON document: empty where it is one, None where it is a plain value."""
    begins = payload.lstrip()[:1] in (b"{", b"[")
    try:
        return "" if isinstance(json.loads(payload), dict | list) else None
    except (ValueError, RecursionError):
        return BEGUN if begins and payload[1:2] not in b"\x80\x81" else FOREIGN


def _corrupt(meant: Expectation, broken: Mapping[str, str], looked: int) -> Finding | None:
    if not broken:
        return None
    reasons = Counter(broken.values()).most_common(3)
    return Finding(
        "corrupt",
        prefix=meant.prefix,
        keys=len(broken),
        sampled=looked,
        message=f"{len(broken):,} of {looked:,} keys under {meant.prefix} hold a payload that cannot be read",
        confidence="proven",
        expected_ttl_s=None if meant.ttl_ms is None else meant.ttl_ms / 1000,
        evidence=tuple(f"{count:,} times: {why}" for why, count in reasons),
        next="memkit inspect URL KEY says which element and byte, and how much is readable",
    )


# -- not refreshed -----------------------------------------------------------------------------------------------------


def _dates(raw: RedisValue) -> Iterator[float]:
    """Yield the times, in ms, that a key's payloads give themselves: of a list, its two ends."""
    payloads = list(raw.payloads)
    if raw.kind == "list" and len(payloads) > 6:
        payloads = payloads[:3] + payloads[-3:]
    for payload in payloads:
        if len(payload) < 1 << 16:
            try:
                yield from _dates_in(json.loads(payload), "", 0)
            except (ValueError, RecursionError):
                continue
    for name, value in raw.fields.items():
        if _TIME_NAME.search(name) and len(value) < 40:
            yield from _date(value.decode(errors="replace"))
    owner = formats.recognise(raw)
    if owner and owner.store == "memkit":
        for item in formats.decode(SessionValues(owner, {raw.name: raw})):
            if isinstance(item, Turn) and item.at_s is not None:
                yield item.at_s * 1000


def _dates_in(value: Any, name: str, depth: int) -> Iterator[float]:
    if depth > 6:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _dates_in(inner, key, depth + 1)
    elif isinstance(value, list):
        for inner in value[:3] + value[3:][-3:]:
            yield from _dates_in(inner, name, depth + 1)
    elif _TIME_NAME.search(name):
        yield from _date(value)


def _date(value: Any) -> Iterator[float]:
    if isinstance(value, str):
        if _ISO.match(value):
            try:
                at = datetime.fromisoformat(value)
            except ValueError:
                return
            yield (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000
            return
        value = float(value) if re.fullmatch(r"\d{9,17}(\.\d+)?", value) else None
    found = seconds(value)
    if found is not None:
        yield found * 1000


def _not_refreshed(meant: Expectation, sessions: Sequence[_Dated], notes: list[str]) -> Finding | None:
    """Compare each session's newest date with its deadline: a write that renews leaves a whole TTL after it."""
    if meant.policy.kind != "sliding" or meant.ttl_ms is None or not sessions:
        return None
    dated = [(facts, newest) for facts, newest in sessions if facts.deadline_ms and newest is not None]
    if not dated:
        notes.append(f"not_refreshed: no payload under {meant.prefix} tells when it was written")
        return None
    tolerance = LATE_MS + 1.1 * meant.jitter * meant.ttl_ms
    late = [(one, at) for one, at in dated if at - ((one.deadline_ms or 0) - meant.ttl_ms) > tolerance]
    if len(late) < max(min(3, len(dated)), 0.05 * len(dated)):
        return None
    return _late_finding(meant, late, dated=len(dated), looked=len(sessions))


def _late_finding(meant: Expectation, late: Sequence[tuple[KeyFacts, float]], *, dated: int, looked: int) -> Finding:
    ttl_ms = meant.ttl_ms or 0
    left = sorted((one.deadline_ms or 0) - at for one, at in late)[len(late) // 2]
    first = datetime.fromtimestamp(min(at for _, at in late) / 1000, UTC)
    return Finding(
        "not_refreshed",
        prefix=meant.prefix,
        keys=len(late),
        sampled=looked,
        message=f"writes under {meant.prefix} do not renew the deadline: after its last message a session has "
        f"{duration(left)} instead of {duration(ttl_ms)} (median of {len(late):,})",
        confidence="proven",
        expected_ttl_s=ttl_ms / 1000,
        observed_ttl_s=ttl_ms / 1000,
        since=first,
        since_is="upper bound",
        evidence=(
            f"{len(late):,} of {dated:,} sessions whose payload tells when it was written",
            f"the first such write that is still there was at {utc_text(first)}",
        ),
        next="set the TTL in the same command or transaction as every write (EXPIRE after RPUSH, or SET with EX)",
    )


def _newest(raw: RedisValue, facts: KeyFacts) -> float | None:
    """Return the newest date of a payload that is not in the future, in ms."""
    return max((at for at in _dates(raw) if at <= facts.seen_ms + 60_000), default=None)


# -- dangling ----------------------------------------------------------------------------------------------------------


def _dangling(meant: Expectation, problems: Sequence[Problem], looked: int) -> Finding | None:
    if not problems:
        return None
    keys = {problem.key for problem in problems}
    says = Counter(problem.message for problem in problems).most_common(3)
    return Finding(
        "dangling",
        prefix=meant.prefix,
        keys=len(keys),
        sampled=looked,
        message=f"{len(keys):,} keys that sessions under {meant.prefix} point to are gone",
        confidence="proven",
        expected_ttl_s=None if meant.ttl_ms is None else meant.ttl_ms / 1000,
        evidence=tuple(f"{count:,} times: {text}" for text, count in says),
        next="memkit inspect URL SESSION says what is recoverable and prints the repair",
    )
