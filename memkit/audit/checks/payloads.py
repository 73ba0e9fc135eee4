"""What values show: damaged payloads, another encoding since a release, fragments, missing parts, stale indexes.

Values are read on connections with CLIENT NO-TOUCH. Known stores are decoded by ``memkit.formats``, session by session
(``known_stores``). Of others only what a payload's own format proves is damage: different is not corrupt.
"""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from memkit import formats
from memkit.audit.checks.known_stores import BATCH_KEYS, KnownSessions, ValueReader
from memkit.audit.checks.mixed_ttl import mixed_ttl
from memkit.audit.checks.payload_times import DatedSession, dated_session, not_refreshed, prolonged, trimmed, written_ms
from memkit.audit.checks.session_indexes import index_findings
from memkit.audit.checks.ttl_inference import NEARLY_ALL
from memkit.audit.checks.ttl_peaks import UNLIKELY
from memkit.audit.finding import Finding, Since
from memkit.audit.key_shapes import Member
from memkit.audit.sampling import KeyFacts
from memkit.config import Expectation
from memkit.connect import chunks
from memkit.formats.model import KeyOwner
from memkit.formats.parsing.encodings import ENCRYPTED, examine, has_lost_text
from memkit.readonly.reader import Reader
from memkit.readonly.values import DOCUMENT_KINDS, KeyRequest, RedisValue, to_bytes, to_name
from memkit.render import counted, utc_text, utc_time

FEWEST_VALUES = 5_000
LARGER_CHANCE = 0.1
"""A larger chance than UNLIKELY is enough to explain bytes of no known encoding by a new encoding."""
UNUSUAL = frozenset(("json string", "python repr"))
"""Encodings that readers of JSON refuse or take for text, whether they are new or not."""
ENCODINGS = ("gzip", "zlib", "zstd", "lz4", "pickle", "msgpack", "base64", "prefix", "utf-16", ENCRYPTED, *UNUSUAL)
"""A known store's own JSON in one of these is another encoding."""
READ_ONE = "to find out, read such a session with the application"
REFUSED = ("encoding_changed", "partly_decoded")
"""What a known store's decoder reports if a payload is whole and not the store's."""
WEAK = ("zlib", "gzip", "zstd", "lz4", "pickle", "msgpack", "base64")
"""Formats with a short signature: among many payloads of no known format, chance may imitate one."""
UNKNOWN_BYTES = "holds bytes of no known encoding; the other keys hold JSON"
NO_TEXT = "the text of a message is [object Object], the name of an object"
MOST_ODD, MOSTLY_PRINTABLE = 0.25, 0.6
"""Encrypted and compressed bytes are printable ASCII to 37 %, damaged text is mostly; the other payloads are JSON."""
SEVERAL_SHARE = 0.02
"""If fewer sessions have several keys, these may be different sessions of which the ids are alike."""
FEWEST_EMPTY = 10
FEWEST_HASHES, USUAL_SHARE, LAYOUT_SHARE = 10, 0.6, 0.8
"""A field is one of the layout if so many hashes have it; a fragment has half of these fields at most, and no other.
Or, if fragments are many, it has no field of the layout of whole hashes, and only fields that some of these have. A
whole hash has half of the fields that most hashes have.
"""


