"""Every wrong store is found by the case that names its fault; no right store fails (memkit's own: test_cli.py)."""

from __future__ import annotations

import os
from functools import cache
from typing import Any, ClassVar

import pytest
from mutants import (
    MUTANTS,
    ClosesForAll,
    IsASet,
    MergesNeighbours,
    OnceOnly,
    OwnCopy,
    PythonsHash,
    ReadErrorIsEmpty,
    ReadsOnce,
    TextsAsBytes,
    Trims,
    WriteErrorSwallowed,
    WritesBehind,
)
from right_stores import (
    RIGHT,
    Chunks,
    Compacts,
    KeyPerMessage,
    ListScript,
    LoopInAThread,
    NoTtl,
    OneConnection,
    RawList,
    RefusesLongTexts,
    Right,
)

from memkit.conformance import CASES, CaseResult, Result
from memkit.conformance.cases import concurrency
from memkit.conformance.environment import TestEnvironment
from memkit.conformance.examples import ListAndScript, ListThenExpire
from memkit.conformance.outcomes import CaseFailed, Symptom
from memkit.conformance.processes import LIMIT_S, Interpreter
from memkit.conformance.runner import run_case

NAMES = {case.name: case for case in CASES}
SLOW = {
    *("clear_no_other_session", "crash_in_append", "eight_writers", "growth", "ids_apart", "long_dialogue"),
    *("long_dialogue_expires_as_one", "lost_reply"),
}
# The rest of them, and all cases on each, are run by tests/stress/conformance_stores.py.
OF_OTHER_DESIGNS = [
    store
    for store in RIGHT
    if store.__name__
    in {"HashWithIndex", "StringWatch", "Stream", "RawList", "KeyPerMessage", "SharedHash", "Absolute"}
]


def failures(result: Result) -> dict[str, CaseResult]:
    return {case.name: case for case in result.cases if case.outcome == "failed"}


@cache
def environment() -> TestEnvironment:
    """One server for all stores: each case begins with an empty one. It stops with this process."""
    return TestEnvironment(ListScript()).start()


def run_named(store: type[Any], *names: str, spec: str = "") -> Result:
    env = environment().use(store(), spec=spec)
    results = [run_case(NAMES[name], env) for name in names]
    if any(result.hung for result in results):
        env.replace_server()
    return Result(store.__name__, server="", cases=tuple(results))


@pytest.mark.parametrize("store", OF_OTHER_DESIGNS, ids=lambda store: store.__name__)
def test_right_store_passes_the_quick_cases(store: type[Any]) -> None:
    result = run_named(store, *(set(NAMES) - SLOW))
    assert failures(result) == {}
    assert result.count("passed") > 15


def test_writers_without_enough_time_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "WRITES_FOR", 0.0)
    (case,) = run_named(ListScript, "eight_writers").cases
    assert case.outcome == "skipped"
    assert case.message == "not judged: 0 of 448 appends ended within 0 s, none lost"


def test_second_process_is_a_fork_without_spec() -> None:
    result = run_named(PythonsHash, "second_client")
    assert result.cases[0].outcome == "passed"
    assert result.cases[0].message.startswith("another process is a fork here")


class RefusesForks(ListScript):
    owner = os.getpid()

    def append(self, role: str, text: str) -> None:
        if os.getpid() != self.owner:
            raise RuntimeError("the client was made in another process")
        super().append(role, text)


@pytest.mark.parametrize("store", [LoopInAThread, RefusesForks])
def test_store_that_does_not_work_forked_passes(store: type[Any]) -> None:
    env = environment().use(store())
    limit_s = 16.0  # a quarter of it is waited for
    result = run_case(NAMES["second_client"], env, limit_s=limit_s)
    assert (result.outcome, result.took_s < limit_s) == ("passed", True)
    assert "not tested from a forked process: the store does not answer in one" in result.message


def test_interpreter_that_has_ended_still_answers() -> None:
    fresh = Interpreter("no_such_module:X")
    fresh._process.wait(LIMIT_S)
    fresh.send(role="user")
    assert "the adapter cannot" in (fresh.receive(LIMIT_S) or {})["error"]
    assert fresh.receive(LIMIT_S) is None
    assert fresh.stop() == fresh.stop() != ""


