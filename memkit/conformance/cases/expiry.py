"""Cases of expiry: the observed lifetime of a session is its configured TTL."""

import os
import time
from functools import partial

from memkit.conformance.adapter import error_line
from memkit.conformance.case import case
from memkit.conformance.environment import MARGIN_S, ROLES, TTL_S, TestEnvironment
from memkit.conformance.fault_proxy import MOST_ROUND_TRIPS, through_proxy
from memkit.conformance.keyspace import SessionKeys
from memkit.conformance.outcomes import CaseFailed, CaseSkipped, Symptom
from memkit.conformance.processes import Interpreter, in_a_fresh_process
from memkit.conformance.trial import TrialSession, difference, long_text
from memkit.render import duration

DAY_S = 86_400.0
WEEK_S = 7 * DAY_S
SHORT_S = 300.0
LONG_DIALOGUE = 150
FEW_KEYS = 40
"""A store with more keys than this is checked less often: each check reads them all."""
LEFT_BEHIND_AFTER_S = 60.0
"""How long after a session's deadline its other keys may exist."""
OPEN_FOR_S = 1.5 * MARGIN_S
NARROW_S = 0.25
"""How long before and after a deadline of a fraction of a second the suite reads."""
AHEAD_OF_UTC = "<+0530>-5:30"
"""A time zone as POSIX writes it: five and a half hours ahead of UTC."""
NOT_SLIDING = 'the store declares that appends do not renew the TTL (expiry = "absolute")'


@case(
    why="A TTL in the wrong unit expires sessions after 0.6 s or 10 h instead of 10 min; an ignored one, never.",
    fix="Pass seconds to EXPIRE or EX and milliseconds to PEXPIRE or PX; convert in one place, and test the boundary.",
    needs_ttl=True,
)
def ttl_boundary(env: TestEnvironment) -> None:
    """A session is whole until 2 s before its deadline and expired 2 s after it, for 10 minutes, 7 days and 90 days."""
    for ttl_s in (TTL_S, WEEK_S, 90 * DAY_S):
        _expect_lifetime(env, ttl_s, f"a TTL of {duration(ttl_s * 1000)}")


def _expect_lifetime(env: TestEnvironment, ttl_s: float, of: str) -> None:
    """Raise CaseFailed if a session does not exist until its deadline, or exists after it."""
    # Two sessions: reading one just before its deadline may rightly extend it.
    read, unread = TrialSession(env, "read", ttl_s), TrialSession(env, "unread", ttl_s)
    for session in (read, unread):
        session.append()
        session.append(role="assistant")
    read.expect_until(ttl_s, f"{MARGIN_S:g} s before the end of {of}")
    unread.expect_empty_after(ttl_s, f"{MARGIN_S:g} s after the end of {of}")


@case(
    why="A naive datetime (utcnow) is taken for local time: right if the machine's time zone is UTC, otherwise the "
    "session expires hours early or late.",
    fix="Pass a TTL (EX, PX, EXPIRE), or compute the deadline from time.time() or an aware datetime.",
    needs_ttl=True,
)
def time_zone(env: TestEnvironment) -> None:
    """A session expires at its deadline on a machine that is five and a half hours ahead of UTC too."""
    if not hasattr(time, "tzset"):
        raise CaseSkipped("this platform cannot change the time zone of a process")
    before = os.environ.get("TZ")
    os.environ["TZ"] = AHEAD_OF_UTC
    time.tzset()
    try:
        _expect_lifetime(env, DAY_S, f"a TTL of {duration(DAY_S * 1000)}, on a machine 5.5 hours ahead of UTC")
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


@case(
    why="Encrypted or signed messages often have a lifetime of their own: Fernet's ttl is 600 s in some libraries, and "
    "what is older is left out, although the session exists.",
    fix="Check no age of a message when reading, or the session's TTL; let Redis expire the session.",
    needs_ttl=True,
)
def messages_have_no_other_ttl(env: TestEnvironment) -> str:
    """A process that reads the session 6 days after its last message, by its own clock too, gets every message of 7."""
    session = TrialSession(env, ttl_s=WEEK_S)
    for role in ("user", "assistant", "user"):
        session.append(role=role)
    env.move_to(session.appended_at[0] + 6 * DAY_S)
    variables = env.clock_variables()
    if not variables or not env.spec:
        raise CaseSkipped(
            "a process with a clock that moves needs the preload and the adapter's package.module:factory"
        )
    later = Interpreter(env.spec, **variables)
    try:
        return in_a_fresh_process(session, later, when=", 6 days later by its clock")
    finally:
        later.stop()


