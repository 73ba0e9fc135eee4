"""Cases of faults: under a fault a store raises or is right."""

import itertools
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from memkit.conformance.adapter import Handle, Messages, error_line
from memkit.conformance.case import case
from memkit.conformance.environment import MARGIN_S, TTL_S, Key, TestEnvironment, attempt, messages_of
from memkit.conformance.fault_proxy import MOST_ROUND_TRIPS, FaultProxy, Loss, through_proxy
from memkit.conformance.keyspace import GARBAGE, Element, SessionKeys, damage, elements, holds, key_text, values
from memkit.conformance.outcomes import CaseFailed, CaseSkipped, Symptom
from memkit.conformance.processes import LONGEST_S, ForkedProcess, in_thread, in_threads, outcome, works_when_forked
from memkit.conformance.trial import TrialSession, difference

EXPIRE_COMMANDS = ("expire", "pexpire", "expireat", "pexpireat", "hexpire", "hpexpire", "hexpireat", "hpexpireat")
RAISE = "Let the error out of the store; the application can then report it, retry or stop."
MOST_LOST_CLEARS = 8
PAUSE_S = 0.1
LOCKS_END_AFTER_S = 60.0
DOWN_FOR_S = 0.3
LOSSES: tuple[Loss, ...] = ("reply", "request", "reply twice", "late reply")


def _begin(env: TestEnvironment, messages: int = 2) -> TrialSession:
    """Return a session with some messages in it, its handle open and used."""
    session = TrialSession(env)
    for number in range(messages):
        session.append(role=("user", "assistant")[number % 2])
    session.expect("before the fault", by=session.handle)
    return session


def _read(handle: Handle) -> Messages | Exception:
    return attempt(partial(messages_of, handle))


def _expect_right_or_raised(session: TrialSession, handle: Handle, when: str) -> None:
    _expect_right_or_altered([session.expected], handle, None, when)


@case(
    why="A crash (or a refusal) between the write and its EXPIRE leaves a session that never expires.",
    fix="Write and set the TTL in one script or MULTI, or with SET PX; let the error out. In a script try the TTL "
    "before the first write: Lua does not roll back.",
    needs_ttl=True,
)
def expire_denied(env: TestEnvironment) -> None:
    """With EXPIRE and its variants denied, an append raises, or the session has its TTL renewed all the same."""
    keys = SessionKeys(env)
    old, new = _begin(env), TrialSession(env)
    env.move_to(old.appended_at[0] + TTL_S / 2)
    old.handle, new.handle  # noqa: B018  # opened before the fault
    text = "appended while EXPIRE is denied"
    with env.denied(*EXPIRE_COMMANDS):
        errors = {session: session.try_append(text) for session in (new, old)}
    for session, error in errors.items():
        which = "a new session" if session is new else "an existing session"
        session.expect_after(text, error, f"EXPIRE denied, {which}")
        result = f"append raised {error_line(error)}" if error else "append reported success"
        keys.expect_ttl_on_every_key(f"EXPIRE denied, {which} ({result})")
    for session, error in errors.items():
        if error is None and (env.sliding or session is new):
            when = f"EXPIRE denied, append reported success; {MARGIN_S:g} s before the new deadline"
            session.expect_until(TTL_S, when)


@case(
    why="A refused read that is shown as 'no memory' makes the bot greet a known user as a new one, without an error.",
    fix=RAISE + " Catch only the error that means 'there is no such session'.",
)
def read_denied(env: TestEnvironment) -> None:
    """When Redis refuses a command that read() needs, read() raises; it does not return an empty or partial memory."""
    session = _begin(env, 4)
    needed = env.commands_of(lambda: (messages_of(session.handle), env.read(session.id)))
    for rules in (("@read",), ("@read", "@scripting"), *_one_by_one(needed)):
        session.append_by_new_client()
        with env.denied(*rules):
            when = f"{' and '.join(rules)} denied"
            _expect_right_or_raised(session, session.handle, f"{when}, read by the open handle")
            handle = attempt(session.open_again)
            if not isinstance(handle, Exception):  # a store that tests its connection in open() is right to raise
                _expect_right_or_raised(session, handle, f"{when}, read by a new handle")
    session.expect("after the fault")


