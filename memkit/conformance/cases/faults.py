# the docstring of a case is its meaning: a sentence about the store
"""Cases: under a fault a store raises or is right."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import redis

from memkit.conformance.adapter import Handle, Messages, one_line
from memkit.conformance.case import Case, case
from memkit.conformance.environment import MARGIN_S, TTL_S, Bench, Key, messages_of
from memkit.conformance.fault_proxy import Loss, Proxy
from memkit.conformance.keyspace import Belongings, damage, elements, holds, own_places, shown, values
from memkit.conformance.outcomes import Forgot, NotAsked
from memkit.conformance.processes import LONGEST_S, Child, Waiting, together, works_when_forked
from memkit.conformance.trial import Talk, difference

EXPIRE_FAMILY = ("expire", "pexpire", "expireat", "pexpireat", "hexpire", "hpexpire", "hexpireat", "hpexpireat")
RAISE = "Let the error out of the store; the application can then say so, retry or stop."
MOST_ROUND_TRIPS = 40
MOST_LOST_CLEARS = 8
PAUSE_S = 0.1
PATIENCE_S = 4.0
LOCKS_END_AFTER_S = 60.0
DOWN_FOR_S = 0.3
QUICK_LOSSES: tuple[Loss, ...] = ("reply", "request", "reply twice")


def _read(handle: Handle) -> Messages | Exception:
    """Read under a fault, in which a store may raise."""
    try:
        return messages_of(handle)
    except Exception as error:  # noqa: BLE001  # what a store raises under a fault is its own affair
        return error


def _expect_right_or_raised(talk: Talk, handle: Handle, when: str) -> None:
    read = _read(handle)
    if not isinstance(read, Exception) and read != talk.said:
        raise Forgot(f"{when}: read() did not raise; {difference(talk.said, read)}")


def _expect_after(talk: Talk, text: str, error: Exception | None, when: str, role: str = "user") -> None:
    """The fault is over: what was acknowledged is there once; what raised is there once or not."""
    if error is None:
        talk.expect(f"{when}, append said that it stored the message")
    else:
        talk.expect_either(when, text, error, role)


def _begun(bench: Bench, messages: int = 2, ttl_s: float | None = TTL_S) -> Talk:
    """A session with some messages in it, its handle open and used."""
    talk = Talk(bench, ttl_s=ttl_s)
    for number in range(messages):
        talk.say(role=("user", "assistant")[number % 2])
    talk.expect("before the fault", by=talk.handle)
    return talk


# Denied commands


@case(
    why="A crash (or a refusal) between the write and its EXPIRE leaves a session that never dies, and nobody is told.",
    fix="Write and set the TTL in one script or MULTI, or with SET PX; let the error out. In a script try the TTL "
    "before the first write: Lua does not roll back.",
    needs_ttl=True,
)
def expire_denied(bench: Bench) -> None:
    """With EXPIRE and its kin denied, an append raises, or the session has its TTL renewed all the same."""
    belongings = Belongings(bench)
    old, new = _begun(bench), Talk(bench)
    bench.move_to(old.said_at[0] + TTL_S / 2)
    old.handle, new.handle  # noqa: B018  # opened while all is well
    with bench.denied(*EXPIRE_FAMILY):
        errors = {talk: talk.tried("said while EXPIRE is denied") for talk in (new, old)}
    for talk, error in errors.items():
        which = "a new session" if talk is new else "a living session"
        _expect_after(talk, "said while EXPIRE is denied", error, f"EXPIRE denied, {which}")
        outcome = f"append raised {one_line(error)}" if error else "append said that all is well"
        belongings.expect_mortal(f"EXPIRE denied, {which} ({outcome})")
    for talk, error in errors.items():
        if error is None and (bench.sliding or talk is new):
            talk.expect_until(
                TTL_S, f"EXPIRE denied, append said that all is well; {MARGIN_S:g} s before the new deadline"
            )


@case(
    why="A refused read that is shown as 'no memory' makes the bot greet an old user as a stranger; no alarm rings.",
    fix=RAISE + " Catch only what means 'there is no such session'.",
)
def read_denied(bench: Bench) -> None:
    """When Redis refuses a command that read() needs, read() raises; it does not show an empty or partial memory."""
    talk = _begun(bench, 4)
    needed = bench.commands_of(lambda: (messages_of(talk.handle), bench.read(talk.id)))
    for rules in (("@read",), ("@read", "@scripting"), *_each(needed)):
        talk.say_elsewhere()
        with _denied_if_known(bench, rules):
            _expect_right_or_raised(talk, talk.handle, f"{' and '.join(rules)} denied, read by the open handle")
            handle = _opened(talk)
            if not isinstance(handle, Exception):
                _expect_right_or_raised(talk, handle, f"{' and '.join(rules)} denied, read by a new handle")
    talk.expect("after the fault")


def _opened(talk: Talk) -> Handle | Exception:
    try:
        return talk.reopened()
    except Exception as error:  # noqa: BLE001  # a store that checks its connection in open() is right to raise
        return error


@contextmanager
def _denied_if_known(bench: Bench, rules: tuple[str, ...]) -> Iterator[None]:
    try:
        with bench.denied(*rules):
            yield
    except NotAsked:
        pass


@case(
    why="A write that failed and is reported as done is a message that nobody will send again.",
    fix=RAISE + " Write everything in one MULTI or script, so that a refusal leaves nothing half done.",
)
def write_denied(bench: Bench) -> None:
    """When Redis refuses a command that append() needs, append() raises or has stored the message with its TTL."""
    belongings = Belongings(bench)
    first = Talk(bench)

    def appends() -> None:
        for handle in (first.handle, first.handle, first.reopened()):
            handle.append("user", "an ordinary message")

    for rules in (("@write",), ("@write", "@scripting"), *_each(bench.commands_of(appends))):
        for talk in (_begun(bench), Talk(bench)):
            _deny_append(talk, belongings, rules)


def _each(commands: list[str]) -> list[tuple[str, ...]]:
    """One denial a command; EXPIRE and its kin only go together, in a case of their own."""
    return [(name,) for name in commands if name not in EXPIRE_FAMILY]


def _deny_append(talk: Talk, belongings: Belongings, rules: tuple[str, ...]) -> None:
    text = f"said while {' '.join(rules)} is denied"
    when = f"{' and '.join(rules)} denied, {'a living' if talk.said else 'a new'} session"
    with talk.bench.denied(*rules):
        handle = talk.handle if talk.said else _opened(talk)
        error = handle if isinstance(handle, Exception) else talk.tried(text, by=handle)
    if error is None or rules[0].startswith("@"):
        _expect_after(talk, text, error, when)
        belongings.expect_mortal(when)
        return
    # A script does not roll back: refused in its middle, it may have left a part. That is told aloud twice (append
    # raised, read raises), and no crash can stop a script there.
    read = _read(talk.reopened())
    if not isinstance(read, Exception) and read not in (talk.said, [*talk.said, ("user", text)]):
        raise Forgot(f"{when} (append raised {one_line(error)}): {difference(talk.said, read)}")


@case(
    why="A user who asked to be forgotten is told that it is done, and is remembered.",
    fix=RAISE,
)
def clear_denied(bench: Bench) -> None:
    """When Redis refuses a command that clear() needs, clear() raises or the session is gone."""
    first = _begun(bench, 3)
    needed = bench.commands_of(first.handle.clear)
    for rules in (("@write",), ("@write", "@scripting"), *_each(needed)):
        talk = _begun(bench, 3)
        with bench.denied(*rules):
            try:
                talk.handle.clear()
            except Exception:  # noqa: BLE001, S112  # as it should be
                continue
        talk.expect_gone(f"{' and '.join(rules)} denied, clear() did not raise")


# The network


@case(
    why="A reply that is lost makes the client send again: without an id the message is stored twice; with the error "
    "swallowed, not at all.",
    fix="Give each message an id that the client makes once, and let the script skip one that is there already; or do "
    "not retry writes, and raise.",
)
def lost_reply(bench: Bench) -> None:
    """When a request or a reply is lost, an append is stored exactly once and a read is right, or they raise."""
    with Proxy(_port(bench)) as proxy:
        proxied = Talk(bench)
        handle = bench.open(proxied.id, url=proxy.url(bench.url))
        proxied.say(by=handle)
        proxy.lose(None)
        proxied.say(by=handle)
        trips = proxy.requests
    if not trips:
        raise NotAsked("the store's traffic does not go by the URL that open() was given")
    began = time.monotonic()
    nths = range(1, trips + 1)
    works = [partial(_lose, bench, loss, nth) for loss in QUICK_LOSSES for nth in nths]
    together([*works, *(partial(_lose_while_another_writes, bench, nth) for nth in nths)])
    # A store that waited for a lock which a lost reply left behind has time-outs longer than LATE_S anyway.
    hasty = time.monotonic() < began + PATIENCE_S
    late = [partial(_lose, bench, "late reply", nth) for nth in nths if hasty]
    together([*late, partial(_late_read, bench)])


def _port(bench: Bench) -> int:
    return bench.server.port or 0


def _lose(bench: Bench, loss: Loss, nth: int) -> None:
    talk = Talk(bench)
    with Proxy(_port(bench)) as proxy:
        handle = bench.open(talk.id, url=proxy.url(bench.url))
        for _ in range(2):
            talk.say(by=handle)
        proxy.lose(loss, nth)
        error = talk.tried("said while the network fails", "assistant", by=handle)
        proxy.lose(None)
        when = f"the {loss} of round trip {nth} of an append was lost"
        _expect_after(talk, "said while the network fails", error, when, "assistant")
        if error:
            talk.said = bench.read(talk.id)
        later = talk.tried("said afterwards", by=handle)
        _expect_after(talk, "said afterwards", later, f"{when}; one more append by the same handle")


def _lose_while_another_writes(bench: Bench, nth: int) -> None:
    """A retry that comes after another client's message finds its own no longer at the end."""
    talk = _begun(bench)
    mine, other = (talk.role("assistant"), "said while the network fails"), (talk.role("user"), "said by another")
    others = talk.reopened()
    with Proxy(_port(bench)) as proxy:
        handle = bench.open(talk.id, url=proxy.url(bench.url))
        messages_of(handle)
        writing: list[Waiting] = []

        def write() -> None:
            # Not waited for long: a lock may be held that only the other can give back.
            writing.append(Waiting(partial(others.append, *other)))
            writing[0].result(within_s=PAUSE_S)

        proxy.lose("reply", nth, meanwhile=write)
        mine_stored = _appended(handle, *mine)
        proxy.lose(None)
    others_stored = bool(writing) and writing[0].result(within_s=PATIENCE_S) is None
    when = f"the reply of round trip {nth} of an append was lost, and another client wrote before it was sent again"
    read = bench.read(talk.id)
    added = read[len(talk.said) :]
    surely = [one for one, stored in ((mine, mine_stored), (other, others_stored)) if stored]
    for one in (mine, other):
        if read[: len(talk.said)] != talk.said or added.count(one) > 1 or (one in surely and one not in added):
            raise Forgot(f"{when}: {difference([*talk.said, *surely], read)}")


