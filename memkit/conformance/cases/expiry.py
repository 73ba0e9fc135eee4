# the docstring of a case is its meaning: a sentence about the store
"""Cases: a session lives as long as it was meant to, no less and no more."""

from __future__ import annotations

from memkit.conformance.adapter import one_line
from memkit.conformance.case import Case, case
from memkit.conformance.environment import MARGIN_S, ROLES, TTL_S, Bench
from memkit.conformance.keyspace import Belongings
from memkit.conformance.outcomes import Forgot, NotAsked
from memkit.conformance.trial import LONG_TEXT, Talk
from memkit.render import duration

MINUTE_S, DAY_S = 60.0, 86_400.0
WEEK_S = 7 * DAY_S
SHORT_S = 300.0
MANY = 150
FEW_KEYS = 40
LEFT_BEHIND_AFTER_S = 60.0
NARROW_S = 0.25
"""How far from a deadline that is a fraction of a second the suite looks."""
ONE_COMMAND = (
    "Set the TTL in the same MULTI or script as the write, on every key of the session, with a value in ms (PEXPIRE)."
)


@case(
    why="A TTL read in the wrong unit forgets everybody after 0.6 s or 10 hours instead of 10 minutes; ignored, never.",
    fix="Pass seconds to EXPIRE or EX and milliseconds to PEXPIRE or PX; convert in one place, and test the boundary.",
    needs_ttl=True,
)
def ttl_boundary(bench: Bench) -> None:
    """A session is whole until 2 s before its deadline and gone 2 s after it, for 10 minutes, 7 days and 90 days."""
    for ttl_s in (TTL_S, WEEK_S, 90 * DAY_S):
        # Two sessions: reading one just before its deadline may rightly extend it.
        read, unread = Talk(bench, "read", ttl_s), Talk(bench, "unread", ttl_s)
        for talk in (read, unread):
            talk.say()
            talk.say(role="assistant")
        read.expect_until(ttl_s, f"{MARGIN_S:g} s before the deadline of a session of {duration(ttl_s * 1000)}")
        unread.expect_gone_after(ttl_s, f"{MARGIN_S:g} s after the deadline of a session of {duration(ttl_s * 1000)}")


@case(
    why="A handle that still shows an expired session answers from a copy; another worker has forgotten it.",
    fix="Read from Redis each time; keep no messages in the handle.",
    needs_ttl=True,
)
def open_handle_sees_expiry(bench: Bench) -> None:
    """A handle that stays open over the deadline reads the session as empty, as a new one does."""
    talk = Talk(bench)
    talk.say()
    talk.expect("before the deadline", by=talk.handle)
    silent = Talk(bench, "silent")
    silent.say()
    bench.move_to(silent.said_at[1] + 2 * TTL_S + MARGIN_S)
    for session in (talk, silent):
        session.expect_gone("after the deadline, read by the open handle", by=session.handle)
        session.expect_gone("after the deadline, read by a new handle")


@case(
    why="A key without a TTL stays for ever: memory fills up, and half of a forgotten session comes back to life.",
    fix=ONE_COMMAND,
    needs_ttl=True,
)
def ttl_on_every_key(bench: Bench) -> None:
    """Every key of a session has a TTL from the first append on, and nothing is left when the session has expired."""
    belongings = Belongings(bench, at_rest=True)
    talk = Talk(bench)
    talk.expect_gone("opened and read before the first message", by=talk.reopened())
    belongings.expect_mortal("opened and read before the first message")
    for number, role in enumerate((*ROLES, "user")):
        talk.say(LONG_TEXT if number == 4 else "", role, by=talk.reopened() if number == 2 else None)
        belongings.expect_mortal(f"after append number {number + 1} ({role}, {len(talk.said[-1][1])} characters)")
    talk.expect("read meanwhile", by=talk.handle)
    belongings.expect_mortal("after a read")
    bench.move_to(bench.now_s() + TTL_S + LEFT_BEHIND_AFTER_S)
    talk.expect_gone("after the deadline")
    belongings.expect_none(f"{LEFT_BEHIND_AFTER_S:g} s after the session's deadline")


@case(
    why="A talk that goes on must not lose its beginning: 'who are you again?' in the middle of a conversation.",
    fix="Renew every key of the session at each append (EXPIRE on all, in the same script), not the newest alone.",
    needs_ttl=True,
)
def append_renews(bench: Bench) -> None:
    """Each append renews the whole session (or none does, where the store declares expiry = "absolute")."""
    if not bench.sliding:
        return _keeps_its_first_deadline(bench)
    for pause_s, role in ((10.0, "assistant"), (TTL_S / 2, "user"), (TTL_S - 10, "tool"), (120.0, "system")):
        talk, twin = Talk(bench), Talk(bench, "twin")
        for session in (talk, twin):
            session.say_every_kind()
        bench.move_to(talk.said_at[0] + pause_s)
        for session in (talk, twin):
            session.say("said later", role, by=session.reopened() if role == "user" else None)
        seen = f"written again ({role}) {pause_s:g} s after the first messages, ttl_s {TTL_S:g}"
        talk.expect_until(TTL_S, f"{seen}, {MARGIN_S:g} s before the new deadline")
        twin.expect_gone_after(TTL_S, f"{seen}, {MARGIN_S:g} s after the new deadline")
    return None


