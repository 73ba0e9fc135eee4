"""The conformance suite: every wrong store is found by the case that names its fault, no right store fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from mutants import MUTANTS
from processes import linux, servers_of, temporary_directory
from right_stores import RIGHT, ListScript, NoTtl
from waiting import wait_for

from memkit.conformance import CASES, AdapterError, Matrix, Result, StoreContract, run
from memkit.conformance.adapter import load
from memkit.conformance.adapters.memkit_store import MemkitAdapter
from memkit.conformance.bench import Bench
from memkit.conformance.case import NotAsked, Stalled
from memkit.conformance.crowd import Child, in_process
from memkit.conformance.examples import ListAndScript, ListThenExpire
from memkit.conformance.libraries import LIBRARIES
from memkit.conformance.matrix import main as matrix_command
from memkit.conformance.proxy import Proxy
from memkit.conformance.runner import ask, ask_all
from memkit.server import RedisServer

NAMES = {case.name: case for case in CASES}
SLOW = {"clear_nobody_else", "crash_in_append", "eight_writers", "growth", "ids_apart", "long_dialogue", "lost_reply"}
# The rest of them, and all cases on each, are asked by tests/stress/conformance_stores.py.
OF_OTHER_DESIGNS = [
    store
    for store in RIGHT
    if store.__name__
    in {"HashWithIndex", "StringWatch", "Stream", "RawList", "KeyPerMessage", "SharedHash", "Absolute"}
]
TESTS = Path(__file__).parent
QUICKER = ["-p", "no:hypothesispytest", "-p", "no:nbval", "-p", "no:xdist"]


def failures(result: Result) -> dict[str, str]:
    return {case.name: case.says for case in result.cases if case.outcome == "failed"}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.__name__}-{mutant.found_by}")
def test_mutant_is_found_by_the_case_that_names_its_fault(
    mutant: type[Any], record_property: Callable[[str, object], None]
) -> None:
    spec = f"mutants:{mutant.__name__}"
    result = ask_all(mutant(), label=spec, spec=spec, cases=[NAMES[mutant.found_by]])
    record_property("took_s", result.took_s)
    assert list(failures(result)) == [mutant.found_by]


def test_there_are_enough_mutants_and_each_has_a_case() -> None:
    assert len(MUTANTS) >= 30
    assert {mutant.found_by for mutant in MUTANTS} <= set(NAMES)
    # growth is a remark and cannot fail.
    assert set(NAMES) - {mutant.found_by for mutant in MUTANTS} == {"growth"}


def test_memkits_own_store_passes_every_case_in_time() -> None:
    result = ask_all(MemkitAdapter(), label="memkit")
    assert failures(result) == {}
    assert result.count("passed") == len(CASES)
    # 5 to 20 s are usual on two cores; this machine may be slow, and busy with something else.
    assert result.took_s < 300


@pytest.mark.parametrize("store", OF_OTHER_DESIGNS, ids=lambda store: store.__name__)
def test_right_store_of_any_design_passes_the_quick_cases(store: type[Any]) -> None:
    result = ask_all(store(), label=store.__name__, cases=[case for case in CASES if case.name not in SLOW])
    assert failures(result) == {}
    assert result.count("passed") > 15


def test_without_a_name_to_import_a_second_process_is_a_fork_and_that_is_said() -> None:
    wrong = next(mutant for mutant in MUTANTS if mutant.__name__ == "PythonsHash")
    result = ask_all(wrong(), label="x", cases=[NAMES["second_client"]])
    assert result.cases[0].outcome == "passed"
    assert result.cases[0].says.startswith("another process is a fork here")
    asked = ask_all(ListScript(), label="x", spec="right_stores:ListScript", cases=[NAMES["second_client"]])
    assert asked.cases[0].says == NAMES["second_client"].meaning
    lost = ask_all(ListScript(), label="x", spec="no_such_module:X", cases=[NAMES["second_client"]])
    assert lost.cases[0].says.startswith("not asked from a fresh process: no_such_module:X: the adapter does not")


def test_what_a_store_declares_it_does_not_do_is_skipped_and_counted() -> None:
    result = ask_all(NoTtl(), label="NoTtl", cases=[NAMES["round_trip"], NAMES["ttl_boundary"]])
    assert [case.outcome for case in result.cases] == ["passed", "skipped"]
    assert "has_ttl = False" in result.cases[1].says
    assert result.to_dict()["skipped"] == 1


EXPECTED_OF_LIST_THEN_EXPIRE = {"reopen_shorter", "ttl_fraction", "ttl_not_positive", "expire_denied", "read_denied"}


def test_examples_are_what_they_say() -> None:
    cases = [case for case in CASES if case.name in EXPECTED_OF_LIST_THEN_EXPIRE | {"round_trip", "append_renews"}]
    assert set(failures(ask_all(ListThenExpire(), label="x", cases=cases))) == EXPECTED_OF_LIST_THEN_EXPIRE
    assert failures(ask_all(ListAndScript(), label="x", cases=cases)) == {}


# The runner


ADAPTERS = """
import os, sys, time
from right_stores import ListScript

