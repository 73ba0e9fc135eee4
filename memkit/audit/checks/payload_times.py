"""Times that payloads state about themselves, compared with deadlines: not_refreshed and trimmed. Pure.

Only fields that state when the session or a message was written count. What a dialogue, a token or a tool speaks of
(``expires_at``, dates in arguments) is never read: it may lie in the future.
"""

import math
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from statistics import median
from typing import Any, NamedTuple

from memkit import formats
from memkit.audit.checks.ttl_inference import LEAST_LEFT, NEARLY_ALL, SOME, have_stopped, ttl_of
from memkit.audit.checks.ttl_peaks import FEWEST, SURE_NATS, quantile
from memkit.audit.finding import Confidence, Finding, Since
from memkit.audit.sampling import KeyFacts
from memkit.config import Expectation
from memkit.formats import memkit_store
from memkit.formats.model import ISO_TIME, ZONE_MS, KeyOwner, SessionValues, Turn, a_dict, seconds
from memkit.formats.parsing.documents import open_payload
from memkit.policy import ttl_text
from memkit.readonly.values import DOCUMENT_KINDS, RedisValue
from memkit.render import counted, duration

_WHEN = "(at|on|time|date|timestamp|ts|ms|utc)"
_SESSION_TIME = f"""
(last|gmt)?(updated?|modified|modification|edited|changed){_WHEN}*
|last(message|msg|chat|active|activity|access(ed)?|seen|write|written|used?|touch(ed)?|interaction|request|turn){_WHEN}*
|(created?|creation|written|saved|started|accessed|touched){_WHEN}+
|created|date(created|updated|modified)|mtime|timestamp(ms)?|ts
"""
_TEXTS = """
content contents text message parts body blocks data prompt response question answer query reply input output user
assistant human ai bot event
"""
_CONTAINERS = """
session metadata meta messages message history chathistory conversation dialog dialogue turns events entries items
memory log transcript
"""
SESSION_FIELD = re.compile(_SESSION_TIME, re.VERBOSE)
"""Names of fields, in lower case without ``_`` and ``-``, that state when a session was written."""
MESSAGE_FIELD = re.compile(f"{_SESSION_TIME}|at|date|time|datetime|(date|time)sent|sent{_WHEN}+", re.VERBOSE)
"""Those that state when a message was written."""
MESSAGE_TEXTS = frozenset(_TEXTS.split())
"""A message has one of these fields; an appointment, a token or an order in a list of its own has none."""
CONTAINERS = frozenset(_CONTAINERS.split())
"""The fields inside which times are looked for; what tools are given and return is none of them."""
NOTHING = frozenset((b"", b"null", b"{}", b'""', b"None", b"undefined"))
"""What applications write for a session without content."""
MOST_DEPTH = 6
ENDS = 3
"""Messages are in order, so the first and last few hold the first and the newest time."""
MOST_PAYLOAD_BYTES = 1 << 20

LATE_MS = 5_000
"""Two commands of one write are less apart; so are the clocks of servers with NTP."""
QUARTER_HOUR_MS = 900_000
"""Every time zone in use is a multiple of it away from UTC."""
SAME_MS = 60_000
"""If nearly all times are ahead of deadlines by one value, give or take this, two clocks differ."""
DATED_BEFORE = 0.1
"""A session may be dated while it is begun, and written later: by less than this share of its TTL."""
TRIMMED_SHARE, OTHERS_SHARE = 0.5, 0.1
"""At least this share of the sessions of exactly n messages have a newest message that is older than the last write by
more than those of all but OTHERS_SHARE of the shorter ones: a message may be dated before its answer is written. If
reads renew the TTL, the shorter ones are as old.
"""

_HTTP = re.compile(r"[A-Z][a-z]{2}, \d\d? [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d ")
_NUMBER = re.compile(r"(?:/Date\()?(\d{9,17}(?:\.\d+)?)(?:[+-]\d{4})?(?:\)/)?")
"""A Unix time as text, also as .NET writes it."""


class StatedTime(NamedTuple):
    """A time in ms; ``earliest`` is before it if no zone is stated: it may be the time of any."""

    at: float
    earliest: float


class DatedSession(NamedTuple):
    """A key with the first and the newest time that its payload states, and how many messages it holds; -1: unknown."""

    facts: KeyFacts
    first: StatedTime | None
    newest: StatedTime | None
    messages: int


