"""Follow keys through logged commands: which exist, until when, and what ended each of those that do not."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Literal, NamedTuple, Self

from memkit.history.commands import Effect

VALKEY_UNLINKS = 8
SAME_SECOND_MS = 1_000
"""A log states whole seconds: what it states with the same one may have happened at once."""
CLOCK_IS_BEHIND_MS = 100
"""A server states the time at which its turn began: an expiry can stand before its own deadline (an expire cycle takes
up to 25 ms at ``hz 10``)."""
EventName = Literal[
    "written", "renewed", "ttl_removed", "expired", "evicted", "deleted", "overwritten", "renamed", "flushed"
]


def logs_like(info: Mapping[str, str]) -> str:
    """Return as which server one logs the ends of keys, by its INFO: Valkey logs UNLINK from 8.0 on, by default."""
    return "valkey" if int(info.get("valkey_version", "0").partition(".")[0]) >= VALKEY_UNLINKS else "redis"


class Moment(NamedTuple):
    """When something happened: no earlier and no later than these Unix times; None if nothing bounds it.

    ``stated`` is whether the log states the time. A log without timestamps bounds a moment by its neighbours, and by
    deadlines if their TTLs are the expected ones: such bounds may be close, but the log does not state them.
    """

    earliest_ms: int | None
    latest_ms: int | None
    stated: bool = True

    @classmethod
    def at(cls, ms: int) -> Self:
        """Return a moment that is known to the millisecond."""
        return cls(ms, ms)

    @property
    def is_exact(self) -> bool:
        """Whether the source states the moment to the second."""
        if self.earliest_ms is None or self.latest_ms is None:
            return False
        return self.stated and self.latest_ms - self.earliest_ms < SAME_SECOND_MS


class KeyEvent(NamedTuple):
    """One thing that happened to one key.

    Attributes:
        deadline_ms: The deadline after the event; if it ended the key, the deadline that the key had.
        ttl_ms: The TTL that the event set, if it is known.
        ttl_is_open: The event set a TTL; only bounds of its moment show which.
        possible: The ends that the log cannot tell apart, the likeliest first, which is also the ``name``.
        target: The key's name after a rename.
        created: The key did not exist before.
        ttl_given: When the key got its TTL, if it had another name then.
        proven: If there is only one possible end, it is certain.
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
    ttl_given: Moment | None = None
    proven: bool = True
    ttl_is_open: bool = False

    @property
    def ttl_range_ms(self) -> tuple[int, int] | None:
        """The shortest and the longest TTL that the event can have set; None if it set none, or nothing bounds it."""
        if self.ttl_ms is not None:
            return self.ttl_ms, self.ttl_ms
        earliest_ms, latest_ms, _ = self.moment
        if not self.ttl_is_open or self.deadline_ms is None or earliest_ms is None or latest_ms is None:
            return None
        return self.deadline_ms - latest_ms, self.deadline_ms - earliest_ms

    def belongs_to(self, write: Self) -> bool:
        """Return whether this is the deadline that a write got: set within a second after it."""
        if self.name != "renewed" or write.name != "written" or write.ttl_ms is not None:
            return False
        distance = (self.moment.latest_ms or 0) - (write.moment.latest_ms or 0)
        return (write.db, write.key) == (self.db, self.key) and distance < SAME_SECOND_MS


class KeyState(NamedTuple):
    """A key that exists: its deadline, None for a persistent key, its TTL, and when it got that.

    Attributes:
        least: The smallest number of elements that it can have. With 0 the key may not exist, and the next write may
            create it without a TTL.
        most: The largest number of elements that it can have; None: not known.
        is_sure: The deadline is known.
        fields_expire: It is a hash with TTLs of its fields.
    """

    deadline_ms: int | None = None
    ttl_ms: int | None = None
    given: Moment = Moment(None, None)
    least: int = 1
    most: int | None = None
    is_sure: bool = True
    fields_expire: bool = False

    @property
    def known_deadline_ms(self) -> int | None:
        """The deadline; None too if it is only a bound, as that of a relative TTL in a log without timestamps."""
        return self.deadline_ms if self.is_sure else None