@dataclass
class Values:
    """What was found, and how many keys were read for it."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    read: int = 0
    indexes: set[bytes] = field(default_factory=set)
    """Keys that are no sessions although their names are alike: they list sessions."""
    unexplained: str | None = None
    """Why these sessions cannot be called healthy although nothing is wrong for sure."""


class _Payload(NamedTuple):
    """The encodings of a key's payloads in one place, the first fault, and why they look damaged.

    ``known``: a known store's, of which the decoder reports what it cannot read.
    """

    facts: KeyFacts
    encodings: frozenset[str]
    fault: str = ""
    odd: str = ""
    known: bool = False


@dataclass
class _Contents:
    """What the values of one expectation showed; the values themselves are dropped, batch by batch.

    ``keys`` are the expectation's, ``present`` all that the audit has seen, by name.
    """

    keys: Sequence[KeyFacts]
    present: Mapping[str, KeyFacts]
    tried: int = 0
    dated: list[DatedSession] = field(default_factory=list)
    places: defaultdict[tuple[str, str], list[_Payload]] = field(default_factory=lambda: defaultdict(list))
    hashes: defaultdict[str, list[tuple[KeyFacts, frozenset[str]]]] = field(default_factory=lambda: defaultdict(list))
    known: KnownSessions = field(default_factory=KnownSessions)
    pops: int = 0
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def add(self, value: RedisValue, facts: KeyFacts, owner: KeyOwner | None) -> None:
        """Keep what a value shows."""
        self.dated.append(dated_session(value, facts, owner))
        words = re.match(r"([A-Za-z_-]+[:/|])*", value.name)
        shape = f"{words[0] if words else ''} {len(re.findall('[:/|]', value.name))}"
        if owner:
            payloads = value.payloads if value.kind in (*DOCUMENT_KINDS, "list") else ()
            examined = [examine(payload) for payload in payloads]
            encoded = {str(one) for one in examined if one.layers[0] in ENCODINGS and not one.fault}
            self.places[shape, ""].append(_Payload(facts, frozenset((owner.store, *encoded)), known=True))
            return
        if value.kind == "hash":
            # A field with a number in its name is one of many alike, such as a message, and none of the layout.
            self.hashes[shape].append((facts, frozenset(name for name in value.fields if not re.search(r"\d", name))))
        for place, payloads in _payloads(value):
            examined = [examine(payload) for payload in payloads]
            names = [str(one) for one in examined]
            fault = next((one.fault for one in examined if one.fault), "")
            unknown = [payload for name, payload in zip(names, payloads, strict=True) if name == "binary"]
            # Mostly text, with control characters in it.
            controls = any(
                min(one) < 32 and sum(32 <= byte < 127 for byte in one) >= MOSTLY_PRINTABLE * len(one)
                for one in unknown
            )
            odd = UNKNOWN_BYTES if controls else NO_TEXT if any(map(has_lost_text, payloads)) else ""
            self.places[f"{value.kind} {shape}", place].append(_Payload(facts, frozenset(names), fault, odd))


def _payloads(value: RedisValue) -> Iterator[tuple[str, Sequence[bytes]]]:
    """Yield payloads with the place that they have in other keys too; numbers in a field's name are an id."""
    if value.kind in (*DOCUMENT_KINDS, "list", "stream"):
        yield "", list(value.payloads)
    elif value.kind in ("set", "zset"):
        yield "", [to_bytes(member) for member in value.members or value.scores]
    elif value.kind == "hash":
        for name, payload in value.fields.items():
            yield re.sub(r"\d+", "*", name), [payload]


def check_values(
    reader: Reader,
    expected: Sequence[Expectation],
    keys: Sequence[KeyFacts],
    *,
    sessions: Sequence[Sequence[KeyFacts]],
    short: Callable[[KeyFacts], bool],
    within_s: float = 0.0,
    deletions: int | None = None,
    pops: int = 0,
) -> Values:
    """Read values and return what they show.

    Args:
        reader: Reads without touching idle clocks, if the server allows it.
        expected: All expectations.
        keys: The keys that the audit has seen.
        sessions: Those of each expectation that are sessions.
        short: Whether a key's TTL alone is known to be too short.
        within_s: How long to read, in seconds, after the first FEWEST_VALUES keys of an expectation.
        deletions: How many DEL and UNLINK the server has counted; None if it does not report that.
        pops: How many commands were called that remove elements of lists.
    """
    found, loads = Values(), ValueReader(reader)
    present = {to_name(one.key): one for one in keys}
    contents = [_Contents([one for one in own if to_name(one.key) in present], present, pops=pops) for own in sessions]
    for one, content in zip(expected, contents, strict=True):
        _read(loads, one, content, within_s=max(within_s, 0.5))
    _assign_problems(expected, contents)
    for one, content in zip(expected, contents, strict=True):
        content.dated = [session for session in content.dated if not short(session.facts)]
        found.findings += [finding for check in CHECKS.values() if (finding := check(one, content))]
        found.notes += content.notes
        found.unexplained = found.unexplained or _encoded_twice(one, content) or next(iter(content.doubts), None)
    explained = {problem.key for content in contents for problem in content.known.problems.values()}
    stale, listing = index_findings(loads, expected, keys, deletions=deletions, explained=explained)
    found.findings += stale
    found.indexes = listing.intersection(one.key for own in sessions for one in own if one.deadline_ms is None)
    found.read = len(loads.names)
    return found