def _appended(handle: Handle, role: str, text: str) -> bool:
    try:
        handle.append(role, text)
    except Exception:  # noqa: BLE001  # under a fault a store may raise
        return False
    return True


def _late_read(bench: Bench) -> None:
    """Read while the first reply does not come: time-outs are a fault like any other."""
    talk = _begun(bench, 3)
    with Proxy(_port(bench)) as proxy:
        handle = bench.open(talk.id, url=proxy.url(bench.url))
        messages_of(handle)
        talk.say_elsewhere()
        proxy.lose("late reply")
        _expect_right_or_raised(talk, handle, "the reply to a read did not come for some seconds")


@case(
    why="A process that dies between two commands (a deploy, the OOM killer) leaves half a write: a key without a TTL, "
    "an index without its message.",
    fix="Do everything an append does in one MULTI or script.",
)
def crash_in_append(bench: Bench) -> None:
    """When the process is killed in the middle of an append, the session goes on as it was, every key with its TTL."""
    if not works_when_forked(bench):
        raise NotAsked("the store does not answer in a forked process, which is what is killed here")
    belongings = Belongings(bench)
    for living in (True, False):
        for nth in range(1, MOST_ROUND_TRIPS):
            if not _crash(bench, belongings, _begun(bench) if living else Talk(bench), nth):
                break