@case(
    why="A handle that still returns an expired session answers from a copy; in another worker it is lost.",
    fix="Read from Redis each time; keep no messages in the handle.",
    needs_ttl=True,
)
def open_handle_sees_expiry(env: TestEnvironment) -> None:
    """A handle that stays open over the deadline reads the session as empty, as a new one does."""
    used = TrialSession(env)
    used.append()
    used.expect("before the deadline", by=used.handle)
    unused = TrialSession(env, "unused")
    unused.append()
    env.move_to(unused.appended_at[1] + 2 * TTL_S + MARGIN_S)
    for session in (used, unused):
        session.expect_empty("after the deadline, read by the open handle", by=session.handle)
        session.expect_empty("after the deadline, read by a new handle")


@case(
    why="A key without TTL never expires: memory fills up, and a part of an expired session comes back later.",
    fix="Set the TTL in the same MULTI or script as the write, on every key of the session, in ms (PEXPIRE).",
    needs_ttl=True,
)
def ttl_on_every_key(env: TestEnvironment) -> None:
    """Every key of a session has a TTL from the first append on, and none exists after the session has expired."""
    long = long_text(env)
    keys = SessionKeys(env, report_at_rest=True)
    session = TrialSession(env)
    session.expect_empty("opened and read before the first message", by=session.open_again())
    keys.expect_ttl_on_every_key("opened and read before the first message")
    for number, role in enumerate((*ROLES, "user")):
        text = long if number == 4 else f"message {number + 1}"
        session.append(text, role, by=session.open_again() if number == 2 else None)
        keys.expect_ttl_on_every_key(f"after append number {number + 1} ({role}, {len(text)} characters)")
    session.expect("read meanwhile", by=session.handle)
    keys.expect_ttl_on_every_key("after a read")
    env.move_to(env.now_s() + TTL_S + LEFT_BEHIND_AFTER_S)
    session.expect_empty("after the deadline")
    keys.expect_none(f"{LEFT_BEHIND_AFTER_S:g} s after the session's deadline")


@case(
    why="A dialogue that goes on must not lose its beginning: the bot asks a known user for the name again.",
    fix="Renew every key of the session at each append (EXPIRE on all, in the same script), not only the newest.",
    needs_ttl=True,
)
def append_renews(env: TestEnvironment) -> None:
    """Each append renews the whole session (or none does, if the store declares expiry = "absolute")."""
    pauses = ((10.0, "assistant"), (TTL_S / 2, "user"), (TTL_S - 10, "tool"), (120.0, "system"))
    for pause_s, role in pauses if env.sliding else ((TTL_S / 2, "user"),):
        read, unread = TrialSession(env), TrialSession(env, "unread")
        for session in (read, unread):
            session.append_every_kind()
        deadlines = [session.appended_at for session in (read, unread)]
        env.move_to(read.appended_at[0] + pause_s)
        for session in (read, unread):
            session.append("appended later", role, by=session.open_again() if role == "user" else None)
        if env.sliding:
            deadlines = [session.appended_at for session in (read, unread)]
        which = "new deadline" if env.sliding else "deadline of an absolute expiry"
        when = f"a session with a TTL of {TTL_S:g} s, one more append ({role}) {pause_s:g} s after the first messages"
        read.expect_until(TTL_S, f"{when}, {MARGIN_S:g} s before the {which}", since=deadlines[0])
        unread.expect_empty_after(TTL_S, f"{when}, {MARGIN_S:g} s after the {which}", since=deadlines[1])
        if not env.sliding:
            read.expect_empty(f"{when}, read before the {which}, {MARGIN_S:g} s after it")
    if env.clock.method == "deadline shift":
        _expect_deadline_from_append(env)


def _expect_deadline_from_append(env: TestEnvironment) -> None:
    """Raise CaseFailed if a deadline counts from open(), on the client's clock: that clock can only be waited for."""
    session, before = TrialSession(env), env.keys()
    session.handle  # noqa: B018  # opened now
    time.sleep(OPEN_FOR_S)
    session.append()
    left_ms = [env.control.pttl(name) for database, name in env.keys() - before if database == 0]
    if left_ms and 0 <= max(left_ms) < (TTL_S - MARGIN_S) * 1000:
        message = f"appended {OPEN_FOR_S:g} s after open(): {duration(max(left_ms))} left of {TTL_S:g} s"
        raise CaseFailed(message, symptom=Symptom.EARLY_EXPIRY)