class KeyStates:
    """The keys of a server as its log describes them.

    Args:
        server: ``"redis"`` or ``"valkey"``: they log expired and evicted keys differently (see ``logs_like``).
        wanted: Whether a key is followed; all by default.
        complete: The log begins with every key that exists. Otherwise a key may exist that the log has not named yet.
        keys_of: Returns where the keys of a database are kept, empty at first or not; in memory by default.
        may_have_moved: Whether the key's slot may have moved to another server of a cluster, which logs a DEL here.

    Attributes:
        unknown_sources: The keys (database, name) that were renamed or copied from a key that is not followed, with its
            name: their deadlines are not known.
    """

    def __init__(
        self,
        *,
        server: str,
        wanted: Callable[[bytes], bool] | None = None,
        complete: bool = True,
        keys_of: Callable[[int], MutableMapping[bytes, KeyState]] = lambda _db: {},
        may_have_moved: Callable[[bytes], bool] = lambda _key: False,
    ) -> None:
        self._valkey = server == "valkey"
        self._wanted = wanted
        self._complete = complete
        self._new_keys, self._may_have_moved = keys_of, may_have_moved
        self._ended: set[tuple[int, bytes]] = set()
        self.unknown_sources: dict[tuple[int, bytes], bytes] = {}
        self.databases: dict[int, MutableMapping[bytes, KeyState]] = {}

    def keys_of(self, db: int) -> MutableMapping[bytes, KeyState]:
        """Return the keys of a database that exist, with their states."""
        if db not in self.databases:
            self.databases[db] = self._new_keys(db)
        return self.databases[db]

    def apply(
        self, db: int, effect: Effect, moment: Moment, command: str, *, in_multi: bool = False
    ) -> Iterator[KeyEvent]:
        """Return what an effect does to the keys that are followed, as it is iterated.

        Args:
            db: The database that the log had selected.
            effect: See ``commands.execute``.
            moment: When the command was logged.
            command: The command's name, for the events.
            in_multi: The command is in a transaction: no key is evicted in one.
        """
        changes = self._changes(db, effect, moment, command, in_multi=in_multi)
        return changes if self._complete else self._with_ends(changes, effect)

    def _with_ends(self, changes: Iterator[KeyEvent], effect: Effect) -> Iterator[KeyEvent]:
        """Yield changes, and remember which keys do not exist, although the log does not begin with every key."""
        for event in changes:
            key = event.db, event.key
            self._ended.discard(key) if event.key in self.keys_of(event.db) else self._ended.add(key)
            yield event
        if effect.action == "flush all":
            self._complete = True

    def _changes(self, db: int, effect: Effect, moment: Moment, command: str, *, in_multi: bool) -> Iterator[KeyEvent]:
        if effect.action in ("flush database", "flush all"):
            yield from self._flush(None if effect.action == "flush all" else db, moment, command)
        elif effect.action == "swap databases":
            yield from self._swap(int(effect.key), effect.db or 0, moment, command)
        elif effect.action in ("rename", "copy"):
            yield from self._rename(db, effect, moment, command)
        elif self._wanted is not None and not self._wanted(effect.key):
            return
        elif effect.action == "delete":
            yield from self._delete(db, effect, moment, command, in_multi=in_multi)
        elif effect.action in ("replace", "store"):
            yield from self._replace(db, effect, moment, command)
        else:
            if moment.stated:
                yield from self._expire(db, effect.key, moment)
            change = self._set_deadline if effect.action.endswith("deadline") else self._change_elements
            yield from change(db, effect, moment, command)

    def _replace(self, db: int, effect: Effect, moment: Moment, command: str) -> Iterator[KeyEvent]:
        keys, key = self.keys_of(db), effect.key
        is_known = self._complete or key in keys or (db, key) in self._ended
        may_be_empty = effect.action == "store" and (key in keys or not is_known)
        if moment.stated:
            yield from self._expire(db, key, moment)
        before = keys.get(key)
        deadline, ttl, is_sure = _deadline(effect, moment)
        name = _name_of_write(before, deadline)
        possible: tuple[EventName, ...] = (name, "deleted") if may_be_empty else ()
        if may_be_empty and before is not None and "expired" in possible_ends(before, moment, "deleted"):
            possible = (*possible, "expired")
        keys[key] = KeyState(deadline, ttl, moment, 0 if may_be_empty else 1, is_sure=is_sure)
        # Otherwise the key may have had a TTL, or may not have existed.
        proven = deadline is not None or (is_known and (before is None or (before.is_sure and before.least > 0)))
        yield KeyEvent(db, key, name, moment, command, deadline, ttl, possible, proven=proven)

    def _set_deadline(self, db: int, effect: Effect, moment: Moment, command: str) -> Iterator[KeyEvent]:
        keys, key = self.keys_of(db), effect.key
        before = keys.get(key)
        if before is None and self._complete:
            return  # a server logs no TTL of a key that does not exist
        state = before or KeyState()
        state = state._replace(given=moment, least=max(state.least, 1))
        deadline, ttl, is_sure = _deadline(effect, moment)
        keys[key] = state._replace(deadline_ms=deadline, ttl_ms=ttl, is_sure=is_sure)
        if effect.action == "set deadline":
            yield KeyEvent(db, key, "renewed", moment, command, deadline, ttl)
        elif before is None or before.deadline_ms is not None or not before.is_sure:
            yield KeyEvent(db, key, "ttl_removed", moment, command)

    def _change_elements(self, db: int, effect: Effect, moment: Moment, command: str) -> Iterator[KeyEvent]:
        keys, key = self.keys_of(db), effect.key
        before = keys.get(key)
        is_new = self._complete or (db, key) in self._ended
        new = KeyState(given=moment, least=0, most=0 if is_new else None, is_sure=is_new)
        state = _with_elements(before or new, effect)
        if before is not None and state.most == 0:
            del keys[key]
            possible: tuple[EventName, ...] = ("deleted",)
            if state.fields_expire and command == "HDEL":
                possible = ("expired", "deleted")
            yield KeyEvent(db, key, possible[0], moment, command, state.known_deadline_ms, possible=possible)
            return
        keys[key] = state
        yield KeyEvent(db, key, "written", moment, command, state.deadline_ms, created=before is None)

    def _expire(self, db: int, key: bytes, moment: Moment) -> Iterator[KeyEvent]:
        """Remove a key that is past its deadline: some commands replace such a key, and no DEL is logged."""
        state = self.keys_of(db).get(key)
        if state is not None and possible_ends(state, moment, "deleted") == ("expired",):
            del self.keys_of(db)[key]
            yield KeyEvent(db, key, "expired", moment, "", state.deadline_ms, possible=("expired",))

    def _rename(self, db: int, effect: Effect, moment: Moment, command: str) -> Iterator[KeyEvent]:
        source, target = effect.key, effect.target or b""
        goal_db = db if effect.db is None else effect.db
        keys, goal = self.keys_of(db), self.keys_of(goal_db)
        state = keys.get(source)
        if self._wanted is None or self._wanted(target):
            if state is None:
                self.unknown_sources[goal_db, target] = source
            replaced = goal.get(target)
            # Of a source that is not known, the deadline may be the replaced key's own, or another one, or none.
            unknown = KeyState(None if replaced is None else replaced.deadline_ms, is_sure=False)
            new = unknown if state is None else state._replace(least=max(state.least, 1))
            name = _name_of_write(replaced, new.deadline_ms) if new.is_sure else "written"
            goal[target] = new
            yield KeyEvent(goal_db, target, name, moment, command, new.deadline_ms, new.ttl_ms, ttl_given=new.given)
        if effect.action == "rename" and (self._wanted is None or self._wanted(source)):
            keys.pop(source, None)
            deadline_ms = None if state is None else state.deadline_ms
            yield KeyEvent(db, source, "renamed", moment, command, deadline_ms, target=target)

    def _swap(self, first: int, second: int, moment: Moment, command: str) -> Iterator[KeyEvent]:
        """Exchange two databases: each key is renamed into the other one."""
        for db in first, second:
            for key in list(self.keys_of(db)):
                yield from self._expire(db, key, moment)
        before = {db: dict(self.databases[db]) for db in (first, second)}
        self.databases[first], self.databases[second] = self.databases[second], self.databases[first]
        for db, other in (first, second), (second, first):
            for key, state in before[db].items():
                deadline_ms, replaced = state.deadline_ms, before[other].get(key)
                possible = possible_ends(state, moment, "renamed", *_ends_before(state))
                if possible != ("renamed",):
                    self.databases[other][key] = state._replace(is_sure=False)
                if replaced is None:
                    event = KeyEvent(db, key, possible[0], moment, command, deadline_ms, target=key)
                    yield event if possible == ("renamed",) else event._replace(possible=possible)
                event = KeyEvent(other, key, _name_of_write(replaced, deadline_ms), moment, command, deadline_ms)
                yield event._replace(ttl_ms=state.ttl_ms, ttl_given=state.given)

    def _flush(self, db: int | None, moment: Moment, command: str) -> Iterator[KeyEvent]:
        for number in list(self.databases) if db is None else [db]:
            keys = self.keys_of(number)
            for key, state in list(keys.items()):
                del keys[key]
                possible = possible_ends(state, moment, "flushed", *_ends_before(state))
                yield KeyEvent(number, key, possible[0], moment, command, state.known_deadline_ms, possible=possible)

    def _delete(self, db: int, effect: Effect, moment: Moment, command: str, *, in_multi: bool) -> Iterator[KeyEvent]:
        """Tell an expired key from one that was deleted or evicted, as far as the log does.

        A server deletes a key that is past its deadline before any command sees it, and logs that: so a deletion at or
        after the deadline is its expiry. Before it, Redis logs an eviction as DEL (UNLINK with lazyfree-lazy-eviction),
        and Valkey as UNLINK, but a client's DEL as it is. No server deletes several keys with one command by itself, or
        evicts a key in a transaction.
        """
        key, proven = effect.key, True
        before = self.keys_of(db).pop(key, None)
        if before is None and (self._complete or (db, key) in self._ended):
            return
        state = before or KeyState(is_sure=False)
        if command not in ("DEL", "UNLINK") or effect.keys > 1:
            possible: tuple[EventName, ...] = ("deleted",)
            proven = before is not None or effect.keys == 1  # of several keys one may not have existed
            if not state.least:  # it may have ended before
                moment = moment._replace(earliest_ms=state.given.earliest_ms)
        else:
            possible = possible_ends(state, moment, "deleted", *(() if in_multi else ("evicted",)))
            if in_multi and not state.least and possible == ("deleted",):
                possible = ("expired", "deleted")  # Valkey logs so that the last field of a hash expired
            elif self._valkey and command == "DEL" and possible != ("expired",):
                # lazyfree-lazy-expire and -eviction may be off, as the redis.conf of many servers has it.
                proven = possible == ("deleted",)
                possible = ("deleted", *(one for one in possible if one != "deleted" and "expired" in possible))
        if command in ("DEL", "UNLINK") and possible != ("expired",) and self._may_have_moved(key):
            possible = ("renamed", *possible)
        deadline_ms = state.known_deadline_ms
        yield KeyEvent(db, key, possible[0], moment, command, deadline_ms, possible=possible, proven=proven)