def _open_and_append(bench: Bench, url: str, talk: Talk, text: str) -> None:
    bench.adapter.open(url, talk.id, bench.ttl(talk.ttl_s)).append(talk.role("tool"), text)


def _crash(bench: Bench, belongings: Belongings, talk: Talk, nth: int) -> bool:
    """Kill a process before the nth request of open() and append(); False when it needs fewer."""
    text = "said by a process that was killed"
    with Proxy(_port(bench)) as proxy:
        proxy.lose("hold", nth)
        child = Child(partial(_open_and_append, bench, proxy.url(bench.url), talk, text))
        deadline = time.monotonic() + LONGEST_S
        while not child.done(within_s=0.001) and not proxy.lost.is_set() and time.monotonic() < deadline:
            pass
        crashed = proxy.lost.is_set()
        child.kill()
    when = f"killed before round trip {nth} of opening and appending to {'a living' if talk.said else 'a new'} session"
    if crashed:
        _expect_after(talk, text, InterruptedError("killed"), when, "tool")
        belongings.expect_mortal(when)
        _goes_on(talk, when)
    return crashed


def _goes_on(talk: Talk, when: str) -> None:
    talk.said = talk.bench.read(talk.id)
    # A lock that the dead process held is waited for by the clock, not by us.
    talk.bench.move_to(talk.bench.now_s() + LOCKS_END_AFTER_S)
    for role in ("user", "assistant"):
        text = f"said by the {role} afterwards"
        error = talk.tried(text, role, by=talk.reopened())
        _expect_after(talk, text, error, f"{when}; one more append ({role})", role)
        talk.said = talk.bench.read(talk.id)
    talk.bench.move_to(talk.bench.now_s() - LOCKS_END_AFTER_S)