def dated_session(value: RedisValue, facts: KeyFacts, owner: KeyOwner | None) -> DatedSession:
    """Return what a value states about its times; a time in the future is none of a write."""
    lengths, stated = [value.total], []
    exact: list[float] = []
    if owner and owner.store == memkit_store.STORE:
        decoded = formats.decode(SessionValues(owner, {value.name: value}))
        exact = [1000 * one.at_s for one in decoded if isinstance(one, Turn) and one.at_s is not None]
    elif value.kind == "stream":
        # The server gives an entry its time as id, unless the client does.
        ids = [] if value.partial else [float(entry.partition("-")[0]) for entry, _ in value.entries]
        exact = [at_ms for at_ms in ids if seconds(at_ms)]
    elif value.kind == "zset":
        # An id with a time is an entry of an index; with a time in the future, a sorted set is a plan.
        scores = [1000 * (seconds(score) or 0) for member, score in value.scores.items() if " " in member]
        exact = [at_ms for at_ms in scores if at_ms and max(scores) <= facts.seen_ms + SAME_MS]
    else:
        document = _document(value)
        stated = list(times_in(document))
        written_s = formats.format_of(owner.store).written_s if owner else None
        if written_s and (at_s := written_s(a_dict(document))):
            exact = [1000 * at_s]
        inner = document.values() if isinstance(document, dict) else (document,)
        lengths = [value.total] if value.kind == "list" else [len(one) for one in inner if isinstance(one, list)]
        lengths = [0] if value.kind in DOCUMENT_KINDS and value.data.strip() in NOTHING else lengths
    stated += [StatedTime(at_ms, at_ms) for at_ms in exact]
    times = [one for one in stated if one.earliest <= facts.seen_ms + SAME_MS]
    return DatedSession(facts, min(times, default=None), max(times, default=None), max(lengths, default=-1))


def written_ms(expected: Expectation, facts: KeyFacts) -> float:
    """Return when a key was last written, by its deadline and the expected TTL, or by its idle clock."""
    touched, ttl = facts.touched_ms or facts.seen_ms, ttl_of(facts, expected)
    return touched if facts.deadline_ms is None or ttl is None else min(facts.deadline_ms - ttl, touched)


def _document(value: RedisValue) -> Any:
    """Return a value as one JSON value; of a list, the first and the last few elements."""
    if value.kind == "hash":
        return {name: _parsed(data) for name, data in value.fields.items()}
    if value.kind == "list":
        return [_parsed(data) for data in [*value.elements[:ENDS], *value.elements[ENDS:][-ENDS:]]]
    return _parsed(value.data)


def _parsed(data: bytes) -> Any:
    value = open_payload(data).value if len(data) <= MOST_PAYLOAD_BYTES else None
    return data.decode(errors="replace") if value is None and len(data) < 64 else value


def times_in(value: Any, *, depth: int = 0, listed: bool = False, message: bool = False) -> Iterator[StatedTime]:
    """Yield the times that a document states about itself and its messages.

    Args:
        value: Parsed JSON.
        depth: How deep it lies in the document.
        listed: Whether it stands in a list; there, only messages state times.
        message: Whether it is a part of a message, such as its metadata.
    """
    if isinstance(value, list) and depth < MOST_DEPTH:
        for inner in value[:ENDS] + value[ENDS:][-ENDS:]:
            yield from times_in(inner, depth=depth + 1, listed=True)
    if not isinstance(value, dict) or depth >= MOST_DEPTH:
        return
    names = {name: re.sub(r"[_-]", "", name).lower() for name in value}
    is_message = message or not MESSAGE_TEXTS.isdisjoint(names.values())
    if listed and not is_message:
        return
    for name, plain in names.items():
        inner = value[name]
        if (MESSAGE_FIELD if is_message else SESSION_FIELD).fullmatch(plain):
            yield from _time(inner)
        elif plain in CONTAINERS or (
            depth == 0 and isinstance(inner, dict) and "role" in inner and not MESSAGE_TEXTS.isdisjoint(inner)
        ):
            yield from times_in(inner, depth=depth + 1, message=is_message and isinstance(inner, dict))


def _time(value: Any) -> Iterator[StatedTime]:
    value = value.get("$date") if isinstance(value, dict) else value  # as MongoDB's drivers write it
    if isinstance(value, list) and len(value) > 4 and all(isinstance(one, int) for one in value):
        # Jackson writes a LocalDateTime as numbers from the year to the nanoseconds, without a zero at the end.
        value = "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}".format(*value[:5], *(value[5:6] or [0]))
    if isinstance(value, str) and (ISO_TIME.match(value) or _HTTP.match(value)):
        try:
            at = parsedate_to_datetime(value) if _HTTP.match(value) else datetime.fromisoformat(value)
        except ValueError:
            return
        ms = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000
        yield StatedTime(ms, ms if at.tzinfo else ms - ZONE_MS)
        return
    if isinstance(value, str):
        number = _NUMBER.fullmatch(value)
        value = float(number[1]) if number else None
    found = seconds(value)
    if found is not None:
        yield StatedTime(found * 1000, found * 1000)