def _with_elements(state: KeyState, effect: Effect) -> KeyState:
    """Return a key's state after a write that keeps its TTL, if the key existed."""
    count, least, most = effect.elements, state.least, state.most
    if effect.action in ("remove elements", "pop elements"):
        removed = count if effect.action == "pop elements" else 1
        return state._replace(least=max(least - count, 0), most=None if most is None else max(most - removed, 0))
    if effect.action == "trim":
        return state._replace(least=max(min(least, count), 1), most=count if most is None else min(most, count))
    is_sure = state.is_sure and (least > 0 or most == 0)
    least = least + count if effect.action == "add elements" else max(least, count, 1)
    fields_expire = state.fields_expire or effect.action == "expire fields"
    most = None if most is None else most + count
    return state._replace(least=least, most=most, is_sure=is_sure, fields_expire=fields_expire)


def _ends_before(state: KeyState) -> tuple[EventName, ...]:
    """Return how a key may have ended already if it may have no element left."""
    if state.least:
        return ()
    return ("deleted", "expired") if state.fields_expire and state.is_sure else ("deleted",)


def _name_of_write(before: KeyState | None, deadline_ms: int | None) -> EventName:
    """Return what a write is that gives a key this deadline: it overwrites a key that has a TTL with one without."""
    return "overwritten" if before is not None and before.deadline_ms is not None and deadline_ms is None else "written"


