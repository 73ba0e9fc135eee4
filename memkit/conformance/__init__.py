"""Does your store forget: cases over a small adapter, asked on a private real server with real faults.

``run("package.module:factory")`` asks them all; ``StoreContract`` is a class to inherit from in your own tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memkit.conformance.adapter import AdapterError, Handle, StoreAdapter
from memkit.conformance.cases.all_cases import CASES
from memkit.conformance.matrix import Matrix
from memkit.conformance.result import CaseResult, Result
from memkit.conformance.runner import run

if TYPE_CHECKING:
    from memkit.conformance.pytest_suite import StoreContract as StoreContract

__all__ = ["CASES", "AdapterError", "CaseResult", "Handle", "Matrix", "Result", "StoreAdapter", "StoreContract", "run"]


def __getattr__(name: str) -> Any:
    # pytest is needed by those alone who write tests.
    if name == "StoreContract":
        from memkit.conformance.pytest_suite import StoreContract

        return StoreContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
