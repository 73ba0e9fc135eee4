"""Run the cases against the stores that people use, each in an environment of its own, and keep the matrix.

    python tests/matrix/run_libraries.py                          all of them; print the matrix
    python tests/matrix/run_libraries.py langchain-community      one of them; --case NAME: one case
    python tests/matrix/run_libraries.py --output FILE            keep the results as JSON

The environments are made with pip or npm under --cache (default: the user's cache directory) and used again. Stores
that need Redis's JSON and search modules are tested if MEMKIT_REDIS_MODULES names the modules' files. --update changes
or adds the stores that were run in a file of results, and keeps the others.
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
from memkit.errors import MemkitError
from memkit.render import Table
from memkit.server import find_server

HERE = Path(__file__).resolve().parent
LIMIT_S = 300.0
"""A case that takes longer is not judged: some libraries load the whole dialogue at each append."""
MARKS = {"passed": "ok", "failed": "X", "skipped": "–"}
RUN = """
import json, sys
from memkit.conformance import run
from importlib.metadata import version
spec, distribution, limit_s, *names = sys.argv[1:]
show = lambda case: print(case.outcome, case.name, file=sys.stderr, flush=True)
result = run(spec, limit_s=float(limit_s), names=names, on_case=show).to_dict()
print(json.dumps(result | {"version": version(distribution)}))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0: all were tested, 2: some could not be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memkit" / "conformance"
    parser = argparse.ArgumentParser(
        prog="python tests/matrix/run_libraries.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stores", nargs="*", choices=[[], *(one.store for one in LIBRARIES)], metavar="STORE")
    parser.add_argument("--case", action="append", default=[], choices=[case.name for case in CASES], metavar="NAME")
    parser.add_argument("--cache", type=Path, default=cache, help=f"where environments are kept ({cache})")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--update", type=Path, metavar="FILE", help="replace these stores' results in a JSON file")
    given = parser.parse_args(arguments)
    results = []
    for library in LIBRARIES:
        if given.stores and library.store not in given.stores:
            continue
        print(f"== {library.store}", file=sys.stderr)
        results.append(run_library(library, given.cache, names=given.case))
        for case in results[-1].get("cases", ()) if given.case else ():
            print(f"{library.store} {results[-1]['version']}, {case['name']}: {case['outcome']}\n  {case['message']}")
    if given.output:
        _write(given.output, results)
    if given.update:
        found = {one["store"]: one for one in [*json.loads(given.update.read_text())["stores"], *results]}
        _write(given.update, [found[library.store] for library in LIBRARIES if library.store in found])
    print(_table(results))
    return 2 if any("error" in result for result in results) else 0


def _table(results: Sequence[dict[str, Any]]) -> str:
    matrix = Matrix(results)
    lines = [f"{result['store']}: not tested: {result['error']}" for result in results if "error" in result]
    for number, result in enumerate(matrix.stores, 1):
        lines.append(f"({number}) {result['store']} {result['version']} on {result['server']}, {result['date']}")
    stores = [result["store"] for result in matrix.stores]
    rows = [(case, *(MARKS.get(matrix.outcome(store, case), "") for store in stores)) for case in matrix.cases]
    titles = ("X failed, – skipped", *map(str, range(1, len(stores) + 1)))
    return "\n".join([*lines, Table("", titles, rows).to_text()])


def _write(file: Path, results: list[dict[str, Any]]) -> None:
    file.write_text(json.dumps({"schema": 2, "stores": results}, indent=1, ensure_ascii=False) + "\n")


def run_library(library: Library, cache: Path, *, names: Sequence[str] = ()) -> dict[str, Any]:
    """Return the result of a library's store as JSON types; with ``error`` instead of cases if it was not tested."""
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
        # The wheels that contain a server are in memkit's environment, not in the library's.
        folder = cache / library.store
        variables = os.environ | {"MEMKIT_REDIS_SERVER": str(find_server().path), "PYTHONPATH": str(HERE)}
        variables |= {"MEMKIT_NPM": str(folder)} if library.npm else {}
        version_of = "redis-memkit" if library.npm else library.version_of
        command = [str(python), "-c", RUN, library.adapter, version_of, str(LIMIT_S), *names]
        done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, check=False, text=True)
        if done.returncode:
            raise MemkitError(f"not tested; by hand: {python} -m memkit conformance {library.adapter}")
    except (MemkitError, OSError, subprocess.CalledProcessError) as error:
        return about | {"error": " ".join(str(error).split())}
    result: dict[str, Any] = json.loads(done.stdout)
    if library.npm:
        package = folder / "node_modules" / library.version_of / "package.json"
        result["version"] = json.loads(package.read_text())["version"]
    cases = [{name: case[name] for name in ("name", "outcome", "message")} for case in result["cases"]]
    for case in cases:
        # A slow store loses nothing.
        if case["outcome"] == "failed" and case["message"].startswith(("no answer within", "not run: ")):
            case |= {"outcome": "skipped", "message": f"{case['message']}: not judged"}
    counts = {name: sum(case["outcome"] == name for case in cases) for name in ("passed", "failed", "skipped")}
    return about | {name: result[name] for name in ("server", "took_s", "version")} | counts | {"cases": cases}


def environment(library: Library, cache: Path) -> Path:
    """Return the Python of a library's environment, made at first use; memkit is copied into it each time.

    Packages of npm are installed for Node in a folder of their own, and this Python calls them.
    """
    if not library.requirements:
        return Path(sys.executable)
    folder = cache / library.store
    python = Path(sys.executable) if library.npm else folder / "bin" / "python"
    wanted = "\n".join((sys.version, *library.requirements))
    made = folder / "memkit-requirements.txt"
    if not made.exists() or made.read_text() != wanted:
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "orjson", "hiredis"]
        if library.npm:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "package.json").write_text("{}")
            install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder)]
        else:
            venv.create(folder, clear=True, with_pip=True)
        subprocess.run([*install, *library.requirements], check=True, stdout=sys.stderr)
        made.write_text(wanted)
    if library.npm:
        shutil.copy(HERE / "adapters" / "npm_stores.mjs", folder)
        return python
    packages = next((folder / "lib").glob("python*/site-packages"))
    shutil.copytree(Path(memkit.__file__).parent, packages / "memkit", dirs_exist_ok=True)
    about = packages / f"redis_memkit-{memkit.__version__}.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: redis-memkit\nVersion: {memkit.__version__}\n")
    return python


if __name__ == "__main__":
    sys.exit(main())