def not_refreshed(
    expected: Expectation, sessions: Sequence[DatedSession], notes: list[str], doubts: list[str]
) -> Finding | None:
    """Compare each session's newest time with its deadline: a write that renews leaves a whole TTL after it.

    Args:
        expected: The expectation; of several TTLs, the shortest is compared.
        sessions: The sessions, without those of which the TTL itself is too short.
        notes: What explains late times without a fault is added here.
        doubts: Late times of too few sessions for a finding are added here.

    Returns:
        The finding, or None if writes renew the TTL, or if clocks or throttled renewal explain what was seen.
    """
    if expected.policy.kind != "sliding" or not sessions:
        return None
    ttl = expected.ttls_ms[0]
    tolerance = LATE_MS + expected.jitter * ttl
    dated = [
        (one.facts.deadline_ms - ttl, one.first.at, one.newest)
        for one in sessions
        if one.facts.deadline_ms and one.first and one.newest
    ]
    if not dated:
        notes.append(
            f"not checked whether writes renew the TTL: no payload matching {expected.pattern} has a time of writing"
        )
        return None
    late = [one for one in dated if one[2].earliest - one[0] > tolerance]
    renewals = [begin for begin, first, _ in dated if first + tolerance < begin]
    stopped = _stopped(renewals, [newest.earliest for _, _, newest in late], max(one.facts.seen_ms for one in sessions))
    written = dated if stopped is None else [one for one in dated if one[2].earliest > stopped]
    if len(late) < max(1, SOME * len(written)):  # fewer may be clocks that were set
        return None
    ahead = [newest.at - begin for begin, _, newest in late]
    if _two_clocks(ahead):
        notes.append(
            f"times in payloads of keys matching {expected.pattern} are {duration(median(ahead))} later than the "
            f"deadlines allow, all by the same amount: probably another clock or a time zone"
        )
        return None
    left = sorted(1 - each / ttl for each in ahead)
    short = left[min(FEWEST, len(left)) - 1] < LEAST_LEFT
    if stopped is None and len(renewals) >= max(1, SOME * len(dated)) and not short:
        notes.append(
            f"renewal of keys matching {expected.pattern} is throttled: after its last write a session has at least "
            f"{left[0]:.0%} of its TTL left"
        )
        return None
    if len(late) < min(FEWEST, len(dated)):
        doubts.append(
            f"{len(late)} of {counted(len(dated), 'session')} matching {expected.pattern}, too few to judge, "
            f"{'states a write' if len(late) == 1 else 'state writes'} after which less than the TTL was left; "
            "to find out, run again with --watch 30s while sessions are written"
        )
        return None
    fixed = sum(abs(first - begin) <= tolerance for begin, first, _ in late)
    times = [newest.at for _, _, newest in late]
    return _late_finding(expected, times, ahead, fixed=fixed, short=short, of=len(dated), stopped=stopped)


def _stopped(renewals: Sequence[int], late: Sequence[float], now_ms: int) -> int | None:
    """Return when the last renewal was, if they have stopped since and the late writes are all later; else None."""
    last = max(renewals, default=now_ms)
    before, after = len(renewals), sum(one > last for one in late)
    # The chance that they are in this order if renewal is throttled, and goes on.
    in_order = after >= NEARLY_ALL * len(late) and math.log(math.comb(before + after, after)) > SURE_NATS
    return last if in_order and have_stopped(renewals, now_ms - last) else None


def _late_finding(
    expected: Expectation,
    times: Sequence[float],
    ahead: Sequence[float],
    *,
    fixed: int,
    short: bool,
    of: int,
    stopped: int | None,
) -> Finding:
    """Return the finding of sessions that were written so late, by how far each write is ahead of a whole TTL.

    ``fixed``: how many deadlines still count from the first message; ``short``: some have hardly any TTL left;
    ``stopped``: when the last renewal was, if there are none since.
    """
    # If each has half of its TTL left, renewal may be throttled, and no session may have been renewed yet.
    sure: Confidence = "proven" if len(times) >= FEWEST else "likely"
    confidence: Confidence = sure if short else "possible" if stopped is None else "likely"
    ttl = expected.ttls_ms[0]
    given = ttl - median(ahead)
    # Without a deadline that counts from the first message, one distance for all sessions is their TTL.
    is_ttl = not fixed and _are_alike(ahead) and not _are_alike(times)
    return Finding.of(
        "ttl_too_short" if is_ttl else "not_refreshed",
        expected,
        keys=len(times),
        message=f"writes to keys matching {expected.pattern} "
        f"{'set a shorter TTL' if is_ttl else 'do not renew the TTL'}: after its last message a session has "
        f"{duration(given)} instead of {duration(ttl)} (median of {len(times):,})",
        confidence="likely" if is_ttl else confidence,
        observed_ms=round(given, -3) if is_ttl else ttl,
        since=Since(min(times), "upper bound") if stopped is None else Since(stopped, "lower bound"),
        evidence=(
            f"the payloads of {len(times):,} of {counted(of, 'session')} state a write later than the deadline "
            f"minus the TTL",
            f"of their deadlines, {fixed:,} are still one TTL after the first message",
            *([] if stopped is None else ["before the first of these writes, later messages renewed the TTL"]),
        ),
        next="set the TTL in the same command or transaction as every write (EXPIRE after RPUSH, or SET with EX)",
    )


