"""The cases as tests of a user's own suite: a class to inherit from, and items for ``pytest --memkit-store``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from memkit.conformance.adapter import AdapterError, StoreAdapter, checked, load, one_line
from memkit.conformance.case import Case
from memkit.conformance.cases.all_cases import CASES
from memkit.conformance.environment import Bench
from memkit.conformance.result import CaseResult, failure_text
from memkit.conformance.runner import CASE_LIMIT_S, ask, first_contact
from memkit.errors import ServerNotFound


class StoreContract:
    """Inherit, set ``store`` to a factory, and every case is a test: ``test_round_trip`` and so on.

    ``store``: an adapter class, a function that makes an adapter, or ``"package.module:factory"``. ``limit_s``: seconds
    a case may take. Works in a test module and in ``%%ipytest``. Each class has a private server of its own. A second
    process is a fork; only for a store named as ``"package.module:factory"`` it is a fresh interpreter, too.
    """

    store: ClassVar[Any] = None
    limit_s: ClassVar[float] = CASE_LIMIT_S

    @pytest.fixture(scope="class")
    @classmethod
    def memkit_bench(cls, request: pytest.FixtureRequest) -> Iterator[Bench | Unusable]:
        """Start a private server for the store; skip, with instructions, where there is none."""
        try:
            bench = Bench(_adapter(request.cls), spec=_spec(request.cls))
            _enter(bench, request.cls.__name__, request.config)
        except AdapterError as error:
            yield Unusable(str(error))
            return
        yield bench
        bench.stop()

    def _test(self, case: Case, bench: Bench | Unusable) -> None:
        if isinstance(bench, Unusable):
            bench.tell()
            return
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
        raise AdapterError(f"{cls.__name__}.store is not set; expected an adapter class or 'package.module:factory'")
    if isinstance(store, str):
        return load(store)
    store = store.__func__ if isinstance(store, staticmethod) else store
    return checked(_made(store, cls.__name__) if callable(store) else store, cls.__name__)


def _made(factory: Callable[[], object], label: str) -> object:
    try:
        return factory()
    except (pytest.skip.Exception, pytest.fail.Exception, pytest.exit.Exception):
        raise
    except BaseException as error:  # whatever a factory raises is reported in one line, sys.exit() too
        name = getattr(factory, "__qualname__", type(factory).__name__)
        raise AdapterError(f"{label}: {name}() raised {one_line(error)}") from error


class Unusable:
    """What there is instead of a bench for an adapter that cannot be asked: the first test says why, once."""

    def __init__(self, why: str) -> None:
        self._why = why
        self._told = False

    def tell(self) -> None:
        """Fail the first test, skip the others."""
        if self._told:
            pytest.skip("not asked: the adapter cannot be used, see the first test")
        self._told = True
        pytest.fail(self._why, pytrace=False)


def _enter(bench: Bench, label: str, config: pytest.Config) -> None:
    try:
        bench.start()
        first_contact(bench, label)
    except ServerNotFound as error:
        if config.getoption("--memkit-require-server", default=False):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    except AdapterError:
        bench.stop()
        raise


def _tell(answer: CaseResult) -> None:
    if answer.outcome == "skipped":
        pytest.skip(answer.says)
    if answer.outcome == "failed":
        pytest.fail(failure_text(answer), pytrace=False)


def _test_of(case: Case) -> Callable[[StoreContract, Bench | Unusable], None]:
    def test(self: StoreContract, memkit_bench: Bench | Unusable) -> None:
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
    unusable: Unusable | None = None

    def collect(self) -> Iterable[pytest.Item]:
        """Yield the cases."""
        for case in CASES:
            item: StoreItem = StoreItem.from_parent(self, name=case.name)
            item.case = case
            yield item

    def setup(self) -> None:
        """Start the server before the first case."""
        try:
            _enter(self.bench, self.name, self.config)
        except AdapterError as error:
            self.unusable = Unusable(str(error))

    def teardown(self) -> None:
        """Stop it after the last."""
        if not self.unusable:
            self.bench.stop()


class StoreItem(pytest.Item):
    """One case as pytest shows it."""

    case: Case

    def runtest(self) -> None:
        """Ask the case."""
        suite = self.parent
        if isinstance(suite, StoreSuite):
            if suite.unusable:
                suite.unusable.tell()
                return
            answer = ask(self.case, suite.bench)
            if answer.hung:
                suite.bench.replace_server()
            _tell(answer)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Say where the case is from."""
        return self.path, None, f"{self.parent.name if self.parent else ''}::{self.name}"
