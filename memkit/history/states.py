"""Follow keys through logged commands: which exist, until when, and what ended each of those that do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Literal, NamedTuple

from memkit.history.commands import Effect

VALKEY_UNLINKS = 8
SAME_SECOND_MS = 1_000
"""A log states whole seconds: what it states with the same one may have happened at once."""
EventName = Literal[
    "written", "renewed", "ttl_removed", "expired", "evicted", "deleted", "overwritten", "renamed", "flushed"
]


def logs_like(info: Mapping[str, str]) -> str:
    """Return as which server one logs the ends of keys, by its INFO: Valkey logs UNLINK from 8.0 on, by default."""
    return "valkey" if int(info.get("valkey_version", "0").partition(".")[0]) >= VALKEY_UNLINKS else "redis"


class Moment(NamedTuple):
    """When something happened: no earlier and no later than these Unix times; None if nothing bounds it.

    ``stated`` is whether the log states the time. A log without timestamps bounds a moment by its neighbours, and by
    deadlines if their TTLs are the expected ones: such bounds may be close, but they are no statement.
    """

    earliest_ms: int | None
    latest_ms: int | None
    stated: bool = True

    @classmethod
    def of_second(cls, second: int) -> Moment:
        """Return the moment that a log's timestamp states: it is rounded down to the second."""
        return cls(second * 1_000, second * 1_000 + 999)

    @classmethod
    def at(cls, ms: int) -> Moment:
        """Return a moment that is known to the millisecond."""
        return cls(ms, ms)


class KeyEvent(NamedTuple):
    """One thing that happened to one key.

    ``ttl_ms`` is the TTL that the event gave, if it is known; ``deadline_ms`` the deadline after it, or for an end the
    deadline that the key had. ``possible`` are the ends that the log cannot tell apart, the likeliest first, which is
    also the ``name``. ``target`` is the name after a rename. ``created``: the key did not exist before.
    """

    db: int
    key: bytes
    name: EventName
    moment: Moment
    command: str
    deadline_ms: int | None = None
    ttl_ms: int | None = None
    possible: tuple[EventName, ...] = ()
    target: bytes | None = None
    created: bool = False

    def belongs_to(self, write: KeyEvent) -> bool:
        """Return whether this is the deadline that a write got: set within a second after it."""
        if self.name != "renewed" or write.name != "written" or write.ttl_ms is not None:
            return False
        distance = (self.moment.latest_ms or 0) - (write.moment.latest_ms or 0)
        return (write.db, write.key) == (self.db, self.key) and distance < SAME_SECOND_MS


class KeyState(NamedTuple):
    """A key that exists: its deadline, None for a persistent key, and the event that gave it.

    ``may_be_empty``: elements were removed since; if they were the last ones, the key does not exist and the next write
    creates it without a TTL.
    """

    deadline_ms: int | None = None
    ttl_ms: int | None = None
    given: Moment = Moment(None, None)
    may_be_empty: bool = False