def _one_by_one(commands: list[str]) -> list[tuple[str, ...]]:
    """Return one denial for each command; EXPIRE and its variants are only denied together, in their own case."""
    return [(name,) for name in commands if name not in EXPIRE_COMMANDS]


@case(
    why="A write that failed and is reported as done is a message that will not be sent again.",
    fix=RAISE + " Write everything in one MULTI or script, so that a refusal leaves nothing half done.",
)
def write_denied(env: TestEnvironment) -> None:
    """When Redis refuses a command that append() needs, append() raises or has stored the message with its TTL."""
    keys = SessionKeys(env)
    first = TrialSession(env)

    def appends() -> None:
        for handle in (first.handle, first.handle, first.open_again()):
            handle.append("user", "an ordinary message")

    for rules in (("@write",), ("@write", "@scripting"), *_one_by_one(env.commands_of(appends))):
        for session in (_begin(env), TrialSession(env)):
            _append_denied(session, keys, rules)


def _append_denied(session: TrialSession, keys: SessionKeys, rules: tuple[str, ...]) -> None:
    env, text = session.env, f"appended while {' '.join(rules)} is denied"
    when = f"{' and '.join(rules)} denied, {'an existing' if session.messages else 'a new'} session"
    with env.denied(*rules):
        handle = session.handle if session.messages else attempt(session.open_again)
        error = handle if isinstance(handle, Exception) else session.try_append(text, by=handle)
    if error is None or rules[0].startswith("@"):
        session.expect_after(text, error, when)
        keys.expect_ttl_on_every_key(when)
        return
    # A script does not roll back: refused in its middle, it may have left a part. Both calls report that (append
    # raised, read raises), and no crash can stop a script there.
    read = _read(session.open_again())
    with_it = [*session.expected, ("user", text)]  # a window is trimmed later
    if not isinstance(read, Exception) and read not in (session.expected, with_it, env.kept(with_it)):
        raise session.failure(f"{when} (append raised {error_line(error)})", read)
    env.delete_all_keys()  # also what that part has left


@case(
    why="A user who asked for deletion gets a confirmation, and is still remembered.",
    fix=RAISE + " Delete everything in one command, MULTI or script; an index last, because it names the other keys.",
)
def clear_denied(env: TestEnvironment) -> None:
    """When Redis refuses a command that clear() needs, clear() raises or deletes the session; again, it deletes it."""
    keys = SessionKeys(env)
    needed = env.commands_of(_begin(env, 3).handle.clear)
    for rules in (("@write",), ("@write", "@scripting"), *_one_by_one(needed)):
        session = _begin(env, 3)
        with env.denied(*rules):
            result = attempt(session.handle.clear)
        if not isinstance(result, Exception):
            session.expect_empty(f"{' and '.join(rules)} denied, clear() did not raise")
        session.open_again().clear()
        when = f"{' and '.join(rules)} denied, then allowed, and clear() called again"
        session.expect_empty(when)
        keys.expect_none(when)


@case(
    why="When a reply is lost the client sends again: without an id the message is stored twice; if the error is "
    "swallowed, not at all.",
    fix="Give each message an id that the client makes once, and let the script skip one that exists already; or do "
    "not retry writes, and raise.",
)
def lost_reply(env: TestEnvironment) -> None:
    """When a request or a reply is lost, an append is stored exactly once and a read is right, or they raise."""
    session = TrialSession(env)
    with through_proxy(session) as (proxy, handle):
        session.append(by=handle)
        proxy.lose(None)
        session.append(by=handle)
        trips = proxy.requests
    if not trips:
        raise CaseSkipped("the store's traffic does not use the URL that open() was given")
    nths = range(1, trips + 1)
    works = [partial(_append_with_loss, env, loss, nth) for loss in LOSSES for nth in nths]
    in_threads([*works, *(partial(_append_with_another_writer, env, nth) for nth in nths), partial(_late_read, env)])