def _keeps_its_first_deadline(bench: Bench) -> None:
    talk, twin = Talk(bench), Talk(bench, "twin")
    for session in (talk, twin):
        session.say_every_kind()
    firsts = talk.said_at, twin.said_at
    bench.move_to(firsts[0][0] + TTL_S / 2)
    for session in (talk, twin):
        session.say("said later")
    talk.expect_until(TTL_S, f"{MARGIN_S:g} s before the deadline of an absolute expiry", since=firsts[0])
    twin.expect_gone_after(TTL_S, f"{MARGIN_S:g} s after the deadline of an absolute expiry", since=firsts[1])


@case(
    why="A talk of many turns outlives its TTL many times over; whatever is not renewed each time dies in the middle.",
    fix="Renew every key of the session at each append, whatever its age.",
    needs_ttl=True,
)
def long_talk_stays_whole(bench: Bench) -> None:
    """A talk with a message now and then, for five times its TTL, keeps all messages, of whatever role and length."""
    if not bench.sliding:
        raise NotAsked('the store declares that appends do not renew (expiry = "absolute")')
    belongings = Belongings(bench)
    talk = Talk(bench)
    for turn in range(8):
        role = ("system", "user", "assistant", "tool")[turn % 4]
        talk.say(LONG_TEXT if turn == 1 else "", role, by=talk.reopened() if turn % 3 == 1 else None)
        bench.move_to(talk.said_at[0] + TTL_S * 0.7)
        talk.expect(f"after turn {turn + 1}, {0.7 * TTL_S:g} s apart (ttl_s {TTL_S:g})")
        belongings.expect_mortal(f"after turn {turn + 1}")


@case(
    why="Long talks are cut into chunks or a key a message; the old ones are forgotten by EXPIRE, or by clear().",
    fix="Renew and delete every chunk of the session, or keep it in one key.",
    needs_ttl=True,
)
def long_dialogue_lives_as_one(bench: Bench) -> None:
    """A dialogue of 150 messages is renewed as a whole, expires as a whole, and is cleared as a whole."""
    belongings = Belongings(bench)
    talk, cleared = Talk(bench), Talk(bench, "cleared")
    for number in range(1, MANY + 1):
        talk.append_only()
        # Each time, since what is rewritten or begun at some number is made good by the next append; a store of many
        # keys is looked at less often.
        if number % 32 == 0 or number % 50 == 0 or bench.control.dbsize() <= FEW_KEYS:
            belongings.expect_mortal(f"with {number} messages")
    for _ in range(MANY):
        cleared.append_only()
    began = bench.now_s()
    belongings.expect_mortal(f"with {MANY} messages, twice")
    cleared.handle.clear()
    cleared.expect_gone(f"after clear() of {MANY} messages")
    bench.move_to(began + TTL_S / 2)
    talk.say()
    if bench.sliding:
        talk.expect_until(TTL_S, f"{MANY} messages and a later one, {MARGIN_S:g} s before the new deadline")
    # From now on, since a read may rightly have extended it.
    bench.move_to(bench.now_s() + TTL_S + LEFT_BEHIND_AFTER_S)
    talk.expect_gone(f"{MANY} messages, after the deadline")
    belongings.expect_none(f"{LEFT_BEHIND_AFTER_S:g} s after a deadline, and after clear(), of {MANY} messages each")


@case(
    why="Looking at a session must not bring its end nearer: a dashboard with a short TTL would delete what it shows.",
    fix="Do not set a TTL on read; to renew on read, only ever lengthen it (EXPIRE GT).",
    needs_ttl=True,
)
def reads_do_not_shorten(bench: Bench) -> None:
    """Reading, also through a handle with a shorter TTL or none, never shortens a session's life."""
    talk = Talk(bench, ttl_s=WEEK_S)
    for _ in range(3):
        talk.say()
    for ttl_s in (WEEK_S, SHORT_S, 2.0, *(() if bench.refuses_none() else (None,))):
        handle = talk.reopened(ttl_s)
        for _ in range(2):
            talk.expect(f"read by a handle of {ttl_s} s", by=handle)
        bench.close(handle)
    bench.move_to(talk.said_at[1] + SHORT_S + MARGIN_S)
    talk.expect(f"{SHORT_S + MARGIN_S:g} s later: a session of 7 d, read through one of {SHORT_S:g} s")
    talk.expect_until(WEEK_S, f"{MARGIN_S:g} s before the deadline of a session of 7 d that was read")