def possible_ends(state: KeyState, moment: Moment, *otherwise: EventName) -> tuple[EventName, ...]:
    """Return why a key may have ended at a moment: it expired, if its deadline was reached, or otherwise."""
    deadline = state.deadline_ms
    if not state.is_sure:
        return ("expired", *otherwise)
    if deadline is not None and moment.earliest_ms is not None and moment.earliest_ms >= deadline:
        return ("expired",)
    if deadline is None or (moment.latest_ms is not None and moment.latest_ms + CLOCK_IS_BEHIND_MS < deadline):
        return otherwise
    return ("expired", *otherwise)


def _deadline(effect: Effect, moment: Moment) -> tuple[int | None, int | None, bool]:
    """Return the deadline that an effect sets, the TTL that it gives, and whether the deadline is known.

    A log's second is rounded down, so the distance to it is the TTL plus less than a second.
    """
    earliest_ms, latest_ms = moment.earliest_ms, moment.latest_ms
    is_close = earliest_ms is not None and latest_ms is not None and latest_ms - earliest_ms < SAME_SECOND_MS
    if effect.deadline_ms is None:
        deadline = None if effect.ttl_ms is None or latest_ms is None else latest_ms + effect.ttl_ms
        return deadline, effect.ttl_ms, effect.ttl_ms is None or is_close
    if earliest_ms is None or not is_close:
        return effect.deadline_ms, None, True
    distance = effect.deadline_ms - earliest_ms
    if distance <= 0:  # already past, if the clock of a client is behind: the key ends at once
        return earliest_ms if moment.stated else effect.deadline_ms, None, True
    return effect.deadline_ms, distance if earliest_ms == latest_ms else distance // 1_000 * 1_000 or distance, True
