"""Short-lived keys under the sessions' own prefix: sessions of another shape, parts of sessions, or beside them. Pure.

A part of a session is written with it: nearly every session that was written to a moment ago has it. What is there for
some of them only, comes and goes at other times, or holds no more than a flag, stands beside them on purpose.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median_low
from typing import NamedTuple

from memkit.audit.checks.ttl_inference import Lives, Server, lives_of
from memkit.audit.key_shapes import Group, Member
from memkit.audit.sampling import KeyFacts
from memkit.config import Expectation

FLAG_MS = 120_000
FLAG_BYTES = 128
"""A string of up to 64 bytes, as MEMORY USAGE counts it without its name (100 to 124 on Redis 6.2 to 8.2, Valkey 9)."""
TOGETHER_MS = 3_000
"""The idle clock's grain at both ends."""
ENOUGH_WEIGHED = 40
ENOUGH_RECENT = 200


@dataclass(frozen=True, slots=True)
class Scene:
    """What all findings of one audit share.

    ``siblings`` looks keys up that a sample has missed, and ``sees_siblings`` says whether it can. ``weigh`` returns
    the bytes that values take, 0 for an integer, of those keys of which the server tells. ``unclaimed`` are the keys
    that no expectation is about; None: all.
    """

    keys: Sequence[KeyFacts]
    server: Server
    siblings: Callable[[Sequence[bytes]], Sequence[KeyFacts]]
    sees_siblings: bool = True
    weigh: Callable[[Sequence[bytes]], Sequence[int]] = lambda _: ()
    unclaimed: Sequence[KeyFacts] | None = None

    @property
    def strangers(self) -> Sequence[KeyFacts]:
        """The keys among which sessions may be that are expected elsewhere."""
        return self.keys if self.unclaimed is None else self.unclaimed

    @property
    def sampled(self) -> int:
        """How many keys were looked at."""
        return len(self.keys)


class Pair(NamedTuple):
    """A short-lived key and the key of the same session that dies last."""

    own: KeyFacts
    main: Member


def beside_sessions(meant: Expectation, groups: Sequence[Group], scene: Scene) -> list[Group]:
    """Return the groups that stand beside sessions whose ids they share: locks, flags, caches of any name."""
    if not meant.ttl_ms or len(groups) < 2:
        return []
    last = _last_to_die(groups)
    return [group for group in groups if _Beside(meant, group, groups, last, scene).is_so()]


def _last_to_die(groups: Iterable[Group]) -> dict[str, Member]:
    last: dict[str, Member] = {}
    for group in groups:
        for member in group.members:
            best = last.get(member.session)
            if member.session and (best is None or _deadline(member.facts) > _deadline(best.facts)):
                last[member.session] = member
    return last


def _deadline(facts: KeyFacts) -> float:
    return float("inf") if facts.deadline_ms is None else facts.deadline_ms


