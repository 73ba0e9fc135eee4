"""Which keys are sessions, which are parts of one session, and which are neither; by their names. Pure.

Names alone, because a sampled audit reads no value; a full audit asks ``memkit.formats``
for what the payloads of known stores hold.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import accumulate, islice, repeat
from typing import NamedTuple

from memkit.audit.checks.ttl_peaks import FEWEST
from memkit.audit.sampling import KeyFacts
from memkit.readonly.values import to_bytes, to_name

_DELIMITER = re.compile(r"([:/|#])")
_SUFFIX = re.compile(r"(.*[^._~@-])([._~@-]+)([A-Za-z]{2,24})", re.DOTALL)
_HEAD = re.compile(rb"[^:/|#]*[:/|#]")
PREFIX_SHARE = 0.95
"""A read of an unaffected session may look like an affected one."""
ALIKE_RATIO = 0.75
"""One letter of four may differ."""
WORD_SHARE, MOST_WORDS, DEEPEST = 0.02, 8, 3
"""A word of the layout is in so many of the names, there are at most so many in one place, and prefixes have at most so
many: others are ids, such as the names of users or tenants.
"""
_WORD = re.compile(r"[A-Za-z_-]{2,24}")


class Member(NamedTuple):
    """A key with the session it belongs to and the part it plays there (its name without the id)."""

    facts: KeyFacts
    session: str
    part: str


@dataclass
class Group:
    """Keys of one shape and type, such as ``chat:*:messages``, a list."""

    part: str
    kind: str
    members: list[Member] = field(default_factory=list)

    @property
    def keys(self) -> list[KeyFacts]:
        """The facts of the keys."""
        return [member.facts for member in self.members]


def groups_of(keys: Sequence[KeyFacts], prefix: str) -> list[Group]:
    """Return the keys under a literal prefix in groups of one shape and type, the largest first."""
    names = [_name(facts.key, prefix) for facts in keys]
    whole = set(names)
    # A word behind the whole names of other keys names a part, however it is joined: chat:17 and chat:17_lock.
    suffixes = [_SUFFIX.fullmatch(name) for name in names]
    words = Counter(one.groups()[1:] for one in suffixes if one and one[1] in whole)
    split: list[tuple[KeyFacts, list[str]]] = []
    found: defaultdict[tuple[str, str], list[Member]] = defaultdict(list)
    for facts, name, suffix in zip(keys, names, suffixes, strict=True):
        if suffix and words[suffix.groups()[1:]] >= FEWEST:
            split.append((facts, [*_DELIMITER.split(suffix[1]), *suffix.groups()[1:]]))
        elif _DELIMITER.search(name):
            split.append((facts, _DELIMITER.split(name)))
        else:
            found["*", facts.kind].append(Member(facts, name, "*"))
    constants = _constants([tokens for _, tokens in split], whole) if split else set()
    for facts, tokens in split:
        session, part = _session_and_part(tokens, constants)
        found[part, facts.kind].append(Member(facts, session, part))
    groups = [Group(part, kind, members) for (part, kind), members in found.items()]
    return sorted(groups, key=lambda group: -len(group.members))


def _name(key: bytes, prefix: str) -> str:
    name = to_name(key)
    return (name.replace("{", "").replace("}", "") if "{" in name else name).removeprefix(prefix)


def _constants(names: Iterable[Sequence[str]], whole: set[str]) -> set[tuple[int, int, str]]:
    """Return the tokens that are words of the layout, not ids.

    They stand in many names at one place, or after the whole name of another key: ``chat:17`` and ``chat:17:meta``.
    """
    counts: Counter[tuple[int, int, str]] = Counter()
    lengths: Counter[int] = Counter()
    parts: set[tuple[int, int, str]] = set()
    for tokens in names:
        length = len(tokens)
        counts.update(zip(repeat(length), range(0, length, 2), tokens[::2]))  # between them are separators
        beginnings = zip(range(2, length, 2), islice(accumulate(tokens), 0, None, 2), strict=False)
        parts.update((length, at, tokens[at]) for at, beginning in beginnings if beginning in whole)
        lengths[length] += 1
    words: defaultdict[tuple[int, int], list[tuple[int, int, str]]] = defaultdict(list)
    for (length, at, token), count in counts.items():
        often = count >= max(FEWEST, WORD_SHARE * lengths[length])
        if _WORD.fullmatch(token) and (often or (length, at, token) in parts):
            words[length, at].append((length, at, token))
    # Many different words in one place are ids after all (user names).
    return {one for found in words.values() if len(found) <= MOST_WORDS for one in found}


def _session_and_part(tokens: Sequence[str], constants: set[tuple[int, int, str]]) -> tuple[str, str]:
    """Return the id (all that varies: a user's sessions are several) and the name with what varies as ``*``."""
    ids, shown = list[str](), list(tokens)
    for at in range(0, len(tokens), 2):
        if (len(tokens), at, tokens[at]) not in constants:
            ids.append(tokens[at])
            shown[at] = "*"
    return ":".join(ids), "".join(shown)


def sessions_of(groups: Iterable[Group]) -> Iterator[list[Member]]:
    """Yield the keys of each session that has more than one."""
    by_session: defaultdict[str, list[Member]] = defaultdict(list)
    for group in groups:
        for member in group.members:
            if member.session:
                by_session[member.session].append(member)
    return (members for members in by_session.values() if len(members) > 1)


def by_prefix(keys: Iterable[KeyFacts]) -> dict[str, list[KeyFacts]]:
    """Return keys by the literal beginning they share with others: up to the id, at most three words deep."""
    found: dict[str, list[KeyFacts]] = {}
    _deepen("", [(_DELIMITER.split(to_name(one.key)), one) for one in keys], 0, found)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _deepen(
    prefix: str, split: Sequence[tuple[list[str], KeyFacts]], depth: int, found: dict[str, list[KeyFacts]]
) -> None:
    heads: defaultdict[str, list[tuple[list[str], KeyFacts]]] = defaultdict(list)
    for tokens, one in split:
        head = "".join(tokens[:2]) if len(tokens) > 2 and (depth == 0 or _WORD.fullmatch(tokens[0])) else ""
        heads[head].append((tokens, one))
    for head, inside in heads.items():
        if head and depth < DEEPEST and (depth == 0 or len(inside) >= max(FEWEST, WORD_SHARE * len(split))):
            _deepen(prefix + head, [(tokens[2:], one) for tokens, one in inside], depth + 1, found)
        else:
            found.setdefault(prefix, []).extend(one for _, one in inside)


def narrowest_prefix(affected: Sequence[bytes], everything: Sequence[bytes], default: str) -> str:
    """Return the longest prefix, ending in a separator, that holds nearly all affected keys and not all others.

    Args:
        affected: The names of the affected keys.
        everything: The names of all keys that were looked at.
        default: The prefix of the expectation, returned if there is no narrower one.
    """
    best = to_bytes(default)
    needed = PREFIX_SHARE * len(affected)
    others = [key for key in set(everything).difference(affected) if key.startswith(best)]
    while len(affected) >= FEWEST:  # fewer may be the parts of one session
        heads = Counter(found[0] for key in affected if key.startswith(best) and (found := _HEAD.match(key, len(best))))
        head, count = heads.most_common(1)[0] if heads else (b"", 0)
        left = [key for key in others if key.startswith(best + head)]
        if count < needed:
            break
        best += head
        if len(left) < len(others):
            default = to_name(best)
        others = left
    return default


def alike(expected: str, seen: str) -> bool:
    """Whether two prefixes may be one, written differently: case, separators, plural, an environment before it."""
    one, other = (re.sub(r"[^a-z0-9]", "", text.lower()) for text in (expected, seen))
    if one and (one in other or (other in one and len(other) >= FEWEST)):
        return True
    return SequenceMatcher(None, one, other).ratio() >= ALIKE_RATIO