def _append_with_loss(env: TestEnvironment, loss: Loss, nth: int) -> None:
    session = TrialSession(env)
    with through_proxy(session) as (proxy, handle):
        for _ in range(2):
            session.append(by=handle)
        proxy.lose(loss, nth)
        text = "appended while the network fails"
        error = session.try_append(text, "assistant", by=handle)
        proxy.lose(None)
        when = f"the {loss} of round trip {nth} of an append was lost"
        session.expect_after(text, error, when, "assistant")
        if error:
            session.messages = env.read(session.id)
        later = session.try_append("appended afterwards", by=handle)
        session.expect_after("appended afterwards", later, f"{when}; one more append by the same handle")


def _append_with_another_writer(env: TestEnvironment, nth: int) -> None:
    """Lose a reply while another client appends: the retry finds its own message no longer at the end."""
    session = _begin(env)
    mine, other = (session.role("assistant"), "while the network fails"), (session.role("user"), "by another client")
    others_handle = session.open_again()
    with through_proxy(session) as (proxy, handle):
        writing: list[Future[None]] = []

        def write() -> None:
            # A short wait: a lock may be held that only the other can release.
            writing.append(in_thread(partial(others_handle.append, *other)))
            outcome(writing[0], within_s=PAUSE_S)

        proxy.lose("reply", nth, meanwhile=write)
        stored = [] if isinstance(attempt(partial(handle.append, *mine)), Exception) else [mine]
        proxy.lose(None)
    if writing and outcome(writing[0]) is None:
        stored.append(other)
    read = env.read(session.id)
    possible = itertools.chain.from_iterable(itertools.permutations((mine, other), count) for count in range(3))
    if not any(read == env.kept([*session.messages, *added]) for added in possible if set(added) >= set(stored)):
        when = f"the reply of round trip {nth} of an append was lost, and another client wrote before the retry"
        raise CaseFailed(f"{when}: {difference(env.kept([*session.messages, *stored]), read)}")


def _late_read(env: TestEnvironment) -> None:
    """Read while the first reply does not come: a time-out is a fault like any other."""
    session = _begin(env, 3)
    with through_proxy(session) as (proxy, handle):
        session.append_by_new_client()
        proxy.lose("late reply")
        _expect_right_or_raised(session, handle, "the reply to a read did not come for some seconds")


@case(
    why="A process that is killed between two commands (a deploy, the OOM killer) leaves half a write: a key without "
    "TTL, an index without its message.",
    fix="Do everything an append does in one MULTI or script.",
)
def crash_in_append(env: TestEnvironment) -> None:
    """When the process is killed in the middle of an append, the session continues, every key with its TTL."""
    if not works_when_forked(env):
        raise CaseSkipped("the store does not answer in a forked process, which would be killed here")
    keys = SessionKeys(env)
    for existing in (True, False):
        for nth in range(1, MOST_ROUND_TRIPS):
            if not _crash(env, keys, _begin(env) if existing else TrialSession(env), nth):
                break