def _read(loads: ValueReader, expected: Expectation, content: _Contents, *, within_s: float) -> None:
    """Read values batch by batch and keep what they show; then the sessions with parts outside one batch."""
    until = time.monotonic() + within_s
    in_order = sorted(content.keys)  # by name, so that most sessions' keys are together
    for some in chunks(in_order, BATCH_KEYS):
        if content.tried >= FEWEST_VALUES and time.monotonic() > until:
            content.notes.append(
                f"values of {content.tried:,} of {len(in_order):,} keys matching {expected.pattern} were read"
            )
            break
        batch = {to_name(one.key): one for one in some}
        content.tried += len(batch)
        loads.renew_budget()
        loaded = loads.load(KeyRequest(name, "") for name in batch).values()
        values = [value for value in loaded if value and not value.unread_reason]
        owners = {value.name: formats.recognise(value) for value in values}
        for value in values:
            content.add(value, batch[value.name], owners[value.name])
        content.known.add(values, owners)
    done, of = content.known.finish(loads, content.present, within_s=within_s)
    if done < of:
        content.notes.append(f"parts of {done:,} of {of:,} sessions matching {expected.pattern} were looked for")


def _assign_problems(expected: Sequence[Expectation], contents: Sequence[_Contents]) -> None:
    """Give each problem to the expectation that its key matches: parts of one session may match several."""
    found = {key: (at, problem) for at, one in enumerate(contents) for key, problem in one.known.problems.items()}
    for content in contents:
        content.known.problems = {}
    for key, (at, problem) in found.items():
        matching = (n for n, one in enumerate(expected) if one.matches.fullmatch(to_bytes(problem.key)))
        contents[next(matching, at)].known.problems[key] = problem


def _corrupt(expected: Expectation, content: _Contents) -> Finding | None:
    """Return the finding of payloads that their own format proves to be damaged, or that look damaged."""
    proven = _proven_damage(content)
    found = proven or _odd_payloads(expected, content)
    if not found:
        return None
    reasons = Counter(found.values()).most_common(3)
    return Finding.of(
        "corrupt",
        expected,
        keys=len(found),
        message=f"{len(found):,} of {counted(len(content.dated), 'key')} matching {expected.pattern} hold a payload "
        f"{'of which a text is lost' if set(found.values()) == {NO_TEXT} else 'that cannot be read'}",
        confidence="proven" if proven else "possible",
        evidence=tuple(f"{counted(count, 'key')}: {why}" for why, count in reasons),
        next="memkit inspect URL KEY shows which element and byte, and how much is readable",
    )


def _proven_damage(content: _Contents) -> dict[str, str]:
    """Return the keys with a payload that its own format proves to be damaged, each with the fault."""
    broken = {one.key: one.message for one in content.known.problems.values() if one.cause == "corrupt"}
    for payloads in content.places.values():
        faulty = [one for one in payloads if one.fault]
        # A text may begin like JSON and end early, such as an answer of a model at its limit.
        if sum("text" in one.encodings for one in payloads) > len(faulty):
            faulty = [one for one in faulty if not one.fault.startswith("json")]
        unknown = sum(any(name == "binary" or name.endswith("?") for name in one.encodings) for one in payloads)
        if unknown > len(faulty):
            faulty = [one for one in faulty if not one.fault.startswith(WEAK)]
        for one in faulty:
            broken.setdefault(to_name(one.facts.key), one.fault)
    return broken


def _odd_payloads(expected: Expectation, content: _Contents) -> dict[str, str]:
    """Return the keys of which payloads look damaged in a place in which most keys hold JSON, with the reason."""
    odd: dict[str, str] = {}
    for (shape, _), payloads in content.places.items():
        known = content.places.get((shape.partition(" ")[2], ""), [])
        documents = sum("json" in one.encodings for one in payloads) + len(known)
        if documents < (1 - MOST_ODD) * (len(payloads) + len(known)):
            continue
        changes = _changes(expected, [*payloads, *known], chance=LARGER_CHANCE)
        changed = {one.facts.key for _, having, _ in changes for one in having}
        odd |= {to_name(one.facts.key): one.odd for one in payloads if one.odd and one.facts.key not in changed}
    return odd


