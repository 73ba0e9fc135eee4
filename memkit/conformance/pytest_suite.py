"""StoreContract, the cases as tests of your own suite, and the tests that ``pytest --memkit-store`` adds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from memkit.conformance.adapter import AdapterError, StoreAdapter, checked, load, made_by
from memkit.conformance.case import Case
from memkit.conformance.cases.all_cases import CASES
from memkit.conformance.environment import TestEnvironment
from memkit.conformance.result import failure_text
from memkit.conformance.runner import CASE_LIMIT_S, first_contact, run_case
from memkit.errors import ServerNotFound


class StoreContract:
    """Inherit and set ``store`` to a factory, and every case is a test: ``test_round_trip`` and so on.

    ``store`` is an adapter class, a function that makes an adapter, or ``"package.module:factory"``; ``limit_s`` is how
    many seconds a case may take. It works in a test module and in ``%%ipytest``. Each class has a private server of its
    own. Other processes are forks; fresh interpreters too if the store is named as ``"package.module:factory"``.
    """

    store: ClassVar[Any] = None
    limit_s: ClassVar[float] = CASE_LIMIT_S

    @pytest.fixture(scope="class")
    @classmethod
    def memkit_store(cls, request: pytest.FixtureRequest) -> Iterator[_StoreUnderTest]:
        """Start a private server for the store; skip, with instructions, if there is none."""
        # Looked up in the class: a plain function as attribute would be bound to the test's instance.
        store = next(vars(one)["store"] for one in request.cls.__mro__ if "store" in vars(one))
        under_test = _StoreUnderTest(store, request.cls.__name__, request.config)
        yield under_test
        under_test.stop()


_NOT_RUN = "not run: the adapter cannot be used, see the first test"


class _StoreUnderTest:
    """A store on its server; for one that cannot be used, the first test fails and the others are skipped."""

    def __init__(self, store: Any, label: str, config: pytest.Config) -> None:
        self._env: TestEnvironment | None = None
        self._error = ""
        try:
            spec = store if isinstance(store, str) else ""
            env = TestEnvironment(load(spec) if spec else _adapter(store, label), spec=spec)
            env.start()
            self._env = env
            first_contact(env, label)
        except AdapterError as error:
            self._error = str(error)
        except ServerNotFound as error:
            if config.getoption("--memkit-require-server", default=False):
                pytest.fail(str(error), pytrace=False)
            pytest.skip(str(error))

    def stop(self) -> None:
        """Stop the server."""
        if self._env:
            self._env.stop()

    def run(self, case: Case, *, limit_s: float = CASE_LIMIT_S) -> None:
        """Run a case as a test."""
        if self._error or not self._env:
            error, self._error = self._error, _NOT_RUN
            if error == _NOT_RUN:
                pytest.skip(error)
            pytest.fail(error, pytrace=False)
        result = run_case(case, self._env, limit_s=limit_s)
        if result.hung:
            # What hangs may still be writing to the server.
            self._env.replace_server()
        if result.outcome == "skipped":
            pytest.skip(result.message)
        if result.outcome == "failed":
            pytest.fail(failure_text(result), pytrace=False)


def _adapter(store: Any, label: str) -> StoreAdapter:
    if store is None:
        raise AdapterError(f"{label}.store is not set; expected an adapter class or 'package.module:factory'")
    store = store.__func__ if isinstance(store, staticmethod) else store
    outcomes = (pytest.skip.Exception, pytest.fail.Exception, pytest.exit.Exception)
    return made_by(store, label, except_for=outcomes) if callable(store) else checked(store, label)


def _test_of(case: Case) -> Callable[[StoreContract, _StoreUnderTest], None]:
    def test(self: StoreContract, memkit_store: _StoreUnderTest) -> None:
        memkit_store.run(case, limit_s=self.limit_s)

    test.__name__, test.__qualname__ = f"test_{case.name}", f"StoreContract.test_{case.name}"
    test.__doc__ = case.meaning
    return test


for _case in CASES:
    setattr(StoreContract, f"test_{_case.name}", _test_of(_case))


class StoreSuite(pytest.Collector):
    """What ``--memkit-store=package.module:factory`` adds to a run: one test for each case, on a server of its own."""

    under_test: _StoreUnderTest | None = None

    @classmethod
    def of(cls, session: pytest.Session, spec: str) -> StoreSuite:
        """Return the suite for an adapter; pytest.UsageError, one line, if it cannot be loaded."""
        try:
            load(spec)
        except AdapterError as error:
            raise pytest.UsageError(f"--memkit-store={error}") from None
        suite: StoreSuite = cls.from_parent(session, name=spec, nodeid=spec, path=Path(__file__))
        return suite

    def collect(self) -> Iterable[pytest.Item]:
        """Yield the cases."""
        for case in CASES:
            item: StoreItem = StoreItem.from_parent(self, name=case.name)
            item.case = case
            yield item

    def setup(self) -> None:
        """Start the server before the first case."""
        self.under_test = _StoreUnderTest(self.name, self.name, self.config)

    def teardown(self) -> None:
        """Stop it after the last."""
        if self.under_test:
            self.under_test.stop()


class StoreItem(pytest.Item):
    """One case as a test."""

    case: Case

    def runtest(self) -> None:
        """Run the case."""
        if isinstance(self.parent, StoreSuite) and self.parent.under_test:
            self.parent.under_test.run(self.case)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Return the test's path and name."""
        return self.path, None, f"{self.parent.name if self.parent else ''}::{self.name}"