def _crash(env: TestEnvironment, keys: SessionKeys, session: TrialSession, nth: int) -> bool:
    """Kill a process before the nth request of open() and append(); return False if it needs fewer."""
    text = "appended by a process that was killed"
    which = "an existing" if session.messages else "a new"
    with FaultProxy(env.server) as proxy:
        proxy.lose("hold", nth)
        opened = partial(env.adapter.open, proxy.url, session.id, env.ttl(session.ttl_s))
        process = ForkedProcess(lambda: opened().append(session.role("tool"), text))
        deadline = time.monotonic() + LONGEST_S
        while not process.is_done(within_s=0.001) and not proxy.lost.is_set() and time.monotonic() < deadline:
            pass
        crashed = proxy.lost.is_set()
        process.kill()
    if not crashed:
        return False
    when = f"killed before round trip {nth} of opening and appending to {which} session"
    session.expect_after(text, InterruptedError("killed"), when, "tool")
    keys.expect_ttl_on_every_key(when)
    session.messages = env.read(session.id)
    # A lock that the killed process held ends by the server's clock.
    env.move_to(env.now_s() + LOCKS_END_AFTER_S)
    for role in ("user", "assistant"):
        text = f"appended by the {role} afterwards"
        error = session.try_append(text, role, by=session.open_again())
        session.expect_after(text, error, f"{when}; one more append ({role})", role)
        session.messages = env.read(session.id)
    env.move_to(env.now_s() - LOCKS_END_AFTER_S)
    return True


@case(
    why="Servers and proxies close connections. A store that reads that as 'no memory' forgets at every pause.",
    fix="Reconnect and ask again, or raise; a write is only sent again with an id, so that nothing is stored twice.",
)
def connection_lost(env: TestEnvironment) -> None:
    """When the connection has been closed, or breaks during a read or a clear(), the store is right or raises."""
    reader, writer = _begin(env, 5), _begin(env)
    reader.append_by_new_client()
    when, text = "an idle connection was closed by the server", "appended after the connection was closed"
    env.control.execute_command("CLIENT", "KILL", "USER", "default")
    _expect_right_or_raised(reader, reader.handle, when)
    env.control.execute_command("CLIENT", "KILL", "USER", "default")
    writer.expect_after(text, writer.try_append(text), when)
    for nth in range(1, MOST_ROUND_TRIPS):
        with through_proxy(reader) as (proxy, handle):
            reader.append_by_new_client()
            proxy.lose("reply", nth)
            _expect_right_or_raised(reader, handle, f"the connection broke in round trip {nth} of a read")
        if not proxy.lost.is_set():
            break
    with through_proxy(_begin(env, 3)) as (proxy, handle):
        proxy.lose(None)
        handle.clear()
        trips = min(proxy.requests, MOST_LOST_CLEARS)
    losses: tuple[Loss, ...] = ("request", "reply")
    works = [partial(_clear_with_loss, env, loss, nth) for loss in losses for nth in range(1, trips + 1)]
    in_threads([*works, partial(_clear_with_loss, env, "every request", 1)] if trips else [])


def _clear_with_loss(env: TestEnvironment, loss: Loss, nth: int) -> None:
    session = _begin(env, 3)
    with through_proxy(session) as (proxy, handle):
        proxy.lose(loss, nth)
        clearing = in_thread(handle.clear)
        outcome(clearing, within_s=DOWN_FOR_S)
        proxy.lose(None)
        if not isinstance(outcome(clearing), Exception):
            session.expect_empty(f"{loss} {nth} of a clear() was lost on the network, clear() did not raise")


@case(
    why="What is only in the process when append() returns is lost with the process: a deploy during a dialogue.",
    fix="Return from append() when Redis has answered; no background writer, no buffer.",
)
def stored_when_acknowledged(env: TestEnvironment) -> None:
    """append() does not return while the server takes no writes (CLIENT PAUSE): what is acknowledged is stored."""
    old = TrialSession(env)
    old.append()
    for session in (old, TrialSession(env)):
        message = ("user", "appended in a pause")
        handle = session.handle
        env.control.client_pause(20_000, all=False)
        try:
            appending = in_thread(partial(handle.append, *message))
            if outcome(appending, within_s=PAUSE_S) is None:
                early = "append() reported the message as stored while the server was taking no writes"
                raise CaseFailed(early, symptom=Symptom.NOT_STORED)
        finally:
            env.control.client_unpause()
        result = outcome(appending)
        error = result if isinstance(result, Exception) else None
        session.messages += [] if error else [message]
        session.expect_after(message[1], error, "the server paused")