@case(
    why="A dialogue of many turns lasts many times its TTL; what is not renewed each time expires in the middle.",
    fix="Renew every key of the session at each append, whatever its age.",
    needs_ttl=True,
)
def long_talk_stays_whole(env: TestEnvironment) -> None:
    """A dialogue with a message now and then, for five times its TTL, keeps every message (10 minutes, 7 days)."""
    if not env.sliding:
        raise CaseSkipped(NOT_SLIDING)
    long = long_text(env)
    keys = SessionKeys(env)
    for ttl_s in (TTL_S, WEEK_S):
        session, pause_s = TrialSession(env, ttl_s=ttl_s), 0.7 * ttl_s
        for turn in range(8):
            role = ("system", "user", "assistant", "tool")[turn % 4]
            session.append(long if turn == 1 else None, role, by=session.open_again() if turn % 3 == 1 else None)
            env.move_to(session.appended_at[0] + pause_s)
            of = f"a session with a TTL of {duration(ttl_s * 1000)}"
            session.expect(f"{of}, {duration(pause_s * 1000)} after append {turn + 1}")
            keys.expect_ttl_on_every_key(f"{of}, after turn {turn + 1}")


@case(
    why="Long dialogues are stored in chunks or in one key for each message; EXPIRE or clear() can miss the old ones.",
    fix="Renew and delete every chunk of the session, or keep it in one key.",
    needs_ttl=True,
)
def long_dialogue_expires_as_one(env: TestEnvironment) -> None:
    """A dialogue of 150 messages is renewed as a whole, expires as a whole, and is cleared as a whole."""
    keys = SessionKeys(env)
    session, cleared = TrialSession(env), TrialSession(env, "cleared")
    for number in range(1, LONG_DIALOGUE + 1):
        session.append_fast()
        # Each time, because the next append repairs what is rewritten or begun at some number.
        if number % 32 == 0 or number % 50 == 0 or env.control.dbsize() <= FEW_KEYS:
            keys.expect_ttl_on_every_key(f"with {number} messages")
    for _ in range(LONG_DIALOGUE):
        cleared.append_fast()
    began_s = env.now_s()
    keys.expect_ttl_on_every_key(f"with {LONG_DIALOGUE} messages, twice")
    cleared.handle.clear()
    cleared.expect_empty(f"after clear() of {LONG_DIALOGUE} messages")
    env.move_to(began_s + TTL_S / 2)
    session.append()
    if env.sliding:
        when = f"{LONG_DIALOGUE} messages and a later one, {MARGIN_S:g} s before the new deadline"
        session.expect_until(TTL_S, when)
    # From now on, because a read may rightly have extended it.
    env.move_to(env.now_s() + TTL_S + LEFT_BEHIND_AFTER_S)
    session.expect_empty(f"{LONG_DIALOGUE} messages, after the deadline")
    when = f"{LEFT_BEHIND_AFTER_S:g} s after a deadline, and after clear(), of {LONG_DIALOGUE} messages each"
    keys.expect_none(when)


@case(
    why="Reading a session must not bring its end nearer: a dashboard with a short TTL would expire what it shows.",
    fix="Do not set a TTL on read; to renew on read, only lengthen it (EXPIRE GT).",
    needs_ttl=True,
)
def reads_do_not_shorten(env: TestEnvironment) -> None:
    """Reading, also through a handle with a shorter TTL or none, never shortens or removes a session's TTL."""
    keys = SessionKeys(env)
    session = TrialSession(env, ttl_s=WEEK_S)
    for _ in range(3):
        session.append()
    for ttl_s in (WEEK_S, SHORT_S, 2.0, None):
        try:
            handle = session.open_again(ttl_s)
        except Exception:
            if ttl_s is not None:
                raise
            continue  # refused, which another case reports
        for _ in range(2):
            session.expect(f"read by a handle with ttl_s={ttl_s}", by=handle)
        env.close(handle)
        keys.expect_ttl_on_every_key(f"read by a handle with ttl_s {ttl_s}")
    env.move_to(session.appended_at[1] + SHORT_S + MARGIN_S)
    session.expect(f"a session with a TTL of 7d, {SHORT_S + MARGIN_S:g} s after it was read with ttl_s={SHORT_S:g}")
    session.expect_until(WEEK_S, f"a session with a TTL of 7d that was read, {MARGIN_S:g} s before its deadline")