@case(
    why="One line changes the configured TTL from 7 days to 5 minutes, and every session in use dies 5 minutes "
    "later: the incident this suite is named after.",
    fix="Never shorten a living session: EXPIRE GT (7.0+), or the longer of what is left and what is asked.",
    needs_ttl=True,
)
def reopen_shorter(bench: Bench) -> None:
    """Reopening with a shorter TTL and appending does not shorten a living session."""
    belongings = Belongings(bench)
    talk = Talk(bench, ttl_s=WEEK_S)
    talk.say()
    talk.say(role="assistant")
    began = talk.said_at
    shorter = talk.reopened(SHORT_S)
    for _ in range(2):
        talk.say(by=shorter)
    belongings.expect_mortal("reopened with a shorter TTL and written to")
    bench.move_to(talk.said_at[1] + SHORT_S + MARGIN_S)
    later = f"a session of 7 d, reopened with {SHORT_S:g} s and written to, {SHORT_S + MARGIN_S:g} s later"
    if bench.may_shorten:
        # Whole or gone, then: never a part of it.
        talk.expect_gone(later) if not bench.read(talk.id, WEEK_S) else talk.expect(later)
        raise NotAsked("the store declares that a shorter TTL may shorten a session (may_shorten = True)")
    talk.expect(later)
    talk.expect_until(WEEK_S, f"{MARGIN_S:g} s before the longer deadline, 7 d after the first messages", since=began)


@case(
    why="A session near its end that is opened with a shorter TTL and written to dies in the middle of the talk.",
    fix="Take the longer of what is left and what is asked: a shorter TTL than the session's own still renews.",
    needs_ttl=True,
)
def reopen_near_the_end(bench: Bench) -> None:
    """An append through a shorter TTL renews a session that has less than that left."""
    if not bench.sliding:
        raise NotAsked('the store declares that appends do not renew (expiry = "absolute")')
    talk = Talk(bench)
    talk.say()
    bench.move_to(talk.said_at[0] + TTL_S - 10)
    talk.say(by=talk.reopened(SHORT_S))
    talk.expect_until(SHORT_S, f"written to {SHORT_S - MARGIN_S:g} s ago through a handle of {SHORT_S:g} s")


@case(
    why="A TTL that was raised must reach the sessions that people are in, or they still die by the old one.",
    fix="Set the TTL at each append on every key, not with NX, not only when the session is created.",
    needs_ttl=True,
)
def reopen_longer(bench: Bench) -> None:
    """Reopening with a longer TTL and appending extends the whole session."""
    if not bench.sliding:
        raise NotAsked('the store declares that appends do not renew (expiry = "absolute")')
    talk, twin = Talk(bench, ttl_s=SHORT_S), Talk(bench, ttl_s=SHORT_S)
    for session in (talk, twin):
        session.say()
        session.say(role="assistant")
        session.say(by=session.reopened(WEEK_S))
    talk.expect_until(
        WEEK_S, f"a session of {SHORT_S:g} s, reopened with 7 d and written to, {MARGIN_S:g} s before the 7 d"
    )
    twin.expect_gone_after(WEEK_S, f"a session reopened with 7 d, {MARGIN_S:g} s after the 7 d")


@case(
    why="A store with a default TTL that nobody asked for forgets after an hour what was meant to stay.",
    fix="No TTL asked for: none set. Let None mean None down to the command.",
)
def none_means_no_deadline(bench: Bench) -> None:
    """A new session with ttl_s None (or of a store that has no TTL) does not expire, not in 400 days."""
    if refused := bench.refuses_none():
        raise NotAsked(f"the store refuses to be opened without a TTL ({refused})")
    talk = Talk(bench, ttl_s=None)
    talk.say_every_kind()
    bench.move_to(talk.said_at[1] + 400 * DAY_S)
    talk.expect("400 days later, without a TTL")


@case(
    why="A job that adds a note through a handle without a TTL makes the session immortal: a plain SET drops the TTL.",
    fix="Where no TTL is given leave the deadline alone: SET ... KEEPTTL, no PERSIST, no EXPIRE.",
    needs_ttl=True,
)
def none_leaves_the_deadline(bench: Bench) -> None:
    """Reopening with ttl_s None and appending leaves an existing deadline as it is."""
    if refused := bench.refuses_none():
        raise NotAsked(f"the store refuses to be opened without a TTL ({refused})")
    belongings = Belongings(bench)
    talk, twin = Talk(bench), Talk(bench, "twin")
    for session in (talk, twin):
        session.say()
    firsts = talk.said_at, twin.said_at
    bench.move_to(firsts[0][0] + TTL_S / 2)
    for session in (talk, twin):
        session.say("a note", by=session.reopened(None))
    belongings.expect_mortal("reopened without a TTL and written to")
    seen = f"a session of {TTL_S:g} s, written to through a handle without a TTL"
    talk.expect_until(TTL_S, f"{seen}, {MARGIN_S:g} s before its deadline", since=firsts[0])
    twin.expect_gone_after(TTL_S, f"{seen}, {MARGIN_S:g} s after its deadline", since=firsts[1])


