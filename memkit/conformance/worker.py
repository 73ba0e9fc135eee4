"""The process that asks the cases: it may hang or crash with the store, and takes its server with it when it ends.

Run as ``python -m memkit.conformance.worker SPEC LIMIT_S CASE...`` by runner.run; it says one JSON object a line.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict

from memkit.conformance.adapter import load
from memkit.conformance.cases.all_cases import CASES
from memkit.conformance.runner import ask_all
from memkit.errors import MemkitError

FIRST_CONTACT = "at the first contact: open(), append(), read(), clear(), close()"


def main(arguments: list[str]) -> None:
    """Ask the named cases and end without asking the store's own threads."""
    # What a store prints goes to stderr; stdout belongs to the results.
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        threading.Thread(target=_end_with_parent, daemon=True).start()

        def say(**line: object) -> None:
            print(json.dumps(line), file=out, flush=True)

        spec, limit_s, *names = arguments
        try:
            adapter = load(spec)
            say(store=adapter.name, step=FIRST_CONTACT)
            cases = [case for case in CASES if case.name in names]
            result = ask_all(
                adapter,
                label=spec,
                spec=spec,
                cases=cases,
                limit_s=float(limit_s),
                on_contact=lambda: say(step=""),
                on_case=lambda case: say(case=asdict(case)),
            )
            say(server=result.server)
        except MemkitError as error:
            say(error=str(error), kind=type(error).__name__)
    os._exit(0)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