def test_second_process_is_fresh_with_spec() -> None:
    tested = run_named(ListScript, "second_client", spec="right_stores:ListScript")
    assert tested.cases[0].message == NAMES["second_client"].meaning
    skipped = run_named(ListScript, "second_client", spec="no_such_module:X")
    assert skipped.cases[0].message.startswith("not tested from a fresh process: no_such_module:X: the adapter cannot")


def test_store_without_ttl_skips_the_ttl_cases() -> None:
    result = run_named(NoTtl, "round_trip", "ttl_boundary")
    assert [case.outcome for case in result.cases] == ["passed", "skipped"]
    assert "has_ttl = False" in result.cases[1].message
    assert result.to_dict()["skipped"] == 1


EXPECTED_OF_LIST_THEN_EXPIRE = {"reopen_shorter", "ttl_fraction", "ttl_not_positive", "expire_denied", "read_denied"}


def test_examples_pass_and_fail_as_documented() -> None:
    names = EXPECTED_OF_LIST_THEN_EXPIRE | {"round_trip", "append_renews"}
    assert set(failures(run_named(ListThenExpire, *names))) == EXPECTED_OF_LIST_THEN_EXPIRE
    assert failures(run_named(ListAndScript, *names)) == {}


# Windows


class LastTwenty(RawList):
    """Keeps the last 20 messages on purpose."""

    window: ClassVar[int | None] = 20

    def append(self, role: str, text: str) -> None:
        with self.r.pipeline() as pipe:
            pipe.rpush(self.key, role.encode() + b"\0" + text.encode()).ltrim(self.key, -20, -1)
            if self.ttl_ms:
                pipe.pexpire(self.key, self.ttl_ms, nx=True)
                pipe.pexpire(self.key, self.ttl_ms, gt=True)
            pipe.execute()


class LastOneByScript(ListScript):
    """Trimmed by the last command of its script."""

    window = 1
    script = ListScript.script.replace("return 1", "return redis.call('LTRIM', KEYS[1], -1, -1)")


def test_window_of_a_script_that_was_refused() -> None:
    assert failures(run_named(LastOneByScript, "write_denied", "lost_reply")) == {}


class LastTwo(LastTwenty):
    window = 2

    def read(self) -> list[tuple[str, str]]:
        return super().read()[-2:]


class WindowNotDeclared(LastTwenty):
    window = None


class KeepsTooFew(LastTwenty):
    window = 30


class StripsInAWindow(LastTwenty):
    def append(self, role: str, text: str) -> None:
        super().append(role, text.strip())


class RaceInAWindow(LastTwenty):
    """Reads, extends and writes back: concurrent writers overwrite each other."""

    def append(self, role: str, text: str) -> None:
        items = [*self.r.lrange(self.key, 0, -1), role.encode() + b"\0" + text.encode()]
        with self.r.pipeline() as pipe:
            pipe.delete(self.key).rpush(self.key, *items[-20:]).execute()


def test_declared_window_passes_the_long_dialogues() -> None:
    names = ("round_trip", "order", "long_dialogue", "long_dialogue_expires_as_one", "eight_writers", "restart")
    result = run_named(LastTwenty, *names)
    assert {name: case.message for name, case in failures(result).items()} == {}


def test_window_smaller_than_the_usual_session() -> None:
    result = run_named(LastTwo, *(set(NAMES) - SLOW), "lost_reply", "eight_writers")
    assert {name: case.message for name, case in failures(result).items()} == {}


def test_window_smaller_than_declared_fails() -> None:
    assert set(failures(run_named(KeepsTooFew, "round_trip", "order", "long_dialogue", "roles"))) == {
        *("round_trip", "order", "long_dialogue"),
    }


def test_altered_texts_fail_in_a_window() -> None:
    assert list(failures(run_named(StripsInAWindow, "round_trip"))) == ["round_trip"]


def test_lost_updates_fail_in_a_window() -> None:
    assert list(failures(run_named(RaceInAWindow, "eight_writers"))) == ["eight_writers"]


# Root causes


def causes_of(result: Result) -> dict[str, set[str]]:
    return {cause.case: set(cause.cases) for cause in result.root_causes}


