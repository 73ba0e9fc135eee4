"""Ask the stores that people run, each in an environment of its own, and keep the matrix of their answers.

    python tests/matrix/run_libraries.py                          ask them all, print the matrix
    python tests/matrix/run_libraries.py langchain-community      one of them; --case NAME: one case
    python tests/matrix/run_libraries.py --output FILE            keep the answers as JSON

The environments are made with pip under --cache (default: the user's cache directory) and used again. Stores that need
Redis's JSON and search modules are asked where MEMKIT_REDIS_MODULES names the modules' files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from libraries import LIBRARIES, Library

import memkit
from memkit.conformance.cases.all_cases import CASES
from memkit.conformance.matrix import Matrix
from memkit.conformance.result import rule
from memkit.errors import MemkitError
from memkit.server import find_server

HERE = Path(__file__).resolve().parent
LIMIT_S = 300.0
"""A case that takes longer is not judged: some libraries load the whole dialogue at each append."""
ASK = """
import json, sys
from memkit.conformance import run
from importlib.metadata import version
spec, distribution, limit_s, *names = sys.argv[1:]
said = lambda case: print(case.outcome, case.name, file=sys.stderr, flush=True)
answer = run(spec, limit_s=float(limit_s), names=names, on_case=said).to_dict()
print(json.dumps(answer | {"version": version(distribution)}))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0: all were asked, 2: some could not be."""
    given = _arguments(arguments)
    answers = []
    for library in LIBRARIES:
        if given.stores and library.store not in given.stores:
            continue
        print(rule(library.store), file=sys.stderr)
        answers.append(ask_library(library, given.cache, names=given.case))
        if given.case:
            _tell(answers[-1])
    if given.output:
        given.output.write_text(json.dumps({"schema": 1, "stores": answers}, indent=1, ensure_ascii=False) + "\n")
    print(Matrix(answers))
    return 2 if any("error" in answer for answer in answers) else 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python tests/matrix/run_libraries.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stores", nargs="*", choices=[[], *(one.store for one in LIBRARIES)], metavar="STORE")
    parser.add_argument("--case", action="append", default=[], choices=[case.name for case in CASES], metavar="NAME")
    parser.add_argument("--cache", type=Path, default=_cache(), help=f"where environments are kept ({_cache()})")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the answers as JSON")
    return parser.parse_args(arguments)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memkit" / "conformance"


def ask_library(library: Library, cache: Path, *, names: Sequence[str] = ()) -> dict[str, Any]:
    """Return how a library's store answered, as JSON types; with ``error`` instead of cases when it was not asked."""
    about = {
        "store": library.store,
        "requirements": list(library.requirements),
        "date": datetime.now(UTC).date().isoformat(),
        "reproduce": f"python tests/matrix/run_libraries.py {library.store}",
    }
    if library.needs_modules and not os.environ.get("MEMKIT_REDIS_MODULES"):
        return about | {"error": "needs Redis's JSON and search modules; set MEMKIT_REDIS_MODULES to their files"}
    try:
        python = environment(library, cache)
        return about | _asked(python, library, names)
    except (MemkitError, OSError, subprocess.CalledProcessError) as error:
        return about | {"error": " ".join(str(error).split())}


def environment(library: Library, cache: Path) -> Path:
    """Return the Python of a library's environment, made at first use; memkit is copied into it each time."""
    if not library.requirements:
        return Path(sys.executable)
    folder = cache / library.store
    python = folder / "bin" / "python"
    wanted = "\n".join((sys.version, *library.requirements))
    made = folder / "memkit-requirements.txt"
    if not made.exists() or made.read_text() != wanted:
        venv.create(folder, clear=True, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "orjson", "hiredis"]
        subprocess.run([*install, *library.requirements], check=True, stdout=sys.stderr)
        made.write_text(wanted)
    _copy_memkit(next((folder / "lib").glob("python*/site-packages")))
    return python


def _copy_memkit(packages: Path) -> None:
    shutil.copytree(Path(memkit.__file__).parent, packages / "memkit", dirs_exist_ok=True)
    about = packages / f"redis_memkit-{memkit.__version__}.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: redis-memkit\nVersion: {memkit.__version__}\n")


def _asked(python: Path, library: Library, names: Sequence[str]) -> dict[str, Any]:
    command = [str(python), "-c", ASK, library.adapter, library.version_of, str(LIMIT_S), *names]
    # The wheels that bring a server are in memkit's environment, not in the library's.
    variables = os.environ | {"MEMKIT_REDIS_SERVER": str(find_server().path), "PYTHONPATH": str(HERE)}
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, check=False, text=True)
    if done.returncode:
        raise MemkitError(f"not asked; by hand: {python} -m memkit conformance {library.adapter}")
    answer: dict[str, Any] = json.loads(done.stdout)
    slow = sum(map(_too_slow, answer["cases"]))
    counts = {"failed": answer["failed"] - slow, "skipped": answer["skipped"] + slow}
    return answer | counts | {"store": library.store, "cases": [_told(case) for case in answer["cases"]]}


def _told(case: dict[str, Any]) -> dict[str, str]:
    told = {name: case[name] for name in ("name", "outcome", "says")}
    # Being slow is not forgetting.
    return told | ({"outcome": "skipped", "says": f"{case['says']}: not judged"} if _too_slow(case) else {})


def _too_slow(case: dict[str, Any]) -> bool:
    return case["outcome"] == "failed" and str(case["says"]).startswith(("no answer within", "not asked: "))


def _tell(answer: dict[str, Any]) -> None:
    for case in answer.get("cases", ()):
        print(f"{answer['store']} {answer['version']}, {case['name']}: {case['outcome']}\n  {case['says']}")


if __name__ == "__main__":
    sys.exit(main())
