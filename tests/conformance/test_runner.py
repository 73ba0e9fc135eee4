"""The run in a process of its own: adapters that cannot be loaded, stores that hang, crash or print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import linux, servers_of, temporary_directory
from right_stores import ListScript
from waiting import wait_for

from memkit.conformance import AdapterError, run
from memkit.conformance.adapter import load
from memkit.conformance.case import Case
from memkit.conformance.cases.all_cases import CASES
from memkit.conformance.environment import TestEnvironment
from memkit.conformance.outcomes import Inconclusive
from memkit.conformance.processes import Interpreter
from memkit.conformance.runner import first_contact, run_case, run_cases

NAMES = {case.name: case for case in CASES}
TESTS = Path(__file__).parents[1]
HANGS_FOR_S = 600
SHORT_LIMIT_S = 2
"""For stores that hang. What comes before the hang takes 0.01 s."""
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

class Crashes(ListScript):
    def append(self, role, text):
        if role == "tool": os._exit(7)
        super().append(role, text)

class Exits(ListScript):
    def append(self, role, text):
        if role == "tool": sys.exit(3)
        super().append(role, text)

class Prints(ListScript):
    def append(self, role, text):
        print("not JSON"); sys.stderr.write("Traceback\\n")
        super().append(role, text)

class NoOpen:
    name = "NoOpen"

class NoName:
    def open(self, url, session_id, ttl_s): ...

class BadWindow(ListScript):
    window = "20"

class BadExpiry(ListScript):
    expiry = "sometimes"

class BadRoles(ListScript):
    roles = "user"

class BadFlag(ListScript):
    has_ttl = "no"

class AsyncOpen(ListScript):
    async def open(self, url, session_id, ttl_s): ...

class AsyncAppend(ListScript):
    async def append(self, role, text): ...

class AsyncRead(ListScript):
    async def read(self): yield

class ReadsObjects(ListScript):
    def read(self): return [{"role": role, "content": text} for role, text in super().read()]

class ElsewhereOnly(ListScript):
    def client(self, url): return super().client("redis://127.0.0.1:1/0")

class ReadsLazily(ListScript):
    def read(self): yield from super().read()

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


@pytest.fixture(autouse=True)
def in_adapters(adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(adapters)
    monkeypatch.syspath_prepend(str(TESTS))


@pytest.fixture
def env() -> Iterator[TestEnvironment]:
    with TestEnvironment(ListScript()) as env:
        env.reset()
        yield env


# Loading


def test_run_finds_adapters_in_the_current_directory() -> None:
    seen: list[str] = []
    result = run("adapters_to_try:Right", names=["round_trip", "roles"], on_case=lambda case: seen.append(case.name))
    assert (result.store, result.exit_code, seen) == ("Right", 0, ["round_trip", "roles"])
    assert result.server.startswith(("redis ", "valkey "))


def test_read_may_return_any_iterable() -> None:
    assert run("adapters_to_try:ReadsLazily", names=["round_trip"]).exit_code == 0


def test_current_directory_does_not_replace_the_stdlib(tmp_path: Path) -> None:
    os.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise AssertionError('the json of the current directory')")
    (tmp_path / "mine.py").write_text("from right_stores import ListScript")
    assert run("mine:ListScript", names=["roles"]).exit_code == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("adapters_to_try", "does not name an adapter"),
        ("no_such_module:X", "cannot be imported: ModuleNotFoundError"),
        ("broken_adapters:X", "cannot be imported: OSError: no wheel"),
        ("adapters_to_try:Nothing", "cannot be imported: AttributeError"),
        ("adapters_to_try:not_callable", "expected a factory to call"),
        ("adapters_to_try:factory_raises", "the factory raised ValueError: not today"),
        ("adapters_to_try:factory_exits", "the factory raised SystemExit: 4"),
        ("adapters_to_try:factory_is_interrupted", "the factory raised KeyboardInterrupt"),
        ("exits_when_imported:X", "cannot be imported: SystemExit: 9"),
        ("interrupted_when_imported:X", "cannot be imported: KeyboardInterrupt"),
        (
            "adapters_to_try:NoOpen",
            "lacks the method open(self, url: str, session_id: str, ttl_s: float | None) -> Handle",
        ),
        ("adapters_to_try:NoName", "lacks the attribute name: str"),
        ("adapters_to_try:BadExpiry", "expected 'sliding' or 'absolute'"),
        ("adapters_to_try:BadWindow", "window is '20'; expected how many messages are kept"),
        ("adapters_to_try:BadRoles", "roles is 'user'; expected a tuple of names"),
        ("adapters_to_try:BadFlag", "has_ttl is 'no'; expected True or False"),
        ("adapters_to_try:AsyncOpen", "open() is async; expected a plain method"),
    ],
)
def test_load_error_names_what_is_missing(spec: str, message: str) -> None:
    with pytest.raises(AdapterError) as caught:
        load(spec)
    assert message in str(caught.value)
    assert spec in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:X", "cannot be imported: ModuleNotFoundError"),
        ("adapters_to_try:HangsAtOnce", "open() hangs: no answer within 1 s"),
        ("adapters_to_try:factory_ends", "the process ended while the adapter was imported: exit status 5"),
        ("adapters_to_try:OpenEnds", "the process ended at the first contact: "),
        ("adapters_to_try:AsyncAppend", "append() is async; expected a plain method"),
        ("adapters_to_try:AsyncRead", "read() is async; expected a plain method"),
        (
            "adapters_to_try:ElsewhereOnly",
            "no command reached the server of the URL that open() was given; append() raised ConnectionError",
        ),
        ("adapters_to_try:ReadsObjects", "the message {'role': 'user', 'content': 'first contact'}; expected a pair"),
    ],
)
def test_run_error_names_the_reason_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(AdapterError) as caught:
        run(spec, limit_s=1)
    assert f"{spec}: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


class OpenHangs(ListScript):
    def open(self, *_: Any) -> Any:
        time.sleep(HANGS_FOR_S)


class OpenFails(ListScript):
    def open(self, *_: Any) -> Any:
        raise ValueError("no such\ntable")


class OpenReturnsObject(ListScript):
    def open(self, *_: Any) -> Any:
        return object()


class NoClear(ListScript):
    clear: Any = None


class ReadHangs(ListScript):
    def read(self) -> Any:
        time.sleep(HANGS_FOR_S)


@pytest.mark.parametrize(
    ("store", "limit_s", "message"),
    [
        (OpenHangs, SHORT_LIMIT_S, r"label: open\(\) hangs"),
        (ReadHangs, SHORT_LIMIT_S, r"label: read\(\) hangs"),
        (OpenFails, 60, r"label: open\(\) raised ValueError: no such table"),
        (OpenReturnsObject, 60, r"which lacks append\(self, role: str, text: str\) -> None, read\(self\) -> list"),
        (NoClear, 60, r"label: open\(\) returned NoClear, which lacks clear\(self\) -> None$"),
    ],
)
def test_first_contact_error_is_one_line(store: type[Any], limit_s: float, message: str) -> None:
    with TestEnvironment(store()) as env, pytest.raises(AdapterError, match=message) as raised:
        first_contact(env, "label", limit_s=limit_s)
    assert "\n" not in str(raised.value)


# The README's adapter


def test_readme_adapter_runs_as_printed(tmp_path: Path) -> None:
    readme = (TESTS.parent / "README.md").read_text()
    block = re.search(r"```python\n# my_adapter.py\n(.*?)```", readme, re.DOTALL)
    (spec,) = set(re.findall(r"memkit conformance (my_adapter:\w+)", readme))
    assert block
    (tmp_path / "my_adapter.py").write_text(block[1])
    os.chdir(tmp_path)
    result = run(spec, names=["round_trip", "clear_all_of_it", "append_renews", "expire_denied", "crash_in_append"])
    outcomes = ["passed", "passed", "passed", "failed", "failed"]
    assert [case.outcome for case in result.cases] == outcomes
    assert "\n".join(result.to_text().splitlines()[:2]) in readme


# Hangs and crashes


@pytest.mark.parametrize(
    ("store", "limit_s", "message"),
    [
        # Only this store waits for the limit; the other cases take 0.1 s.
        ("HangsInACase", 10, "no answer within 10 s"),
        ("Crashes", 60, "the process ended during this case: exit status 7"),
        ("Exits", 60, "SystemExit: 3"),
    ],
)
def test_run_goes_on_after_a_hang_or_crash(store: str, limit_s: float, message: str) -> None:
    names = ["identical_messages", "roles", "no_private_copy"]
    result = run(f"adapters_to_try:{store}", limit_s=limit_s, names=names)
    assert [case.outcome for case in result.cases] == ["passed", "failed", "passed"]
    assert message in result.cases[1].message
    assert result.exit_code == 1


def a_case(name: str, function: Any) -> Case:
    return Case(name, meaning="It does.", why="Why.", fix="Fix.", function=function)


def test_run_in_this_process_ends_at_a_hang() -> None:
    cases = [
        a_case("quick", lambda _: ""),
        a_case("hangs", lambda _: time.sleep(HANGS_FOR_S)),
        a_case("never", lambda _: ""),
    ]
    seen: list[str] = []
    result = run_cases(ListScript(), cases=cases, limit_s=SHORT_LIMIT_S, on_case=lambda case: seen.append(case.name))
    assert [(case.name, case.outcome, case.hung) for case in result.cases] == [
        ("quick", "passed", False),
        ("hangs", "failed", True),
    ]
    assert seen == ["quick", "hangs"]
    assert "no answer within 2 s" in result.cases[1].message


def test_server_is_replaced_after_a_hang(env: TestEnvironment) -> None:
    old = env.server
    env.control.set("of-the-old", "x")
    env.replace_server()
    assert not old.running
    assert env.server.running
    assert env.control.get("of-the-old") is None
    assert run_case(NAMES["roles"], env).outcome == "passed"


def test_error_without_a_fault_fails_the_case(env: TestEnvironment) -> None:
    def breaks(_: TestEnvironment) -> None:
        raise KeyError("lost")

    result = run_case(a_case("breaks", breaks), env)
    assert (result.outcome, result.message) == ("failed", "raised although no fault was injected: KeyError: 'lost'")


def test_inconclusive_case_runs_three_times(env: TestEnvironment) -> None:
    runs = []

    def inconclusive_twice(_: TestEnvironment) -> None:
        runs.append(1)
        if len(runs) < 3:
            raise Inconclusive("busy")

    def always_inconclusive(_: TestEnvironment) -> None:
        runs.append(1)
        raise Inconclusive("busy")

    assert run_case(a_case("x", inconclusive_twice), env).outcome == "passed"
    assert len(runs) == 3
    assert run_case(a_case("x", always_inconclusive), env).outcome == "skipped"
    assert len(runs) == 6


def test_output_of_a_store_is_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("adapters_to_try:Prints", names=["roles"]).exit_code == 0
    assert capfd.readouterr() == ("", "")


@linux
def test_no_server_stays_when_open_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with temporary_directory() as temporary:
        monkeypatch.setenv("TMPDIR", str(temporary))
        with pytest.raises(AdapterError, match=r"adapters_to_try:OpenEnds: .*: exit status 3$"):
            run("adapters_to_try:OpenEnds")


@linux
def test_interrupted_run_does_not_wait_for_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    stop = Interpreter.stop

    def stopped(self: Interpreter, *, within_s: float = 0.0) -> str:
        waits.append(within_s)
        return stop(self)

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Interpreter, "stop", stopped)
    with pytest.raises(KeyboardInterrupt):
        run("right_stores:ListScript", names=["roles", "order"], on_case=interrupt)
    assert waits == [0.0]


def test_no_server_stays_when_the_run_is_killed() -> None:
    script = "from memkit.conformance import run; run('adapters_to_try:HangsInACase', limit_s=600, names=['roles'])"
    with temporary_directory() as temporary:
        environment = {**os.environ, "PYTHONPATH": str(TESTS), "TMPDIR": str(temporary)}
        started = subprocess.Popen([sys.executable, "-c", script], env=environment, cwd=Path.cwd())
        try:
            wait_for("a server of the run", lambda: servers_of(temporary))
        finally:
            started.kill()
            started.wait()