def test_dropped_messages_are_one_root_cause() -> None:
    names = ("round_trip", "order", "long_dialogue", "long_dialogue_expires_as_one", "eight_writers")
    result = run_named(WindowNotDeclared, *names)
    assert causes_of(result) == {"long_dialogue": {"round_trip", "order", "long_dialogue_expires_as_one"}}
    assert "declare window = 20" in result.root_causes[0].sentence


class KeepsOneMore(LastTwenty):
    window = 19


class Summarises(ListScript):
    """Shows a summary in place of all but the last ten messages."""

    def read(self) -> list[tuple[str, str]]:
        read = super().read()
        return [("system", "what was agreed"), *read[-10:]] if len(read) > 20 else read


def test_window_larger_than_declared_is_named() -> None:
    result = run_named(KeepsOneMore, "order", "long_dialogue", "long_dialogue_expires_as_one")
    assert causes_of(result) == {"long_dialogue": {"order", "long_dialogue_expires_as_one"}}
    assert result.root_causes[0].sentence.startswith("only the last 20 messages of a session are kept")


def test_window_is_not_proposed_if_the_first_are_kept() -> None:
    sentence = run_named(KeepsFirst, "round_trip", "long_dialogue").root_causes[0].sentence
    assert sentence == "only the first 20 messages of a session are kept"


def test_eight_writers_names_a_text_of_no_writer() -> None:
    session_texts = ["writer 0 number 0", "what was agreed"]
    with pytest.raises(CaseFailed, match="1 message read that no writer appended, such as 'what was agreed'"):
        concurrency._expect_all_once(environment().use(ListScript()), session_texts[:1], [], session_texts, "")
    assert run_named(Summarises, "eight_writers").cases[0].outcome == "skipped"


class KeepsFirst(Trims):
    """Drops the newest messages."""

    script = Trims.script.replace("-250, -1", "0, 19")


@pytest.mark.parametrize("store", [KeepsFirst, IsASet, WindowNotDeclared])
def test_eight_writers_leaves_other_faults_to_others(store: type[Any]) -> None:
    # IsASet passes: all texts differ.
    (result,) = run_named(store, "eight_writers").cases
    assert result.outcome != "failed"
    assert result.outcome == "passed" or result.message.startswith("not judged: 8 writers in turn already fail")


def test_missing_renewal_is_one_root_cause() -> None:
    names = ("append_renews", "long_talk_stays_whole", "reopen_near_the_end", "reopen_longer", "roles")
    result = run_named(OnceOnly, *names)
    assert causes_of(result) == {"append_renews": {*names[1:4]}}
    first = result.to_text().splitlines()[0]
    assert first.startswith("likely root cause: an append does not renew the TTL")


class NoTtlAtAll(RawList):
    def ms(self, ttl_s: float | None) -> int:
        return super().ms(ttl_s) * 0


def test_missing_ttl_is_one_root_cause() -> None:
    names = ("ttl_on_every_key", "ttl_boundary", "append_renews", "lifetimes_apart", "restart", "append_after_expiry")
    assert causes_of(run_named(NoTtlAtAll, *names)) == {"ttl_on_every_key": {*names[1:]}}


def test_hidden_errors_are_one_root_cause() -> None:
    assert causes_of(run_named(ReadErrorIsEmpty, "read_denied", "foreign_key", "restart", "round_trip")) == {
        "read_denied": {"foreign_key", "restart"}
    }


@pytest.mark.parametrize(
    ("store", "others"),
    [
        (WritesBehind, ("round_trip", "order", "crash_in_append", "foreign_key")),
        (OwnCopy, ("open_handle_sees_expiry", "ttl_on_every_key", "append_after_expiry")),
        (MergesNeighbours, ("roles", "order", "connection_lost", "read_denied")),
        (OnceOnly, ("expire_denied",)),
        (TextsAsBytes, ("identical_messages", "roles", "stored_when_acknowledged")),
        (ReadsOnce, ("round_trip", "roles", "order", "connection_lost")),
        (ClosesForAll, ("round_trip", "roles", "order", "reads_do_not_shorten", "read_denied", "restart")),
        (WriteErrorSwallowed, ("expire_denied", "full_memory")),
    ],
)
def test_first_root_cause_is_the_right_one(store: type[Any], others: tuple[str, ...]) -> None:
    result = run_named(store, *others, store.found_by)
    assert [cause.case for cause in result.root_causes] == [store.found_by]


