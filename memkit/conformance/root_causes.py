"""Which failed cases are likely root causes, and which failures may follow from them."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from memkit.conformance.case import CaseResult
from memkit.conformance.outcomes import Symptom
from memkit.render import counted


@dataclass(frozen=True, slots=True)
class RootCause:
    """A likely root cause: the failed case that shows it, in a sentence, and others that may follow from it."""

    case: str
    _: KW_ONLY
    sentence: str
    cases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Rule:
    """A cause that several cases observe; the first of ``found_by`` that failed names it.

    ``explains`` has the other cases that can follow from it; all with one of its symptoms if it is empty. ``least`` is
    how many of ``found_by`` have to fail, ``shown_as`` the symptom that they need (any if empty). Without a sentence,
    the message of the case that names it is the sentence.
    """

    sentence: str
    _: KW_ONLY
    found_by: tuple[str, ...]
    symptoms: frozenset[str]
    explains: tuple[str, ...] = ()
    least: int = 1
    shown_as: str = ""


_CONTENT = ("round_trip", "identical_messages", "roles", "order", "long_dialogue", "long_text")
"""Cases without a fault, and without time moved: what is wrong in them comes first."""
_RULES = (
    _Rule(
        "a session reads the messages of others: their ids are not in the key",
        found_by=("ids_apart", *_CONTENT),
        symptoms=frozenset({Symptom.FOREIGN}),
        least=2,
    ),
    _Rule(
        "append() returns before the message is stored",
        found_by=("stored_when_acknowledged",),
        shown_as=Symptom.NOT_STORED,
        symptoms=frozenset(Symptom),
    ),
    _Rule("", found_by=_CONTENT, symptoms=frozenset(Symptom) - {Symptom.EMPTY}, least=3),
    _Rule(
        "",
        found_by=("second_client",),
        symptoms=frozenset({Symptom.LOST, Symptom.EMPTY, Symptom.EARLY_EXPIRY, Symptom.ERROR_HIDDEN}),
    ),
    _Rule(
        "a handle reads, or writes back, a copy in its process instead of what is in Redis",
        found_by=("no_private_copy",),
        symptoms=frozenset(Symptom) - {Symptom.EARLY_EXPIRY, Symptom.EMPTY},
    ),
    _Rule(
        "keys have no TTL, or too long a one: sessions do not expire when they should",
        found_by=("ttl_on_every_key", "ttl_boundary"),
        symptoms=frozenset({Symptom.NO_EXPIRY}),
    ),
    _Rule(
        "the TTL that is set is shorter than the configured one: sessions expire early",
        found_by=("ttl_boundary",),
        symptoms=frozenset({Symptom.EARLY_EXPIRY, Symptom.EMPTY}),
    ),
    _Rule(
        "an append does not renew the TTL of the whole session, so it expires in the middle of a dialogue",
        found_by=("append_renews", "long_talk_stays_whole", "long_dialogue_expires_as_one"),
        symptoms=frozenset({Symptom.EARLY_EXPIRY}),
        explains=(
            *("append_renews", "long_talk_stays_whole", "long_dialogue_expires_as_one", "reopen_near_the_end"),
            *("reopen_longer", "append_after_expiry", "expire_denied"),
        ),
    ),
    _Rule(
        "read() turns an error into an empty or partial memory",
        found_by=("read_denied", "connection_lost", "restart", "foreign_key"),
        symptoms=frozenset({Symptom.ERROR_HIDDEN}),
    ),
    _Rule(
        "append() reports a message as stored that Redis does not have",
        found_by=("write_denied", "expire_denied", "full_memory", "foreign_key", "lost_reply"),
        symptoms=frozenset({Symptom.REFUSAL_HIDDEN}),
    ),
    _Rule(
        "an append is several commands, and a fault between them leaves half a write",
        found_by=("crash_in_append",),
        symptoms=frozenset(Symptom) - {Symptom.ERROR_HIDDEN},
        explains=(
            *("crash_in_append", "expire_denied", "write_denied", "full_memory", "replica_without_primary"),
            *("lost_reply", "append_after_expiry"),
        ),
    ),
    # One script or one transaction is whole after a crash, but a script is not rolled back if a command is refused.
    _Rule(
        "an append leaves its message without a TTL if Redis refuses to set the TTL",
        found_by=("expire_denied",),
        symptoms=frozenset({Symptom.NO_EXPIRY}),
        explains=("expire_denied",),
    ),
    _Rule(
        "writers at the same time lose each other's messages",
        found_by=("eight_writers",),
        symptoms=frozenset({Symptom.LOST, Symptom.OTHER}),
        explains=("lost_reply",),
    ),
)
_TRIMS = ("long_dialogue", "order", "round_trip")
_OPTIONAL = ("reopen_shorter", "ttl_fraction", "ttl_not_positive", "expire_denied")
"""Cases of rarely used options, or of a rare fault: named after the others if nothing else decides."""


def root_causes(results: Sequence[CaseResult]) -> list[RootCause]:
    """Group the failed cases by likely root cause, the one that explains most of them first."""
    left = {case.name: case for case in results if case.outcome == "failed"}
    found: list[RootCause] = []

    def group(names: Sequence[str], sentence: str) -> None:
        for name in names:
            del left[name]
        if names:
            found.append(RootCause(names[0], sentence=sentence, cases=tuple(names[1:])))

    for symptom in dict.fromkeys(case.symptom for case in left.values()):
        # An error without a fault, or a hang, in several cases: one reason is likelier than many.
        same = [name for name, case in left.items() if case.symptom == symptom]
        if symptom.startswith(("raised", "hung")) and len(same) > 1:
            group(same, left[same[0]].message)
    kept = {case.kept for name, case in left.items() if name in _TRIMS}
    if len(kept) == 1 and (count := kept.pop()):
        trimmed = [name for name, case in left.items() if case.kept == count]
        trimmed.sort(key=lambda name: (*_TRIMS, name).index(name))
        declare = f" (if that is intended, declare window = {count} in the adapter)" if count > 0 else ""
        which = "last" if count > 0 else "first"
        group(trimmed, f"only the {which} {counted(abs(count), 'message')} of a session are kept{declare}")
    for rule in _RULES:
        same = [name for name, case in left.items() if case.symptom in rule.symptoms]
        by = [name for name in rule.found_by if name in same and rule.shown_as in ("", left[name].symptom)]
        if len(by) >= rule.least:
            others = [name for name in same if name != by[0] and name in (rule.explains or same)]
            group([by[0], *others], rule.sentence or left[by[0]].message)
    found += [RootCause(name, sentence=case.message) for name, case in left.items()]
    return sorted(found, key=lambda cause: (cause.case not in _CONTENT, -len(cause.cases), cause.case in _OPTIONAL))
