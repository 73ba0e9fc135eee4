"""Run any session store through cases with real faults, on a private server, to see when it loses memory.

``run("package.module:factory")`` runs all cases; ``StoreContract`` makes them tests of your own suite.
"""

from typing import TYPE_CHECKING, Any

from memkit.conformance.adapter import AdapterError, Handle, StoreAdapter
from memkit.conformance.case import CaseResult
from memkit.conformance.cases.all_cases import CASES
from memkit.conformance.matrix import Matrix
from memkit.conformance.result import Result
from memkit.conformance.runner import run

if TYPE_CHECKING:
    from memkit.conformance.pytest_suite import StoreContract as StoreContract

__all__ = ["CASES", "AdapterError", "CaseResult", "Handle", "Matrix", "Result", "StoreAdapter", "StoreContract", "run"]


def __getattr__(name: str) -> Any:
    # Only those who write tests need pytest.
    if name == "StoreContract":
        from memkit.conformance.pytest_suite import StoreContract

        return StoreContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