def _fragments(expected: Expectation, content: _Contents) -> Finding | None:
    """Return the finding of hashes that hold few of the fields that the others hold, and no other."""
    found: list[KeyFacts] = []
    lacking: Counter[str] = Counter()
    for hashes in content.hashes.values():
        counts = Counter(name for _, names in hashes for name in names)
        common = {name for name, count in counts.items() if count >= LAYOUT_SHARE * len(hashes)}
        usual = {name for name, count in counts.items() if count >= USUAL_SHARE * len(hashes)}
        whole = [names for _, names in hashes if 2 * len(names & usual) >= len(usual)]
        known = Counter(name for names in whole for name in names)
        core = {name for name, count in known.items() if count >= LAYOUT_SHARE * len(whole)}
        few = [
            (one, names)
            for one, names in hashes
            if (names < common and 2 * len(names) <= len(common)) or (core.isdisjoint(names) and names <= set(known))
        ]
        few = [(one, names) for one, names in few if names and core]
        if len(hashes) >= FEWEST_HASHES:
            found += [one for one, _ in few]
            lacking.update(name for _, names in few for name in core - names)
    if not found:
        return None
    persistent = sum(one.deadline_ms is None for one in found) if expected.ttl_ms else 0
    fields = ", ".join(name for name, _ in lacking.most_common(3))
    return Finding.of(
        "corrupt",
        expected,
        keys=len(found),
        message=f"{counted(len(found), 'hash', 'hashes')} matching {expected.pattern} lack {fields}: probably the "
        "sessions had expired, and a later write of a field created their keys again",
        confidence="likely" if 2 * persistent > len(found) else "possible",
        evidence=(f"the other hashes have {fields}", f"{persistent:,} of the fragments have no TTL"),
        next="write the fields and the TTL in one script that does nothing if the key does not exist",
    )


def _emptied(expected: Expectation, content: _Contents) -> Finding | None:
    """Return the finding of sessions without messages, if nearly all that were written since some time are such."""
    empty = [one for one in content.dated if not one.messages]
    first = min((written_ms(expected, one.facts) for one in empty), default=0.0)
    since = [one for one in content.dated if written_ms(expected, one.facts) >= first]
    before = len(content.dated) - len(since)
    # Sessions that have just begun are empty too, beside others that go on.
    if len(empty) < max(FEWEST_EMPTY, NEARLY_ALL * len(since)) or before < FEWEST_EMPTY:
        return None
    return Finding.of(
        "corrupt",
        expected,
        keys=len(empty),
        message=f"{counted(len(empty), 'session')} matching {expected.pattern} hold no messages: nearly all "
        f"written since {utc_text(utc_time(first))}, and none from before",
        confidence="possible",
        since=Since(first, "upper bound"),
        evidence=(f"{before:,} sessions that were written before hold messages",),
        next="memkit inspect URL KEY shows such a session: look for a write that replaces sessions with empty ones",
    )


def _changes(
    expected: Expectation,
    payloads: Sequence[_Payload],
    *,
    chance: float = UNLIKELY,
    unreadable: Container[str] = (),
) -> Iterator[tuple[str, list[_Payload], float | None]]:
    """Yield encodings that only keys from some time on have, or that are unusual; with these keys and the time in ms.

    In a random mixture, keys that are older than the first with the encoding would have it too. ``unreadable`` are the
    keys that a known store's decoder cannot read.
    """
    for encoding in sorted({name for one in payloads for name in one.encodings}):
        having = [one for one in payloads if encoding in one.encodings]
        first = min(written_ms(expected, one.facts) for one in having)
        before = sum(written_ms(expected, one.facts) < first for one in payloads)
        is_new = (1 - len(having) / len(payloads)) ** before < chance
        refused = encoding.startswith(ENCODINGS) and any(to_name(one.facts.key) in unreadable for one in having)
        unusual = not having[0].known and not UNUSUAL.isdisjoint(encoding.split(" > "))
        if is_new or refused or unusual:
            yield encoding, having, first if is_new else None