class KeyStates:
    """The keys of a server as its log describes them.

    Args:
        server: ``"redis"`` or ``"valkey"``: they log expired and evicted keys differently (see ``logs_like``).
        wanted: Whether a key is followed; all by default.
        complete: The log begins with every key that exists. Otherwise a key may exist that the log has not named yet.
        keys_of: Returns where the keys of a database are kept, empty at first or not; in memory by default.
    """

    def __init__(
        self,
        *,
        server: str,
        wanted: Callable[[bytes], bool] | None = None,
        complete: bool = True,
        keys_of: Callable[[int], MutableMapping[bytes, KeyState]] = lambda _db: {},
    ) -> None:
        self._valkey = server == "valkey"
        self._wanted = wanted
        self._complete = complete
        self._new_keys = keys_of
        self.databases: dict[int, MutableMapping[bytes, KeyState]] = {}

    def keys_of(self, db: int) -> MutableMapping[bytes, KeyState]:
        """Return the keys of a database that exist, with their states."""
        if db not in self.databases:
            self.databases[db] = self._new_keys(db)
        return self.databases[db]

    def apply(self, db: int, effect: Effect, moment: Moment, command: str) -> Iterator[KeyEvent]:
        """Yield what an effect does to the keys that are followed.

        Args:
            db: The database that the log had selected.
            effect: See ``commands.effects_of``.
            moment: When the command was logged.
            command: The command's name, for the events.
        """
        if effect.action in ("flush database", "flush all"):
            yield from self._flush(None if effect.action == "flush all" else db, moment, command)
        elif effect.action == "swap databases":
            first, second = int(effect.key), effect.db or 0
            self.databases[first], self.databases[second] = self.keys_of(second), self.keys_of(first)
        elif effect.action in ("rename", "copy"):
            yield from self._rename(db, effect, moment, command)
        elif self._wanted is None or self._wanted(effect.key):
            yield from self._apply_to_key(db, effect, moment, command)

    def _apply_to_key(self, db: int, effect: Effect, moment: Moment, command: str) -> Iterator[KeyEvent]:
        keys, key = self.keys_of(db), effect.key
        before = keys.get(key)
        deadline, ttl = _deadline(effect, moment)
        if effect.action == "delete":
            keys.pop(key, None)
            if before is not None:
                yield self._ended(db, key, before, moment, command)
            elif not self._complete:
                possible: tuple[EventName, ...] = ("expired", "deleted", "evicted")
                yield KeyEvent(db, key, "expired", moment, command, possible=possible)
        elif effect.action == "replace":
            keys[key] = KeyState(deadline, ttl, moment)
            lost_ttl = before is not None and before.deadline_ms is not None and deadline is None
            yield KeyEvent(db, key, "overwritten" if lost_ttl else "written", moment, command, deadline, ttl)
        elif effect.action in ("write", "remove elements"):
            state = before or KeyState(given=moment)
            keys[key] = state._replace(may_be_empty=effect.action == "remove elements")
            yield KeyEvent(db, key, "written", moment, command, state.deadline_ms, created=before is None)
        elif before is None and self._complete:
            return  # a server logs no TTL of a key that does not exist
        elif effect.action == "set deadline":
            keys[key] = KeyState(deadline, ttl, moment)
            yield KeyEvent(db, key, "renewed", moment, command, deadline, ttl)
        elif before is None or before.deadline_ms is not None:
            keys[key] = KeyState(None, None, moment)
            yield KeyEvent(db, key, "ttl_removed", moment, command)

    def _rename(self, db: int, effect: Effect, moment: Moment, command: str) -> Iterator[KeyEvent]:
        keys, target = self.keys_of(db), effect.target or b""
        goal_db = db if effect.db is None else effect.db
        goal = self.keys_of(goal_db)
        state = keys.get(effect.key)
        overwritten = goal.get(target)
        if state is not None and (self._wanted is None or self._wanted(target)):
            goal[target] = state
            lost_ttl = overwritten is not None and overwritten.deadline_ms is not None and state.deadline_ms is None
            name: EventName = "overwritten" if lost_ttl else "written"
            yield KeyEvent(goal_db, target, name, moment, command, state.deadline_ms, state.ttl_ms)
        if effect.action == "rename" and state is not None:
            del keys[effect.key]
            yield KeyEvent(db, effect.key, "renamed", moment, command, state.deadline_ms, target=target)

    def _flush(self, db: int | None, moment: Moment, command: str) -> Iterator[KeyEvent]:
        for number in list(self.databases) if db is None else [db]:
            keys = self.keys_of(number)
            for key, state in list(keys.items()):
                del keys[key]
                yield KeyEvent(number, key, "flushed", moment, command, state.deadline_ms)

    def _ended(self, db: int, key: bytes, state: KeyState, moment: Moment, command: str) -> KeyEvent:
        """Tell an expired key from one that was deleted or evicted, as far as the log does.

        A server deletes a key that is past its deadline before any command sees it, and logs that: so a deletion at or
        after the deadline is its expiry. Before it, Redis logs an eviction as DEL (UNLINK with lazyfree-lazy-eviction),
        and Valkey as UNLINK, but a client's DEL as it is.
        """
        deadline = state.deadline_ms
        possible: tuple[EventName, ...]
        if deadline is not None and moment.earliest_ms is not None and moment.earliest_ms >= deadline:
            possible = ("expired",)
        elif deadline is None or (moment.latest_ms is not None and moment.latest_ms < deadline):
            possible = ("deleted",) if self._valkey and command == "DEL" else ("deleted", "evicted")
        elif self._valkey and command == "DEL":
            possible = ("deleted",)
        else:
            possible = ("expired", "deleted", "evicted")
        return KeyEvent(db, key, possible[0], moment, command, deadline, state.ttl_ms, possible)


def _deadline(effect: Effect, moment: Moment) -> tuple[int | None, int | None]:
    """Return the deadline that an effect sets and the TTL that it gives, as far as the moment shows.

    A log's second is rounded down, so the distance to it is the TTL plus less than a second.
    """
    if effect.deadline_ms is None:
        deadline = None if effect.ttl_ms is None or moment.latest_ms is None else moment.latest_ms + effect.ttl_ms
        return deadline, effect.ttl_ms
    if moment.earliest_ms is None or moment.latest_ms is None or moment.latest_ms - moment.earliest_ms >= 1_000:
        return effect.deadline_ms, None
    distance = effect.deadline_ms - moment.earliest_ms
    return effect.deadline_ms, distance if moment.earliest_ms == moment.latest_ms else distance // 1_000 * 1_000