def _two_clocks(ahead: Sequence[float]) -> bool:
    """Return whether a time zone or another clock explains by how much times are ahead."""
    if median(ahead) > ZONE_MS + SAME_MS:
        return False
    zones = sum(abs(each - round(each / QUARTER_HOUR_MS) * QUARTER_HOUR_MS) <= LATE_MS for each in ahead)
    return zones >= NEARLY_ALL * len(ahead) or _are_alike(ahead)


def _are_alike(times: Sequence[float]) -> bool:
    same = sum(abs(each - median(times)) <= SAME_MS for each in times)
    return len(times) >= FEWEST and same >= NEARLY_ALL * len(times)


def prolonged(expected: Expectation, sessions: Sequence[DatedSession]) -> Finding | None:
    """Find absolute deadlines that were moved: sessions that expire later than one TTL after their first time."""
    ttl = expected.ttl_ms
    if expected.policy.kind != "absolute" or ttl is None:
        return None
    dated = [
        one.facts.deadline_ms - ttl - one.first.at
        for one in sessions
        if one.facts.deadline_ms and one.first and one.first.at == one.first.earliest
    ]
    later = [each for each in dated if each > max(expected.jitter, DATED_BEFORE) * ttl]
    if len(later) < max(min(FEWEST, len(dated)), SOME * len(dated)) or not later or _two_clocks(later):
        return None
    return Finding.of(
        "ttl_too_long",
        expected,
        keys=len(later),
        message=f"{counted(len(later), 'session')} matching {expected.pattern} expire up to {duration(max(later))} "
        f"after their absolute TTL of {duration(ttl)}: writes or reads renew it",
        confidence="likely" if len(later) >= FEWEST else "possible",
        observed_ms=round(ttl + median(later), -3),
        evidence=(
            f"the payloads of {len(later):,} of {counted(len(dated), 'session')} state a first time more than one TTL "
            "before the deadline",
        ),
        next=f"set the TTL of new keys only (EXPIRE NX, SET with KEEPTTL); if it slides on purpose: --expect "
        f"'{expected.pattern}={ttl_text(ttl)}'",
    )


def trimmed(expected: Expectation, sessions: Sequence[DatedSession]) -> Finding | None:
    """Find sessions of exactly n messages, the most there are, of which the newest is older than the last write."""
    if expected.policy.kind != "sliding" or expected.other_ttls_ms:
        return None
    (ttl,) = expected.ttls_ms
    dated = [
        (one.messages, one.facts.deadline_ms - ttl - one.newest.at)
        for one in sessions
        if one.facts.deadline_ms and one.newest and one.newest.at == one.newest.earliest and one.messages > 0
    ]
    most = max((messages for messages, _ in dated), default=0)
    full = [gap for messages, gap in dated if messages == most]
    others = sorted(gap for messages, gap in dated if messages < most)
    # Without shorter sessions nothing shows that messages here are as new as their write: it may be a copy of old data.
    usual = quantile(others, 1 - OTHERS_SHARE) if others else math.inf
    older = [gap for gap in full if gap > LATE_MS + max(0.0, usual)]
    if len(older) < max(FEWEST, TRIMMED_SHARE * len(full)) or _two_clocks(older):
        return None
    return Finding.of(
        "trimmed",
        expected,
        keys=len(older),
        message=f"{counted(len(older), 'session')} matching {expected.pattern} hold exactly {most:,} messages, and the "
        f"newest is older than the last write: new messages may be dropped",
        confidence="possible",
        evidence=(
            f"the newest message is up to {duration(max(older))} older than the last write (deadline minus TTL)",
            f"{counted(len(others), 'session')} hold fewer messages; of nearly all, the newest is at most "
            f"{duration(max(LATE_MS, usual))} older than that",
        ),
        next="keep the newest: after RPUSH LTRIM key -n -1, after LPUSH LTRIM key 0 n-1, of an array the last n",
    )
