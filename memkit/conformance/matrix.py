"""Matrix: the results of the libraries that people use, shipped as matrix.json; ``plot_matrix`` draws them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from memkit.conformance.cases.all_cases import CASES

SHIPPED = Path(__file__).parent / "matrix.json"


class Matrix:
    """The results of several stores, each as JSON types: store, version, server, date, cases.

    A store that could not be tested has ``error`` instead of cases, and is left out.
    """

    def __init__(self, stores: Sequence[dict[str, Any]]) -> None:
        self.stores = [result for result in stores if "cases" in result]

    @classmethod
    def shipped(cls) -> Self:
        """Return the matrix that comes with memkit."""
        return cls(json.loads(SHIPPED.read_text())["stores"])

    def outcome(self, store: str, case: str) -> str:
        """Return ``passed``, ``failed`` or ``skipped``; nothing if the case was not run."""
        return str(self._of(store).get(case, {}).get("outcome", ""))

    def failures(self, store: str) -> dict[str, str]:
        """Return the cases that a store failed, with what was observed."""
        return {name: case["message"] for name, case in self._of(store).items() if case["outcome"] == "failed"}

    def _of(self, store: str) -> dict[str, dict[str, Any]]:
        for result in self.stores:
            if result["store"] == store:
                return {case["name"]: case for case in result["cases"]}
        tested = ", ".join(result["store"] for result in self.stores)
        raise LookupError(f"there is no result of {store!r}; there are {tested}")

    @property
    def cases(self) -> list[str]:
        """The names of the cases that were run, in their order."""
        run = {case["name"] for result in self.stores for case in result["cases"]}
        return [case.name for case in CASES if case.name in run]
