"""Ask every right store every case, and every mutant its own, on every server of this machine, again and again.

    python tests/stress/conformance_stores.py [--rounds N] [--server PATH]... [--every-case] [STORE]...

Prints a line a store with the time it took; ends with 1 if a right store failed or a mutant was not found. With
--every-case each mutant is asked all cases, and the line names every case that found it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from mutants import MUTANTS
from right_stores import RIGHT

from memkit.conformance.cases.all_cases import CASES
from memkit.conformance.memkit_adapter import MemkitAdapter
from memkit.conformance.result import Result
from memkit.conformance.runner import ask_all
from memkit.server import installed_servers


def main() -> int:
    given = _arguments()
    wrong = 0
    for number in range(given.rounds):
        for server in given.server or sorted({str(one.path) for one in installed_servers()}):
            os.environ["MEMKIT_REDIS_SERVER"] = server
            for store in (MemkitAdapter, *RIGHT, *MUTANTS):
                if not given.stores or store.__name__ in given.stores:
                    wrong += not _as_it_should(store, number, every_case=given.every_case)
    print(f"{wrong} wrong")
    return int(wrong > 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--server", action="append")
    parser.add_argument("--every-case", action="store_true")
    parser.add_argument("stores", nargs="*")
    return parser.parse_args()


def _as_it_should(store: type[Any], number: int, *, every_case: bool) -> bool:
    found_by = getattr(store, "found_by", None)
    cases = [case for case in CASES if every_case or found_by in (None, case.name)]
    result = ask_all(store(), label=store.__name__, spec=f"{store.__module__}:{store.__name__}", cases=cases)
    failed = [case.name for case in result.cases if case.outcome == "failed"]
    right = found_by in failed if found_by else not failed
    mark = "ok   " if right else "WRONG"
    print(f"{number} {mark} {store.__name__:<26} {result.took_s:6.2f} s  {_told(result, failed)}", flush=True)
    return right


def _told(result: Result, failed: list[str]) -> str:
    says = next((case.says for case in result.cases if case.outcome == "failed"), "")
    counts = f"{result.count('passed')} passed, {result.count('skipped')} skipped"
    return f"{result.server.split(',')[0]}: {counts}; {', '.join(failed)} {says[:120]}"


if __name__ == "__main__":
    sys.exit(main())