class Right(ListScript): pass

class HangsAtOnce(ListScript):
    def open(self, url, session_id, ttl_s):
        print("opening", flush=True)
        while True: time.sleep(1)

class HangsInACase(ListScript):
    def append(self, role, text):
        if role == "tool":
            while True:
                try: time.sleep(60)
                except BaseException: pass
        super().append(role, text)

class Dies(ListScript):
    def append(self, role, text):
        if role == "tool": os._exit(7)
        super().append(role, text)

class Exits(ListScript):
    def append(self, role, text):
        if role == "tool": sys.exit(3)
        super().append(role, text)

class Shouts(ListScript):
    def append(self, role, text):
        print("not JSON"); sys.stderr.write("Traceback\\n")
        super().append(role, text)

class NoOpen:
    name = "NoOpen"

class NoName:
    def open(self, url, session_id, ttl_s): ...

class NoMethods:
    name = "NoMethods"
    def open(self, url, session_id, ttl_s): return object()

class OpenRaises:
    name = "OpenRaises"
    def open(self, url, session_id, ttl_s): raise RuntimeError("no such\\nthing")

class OpenEnds(ListScript):
    def open(self, url, session_id, ttl_s): os._exit(3)

def factory_raises(): raise ValueError("not today")

def factory_exits(): sys.exit(4)

def factory_is_interrupted(): raise KeyboardInterrupt

def factory_ends(): os._exit(5)