@case(
    why="One line changes the configured TTL from 7 days to 5 minutes, and every session in use expires 5 minutes "
    "later: the incident that this suite was written for.",
    fix="Never shorten an existing session: EXPIRE GT (7.0+), or the longer of the remaining and the new TTL.",
    needs_ttl=True,
)
def reopen_shorter(env: TestEnvironment) -> None:
    """Opening an existing session with a shorter TTL and appending does not shorten it."""
    keys = SessionKeys(env)
    session = TrialSession(env, ttl_s=WEEK_S)
    session.append()
    session.append(role="assistant")
    began = session.appended_at
    shorter = session.open_again(SHORT_S)
    for _ in range(2):
        session.append(by=shorter)
    keys.expect_ttl_on_every_key("opened again with a shorter TTL and appended to")
    env.move_to(session.appended_at[1] + SHORT_S + MARGIN_S)
    later = f"a session with a TTL of 7d, opened again with {SHORT_S:g} s, two appends, {SHORT_S + MARGIN_S:g} s later"
    if env.may_shorten:
        # Whole or expired, never a part of it.
        if env.read(session.id, WEEK_S):
            session.expect(later)
        raise CaseSkipped("the store declares that a shorter TTL may shorten a session (may_shorten = True)")
    session.expect(later)
    session.expect_until(WEEK_S, f"the same session, {MARGIN_S:g} s before its 7d end", since=began)


@case(
    why="A session near its end that is opened with a shorter TTL and appended to expires during the dialogue.",
    fix="Take the longer of the remaining and the new TTL: a TTL shorter than the session's own still renews.",
    needs_ttl=True,
)
def reopen_near_the_end(env: TestEnvironment) -> None:
    """An append with a shorter TTL renews a session that has less than that left."""
    if not env.sliding:
        raise CaseSkipped(NOT_SLIDING)
    session = TrialSession(env)
    session.append()
    env.move_to(session.appended_at[0] + TTL_S - 10)
    session.append(by=session.open_again(SHORT_S))
    session.expect_until(SHORT_S, f"{SHORT_S - MARGIN_S:g} s after an append through a handle with ttl_s={SHORT_S:g}")


@case(
    why="A raised TTL has to reach the sessions in use, or they still expire by the old one.",
    fix="Set the TTL at each append on every key, not with NX, not only when the session is created.",
    needs_ttl=True,
)
def reopen_longer(env: TestEnvironment) -> None:
    """Opening an existing session with a longer TTL and appending extends the whole session."""
    if not env.sliding:
        raise CaseSkipped(NOT_SLIDING)
    read, unread = TrialSession(env, ttl_s=SHORT_S), TrialSession(env, ttl_s=SHORT_S)
    for session in (read, unread):
        session.append()
        session.append(role="assistant")
        session.append(by=session.open_again(WEEK_S))
    when = f"a session with a TTL of {SHORT_S:g} s, opened again with 7d, one append"
    read.expect_until(WEEK_S, f"{when}, {MARGIN_S:g} s before the 7d")
    unread.expect_empty_after(WEEK_S, f"{when}, {MARGIN_S:g} s after the 7d")


@case(
    why="A store with a default TTL that was not asked for expires after an hour what has to stay.",
    fix="If no TTL is given, set none: pass None down to the command.",
)
def none_means_no_deadline(env: TestEnvironment) -> None:
    """A new session with ttl_s None (or of a store that has no TTL) does not expire in 400 days."""
    env.require_no_ttl_allowed()
    session = TrialSession(env, ttl_s=None)
    session.append_every_kind()
    env.move_to(session.appended_at[1] + 400 * DAY_S)
    session.expect("400 days later, without a TTL")


@case(
    why="A job that adds a note through a handle without TTL makes the session persistent: a plain SET drops the TTL.",
    fix="If no TTL is given, do not change the deadline: SET ... KEEPTTL, no PERSIST, no EXPIRE.",
    needs_ttl=True,
)
def none_leaves_the_deadline(env: TestEnvironment) -> None:
    """Opening an existing session with ttl_s None and appending does not change its deadline."""
    env.require_no_ttl_allowed()
    keys = SessionKeys(env)
    read, unread = TrialSession(env), TrialSession(env, "unread")
    for session in (read, unread):
        session.append()
    first = [session.appended_at for session in (read, unread)]
    env.move_to(first[0][0] + TTL_S / 2)
    for session in (read, unread):
        session.append("a note", by=session.open_again(None))
    keys.expect_ttl_on_every_key("opened again without a TTL and appended to")
    when = f"a session with a TTL of {TTL_S:g} s, one append through a handle without a TTL"
    read.expect_until(TTL_S, f"{when}, {MARGIN_S:g} s before its deadline", since=first[0])
    unread.expect_empty_after(TTL_S, f"{when}, {MARGIN_S:g} s after its deadline", since=first[1])


