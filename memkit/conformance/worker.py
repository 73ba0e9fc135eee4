"""The process that runs the cases, or one job: it may hang or crash with the store, and ends with its parent.

``python -m memkit.conformance.worker SPEC LIMIT_S CASE...`` runs cases and prints JSON, a line each; without cases it
reads one job from stdin: open a session, read it, append a message.
"""

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from memkit.conformance.adapter import StoreAdapter, error_line, load
from memkit.conformance.cases.all_cases import CASES
from memkit.conformance.runner import FIRST_CONTACT, run_cases
from memkit.errors import MemkitError

Send = Callable[..., None]


def main(arguments: list[str]) -> None:
    """Do the work and end without waiting for the store's own threads."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        # Not sys.stdin: this thread would hold its lock, and a forked process closes it.
        with os.fdopen(os.dup(0), "rb") as stdin:
            for line in stdin:
                lines.put(line)
        os._exit(2)

    threading.Thread(target=listen, daemon=True).start()
    # What a store prints goes to stderr; stdout belongs to the results.
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)

        def send(**line: object) -> None:
            print(json.dumps(line), file=out, flush=True)

        spec, *rest = arguments
        try:
            adapter = load(spec)
            if rest:
                _run(adapter, spec, float(rest[0]), rest[1:], send)
            else:
                _read_and_append(adapter, json.loads(lines.get()), send)
        except MemkitError as error:
            send(error=str(error), kind=type(error).__name__)
    os._exit(0)


def _run(adapter: StoreAdapter, spec: str, limit_s: float, names: list[str], send: Send) -> None:
    send(store=adapter.name, step=FIRST_CONTACT)
    result = run_cases(
        adapter,
        spec=spec,
        cases=[case for case in CASES if case.name in names],
        limit_s=limit_s,
        on_contact=lambda: send(step=""),
        on_case=lambda case: send(case=asdict(case)),
    )
    send(server=result.server)


def _read_and_append(adapter: StoreAdapter, job: dict[str, Any], send: Send) -> None:
    try:
        handle = adapter.open(job["url"], job["session_id"], job["ttl_s"])
        read = [(role, text) for role, text in handle.read()]
        handle.append(job["role"], job["text"])
        handle.close()
    except BaseException as error:  # noqa: BLE001  # sent to the suite, which decides
        send(raised=error_line(error))
    else:
        send(read=read)


if __name__ == "__main__":
    main(sys.argv[1:])