def _encoding_changed(expected: Expectation, content: _Contents) -> Finding | None:
    keys: dict[bytes, None] = {}
    evidence: list[str] = []
    dates: list[float] = []
    unreadable = {one.key for one in content.known.problems.values() if one.cause == "encoding_changed"}
    for payloads in content.places.values():
        usual = Counter(name for one in payloads for name in one.encodings).most_common(1)[0][0]
        intact = [one for one in payloads if not one.fault]
        for encoding, having, first in _changes(expected, intact, unreadable=unreadable):
            keys |= dict.fromkeys(one.facts.key for one in having)
            since = "" if first is None else f" since {utc_text(utc_time(first))}"
            instead = f" instead of {usual}" if usual != encoding else ""
            evidence.append(f"{counted(len(having), 'key')} hold {_named(encoding)}{instead}{since}")
            dates += [first] if first else []
    if not keys:
        return None
    return Finding.of(
        "encoding_changed",
        expected,
        keys=len(keys),
        message=f"{counted(len(keys), 'key')} matching {expected.pattern} have another encoding: {evidence[0]}",
        confidence="likely",
        since=Since(min(dates), "upper bound") if dates else None,
        evidence=evidence[:5],
        next="check that every reader of these keys reads both encodings",
    )


def _encoded_twice(expected: Expectation, content: _Contents) -> str | None:
    """Return why sessions that readers of JSON, or of a known store, may refuse cannot be called healthy."""
    refused = {one.key for one in content.known.problems.values() if one.cause in REFUSED}
    if refused:
        many = counted(len(refused), "key")
        return f"{many} matching {expected.pattern} have the names of a known store, but other payloads; {READ_ONE}"
    for payloads in content.places.values():
        for encoding in (name for one in payloads if not one.known for name in one.encodings):
            if not UNUSUAL.isdisjoint(encoding.split(" > ")):
                named = _named(encoding)
                return f"a payload matching {expected.pattern} is {named}: readers may read it as text; {READ_ONE}"
    return None


def _named(encoding: str) -> str:
    again = encoding.count("json string")
    twice = f"JSON inside a JSON string (encoded {'twice' if again == 1 else f'{again + 1} times'})"
    named = re.sub("(json string > )+json", twice, encoding)
    return re.sub("python repr( > json)?", "a Python repr, which is not JSON", named)


def _missing_parts(expected: Expectation, content: _Contents) -> Finding | None:
    problems = [problem for problem in content.known.problems.values() if problem.cause == "dangling"]
    keys = {problem.key for problem in problems}
    if not keys:
        return None
    return Finding.of(
        "dangling",
        expected,
        keys=len(keys),
        message=f"sessions matching {expected.pattern} refer to {counted(len(keys), 'key')} that no longer exist",
        confidence="possible" if content.pops and all(problem.pop_explains for problem in problems) else "proven",
        evidence=tuple(
            f"{counted(count, 'key')}: {text}"
            for text, count in Counter(problem.message for problem in problems).most_common(3)
        ),
        next="memkit inspect URL SESSION shows what is recoverable and prints the repair",
    )


def _mixed_ttl(expected: Expectation, content: _Contents) -> Finding | None:
    """Return the finding of sessions of which only the payload shows that their parts belong together."""
    sessions = [
        [
            Member(content.present[name], owner.session, owner.part)
            for name, owner in owners.items()
            if name in content.present
        ]
        for owners in content.known.owners.values()
    ]
    several = [members for members in sessions if len(members) > 1]
    if not expected.ttl_ms or len(several) < SEVERAL_SHARE * len(sessions):
        return None
    return mixed_ttl(expected, several, known=True).finding


CHECKS: dict[str, Callable[[Expectation, _Contents], Finding | None]] = {
    "damaged payloads": _corrupt,
    "fragments of expired sessions": _fragments,
    "emptied sessions": _emptied,
    "missing parts": _missing_parts,
    "mixed TTLs of known stores": _mixed_ttl,
    "changed encodings": _encoding_changed,
    "renewed absolute TTLs": lambda expected, content: prolonged(expected, content.dated),
    "trimmed sessions": lambda expected, content: trimmed(expected, content.dated),
    "writes that do not renew the TTL": lambda expected, content: not_refreshed(
        expected, content.dated, content.notes, content.doubts
    ),
}
"""What values are checked for; ``index_findings`` adds stale_index, for all expectations together."""