@case(
    why="int(0.5) is 0: EXPIRE 0 deletes the session at once, EX 0 is an error, and `if ttl` sets no TTL.",
    fix="Keep TTLs in milliseconds (PEXPIRE, PX), or refuse a TTL that is not a whole number of seconds.",
    needs_ttl=True,
)
def ttl_fraction(env: TestEnvironment) -> str:
    """A TTL of a fraction of a second, or 10.5 s, is honoured or refused."""
    refusals = []
    for ttl_s in (10.5, 0.5, 1.5):
        read, unread = TrialSession(env, "read", ttl_s), TrialSession(env, "unread", ttl_s)
        try:
            unread.append()
            read.append()
        except Exception as error:  # noqa: BLE001  # an error is a refusal
            refusals.append(f"{ttl_s:g} s is refused ({error_line(error)})")
            continue
        read.expect_until(ttl_s, f"before the deadline of {ttl_s:g} s", margin_s=NARROW_S)
        unread.expect_empty_after(ttl_s, f"{NARROW_S:g} s after the deadline of {ttl_s:g} s", margin_s=NARROW_S)
    return "; ".join(refusals)


@case(
    why="A TTL of 0 or -1 (a missing setting) deletes the session at each write, or makes it persistent.",
    fix="Refuse ttl_s <= 0 in open(), before anything is written.",
    needs_ttl=True,
)
def ttl_not_positive(env: TestEnvironment) -> None:
    """A TTL of 0 or below is refused, and an existing session that it is tried on is unharmed."""
    keys = SessionKeys(env)
    for ttl_s in (0, -1, -0.5):
        session = TrialSession(env)
        session.append()
        for session_id in (session.id, env.new_id("new")):
            try:
                env.open(session_id, ttl_s).append("user", "not to be stored")
            except Exception:  # noqa: BLE001, S112  # an error is a refusal
                continue
            count = len(env.read(session_id))
            raise CaseFailed(f"ttl_s={ttl_s} was accepted; afterwards the session reads {count} messages")
        session.expect(f"an existing session that ttl_s={ttl_s} was tried on")
    keys.expect_ttl_on_every_key("after refused TTLs")
    env.move_to(env.now_s() + SHORT_S)
    session.expect(f"{SHORT_S:g} s after a refused TTL, {TTL_S - SHORT_S:g} s before the deadline")


@case(
    why="A user comes back the next morning and goes on writing: what is reported as stored has to be.",
    fix="Let append create a session that is missing, with its TTL; or raise. Keep no state of it in the handle; find "
    "out whether it exists in the script or MULTI that writes, or WATCH it.",
    needs_ttl=True,
)
def append_after_expiry(env: TestEnvironment) -> None:
    """An append to a session that has expired, or expires meanwhile, begins a new one, with a TTL, or raises."""
    keys = SessionKeys(env)
    for by_open_handle in (True, False):
        session = TrialSession(env)
        for _ in range(3):
            session.append()
        session.expect("before the deadline", by=session.handle)
        env.move_to(env.now_s() + TTL_S + MARGIN_S)
        handle = session.handle if by_open_handle else session.open_again()
        when = f"appended after the session had expired, by {'the open' if by_open_handle else 'a new'} handle"
        session.messages.clear()
        if session.try_append("back again", by=handle) is not None:
            session.expect_empty(f"{when} (it raised)")
            keys.expect_ttl_on_every_key(when)
            continue
        session.expect(when)
        session.expect(f"{when}, read by that handle", by=handle)
        keys.expect_ttl_on_every_key(when)
        session.append("and on")
        session.expect_until(TTL_S, f"{when}, {MARGIN_S:g} s before the new deadline")
    for nth in range(1, MOST_ROUND_TRIPS):
        if not _expire_in_append(env, keys, nth):
            break


def _expire_in_append(env: TestEnvironment, keys: SessionKeys, nth: int) -> bool:
    """Let a session expire before the nth request of an append; return False if that needs fewer."""
    session, text = TrialSession(env), "appended while the session expired"
    session.append()
    before, after_s = list(session.messages), session.appended_at[1] + TTL_S + MARGIN_S
    with through_proxy(session) as (proxy, handle):
        proxy.lose("late request", nth, meanwhile=partial(env.move_to, after_s))
        error = session.try_append(text, by=handle)
        if not proxy.lost.is_set():
            return False
    when = f"the session expired before round trip {nth} of an append"
    keys.expect_ttl_on_every_key(when)
    new, read = (session.role("user"), text), env.read(session.id)
    # An append that had read the session before it expired may write it back.
    if read not in ([new], env.kept([*before, new]), *([[], before] if error else [])):
        raise CaseFailed(f"{when}: {difference([new], read)}")
    return True