@case(
    why="int(0.5) is 0: EXPIRE 0 deletes the session at once, EX 0 is an error, and `if ttl` makes it immortal.",
    fix="Keep TTLs in milliseconds (PEXPIRE, PX), or refuse a TTL that is no whole number of seconds.",
    needs_ttl=True,
)
def ttl_fraction(bench: Bench) -> str:
    """A TTL of a fraction of a second, or 10.5 s, is honoured or refused."""
    refused = (_tried_fraction(bench, ttl_s) for ttl_s in (10.5, 0.5, 1.5))
    return "; ".join(filter(None, refused))


def _tried_fraction(bench: Bench, ttl_s: float) -> str:
    read, unread = Talk(bench, "read", ttl_s), Talk(bench, "unread", ttl_s)
    try:
        unread.say()
        unread_at = unread.said_at
        read.say()
    except Exception as error:  # noqa: BLE001  # refused aloud
        return f"{ttl_s:g} s is refused ({one_line(error)})"
    read.expect_until(ttl_s, f"before the deadline of {ttl_s:g} s", margin_s=NARROW_S)
    seen = f"{NARROW_S:g} s after the deadline of {ttl_s:g} s"
    unread.expect_gone_after(ttl_s, seen, since=unread_at, margin_s=NARROW_S)
    return ""


@case(
    why="A TTL of 0 or -1 (a setting that is missing) deletes the session at each write, or makes it immortal.",
    fix="Refuse ttl_s <= 0 in open(), before anything is written.",
    needs_ttl=True,
)
def ttl_not_positive(bench: Bench) -> None:
    """A TTL of 0 or below is refused, and a living session that it is tried on is unharmed."""
    belongings = Belongings(bench)
    for ttl_s in (0, -1, -0.5):
        talk = Talk(bench)
        talk.say()
        for session_id in (talk.id, bench.id("new")):
            try:
                bench.open(session_id, ttl_s).append("user", "not to be stored")
            except Exception:  # noqa: BLE001, S112  # refused, as it should be
                continue
            raise Forgot(
                f"ttl_s={ttl_s} was accepted; afterwards the session reads {len(bench.read(session_id))} messages"
            )
        talk.expect(f"a living session that ttl_s={ttl_s} was tried on")
    belongings.expect_mortal("after refused TTLs")
    bench.move_to(bench.now_s() + SHORT_S)
    talk.expect(f"{SHORT_S:g} s after a refused TTL, {TTL_S - SHORT_S:g} s before the deadline")


@case(
    why="Somebody comes back after the night and goes on writing: what the bot says is stored has to be.",
    fix="Let append create a session that is missing, with its TTL; or raise. Keep no state of it in the handle.",
    needs_ttl=True,
)
def append_after_expiry(bench: Bench) -> None:
    """An append to an expired session begins a new one, with a TTL, or raises; the old messages do not come back."""
    belongings = Belongings(bench)
    for keep in (True, False):
        talk = Talk(bench)
        for _ in range(3):
            talk.say()
        talk.expect("before the deadline", by=talk.handle)
        bench.move_to(bench.now_s() + TTL_S + MARGIN_S)
        talk.said.clear()
        handle = talk.handle if keep else talk.reopened()
        seen = (
            f"appended after the session had expired, by {'the handle that was kept open' if keep else 'a new handle'}"
        )
        if talk.tried("back again", by=handle) is None:
            talk.expect(seen)
            talk.expect(f"{seen}, read by that handle", by=handle)
            belongings.expect_mortal(seen)
            talk.say("and on")
            talk.expect_until(TTL_S, f"{seen}, {MARGIN_S:g} s before the new deadline")
            continue
        talk.expect_gone(f"{seen} (it raised)")
        belongings.expect_mortal(seen)


CASES: tuple[Case, ...] = (
    ttl_boundary,
    open_handle_sees_expiry,
    ttl_on_every_key,
    append_renews,
    long_talk_stays_whole,
    long_dialogue_lives_as_one,
    reads_do_not_shorten,
    reopen_shorter,
    reopen_near_the_end,
    reopen_longer,
    none_means_no_deadline,
    none_leaves_the_deadline,
    ttl_fraction,
    ttl_not_positive,
    append_after_expiry,
)
