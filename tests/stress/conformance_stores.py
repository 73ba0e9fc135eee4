"""Run every right store through every case, and every mutant through its own, on every server of this machine.

    python tests/stress/conformance_stores.py [--rounds N] [--server PATH]... [--every-case] [STORE]...

Prints a line for each store with the time it took; exits with 1 if a right store failed or a mutant was not found. With
--every-case each mutant goes through all cases, and the line names every case that found it, root causes first.
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
from memkit.conformance.runner import run_cases
from memkit.server import installed_servers


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--server", action="append")
    parser.add_argument("--every-case", action="store_true")
    parser.add_argument("stores", nargs="*")
    given = parser.parse_args()
    wrong = 0
    for number in range(given.rounds):
        for server in given.server or sorted({str(one.path) for one in installed_servers()}):
            os.environ["MEMKIT_REDIS_SERVER"] = server
            for store in (MemkitAdapter, *RIGHT, *MUTANTS):
                if not given.stores or store.__name__ in given.stores:
                    wrong += not is_right(store, number, every_case=given.every_case)
    print(f"{wrong} wrong")
    return int(wrong > 0)


def is_right(store: type[Any], number: int, *, every_case: bool) -> bool:
    """Run one store and print its line."""
    found_by = getattr(store, "found_by", None)
    cases = [case for case in CASES if every_case or found_by in (None, case.name)]
    result = run_cases(store(), spec=f"{store.__module__}:{store.__name__}", cases=cases)
    failed = {case.name: case.message for case in result.cases if case.outcome == "failed"}
    right = found_by in failed if found_by else not failed
    causes = ", ".join(f"{one.case} ({', '.join(one.cases)})" if one.cases else one.case for one in result.root_causes)
    counts = f"{result.count('passed')} passed, {result.count('skipped')} skipped"
    text = f"{result.server.split(',')[0]}: {counts}; {causes} {next(iter(failed.values()), '')[:120]}"
    print(f"{number} {'ok   ' if right else 'WRONG'} {store.__name__:<26} {result.took_s:6.2f} s  {text}", flush=True)
    return right


if __name__ == "__main__":
    sys.exit(main())