@case(
    why="Servers and proxies close connections. A store that takes that for 'no memory' forgets at every pause.",
    fix="Reconnect and ask again, or raise; a write is only sent again with an id, so that nothing is stored twice.",
)
def connection_lost(bench: Bench) -> None:
    """When the connection has been closed, or breaks during a read or a clear(), the store is right or raises."""
    reader, writer = _begun(bench, 5), _begun(bench)
    reader.say_elsewhere()
    bench.control.execute_command("CLIENT", "KILL", "USER", "default")
    _expect_right_or_raised(reader, reader.handle, "an idle connection was closed by the server")
    bench.control.execute_command("CLIENT", "KILL", "USER", "default")
    error = writer.tried("said after the connection was closed")
    _expect_after(writer, "said after the connection was closed", error, "an idle connection was closed by the server")
    with Proxy(_port(bench)) as proxy:
        for nth in range(1, MOST_ROUND_TRIPS):
            handle = bench.open(reader.id, url=proxy.url(bench.url))
            messages_of(handle)
            reader.say_elsewhere()
            proxy.lose("reply", nth)
            _expect_right_or_raised(reader, handle, f"the connection broke in round trip {nth} of a read")
            if not proxy.lost.is_set():
                break
            proxy.lose(None)
    _lost_clears(bench)


def _lost_clears(bench: Bench) -> None:
    talk = _begun(bench, 3)
    with Proxy(_port(bench)) as proxy:
        handle = bench.open(talk.id, url=proxy.url(bench.url))
        messages_of(handle)
        proxy.lose(None)
        handle.clear()
        trips = min(proxy.requests, MOST_LOST_CLEARS)
    losses: tuple[Loss, ...] = ("request", "reply")
    works = [partial(_lost_clear, bench, loss, nth) for loss in losses for nth in range(1, trips + 1)]
    together([*works, partial(_lost_clear, bench, "every request", 1)] if trips else [])


def _lost_clear(bench: Bench, loss: Loss, nth: int) -> None:
    talk = _begun(bench, 3)
    with Proxy(_port(bench)) as proxy:
        handle = bench.open(talk.id, url=proxy.url(bench.url))
        messages_of(handle)
        proxy.lose(loss, nth)
        clearing = Waiting(handle.clear)
        clearing.result(within_s=DOWN_FOR_S)
        proxy.lose(None)
        if not isinstance(clearing.result(within_s=PATIENCE_S), Exception):
            talk.expect_gone(f"{loss} {nth} of a clear() was lost on the network, clear() did not raise")


