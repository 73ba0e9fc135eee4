"""Sessions under other names than expected, and what is stored under each prefix. Pure.

Readers and writers that build names differently do not find each other's sessions: another prefix, a doubled separator,
a hash tag, quotes, bytes that were formatted as text, a line end.
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from os.path import commonprefix
from urllib.parse import unquote_to_bytes

from memkit.audit.checks.payload_times import written_ms
from memkit.audit.checks.shared_key import NO_VALUES
from memkit.audit.checks.ttl_inference import (
    ONE_WRITE_MS,
    SOME,
    KeyLifetime,
    LifetimeAnalysis,
    ServerHistory,
    analyses_of,
    common_ttl,
    have_stopped,
    lifetimes_of,
)
from memkit.audit.checks.ttl_peaks import COMMON_SHARE, FEWEST, TOGETHER_MS, UNLIKELY
from memkit.audit.context import AuditContext
from memkit.audit.finding import WITH_JITTER, Confidence, Finding, PrefixSummary, Since
from memkit.audit.key_shapes import MOST_WORDS, Group, alike, by_prefix, groups_of
from memkit.audit.sampling import KeyFacts
from memkit.config import Expectation
from memkit.policy import ttl_text
from memkit.readonly.values import to_bytes, to_name
from memkit.render import counted, duration, printable

SHOWN_PREFIXES = 20
LEAST_ALIKE = 0.4
"""Less alike than a typo leaves it: names that are shown as the nearest may also be another plural or word."""
LIKE_READS = "these sessions have no TTL, so a write under a usual name looks like a read"
PAST = "a deadline in the past, by another clock, time zone or unit, or a TTL of 0 or less deletes a key at once"
PLAIN_NAME = re.compile(rb"(?:[\w.-]+[:/|])*[\w.-]*")
"""Most names are of such words and separators; nothing is odd about them."""
VERSION = re.compile(r"(?:v|ver|version|r|rel|release)[._-]?\d+(?:[._-]\d+)*", re.IGNORECASE)
ODD_NAMES = (
    ("bytes formatted as text (b'…')", re.compile(rb"(?:^|(?<=[:/|]))b(['\"])(.+)\1(?=$|[:/|])"), rb"\2", True),
    ("quotes", re.compile(rb"(?:^|(?<=[:/|]))(?:\w*\()?(['\"])([^'\"]+)\1(?:,?\))?(?=$|[:/|])"), rb"\2", True),
    (
        "an object as the id",
        re.compile(rb"\{\s*(['\"])\w+\1\s*:.+\}|(?<![\w.])[A-Za-z]\w*[(\[][^()\[\]]+[)\]]"),
        b"*",
        False,
    ),
    ("a line end or white space before or after the name", re.compile(rb"^\s+|\s+$|\\n$"), b"", True),
    ("white space behind a separator", re.compile(rb"(?<=[^'\"][:/|])\s+"), b"", False),
    ("a doubled separator", re.compile(rb"([:/|])\1+"), rb"\1", False),
    ("a hash tag ({…})", re.compile(rb"\{([^{}]+)\}"), rb"\1", False),
    ("a Java serialization header", re.compile(rb"^\xac\xed\x00\x05t..", re.DOTALL), b"", True),
    ("the text of an object", re.compile(rb"(?:^|(?<=[:/|]))<[\w.<> ]+ at 0x[0-9a-f]+>(?=$|[:/|])"), b"*", True),
    ("percent-encoding", re.compile(rb"(?:%[0-9A-Fa-f]{2})+"), lambda found: unquote_to_bytes(found[0]), False),
)
"""What is odd about a name, the expression that finds it, what a usual name has instead, and whether it is a mistake
whenever it occurs."""


def odd_names(expected: Expectation, keys: Sequence[KeyFacts], context: AuditContext) -> Finding | None:
    """Return the finding of sessions with names of a new shape: without it, the names would match the pattern."""
    own = {one.key for one in keys}
    prefix = to_bytes(expected.prefix)
    joined = re.compile(b"^%b(?![:/|#])" % re.escape(prefix.rstrip(b":/|#") or prefix))
    without = ("no separator behind the prefix", joined, lambda _: prefix, False)
    candidates = [one for one in keys if not PLAIN_NAME.fullmatch(one.key)]
    candidates += [one for one in context.other_keys if joined.match(one.key) or not PLAIN_NAME.fullmatch(one.key)]
    for what, expression, usual, mistake in (*ODD_NAMES, without):
        odd = [
            one
            for one in candidates
            if expression.search(one.key)
            and (one.key.isascii() or one.key not in own)  # the last byte of a binary id may be any
            and expected.matches.fullmatch(expression.sub(usual, one.key))
            and not expression.search(to_bytes(expected.pattern))
        ]
        found = {one.key for one in odd}
        plain = [one for one in keys if one.key not in found] if odd else []
        if odd and not mistake:
            usually = [one._replace(key=expression.sub(usual, one.key)) for one in odd]
            shaped = _shaped(plain, usually, expected)
            odd = [one for one, other in zip(odd, usually, strict=True) if other.key in shaped]
        if (odd and mistake) or len(odd) >= FEWEST:
            finding = _odd_finding(expected, odd, plain, context, what=what, mistake=mistake)
            if finding:
                return finding
    return None


def _shaped(plain: Sequence[KeyFacts], usually: Sequence[KeyFacts], expected: Expectation) -> set[bytes]:
    """Return those names, written as usual, of which other keys have the shape: in some layouts a part is empty."""
    others = {one.key for one in plain}
    groups = groups_of([*plain, *usually], expected.prefix)
    return {
        one.key
        for group in groups
        if sum(one.key in others for one in group.keys) >= FEWEST
        for one in group.keys
        if one.key not in others
    }


def new_shape(expected: Expectation, groups: Sequence[Group], context: AuditContext) -> Finding | None:
    """Return the finding of sessions with names of other shapes, if those of the former shapes are not written since.

    It is on purpose in some releases, unless the name has the prefix twice or the word for a missing value.
    """
    groups = [part for group in groups for part in _by_version(group)]
    for kind in dict.fromkeys(group.kind for group in groups):
        times = [(group, [written_ms(expected, one) for one in group.keys]) for group in groups if group.kind == kind]
        times.sort(key=lambda one: min(one[1]))
        last, change = min(times[0][1]), 0
        for at, (_, written) in enumerate(times):
            change = at if min(written) >= last - TOGETHER_MS else change
            last = max(last, *written)
        if last - min(times[0][1]) <= ONE_WRITE_MS:
            continue  # a script that writes shape after shape replaces none
        former, later = (
            [one for group, _ in part for one in group.members] for part in (times[:change], times[change:])
        )
        # The parts of one session may have ids of their own beside the session's, and a user has several sessions.
        ids, known = ({word for one in part for word in one.session.strip(":").split(":")} for part in (later, former))
        parts = any(known.issuperset(one.session.strip(":").split(":")) for one in later)
        parts = parts or any(ids.issuperset(one.session.strip(":").split(":")) for one in former)
        if min(len({one.session for one in later}), len(former)) < FEWEST or parts:
            continue
        new = max((group for group, _ in times[change:]), key=lambda group: len(group.members))
        shape = f"{expected.prefix}{new.part}"
        odd, plain = ([one.facts for one in part] for part in (later, former))
        finding = _odd_finding(expected, odd, plain, context, what=f"another shape ({shape})", mistake=False)
        on_purpose = not _lacks_a_value(new) and not (expected.prefix and shape.startswith(2 * expected.prefix))
        if finding:
            return replace(finding, confidence="possible") if on_purpose else finding
    lacking = [group for group in groups if _lacks_a_value(group) and len(group.members) >= FEWEST]
    odd, plain = ([one for group in part for one in group.keys] for part in (lacking, groups))
    if len(plain) == len(odd):
        return None
    what = f"the word for a missing value ({', '.join(f'{expected.prefix}{group.part}' for group in lacking)})"
    finding = _odd_finding(expected, odd, [], context, what=what, mistake=True) if odd else None
    return finding and replace(finding, confidence="possible", next="make the writer refuse a missing value")


def _lacks_a_value(group: Group) -> bool:
    """Whether its names have the word for a missing value; ``none`` in lower case is a name that people give."""
    return any(word.lower() in NO_VALUES for word in re.split("[:/|#]", group.part) if word and word != "none")


def _by_version(group: Group) -> list[Group]:
    """Return the group in parts if the names have versions in one place; other words may be dates, tenants or ids."""
    sessions = [member.session.split(":") for member in group.members]
    for place, words in enumerate(zip(*sessions, strict=False)):
        if 1 < len(set(words)) <= MOST_WORDS and all(map(VERSION.fullmatch, set(words))):
            shape = group.part.split("*")
            parts: dict[str, Group] = {}
            for word, member in zip(words, group.members, strict=True):
                part = "*".join([*shape[:place], f"{shape[place]}{word}{shape[place + 1]}", *shape[place + 2 :]])
                parts.setdefault(word, Group(part, group.kind)).members.append(member)
            return list(parts.values())
    return [group]


def _odd_finding(
    expected: Expectation,
    odd: Sequence[KeyFacts],
    plain: Sequence[KeyFacts],
    context: AuditContext,
    *,
    what: str,
    mistake: bool,
) -> Finding | None:
    timed = [one for one in odd if one.touched_ms is not None or (expected.ttl_ms and one.deadline_ms)]
    accesses = [round(written_ms(expected, one)) if one.touched_ms is None else one.touched_ms for one in timed]
    first, newest = min(accesses, default=None), max(accesses, default=0)
    last = _last_written(expected, plain, context)
    # Names that were all written at one time replace none; two kinds of writers write in any order.
    replaced = first is not None and last is not None and last <= first + TOGETHER_MS and newest > last + TOGETHER_MS
    replaced = replaced and (mistake or math.comb(len(plain) + len(odd), len(odd)) > 1 / UNLIKELY)
    began = not replaced and expected.ttl_ms is None and _began(accesses, plain)
    if not replaced and not mistake and not began:
        return None
    since = None
    if replaced and last is not None:
        since = Since(last, "lower bound")
    elif first is not None:
        since = context.began_by(first)
    ends = [one.deadline_ms for one in plain if one.deadline_ms is not None]
    stopped = expected.ttl_ms is None or have_stopped(ends, context.history.now_ms - (last or 0))
    sure = len(odd) >= FEWEST and (mistake or (stopped and not began))
    example = re.sub(rb"(?=[a-zA-Z_-]*\d)[\w-]{9,}", b"*", odd[0].key).decode("utf-8", "replace")
    ttl = common_ttl(lifetimes_of(odd, context.history))
    evidence = [f"{counted(len(odd), 'name')} with {what}, such as {printable(repr(example)[1:-1], 80)}"]
    if replaced:
        evidence.append("no session has been written under the usual names since")
    evidence += [LIKE_READS] if began else []
    return Finding.of(
        "wrong_prefix",
        expected,
        keys=len(odd),
        message=counted(len(odd), f"session of {expected.pattern} is", f"sessions of {expected.pattern} are")
        + f" written under names with {what}"
        + ("" if since is None else f", {context.since_text(since)}"),
        confidence="likely" if sure else "possible",
        observed_ms=ttl,
        since=since,
        evidence=evidence,
        next="compare how writers and readers build the key: both need the same name",
    )


def _began(accesses: Sequence[int], others: Sequence[KeyFacts]) -> bool:
    """Return whether accesses began at a time since which too few of the others had their last one for a chance."""
    last = [one.touched_ms for one in others if one.touched_ms is not None]
    since = sum(at >= min(accesses, default=0) for at in last)
    return ((1 + since) / (1 + len(last))) ** len(accesses) < UNLIKELY


def _last_written(expected: Expectation, keys: Sequence[KeyFacts], context: AuditContext) -> int | None:
    """Return when the last of these was written, or no earlier: by deadlines, or by accesses if there is no TTL."""
    if expected.ttl_ms is not None:
        analyses = analyses_of(keys, expected, context.history)
        return max((one.last_write(one.within) or 0 for one in analyses), default=0) or None
    return max((one.touched_ms for one in keys if one.touched_ms is not None), default=None)


def missing(expected: Expectation, context: AuditContext) -> list[Finding]:
    """Return the findings for a pattern without keys: the nearest prefixes, and one that may have its sessions.

    That one is never more than possible: an expectation can be mistyped.
    """
    suspects = [
        _wrong_prefix(expected, prefix, keys, context, "possible", since=None)
        for prefix, keys in by_prefix(context.other_keys).items()
        if _suspicion(expected, prefix, keys, context)
    ]
    counts = by_prefix(context.keys)
    names = [prefix for prefix in counts if prefix]
    near = difflib.get_close_matches(expected.prefix, names, cutoff=LEAST_ALIKE)
    shown = list(dict.fromkeys([*near, *names]))[:5]
    others = ", ".join(f"{prefix}* ({len(counts[prefix]):,})" for prefix in shown)
    if not others:
        others = f"{counted(len(context.keys), 'key')} without a prefix" if context.keys else ""
    server = context.server
    expired, fields, started = context.history.expired, server.expired_fields, server.started_ms
    ended, clients, past = "", server.called("expireat", "pexpireat"), "EXPIREAT or PEXPIREAT"
    if not clients and not expired and not fields:
        clients, past = server.called("expire", "pexpire"), "EXPIRE or PEXPIRE"
    if started and (expired or fields or (server.writes and not server.keys)):
        ended = f"{counted(server.writes, 'command')} wrote values"
        ended = f"{counted(fields, 'hash field')} expired" if fields else ended
        ended = f"{counted(expired, 'key')} expired" if expired else ended
        ended = f"; {ended} on this server since it started {context.when(started)}"
    empty = f"no key here can be read, and the server has {counted(server.keys, 'key')}: in other databases, or past "
    empty = f"{empty}their deadline by its clock" if server.keys else "the database is empty"
    stored = f"; nearest existing: {others}" if others else f"; {empty}"
    no_data = Finding.of(
        "no_data",
        expected,
        message=f"no key matches {expected.pattern}{stored}{ended}",
        confidence="proven",
        evidence=(
            f"{counted(len(context.keys), 'key')} checked",
            f"expired_keys is {expired:,}",
            *([f"{past} was called {counted(clients, 'time')}: {PAST}"] if ended and clients else []),
        ),
        next="check the pattern, the database number and the server in the URL"
        + ("; if they are right, memkit record URL -o FILE.db shows which TTL new sessions get" if ended else ""),
    )
    return [no_data, *suspects[:1]]


def moved(expected: Expectation, keys: Sequence[KeyFacts], context: AuditContext) -> Finding | None:
    """Return the finding of sessions that are written under another prefix now, and no longer under this one."""
    last = _last_written(expected, keys, context) if len(keys) < len(context.keys) else None
    if last is None:
        return None
    # After a pause of the usual length, both may be written.
    ends = [at for one in keys if (at := one.deadline_ms or one.touched_ms) is not None]
    stopped = have_stopped(ends, context.history.now_ms - last)
    for prefix, others in by_prefix(context.other_keys).items():
        near = bool(prefix) and alike(expected.prefix, prefix)
        suspicion = _suspicion(expected, prefix, others, context) if near or stopped else None
        if suspicion != ("likely" if near else "possible"):
            continue
        written = [one.accessed for one in LifetimeAnalysis(others, expected, context.history).right]
        times = written if expected.ttl_ms else [one.touched_ms for one in others if one.touched_ms is not None]
        # Names that were all written at one time replace none: the parts of one session, or a restored backup.
        began_then = bool(times) and last <= min(times) + TOGETHER_MS and max(times) > last + TOGETHER_MS
        # Names unlike these are of other sessions, unless none of them was written before by more than chance.
        share = (context.history.now_ms - last) / (expected.ttl_ms or math.inf)
        alone = near and not began_then and expected.ttl_ms is None
        if alone and {one.kind for one in others} <= {one.kind for one in keys} and _began(times, keys):
            since = context.began_by(min(times))
            return _wrong_prefix(expected, prefix, others, context, "possible", since=since, fact=LIKE_READS)
        if began_then and len(times) >= len(others) / 2 and (near or share ** len(times) < UNLIKELY):
            sure: Confidence = "likely" if stopped and near else "possible"
            name = prefix if near else commonprefix([to_name(one.key) for one in others])  # noqa: RUF071
            return _wrong_prefix(expected, name, others, context, sure, since=Since(last, "lower bound"))
    return None


def _suspicion(
    expected: Expectation, prefix: str, keys: Sequence[KeyFacts], context: AuditContext
) -> Confidence | None:
    """Return how likely it is that these keys are the sessions that are expected under another prefix."""
    if len(keys) < FEWEST:
        return None
    near = alike(expected.prefix, prefix)
    if expected.ttl_ms is None:
        return "likely" if near and sum(one.deadline_ms is not None for one in keys) < SOME * len(keys) else None
    analysis = LifetimeAnalysis(keys, expected, context.history)
    as_expected = len(analysis.right) >= max(FEWEST, COMMON_SHARE * len(keys))
    if near:
        return "likely" if as_expected else "possible"
    return "possible" if as_expected and context.history.idle_known else None


def _wrong_prefix(
    expected: Expectation,
    prefix: str,
    keys: Sequence[KeyFacts],
    context: AuditContext,
    confidence: Confidence,
    *,
    since: Since | None,
    fact: str = "",
) -> Finding:
    lifetimes = lifetimes_of(keys, context.history)
    ttls = ttls_given(lifetimes)
    if since is None and lifetimes and context.history.idle_known:
        since = context.began_by(min(one.accessed for one in lifetimes))
    name = f"{prefix}*" if prefix else "keys without a prefix"
    given = "with various TTLs" if lifetimes else "without TTL"
    if ttls:
        given = f"with a TTL of {' or '.join(map(duration, ttls))}"
    return Finding.of(
        "wrong_prefix",
        expected,
        keys=len(keys),
        message=f"sessions are written to {name} instead of {expected.pattern}"
        + ("" if since is None else f", {context.since_text(since)}"),
        confidence=confidence,
        observed_ms=ttls[0] if ttls else None,
        since=since,
        evidence=(f"{len(keys):,} such keys, {given}; " + (fact or f"no key matching {expected.pattern} is written"),),
        next="compare the prefixes of the writers, of the readers, and of --expect: all three must be the same",
    )


def prefix_summaries(context: AuditContext) -> list[PrefixSummary]:
    """Return what is stored under each prefix, the largest first, and what to expect of it."""
    found = list(by_prefix(context.keys).items())[:SHOWN_PREFIXES]
    return [_summary(prefix, own, context.history) for prefix, own in found]


def _summary(prefix: str, own: Sequence[KeyFacts], history: ServerHistory) -> PrefixSummary:
    lifetimes = lifetimes_of(own, history)
    ttls = ttls_given(lifetimes)
    persistent = len(own) - len(lifetimes)
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in Counter(one.kind for one in own).most_common(3))
    message = f"{prefix or '(no prefix)'}*: {counted(len(own), 'key')} ({kinds})"
    if not lifetimes:
        message += ", without TTL"
    elif not ttls:
        message += ", with various TTLs"
    else:
        message += f", TTL {duration(ttls[0])}"
        longest = max(one.left for one in lifetimes)
        if len(ttls) > 1:
            message += f" and {duration(ttls[1])}: two TTLs under one prefix"
        elif longest > WITH_JITTER * ttls[0]:
            message += f", and some have up to {duration(longest)} left: two TTLs under one prefix"
    message += f", {persistent:,} of them without TTL" if persistent and lifetimes else ""
    if ttls:
        message += (
            f"; if that is intended: --expect '{prefix}*={'|'.join(ttl_text(round(ttl)) for ttl in sorted(ttls))}'"
        )
    ttl_s = round(ttls[0] / 1000, 3) if ttls else None
    return PrefixSummary(prefix, keys=len(own), kinds=kinds, persistent=persistent, ttl_s=ttl_s, message=message)


def ttls_given(lifetimes: Sequence[KeyLifetime]) -> list[float]:
    """Return the TTLs that these keys seem to be given, the most frequent first; at most two."""
    ttl = common_ttl(lifetimes)
    if ttl is None:
        return []
    second = common_ttl([one for one in lifetimes if one.given > (1 + SOME) * ttl])
    second = second or common_ttl([one for one in lifetimes if one.given < (1 - SOME) * ttl])
    return [ttl] if second is None else [ttl, second]