not_callable = 5
"""


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "adapters_to_try.py").write_text(ADAPTERS)
    (folder / "broken_adapters.py").write_text("raise OSError('no wheel')")
    (folder / "exits_when_imported.py").write_text("import sys; sys.exit(9)")
    (folder / "interrupted_when_imported.py").write_text("raise KeyboardInterrupt")
    return folder


@pytest.fixture
def in_adapters(adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(adapters)
    monkeypatch.syspath_prepend(str(TESTS))


@pytest.mark.usefixtures("in_adapters")
def test_run_finds_adapters_in_the_current_directory_and_on_the_path() -> None:
    seen: list[str] = []
    result = run("adapters_to_try:Right", names=["round_trip", "roles"], on_case=lambda case: seen.append(case.name))
    assert (result.store, result.exit_code, seen) == ("Right", 0, ["round_trip", "roles"])
    assert result.server.startswith(("redis ", "valkey "))


@pytest.mark.usefixtures("in_adapters")
def test_modules_of_the_current_directory_do_not_replace_the_standard_librarys(tmp_path: Path) -> None:
    os.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise AssertionError('the json of the current directory')")
    (tmp_path / "mine.py").write_text("from right_stores import ListScript")
    assert run("mine:ListScript", names=["roles"]).exit_code == 0


@pytest.mark.usefixtures("in_adapters")
@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("adapters_to_try", "names no adapter"),
        ("broken_adapters:X", "does not import: OSError: no wheel"),
        ("adapters_to_try:Nothing", "does not import: AttributeError"),
        ("adapters_to_try:not_callable", "not a factory"),
        ("adapters_to_try:factory_raises", "the factory raised ValueError: not today"),
        ("adapters_to_try:factory_exits", "the factory raised SystemExit: 4"),
        ("adapters_to_try:factory_is_interrupted", "the factory raised KeyboardInterrupt"),
        ("exits_when_imported:X", "does not import: SystemExit: 9"),
        ("interrupted_when_imported:X", "does not import: KeyboardInterrupt"),
        ("adapters_to_try:NoOpen", "lacks the method open"),
        ("adapters_to_try:NoName", "lacks a name"),
    ],
)
def test_adapter_that_cannot_be_loaded_says_why_in_one_line(spec: str, says: str) -> None:
    with pytest.raises(AdapterError) as caught:
        load(spec)
    assert says in str(caught.value)
    assert spec in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("in_adapters")
@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("no_such_module:X", "does not import: ModuleNotFoundError"),
        ("adapters_to_try:NoMethods", "lacks append, read, clear, close"),
        ("adapters_to_try:OpenRaises", "open() raised RuntimeError: no such thing"),
        ("adapters_to_try:HangsAtOnce", "open() hangs: no answer within 1 s"),
        ("adapters_to_try:factory_ends", "the process ended while the adapter was imported: exit status 5"),
        ("adapters_to_try:OpenEnds", "the process ended at the first contact: "),
    ],
)
def test_run_that_cannot_be_done_says_why_in_one_line(spec: str, says: str) -> None:
    with pytest.raises(AdapterError) as caught:
        run(spec, limit_s=1)
    assert f"{spec}: " in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("in_adapters")
@pytest.mark.parametrize(
    ("store", "says"),
    [
        ("HangsInACase", "no answer within 10 s"),
        ("Dies", "the process ended during this case"),
        ("Exits", "SystemExit: 3"),
    ],
)
def test_store_that_hangs_or_dies_fails_the_case_and_the_run_goes_on(store: str, says: str) -> None:
    result = run(f"adapters_to_try:{store}", limit_s=10, names=["identical_messages", "roles", "no_private_copy"])
    assert [case.outcome for case in result.cases] == ["passed", "failed", "passed"]
    assert says in result.cases[1].says
    assert result.exit_code == 1


@pytest.mark.usefixtures("in_adapters")
def test_what_a_store_prints_does_not_reach_the_result(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("adapters_to_try:Shouts", names=["roles"]).exit_code == 0
    assert capfd.readouterr() == ("", "")


@linux
@pytest.mark.usefixtures("in_adapters")
def test_no_server_is_left_behind_when_open_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with temporary_directory() as temporary:
        monkeypatch.setenv("TMPDIR", str(temporary))
        with pytest.raises(AdapterError, match=r"adapters_to_try:OpenEnds: .*: exit status 3$"):
            run("adapters_to_try:OpenEnds")


@linux
@pytest.mark.usefixtures("in_adapters")
def test_no_server_is_left_behind_when_the_run_is_killed() -> None:
    script = "from memkit.conformance import run; run('adapters_to_try:HangsInACase', limit_s=600, names=['roles'])"
    with temporary_directory() as temporary:
        environment = {**os.environ, "PYTHONPATH": str(TESTS), "TMPDIR": str(temporary)}
        started = subprocess.Popen([sys.executable, "-c", script], env=environment, cwd=Path.cwd())
        try:
            wait_for("a server of the run", lambda: servers_of(temporary))
        finally:
            started.kill()
            started.wait()


def test_result_has_the_documented_form() -> None:
    result = ask_all(ListScript(), label="x", cases=[NAMES["roles"]])
    told = json.loads(result.to_json())
    assert {name: told[name] for name in ("schema", "store", "passed", "failed", "skipped")} == {
        "schema": 1,
        "store": "ListScript",
        "passed": 1,
        "failed": 0,
        "skipped": 0,
    }
    assert told["cases"][0]["name"] == "roles"
    assert told["cases"][0]["outcome"] == "passed"
    assert told["cases"][0]["says"] == NAMES["roles"].meaning


def test_text_of_a_failure_tells_what_was_seen_why_it_matters_and_the_fix() -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.__name__ == "TheIncident")
    result = ask_all(mutant(), label="x", cases=[NAMES["reopen_shorter"]])
    text = result.to_text()
    assert "302 s later: 4 messages were stored, the memory reads as empty" in " ".join(text.split())
    for part in ("asked: ", "why it loses memory: ", "usual fix: ", "1 failed in ", "FAILED reopen_shorter"):
        assert part in text
    assert "\x1b[31m" not in text
    assert "\x1b[31m" in result.to_text(color=True)


def test_case_is_asked_again_when_the_machine_stood_still_and_not_for_ever() -> None:
    asked = []

    def stalls(_: Bench) -> None:
        asked.append(1)
        if len(asked) < 3:
            raise Stalled("busy")

    with Bench(ListScript()) as bench:
        case = NAMES["roles"]
        again = type(case)("x", "m", "w", "f", False, stalls)
        assert ask(again, bench).outcome == "passed"
        assert len(asked) == 3
        asked[:] = []

        def always(_: Bench) -> None:
            raise Stalled("busy")

        assert ask(type(case)("x", "m", "w", "f", False, always), bench).outcome == "skipped"


def test_every_case_says_what_it_asks_and_how_to_repair() -> None:
    for case in CASES:
        assert case.meaning.endswith(".")
        assert case.why.endswith((".", "!"))
        assert case.fix.endswith(".")
    assert len(NAMES) == len(CASES)


# The faults


def test_proxy_loses_one_request_or_one_reply() -> None:
    with RedisServer(port=0) as server, Proxy(server.port or 0) as proxy:
        for loss, stored in (("request", 1), ("reply", 2)):
            with redis.Redis.from_url(proxy.url(server.url)) as client:
                client.incr("n")
                proxy.lose(loss)  # type: ignore[arg-type]
                with pytest.raises(redis.ConnectionError):
                    client.incr("n")
                assert proxy.lost.is_set()
                proxy.lose(None)
                assert client.get("n") == b"%d" % stored
                client.set("n", 0)
                client.incr("n")
            server.client().set("n", 0)


def test_denied_commands_come_back_and_the_suite_keeps_its_own() -> None:
    with Bench(ListScript()) as bench, bench.server.client() as store:
        with bench.denied("get", "no-such-command"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                store.get("x")
            bench.control.get("x")
        assert store.get("x") is None
        with pytest.raises(NotAsked), bench.denied("no-such-command"):
            pass


def test_work_in_another_process_gives_its_result_or_its_error() -> None:
    assert in_process(lambda: [1, "two"]) == [1, "two"]
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        in_process(lambda: 1 / 0)
    with pytest.raises(RuntimeError, match="did not answer within"):
        in_process(lambda: threading.Event().wait(), limit_s=0.05)
    child = Child(lambda: threading.Event().wait())
    child.kill()
    child.kill()


def test_load_refuses_an_expiry_that_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ListScript, "expiry", "sometimes", raising=False)
    with pytest.raises(AdapterError, match="expected 'sliding' or 'absolute'"):
        load("right_stores:ListScript")


# The stores that people run


def test_shipped_matrix_has_every_library_at_the_version_that_is_asked() -> None:
    matrix = Matrix.shipped()
    assert [one["store"] for one in matrix.stores] == [library.store for library in LIBRARIES]
    for library, answer in zip(LIBRARIES, matrix.stores, strict=True):
        assert [case["name"] for case in answer["cases"]] == [case.name for case in CASES]
        if library.requirements:
            assert library.requirements[0].endswith(f"=={answer['version']}")
    assert matrix.failures("memkit") == {}
    assert "7 d" in matrix.failures("langchain-community")["reopen_shorter"]


def test_matrix_is_shown_in_words() -> None:
    cases = [{"name": "roles", "outcome": "failed", "says": "seen"}, {"name": "order", "outcome": "passed", "says": ""}]
    about = {"store": "a<b", "version": "1", "server": "redis 8", "date": "2026-01-02"}
    matrix = Matrix([{**about, "cases": cases}, {"store": "c", "error": "no modules"}])
    text, page = repr(matrix), matrix._repr_html_()
    assert text.splitlines()[:2] == ["c: not asked: no modules", "(1) a<b 1 on redis 8, 2026-01-02"]
    assert "roles                      FAILS" in text
    assert "a&lt;b 1</th>" in page
    assert "<b>FAILS</b>" in page
    assert "<caption" in page
    with pytest.raises(LookupError, match="'d' was not asked; there are a<b"):
        matrix.failures("d")


def test_figure_of_the_matrix_says_in_words_what_it_shows() -> None:
    from memkit.plot_conformance import plot_matrix

    ax = plot_matrix(Matrix.shipped())
    assert ax.get_label().startswith(f"Cases failed, of {len(CASES)}, by store: memkit 0, ")
    assert {text.get_text() for text in ax.get_legend().get_texts()} >= {"passed", "failed"}


def test_matrix_command_asks_and_keeps_the_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEMKIT_REDIS_MODULES", raising=False)
    kept = tmp_path / "answers.json"
    code = matrix_command(["memkit", "redisvl", "--case", "roles", "--cache", str(tmp_path), "--output", str(kept)])
    assert code == 2
    said = capsys.readouterr().out
    assert "memkit" in said
    assert "redisvl: not asked: needs Redis's JSON and search modules; set MEMKIT_REDIS_MODULES" in said
    assert json.loads(kept.read_text())["stores"][0]["cases"][0]["outcome"] == "passed"


# In a user's own tests


class TestRightStore(StoreContract):
    """As a user would write it; a few cases only, the others are asked above."""

    store = ListScript


for _name in set(NAMES) - {"round_trip", "ttl_boundary", "reopen_shorter"}:
    setattr(TestRightStore, f"test_{_name}", None)


USERS_TESTS = """
from memkit.conformance import StoreContract
from mutants import TheIncident
import right_stores

