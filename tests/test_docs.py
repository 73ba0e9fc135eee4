"""README.md: every command exists, every block runs, and the figure is what memkit draws.

python tests/test_docs.py     draws .github/incident.svg again
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from package_map import PLACES, package_map, with_map
from servers import LANES
from test_layers import ORDER

from memkit import MemoryStore, RedisServer, cli
from memkit.cli.parser import command_line
from memkit.observe import observe_expiry
from memkit.plot import alt_text, plot_expiry, show

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FIGURE = ROOT / ".github" / "incident.svg"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"`(memkit [^`\n]+)`", README)


def blocks(language):
    return [text for kind, text in BLOCKS if kind == language]


def draw_incident():
    """Chats configured for seven days, from before and after a release, and two policies that did not change."""
    with RedisServer() as server, server.client() as client:
        configured = {}
        stores = {"chat": ("7d", "7d"), "released": ("7d", "5m"), "draft": ("1h", "1h"), "cart": ("1d", "1d")}
        for name, (policy, ttl) in stores.items():
            store = MemoryStore(client, prefix=f"{name}:", ttl=ttl)
            for number in range(200):
                store.save(str(number), [{"role": "user", "content": "hi"}])
                configured[store.key(str(number))] = policy
        return plot_expiry(observe_expiry(client, keys=configured, clock=server.clock))


def texts(svg):
    """Return the texts in a figure without those that differ from run to run: resolution, server and durations."""
    texts = re.findall(r"<!-- (.*?) -->", svg.decode())
    texts = [text for text in texts if not re.match(r"Not as configured|expired after \d.*\.$|.*exact to", text)]
    return sorted(re.sub(r"(at most|expired after) .*", "…", text) for text in texts)


def test_the_figure_is_what_memkit_draws():
    axes = draw_incident()
    assert "200 of 400 keys with a configured TTL of 7d" in alt_text(axes)
    drawn = show(axes).svg
    assert any("configured 7d" in text for text in texts(drawn))
    assert texts(FIGURE.read_bytes()) == texts(drawn)


def test_the_first_screen_has_the_two_commands():
    first, second = blocks("sh")[:2]
    assert README.index(second) < 3000
    for command, program in ((first, "memkit lab"), (second, "pytest -n 4")):
        assert command.count("\n") == 1
        assert command.startswith("python3 -m venv .venv && ")
        assert command.rstrip().endswith(f"uv run {program}")


def test_each_command_is_followed_by_its_output():
    _, tests = blocks("text")[:2]  # the first is held by test_lab.py
    *servers, last = tests.splitlines()
    for line in servers:
        lane = re.fullmatch(r"server (\S+) \(.*\): \d+ passed, 0 failed, \d+ skipped", line)[1]
        assert lane in LANES
    assert re.fullmatch(r"=+ \d+ passed, \d+ skipped in .*s \(.*\) =+", last)


def test_ci_runs_the_readmes_test_command():
    extract = re.search(r"\$\((sed .*?\| head -n 1)\)", (ROOT / ".ci/run").read_text())[1]
    said = subprocess.run(["sh", "-c", extract], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said == blocks("sh")[1]


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_every_command_exists(command):
    arguments = [word for word in shlex.split(command)[1:] if word != "…"]
    assert command_line().parse_args(arguments).command


def test_every_command_is_documented():
    parser = command_line()
    commands = next(action for action in parser._actions if action.choices and "lab" in action.choices).choices
    said = " ".join(COMMANDS)
    for name in commands:
        assert f"memkit {name}" in said, name


def test_the_exit_codes_are_documented():
    assert cli.__doc__
    assert cli.__doc__.partition(". ")[2] in README


def test_the_test_block_passes_as_it_stands(tmp_path):
    for number, block in enumerate(blocks("python")[:2]):
        (tmp_path / f"test_readme_{number}.py").write_text(block)
    plain = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    run = [sys.executable, "-m", "pytest", "-p", "memkit.pytest_plugin", "-c", os.devnull, "--confcutdir=."]
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=plain, cwd=tmp_path)
    assert "2 passed" in done.stdout, done.stdout


def test_the_store_block_runs_as_it_stands(memkit_server_factory):
    server = memkit_server_factory()
    text = blocks("python")[2]
    assert "from redis import Redis\n" in text
    # The only line that is not run: it would reach for whatever listens on this machine's port 6379.
    exec(text.replace("from redis import Redis\n", ""), {"Redis": server.client})  # noqa: S102
    with server.client() as client:
        session = MemoryStore(client, prefix="chat:", ttl=None).get("user-42")
    assert (session.summary, session.metadata) == ("greets", {"lang": "en"})
    assert session.messages == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_every_link_leads_somewhere(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize("place", PLACES, ids=lambda path: path.name)
def test_the_map_is_current(place):
    text = place.read_text("utf-8")
    assert text == with_map(text, package_map(ORDER)), "run: python tests/package_map.py --write"


if __name__ == "__main__":
    FIGURE.parent.mkdir(exist_ok=True)
    FIGURE.write_bytes(show(draw_incident()).svg)