@case(
    why="Full memory refuses writes but not deletes: DEL and then RPUSH leaves nothing of the dialogue.",
    fix="Never delete before the new state is written: append, or replace in one MULTI or script; " + RAISE,
)
def full_memory(env: TestEnvironment) -> None:
    """On a full server, an append raises, and what was stored stays."""
    _append_refused(env, "the server is full", partial(env.control.config_set, "maxmemory", 1))


@case(
    why="After a failover a client may still be connected to the old primary: READONLY is an error, not a message that "
    "was stored, and MASTERDOWN is not an empty session.",
    fix=RAISE,
)
def replica_without_primary(env: TestEnvironment) -> None:
    """On a replica that has lost its primary, an append raises, and a read is right or raises."""
    control, when = env.control, "the server is a replica without its primary"
    # Writes are refused as READONLY, and with the setting reads as MASTERDOWN.
    refuse_reads = partial(control.config_set, "replica-serve-stale-data", "no")
    _append_refused(env, when, partial(control.replicaof, "127.0.0.1", 1), refuse_reads)


def _append_refused(
    env: TestEnvironment, when: str, refuse: Callable[[], object], refuse_reads: Callable[[], object] | None = None
) -> None:
    """Append to an existing and to a new session while the server refuses writes; then read."""
    old, new = _begin(env, 3), TrialSession(env)
    new.handle  # noqa: B018  # opened before the fault
    text = "appended to a server that refuses writes"
    try:
        refuse()
        errors = {session: session.try_append(text) for session in (old, new)}
        if refuse_reads:
            refuse_reads()
        if errors[old]:
            _expect_right_or_raised(old, old.handle, when)
    finally:
        env.control.config_set("maxmemory", 0)
        env.control.config_set("replica-serve-stale-data", "yes")
        env.control.replicaof("NO", "ONE")
    for session, error in errors.items():
        session.expect_after(text, error, f"{when}, {'an existing' if session is old else 'a new'} session")


@case(
    why="One broken element that hides the others, or is left out without an error, is a gap in the memory; a write "
    "over it destroys what could have been repaired.",
    fix="Raise, and name the key. Do not catch decoding errors element by element, nor treat them as an empty session.",
)
def corrupt_element(env: TestEnvironment) -> None:
    """With one element damaged or cut short, read() raises or shows all the others; an append leaves it there."""
    session = _begin(env, 3)
    count = len(_begin_with_own_elements(env)[1])
    if not count:
        raise CaseSkipped("the session has no key or field of its own that could be damaged")
    for number in range(count):
        for what, value in DAMAGE:
            if not _damage(env, number, what, value):
                break
    session.expect("a session next to the damaged ones")


def _begin_with_own_elements(env: TestEnvironment) -> tuple[TrialSession, list[tuple[Key, Element]]]:
    """Return a session and its own elements: those of new keys, and its fields of shared hashes."""
    before = env.keys()
    session = _begin(env, 3)
    found: list[tuple[Key, Element]] = []
    for key in sorted(env.keys()):
        with env.database(key[0]) as client:
            found += [
                (key, element)
                for element in elements(client, key[1])
                if key not in before or (element.kind == "hash" and session.id.encode() in element.place)
            ]
    return session, found


DAMAGE = (("damaged", GARBAGE), ("cut short", b""), ("replaced by {}", b"{}"), ("replaced by a number", b"7"))