class TestByClass(StoreContract):
    store = TheIncident

class TestByName(StoreContract):
    store = "right_stores:NoTtl"

class TestByFunction(StoreContract):
    def store():
        return right_stores.ListScript()

class TestUnset(StoreContract):
    pass
"""
USERS_BROKEN_TESTS = """
import sys
import pytest
from memkit.conformance import StoreContract
import right_stores

class TestRaises(StoreContract):
    def store(): raise KeyError("boom")

class TestExits(StoreContract):
    def store(): sys.exit(4)

class TestSkips(StoreContract):
    def store(): pytest.skip("no library here")
"""


def run_pytest(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *QUICKER, "-rA", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_contract_class_works_in_a_users_own_suite(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(USERS_TESTS)
    said = run_pytest(tmp_path, "-k", "reopen_shorter or roles")
    assert "FAILED test_mine.py::TestByClass::test_reopen_shorter - Failed: seen: " in said
    assert "PASSED test_mine.py::TestByClass::test_roles" in said
    assert "PASSED test_mine.py::TestByName::test_roles" in said
    assert "PASSED test_mine.py::TestByFunction::test_reopen_shorter" in said
    assert "TestUnset.store is not set" in said
    assert "Traceback" not in said


def test_contract_class_whose_factory_fails_says_so_once(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(USERS_BROKEN_TESTS)
    said = run_pytest(tmp_path)
    assert "FAILED test_mine.py::TestRaises::test_round_trip - Failed: TestRaises: " in said
    assert "FAILED test_mine.py::TestExits::test_round_trip - Failed: TestExits: " in said
    assert "TestRaises: TestRaises.store() raised KeyError: 'boom'" in said
    assert "no library here" in said
    assert f"2 failed, {3 * len(CASES) - 2} skipped" in said


def test_option_adds_the_suite_to_a_run(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("def test_mine(): pass")
    said = run_pytest(tmp_path, "--memkit-store=mutants:TheIncident", "-k", "reopen_shorter or mine or roles")
    assert "PASSED test_mine.py::test_mine" in said
    assert "PASSED mutants:TheIncident::roles" in said
    assert "FAILED mutants:TheIncident::reopen_shorter - Failed: seen: " in said
    assert "no_such_module:X: the adapter does not import" in run_pytest(tmp_path, "--memkit-store=no_such_module:X")
    (tmp_path / "mine.py").write_text("class Mine:\n    name = 'Mine'\n    def open(self, *_): raise OSError('no')")
    said = run_pytest(tmp_path, "--memkit-store=mine:Mine")
    assert "FAILED mine:Mine::round_trip - Failed: mine:Mine: open() raised OSError: no" in said
    assert f"1 failed, 1 passed, {len(CASES) - 1} skipped" in said