class _Beside:
    """One group of keys against the sessions that it shares ids with."""

    def __init__(
        self, meant: Expectation, group: Group, groups: Sequence[Group], last: dict[str, Member], scene: Scene
    ) -> None:
        self.meant, self.group, self.groups, self.scene = meant, group, groups, scene
        self.ttl = meant.ttl_ms or 0
        self.pairs = [
            Pair(member.facts, main)
            for member in group.members
            if (main := last.get(member.session)) and main.part != group.part
        ]
        self.top = longest_given(group.keys)

    def is_so(self) -> bool:
        """Whether the group lives short, beside sessions that do not, and is no part of them."""
        if not self.pairs or any(one.deadline_ms is None for one in self.group.keys):
            return False
        if self._own_bytes == 0:
            return True  # an integer is nobody's memory of a dialogue
        return self._lives_short() and (self._is_flag() or not self._written_together() or not self._wherever_written())

    @cached_property
    def _own_bytes(self) -> int | None:
        return usual_bytes(self.group.keys, self.scene) if self.group.kind == "string" else None

    def _lives_short(self) -> bool:
        lives = Lives(lives_of(self.group.keys), self.meant, self.scene.server)
        if lives.right:
            return False
        short = sum(case.keys for case in lives.cases() if case.kind == "short")
        # Of various lives, or of too few keys, nothing is proven; far below the TTL is short all the same.
        return short >= 0.9 * len(lives.all) or self.top <= self.ttl / 20

    def _is_flag(self) -> bool:
        """Whether the values are tiny beside the sessions' and gone within minutes."""
        own = self._own_bytes
        if self.group.kind != "string" or self.top > min(FLAG_MS, self.ttl / 20) or (own or 0) > FLAG_BYTES:
            return False
        mains = [pair.main.facts for pair in self.pairs]
        if any(one.kind != "string" for one in mains):
            return True
        others = usual_bytes(mains, self.scene)
        return own is not None and others is not None and others >= 3 * own

    def _written_together(self) -> bool:
        """Whether most were written when the session's main key was: by their last touch, or a constant distance."""
        gaps = Counter(_deadline(own) - _deadline(main.facts) for own, main in self.pairs if main.facts.deadline_ms)
        usual = _fullest(gaps)
        together = sum(self._at_once(pair, usual) for pair in self.pairs)
        # With a jitter the deadlines tell nothing, and a touch may be a read.
        return together >= (0.5 if self._exact else 0.2) * len(self.pairs)

    def _at_once(self, pair: Pair, usual_gap: float | None) -> bool:
        own, main = pair.own, pair.main.facts
        if usual_gap is not None and abs(_deadline(own) - _deadline(main) - usual_gap) <= TOGETHER_MS:
            return True
        touches = [at for at in (main.touched_ms, self._written(main)) if at is not None]
        return own.touched_ms is not None and any(abs(own.touched_ms - at) <= TOGETHER_MS for at in touches)

    @cached_property
    def _mains(self) -> list[Member]:
        parts = {pair.main.part for pair in self.pairs}
        return [member for group in self.groups if group.part in parts for member in group.members]

    @cached_property
    def _exact(self) -> bool:
        """Whether deadlines tell when sessions were written: none lives over the TTL, as with a jitter every other."""
        over = sum((member.facts.set_ms or 0) > self.ttl + TOGETHER_MS for member in self._mains)
        return over <= 0.05 * len(self._mains)

    def _written(self, main: KeyFacts) -> int | None:
        """Return when a key was last written, by its deadline."""
        return None if main.deadline_ms is None or not self._exact else main.deadline_ms - self.ttl

    def _wherever_written(self) -> bool:
        """Whether nearly every session that was written to within this group's life has its key here."""
        recent = self._recent()
        if len(recent) < 3 or not self.scene.sees_siblings or not self._exact:
            return True
        there = {member.session for member in self.group.members}
        lacking = [member.session for member in recent if member.session not in there]
        found = len(recent) - len(lacking) + len(self.scene.siblings(self._names(lacking)))
        return found >= (0.7 if len(recent) >= 5 else 0.5) * len(recent)

    def _recent(self) -> list[Member]:
        """Return sessions that were written to since the oldest of these keys, with a margin."""
        first = min(_deadline(one) for one in self.group.keys) - self.top - TOGETHER_MS
        since = max(first, self.scene.server.now_ms - 0.9 * self.top)
        return [one for one in self._mains if since <= (self._written(one.facts) or 0)][:ENOUGH_RECENT]

    def _names(self, sessions: Sequence[str]) -> list[bytes]:
        if self.group.part.count("*") != 1:
            return []
        names = (f"{self.meant.prefix}{self.group.part.replace('*', one, 1)}" for one in sessions)
        return [name.encode("utf-8", "surrogateescape") for name in names]


def longest_given(keys: Sequence[KeyFacts]) -> int:
    """Return the TTL that keys were given at most; not by the very longest, which a jump of the clock may have made."""
    given = sorted(one.set_ms or 0 for one in keys)
    return given[int(0.9 * (len(given) - 1))] if given else 0


def _fullest(gaps: Counter[float]) -> float | None:
    """Return the middle of the seconds that most gaps fall in; None where that is less than three."""
    seconds: defaultdict[int, list[float]] = defaultdict(list)
    for gap, count in gaps.items():
        seconds[int(gap // TOGETHER_MS)] += [gap] * count
    most = max(seconds.values(), key=len, default=[])
    return median_low(most) if len(most) >= 3 else None


def usual_bytes(keys: Sequence[KeyFacts], scene: Scene) -> int | None:
    """Return the bytes that the values of such keys usually take, 0 for integers; None where the server won't say."""
    step = len(keys) // ENOUGH_WEIGHED + 1
    weights = scene.weigh([one.key for one in keys[::step]])
    return median_low(weights) if weights else None


def is_other_shape(group: Group, healthy: Sequence[Group], scene: Scene) -> bool:
    """Whether short-lived keys that share no ids with living sessions are sessions themselves, of another shape.

    They are of the sessions' type, not a handful, and, where strings, not tiny beside the sessions'.
    """
    like = [one for one in healthy if one.kind == group.kind]
    if not like or len(group.members) < 5:
        return False
    if group.kind != "string":
        return True
    own, usual = usual_bytes(group.keys, scene), usual_bytes(like[0].keys, scene)
    return own is None or usual is None or (own > 0 and (own > FLAG_BYTES or usual < 3 * own))