def _damage(env: TestEnvironment, number: int, what: str, value: bytes) -> bool:
    """Damage an element and append; return False if it holds no message's text that mild damage could replace.

    Mild damage is valid UTF-8 or JSON. A store that takes any bytes as text cannot detect it; it returns them in place
    of the message, and all the others.
    """
    session, found = _begin_with_own_elements(env)
    if number >= len(found):
        return False
    key, element = found[number]
    mild, text = value != GARBAGE, b""
    if mild:
        texts = [text.encode() for _, text in session.messages]
        held = [(part, text) for part in element.parts for text in texts if text in part]
        # What holds several messages is only cut: an empty object in place of a whole session is an empty session.
        if not held or (value and len(held) > 1):
            return False
        part, text = held[-1]
        value = value or part[: part.index(text) + len(text) // 2]
    with env.database(key[0]) as client:
        damage(client, key[1], element, value, instead_of=text)
        when = f"an element of the {element.kind} {key_text(key)} is {what}"
        for handle, which in ((session.handle, "the open"), (session.open_again(), "a new")):
            _expect_right_or_altered(
                [session.expected], handle, value if mild else None, f"{when}, read by {which} handle"
            )
        error = session.try_append("appended after the damage")
        with_it = env.kept([*session.messages, (session.role("user"), "appended after the damage")])
        possible = [session.expected, *([with_it] if error else [])]
        read = _expect_right_or_altered(
            possible, session.open_again(), value if mild else None, f"{when}; after an append"
        )
        if isinstance(read, Exception):
            left = values(client, key[1])  # anywhere in the key: an LPUSH moves the elements
            kept = value in (b"".join(left) if what == "cut short" else left)
            if not (kept if mild else holds(client, b"damaged on purpose")):
                raise CaseFailed(f"{when}; an append overwrote it, and read() raises {error_line(read)}")
    return True


def _expect_right_or_altered(
    possible: list[Messages], handle: Handle, value: bytes | None, when: str
) -> Messages | Exception:
    """Read; accept an error, any of the possible messages, or those with one replaced by this value (None: none)."""
    read = _read(handle)
    if isinstance(read, Exception) or read in possible:
        return read
    shown = value.decode(errors="replace") if value is not None else None
    for expected in possible if shown is not None else ():
        altered = [(before, after) for before, after in zip(expected, read, strict=False) if before != after]
        if len(read) == len(expected) and len(altered) == 1:
            before, after = altered[0]
            text = str(after[1])
            if shown in (text, str(after[0])) or (text and before[1].startswith(text)):
                return read
    message = f"{when}: read() did not raise; {difference(possible[0], read)}"
    raise CaseFailed(message, symptom=Symptom.ERROR_HIDDEN)


@case(
    why="Another program's key under the session's name must not read as 'no memory', nor be overwritten.",
    fix=RAISE + " WRONGTYPE is an error like any other.",
)
def foreign_key(env: TestEnvironment) -> None:
    """When a key of the session holds another type, read() raises (or is right) and append() destroys nothing."""
    count = len(_begin_with_own_keys(env)[1])
    for number in range(count):
        session, keys = _begin_with_own_keys(env)
        if number >= len(keys):
            break
        key = keys[number]
        with env.database(key[0]) as client:
            kind = client.type(key[1])
            client.delete(key[1])
            if kind == b"string":
                client.rpush(key[1], "another program's")
            else:
                client.set(key[1], "another program's")
            dump = client.dump(key[1])
            when = f"the key {key_text(key)} holds another type"
            _expect_right_or_raised(session, session.handle, f"{when}, read by the open handle")
            error = session.try_append("appended to a foreign key")
            read = _read(session.open_again())
            if dump != client.dump(key[1]) and read != session.expected:
                raise CaseFailed(f"{when}; an append overwrote it {'and raised' if error else 'without an error'}")
            # If the key is one of several, the message may be stored although read() raises.
            if error is None and read != session.expected and (count == 1 or not isinstance(read, Exception)):
                raise CaseFailed(f"{when}; an append reported the message as stored, but it cannot be read")


def _begin_with_own_keys(env: TestEnvironment) -> tuple[TrialSession, list[Key]]:
    before = env.keys()
    session = _begin(env, 2)
    return session, sorted(key for key in env.keys() - before if env.token in key[1])