@case(
    why="What is only in the process when append() returns is lost with the process: a deploy in the middle of a talk.",
    fix="Return from append() when Redis has answered; no background writer, no buffer.",
)
def stored_when_acknowledged(bench: Bench) -> None:
    """append() does not return while the server takes no writes (CLIENT PAUSE): what is acknowledged is stored."""
    for talk in (_begun(bench), Talk(bench)):
        handle = talk.handle
        bench.control.client_pause(20_000, all=False)
        try:
            waiting = Waiting(lambda handle=handle: handle.append("user", "said in a pause"))  # type: ignore[misc]
            if waiting.result(within_s=PAUSE_S) is None:
                raise Forgot("append() said that the message is stored while the server was taking no writes")
        finally:
            bench.control.client_unpause()
        outcome = waiting.result(within_s=5.0)
        error = outcome if isinstance(outcome, Exception) else None
        talk.said += [] if error else [("user", "said in a pause")]
        _expect_after(talk, "said in a pause", error, "the server paused")


# The server


@case(
    why="Full memory refuses writes but not deletes: DEL and then RPUSH leaves nothing of the talk.",
    fix="Never delete before the new state is written: append, or replace in one MULTI or script; " + RAISE,
)
def full_memory(bench: Bench) -> None:
    """On a server that is full (maxmemory, noeviction) an append raises, and what was stored stays."""
    talk, new = _begun(bench, 3), Talk(bench)
    new.handle  # noqa: B018  # opened while all is well
    text = "said on a full server"
    try:
        bench.control.config_set("maxmemory", 1)
        errors = [session.tried(text) for session in (talk, new)]
        _expect_right_or_raised(talk, talk.handle, "the server is full") if errors[0] else None
    finally:
        bench.control.config_set("maxmemory", 0)
    for session, error in zip((talk, new), errors, strict=True):
        _expect_after(
            session, text, error, f"the server was full, {'a living' if session is talk else 'a new'} session"
        )


# Damage


@case(
    why="One broken element that hides the others, or is silently left out, is a hole in the memory; a write over it "
    "destroys what could have been repaired.",
    fix="Raise, and name the key. Do not catch decoding errors element by element, nor take them for an empty session.",
)
def corrupt_element(bench: Bench) -> None:
    """With one element damaged or cut short, read() raises or shows all the others; an append leaves it there."""
    talk = _begun(bench, 3)
    shared = bench.keys()
    probe = _begun(bench, 3)
    count = len(own_places(bench, probe, shared))
    if not count:
        raise NotAsked("the session has no key or field of its own that could be damaged")
    for number in range(count):
        _damaged(bench, number)
        for done in MILD:
            if not _mildly_damaged(bench, number, done):
                break
    talk.expect("a session beside the damaged ones")


def _damaged(bench: Bench, number: int) -> None:
    shared = bench.keys()
    talk = _begun(bench, 3)
    found = own_places(bench, talk, shared)
    if number >= len(found):
        return
    key, kind, where = found[number]
    with bench.in_db(key[0]) as client:
        damage(client, key[1], kind, where)
        when = f"an element of the {kind} {shown(key)} is damaged"
        _expect_right_or_raised(talk, talk.handle, f"{when}, read by the open handle")
        _expect_right_or_raised(talk, talk.reopened(), f"{when}, read by a new handle")
        error = talk.tried("said after the damage")
        _expect_not_overwritten(talk, error, client, when)


MILD: tuple[tuple[str, bytes], ...] = (("cut short", b""), ("replaced by {}", b"{}"), ("replaced by a number", b"7"))