class TtlAtTheEndOfAScript(ListScript):
    """One command, whole after a crash; a script is not rolled back if PEXPIRE is refused."""

    script = """
        redis.call('RPUSH', KEYS[1], ARGV[1])
        if tonumber(ARGV[2]) > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end"""


def test_script_is_not_called_several_commands() -> None:
    result = run_named(TtlAtTheEndOfAScript, "reopen_longer", "crash_in_append", "expire_denied")
    (cause,) = result.root_causes
    assert cause.sentence == "an append leaves its message without a TTL if Redis refuses to set the TTL"


@pytest.mark.parametrize(
    ("store", "names"),
    [
        (RefusesLongTexts, ("long_text", "ttl_on_every_key", "append_renews", "none_means_no_deadline")),
        (OneConnection, ("database_of_the_url", "connection_lost")),
        (Chunks, ("write_denied",)),
    ],
)
def test_right_store_passes_the_case(store: type[Any], names: tuple[str, ...]) -> None:
    assert failures(run_named(store, *names)) == {}


class TwoMistakes(OnceOnly):
    """Does not renew, and strips."""

    def append(self, role: str, text: str) -> None:
        super().append(role, text.strip())


def test_other_faults_are_root_causes_of_their_own() -> None:
    result = run_named(TwoMistakes, "round_trip", "append_renews", "reopen_longer")
    assert causes_of(result) == {"append_renews": {"reopen_longer"}, "round_trip": set()}


class AlwaysRaises(Right):
    def append(self, role: str, text: str) -> None:
        raise OSError(f"no disk for {role}: {text}")

    def read(self) -> list[tuple[str, str]]:
        return []


class NewestFirst(ListScript):
    def read(self) -> list[tuple[str, str]]:
        return super().read()[::-1]


def test_another_order_is_no_early_expiry() -> None:
    assert run_named(NewestFirst, "ttl_boundary").cases[0].symptom == Symptom.OTHER


def test_same_error_in_every_case_is_one_root_cause() -> None:
    result = run_named(AlwaysRaises, "round_trip", "order", "append_renews")
    assert causes_of(result) == {"round_trip": {"order", "append_renews"}}
    assert "OSError: no disk" in result.root_causes[0].sentence


@pytest.mark.parametrize("store", [Compacts, KeyPerMessage])
def test_right_store_has_no_root_cause(store: type[Any]) -> None:
    assert run_named(store, "roles", "long_dialogue_expires_as_one").root_causes == []


class OneKey(ListScript):
    """Every session is the same key: the application does not pass its id on."""

    def key_of(self, session_id: str) -> str:
        return f"chat:{'default' if session_id else ''}"


class IgnoresCase(ListScript):
    def key_of(self, session_id: str) -> str:
        return "chat:" + session_id.lower()


def test_root_cause_of_one_key_for_all_sessions() -> None:
    result = run_named(OneKey, "round_trip", "roles", "ids_apart", "ids_are_no_patterns", "append_renews")
    first, *_ = result.root_causes
    assert (first.case, first.sentence) == (
        "ids_apart",
        "a session reads the messages of others: their ids are not in the key",
    )
    (alone,) = run_named(IgnoresCase, "round_trip", "roles", "ids_apart", "append_renews").root_causes
    assert "the session 'user' among" in alone.sentence


# Mutants: last, because these tests are short, and so all workers end at the same time.
LONGEST_FIRST = sorted(MUTANTS, key=lambda mutant: mutant.found_by != "lost_reply")


@pytest.mark.parametrize("mutant", LONGEST_FIRST, ids=lambda mutant: f"{mutant.__name__}-{mutant.found_by}")
def test_mutant_is_found_by_its_case(mutant: type[Any]) -> None:
    result = run_named(mutant, mutant.found_by, spec=f"mutants:{mutant.__name__}")
    assert list(failures(result)) == [mutant.found_by]


def test_every_case_finds_a_mutant() -> None:
    # growth is a remark and cannot fail.
    assert {mutant.found_by for mutant in MUTANTS} == set(NAMES) - {"growth"}
