"""The cases as tests of a user's own suite: a class to inherit from, and items for ``pytest --memkit-store``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from memkit.conformance.adapter import AdapterError, StoreAdapter, checked, load
from memkit.conformance.bench import Bench
from memkit.conformance.case import Case
from memkit.conformance.cases import CASES
from memkit.conformance.report import failure_text
from memkit.conformance.runner import CASE_LIMIT_S, CaseResult, ask, first_contact
from memkit.errors import ServerNotFound


class StoreContract:
    """Inherit, set ``store`` to a factory, and every case is a test: ``test_round_trip`` and so on.

    ``store``: an adapter class, a function that makes an adapter, or ``"package.module:factory"``. ``limit_s``: seconds
    a case may take. Works in a test module and in ``%%ipytest``. Each class has a private server of its own.
    """

    store: ClassVar[Any] = None
    limit_s: ClassVar[float] = CASE_LIMIT_S

    @pytest.fixture(scope="class")
    @classmethod
    def memkit_bench(cls, request: pytest.FixtureRequest) -> Iterator[Bench]:
        """Start a private server for the store; skip, with instructions, where there is none."""
        bench = Bench(_adapter(request.cls), spec=_spec(request.cls))
        _entered(bench, request.cls.__name__, request.config)
        yield bench
        bench.stop()

    def _test(self, case: Case, bench: Bench) -> None:
        # The class's own server is started again after a hang: what hangs may still be writing to it.
        answer = ask(case, bench, limit_s=self.limit_s)
        if answer.hung:
            bench.replace_server()
        _tell(answer)


def _store(cls: type[StoreContract]) -> Any:
    # Looked up in the class: a plain function as attribute would be bound to the test's instance.
    return next(vars(one)["store"] for one in cls.__mro__ if "store" in vars(one))


def _spec(cls: type[StoreContract]) -> str:
    store = _store(cls)
    return store if isinstance(store, str) else ""


def _adapter(cls: type[StoreContract]) -> StoreAdapter:
    store = _store(cls)
    if store is None:
        raise pytest.UsageError(
            f"{cls.__name__}.store is not set; expected an adapter class or 'package.module:factory'"
        )
    if isinstance(store, str):
        return load(store)
    made = store.__func__() if isinstance(store, staticmethod) else store() if callable(store) else store
    return checked(made, cls.__name__)


def _entered(bench: Bench, label: str, config: pytest.Config) -> None:
    try:
        bench.start()
        first_contact(bench, label)
    except ServerNotFound as error:
        if config.getoption("--memkit-require-server", default=False):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    except AdapterError as error:
        bench.stop()
        pytest.fail(str(error), pytrace=False)


def _tell(answer: CaseResult) -> None:
    if answer.outcome == "skipped":
        pytest.skip(answer.says)
    if answer.outcome == "failed":
        pytest.fail(failure_text(answer), pytrace=False)


def _test_of(case: Case) -> Callable[[StoreContract, Bench], None]:
    def test(self: StoreContract, memkit_bench: Bench) -> None:
        self._test(case, memkit_bench)

    test.__name__, test.__qualname__ = f"test_{case.name}", f"StoreContract.test_{case.name}"
    test.__doc__ = case.meaning
    return test


for _case in CASES:
    setattr(StoreContract, f"test_{_case.name}", _test_of(_case))


class StoreSuite(pytest.Collector):
    """What ``--memkit-store=package.module:factory`` adds to a run: one item a case, on a server of its own."""

    @classmethod
    def of(cls, session: pytest.Session, spec: str) -> StoreSuite:
        """Return the suite for an adapter; pytest.UsageError, one line, when there is none."""
        try:
            adapter = load(spec)
        except AdapterError as error:
            raise pytest.UsageError(f"--memkit-store={error}") from None
        suite: StoreSuite = cls.from_parent(session, name=spec, nodeid=spec, path=Path(__file__))
        suite.bench = Bench(adapter, spec=spec)
        return suite

    bench: Bench

    def collect(self) -> Iterable[pytest.Item]:
        """Yield the cases."""
        for case in CASES:
            item: StoreItem = StoreItem.from_parent(self, name=case.name)
            item.case = case
            yield item

    def setup(self) -> None:
        """Start the server before the first case."""
        _entered(self.bench, self.name, self.config)

    def teardown(self) -> None:
        """Stop it after the last."""
        self.bench.stop()


class StoreItem(pytest.Item):
    """One case as pytest shows it."""

    case: Case

    def runtest(self) -> None:
        """Ask the case."""
        suite = self.parent
        if isinstance(suite, StoreSuite):
            answer = ask(self.case, suite.bench)
            if answer.hung:
                suite.bench.replace_server()
            _tell(answer)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Say where the case is from."""
        return self.path, None, f"{self.parent.name if self.parent else ''}::{self.name}"