def _mildly_damaged(bench: Bench, number: int, done: tuple[str, bytes]) -> bool:
    """Damage that is valid UTF-8, and JSON perhaps, in the place of an element that holds a message's text.

    False when it holds none. A store for which any bytes are a text cannot know; it shows them where the message was,
    and all the others.
    """
    shared = bench.keys()
    talk = _begun(bench, 3)
    found = own_places(bench, talk, shared)
    if number >= len(found):
        return False
    key, kind, where = found[number]
    with bench.in_db(key[0]) as client:
        value, text = _mild_value(talk, elements(client, key[1], kind, where), done[1])
        if not value:
            return False
        damage(client, key[1], kind, where, value, instead_of=text)
        when = f"an element of the {kind} {shown(key)} is {done[0]}"
        _expect_at_most_one_altered(talk.said, _read(talk.handle), value, f"{when}, read by the open handle")
        _expect_at_most_one_altered(talk.said, _read(talk.reopened()), value, f"{when}, read by a new handle")
        error = talk.tried("said after the damage")
        read = _read(talk.reopened())
        maybe = [*talk.said, (talk.role("user"), "said after the damage")] if error else talk.said
        said = maybe if not isinstance(read, Exception) and len(read) == len(maybe) else talk.said
        _expect_at_most_one_altered(said, read, value, f"{when}; after an append")
        # Anywhere in the key: what is pushed on the left moves the rest.
        left = values(client, key[1])
        if isinstance(read, Exception) and value not in (left if done[1] else b"".join(left)):
            raise Forgot(f"{when}; an append overwrote it, and read() raises {one_line(read)}")
    return True


def _mild_value(talk: Talk, parts: list[bytes], value: bytes) -> tuple[bytes, bytes]:
    """Return what to put in an element's place and the text it held, or nothing when it holds none as it is.

    What holds several messages is only cut: an empty object in the place of a whole session is an empty session.
    """
    held = [(part, text.encode()) for part in parts for _, text in talk.said if text.encode() in part]
    if not held or (value and len(held) > 1):
        return b"", b""
    part, text = held[-1]
    return value or part[: part.index(text) + len(text) // 2], text


def _expect_at_most_one_altered(said: Messages, read: Messages | Exception, value: bytes, when: str) -> None:
    if isinstance(read, Exception) or read == said:
        return
    altered = [(was, now) for was, now in zip(said, read, strict=False) if was != now]
    if len(read) != len(said) or len(altered) > 1 or not _is_the_damage(*altered[0], value.decode(errors="replace")):
        raise Forgot(f"{when}: read() did not raise; {difference(said, read)}")


def _is_the_damage(was: tuple[str, str], now: tuple[object, object], value: str) -> bool:
    text = str(now[1])
    return value in (text, str(now[0])) or bool(text and was[1].startswith(text))


def _expect_not_overwritten(talk: Talk, error: Exception | None, client: redis.Redis, when: str) -> None:
    read = _read(talk.reopened())
    if isinstance(read, Exception):
        if not holds(client, b"damaged on purpose"):
            raise Forgot(f"{when}; an append overwrote the damage, and read() raises {one_line(read)}")
        return
    right = [talk.said] if error is None else [talk.said, [*talk.said, ("user", "said after the damage")]]
    if read not in right:
        raise Forgot(f"{when}; after an append read() does not raise: {difference(talk.said, read)}")


@case(
    why="A key of another program under the session's name must not read as 'no memory', nor be written over.",
    fix=RAISE + " WRONGTYPE is an error like any other.",
)
def foreign_key(bench: Bench) -> None:
    """When a key of the session holds another type, read() raises (or is right) and append() destroys nothing."""
    for number in range(len(_own_keys(bench)[1])):
        talk, keys = _own_keys(bench)
        key = keys[number]
        with bench.in_db(key[0]) as client:
            _replace(client, key[1])
            before = client.dump(key[1])
            when = f"the key {shown(key)} holds another type"
            _expect_right_or_raised(talk, talk.handle, f"{when}, read by the open handle")
            error = talk.tried("said to a foreign key")
            if before != client.dump(key[1]) and _read(talk.reopened()) != talk.said:
                raise Forgot(f"{when}; an append wrote over it {'and raised' if error else 'and said nothing'}")


def _own_keys(bench: Bench) -> tuple[Talk, list[Key]]:
    before = bench.keys()
    talk = _begun(bench, 2)
    return talk, sorted(key for key in bench.keys() - before if bench.token in key[1])


def _replace(client: redis.Redis, key: bytes) -> None:
    kind: Any = client.type(key)
    client.delete(key)
    client.rpush(key, "another program's") if kind == b"string" else client.set(key, "another program's")


CASES: tuple[Case, ...] = (
    expire_denied,
    read_denied,
    write_denied,
    clear_denied,
    lost_reply,
    crash_in_append,
    connection_lost,
    stored_when_acknowledged,
    full_memory,
    corrupt_element,
    foreign_key,
)
