"""What README.md says is so: each command is one that exists, each block runs, the figure is what the kit draws.

python tests/test_docs.py      draws .github/incident.svg anew
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from servers import LANES

from memkit import MemoryStore, RedisServer
from memkit.cli import _parser
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
    """Chats meant to live seven days, from before a release and from after it, beside two policies left alone."""
    with RedisServer() as server, server.client() as client:
        meant = {}
        stores = {"chat": ("7d", "7d"), "released": ("7d", "5m"), "draft": ("1h", "1h"), "cart": ("1d", "1d")}
        for name, (intended, actual) in stores.items():
            store = MemoryStore(client, prefix=f"{name}:", ttl=actual)
            for number in range(200):
                store.save(str(number), [{"role": "user", "content": "hi"}])
                meant[store.key(str(number))] = intended
        return plot_expiry(observe_expiry(client, keys=meant, clock=server.clock))


def texts(svg):
    """The words in a figure, without those that differ from run to run: how exactly it could be seen, and on what."""
    said = re.findall(r"<!-- (.*?) -->", svg.decode())
    said = [text for text in said if not re.match(r"Not as meant|.*expired\)|.*exact to", text)]
    return sorted(re.sub(r"(off by|within|lived) .*", "…", text) for text in said)


def test_the_figure_is_what_the_kit_draws_of_the_incident():
    axes = draw_incident()
    assert "200 of 400 keys meant to live 7d" in alt_text(axes)
    drawn = show(axes).svg
    assert any("meant 7d" in text for text in texts(drawn))
    assert texts(FIGURE.read_bytes()) == texts(drawn)


def test_the_first_screen_has_the_two_commands_each_on_a_line_of_its_own():
    first, second = blocks("sh")[:2]
    assert README.index(second) < 3000
    for command, program in ((first, "memkit lab"), (second, "pytest -n 2")):
        assert command.count("\n") == 1
        assert command.startswith("python3 -m venv .venv && ")
        assert command.rstrip().endswith(f"uv run {program}")


def test_under_each_command_stands_what_it_says():
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
    assert _parser().parse_args(arguments).run


def test_every_command_is_documented():
    parser = _parser()
    commands = next(action for action in parser._actions if action.choices and "lab" in action.choices).choices
    said = " ".join(COMMANDS)
    for name in commands:
        assert f"memkit {name}" in said, name


def test_the_test_block_passes_as_it_stands(tmp_path):
    (tmp_path / "test_readme.py").write_text(blocks("python")[0])
    plain = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    run = [sys.executable, "-m", "pytest", "-p", "memkit.pytest_plugin", "-c", os.devnull, "--rootdir", str(tmp_path)]
    done = subprocess.run([*run, str(tmp_path)], capture_output=True, text=True, check=False, env=plain)
    assert "1 passed" in done.stdout, done.stdout


def test_the_store_block_runs_as_it_stands(memkit_server_factory):
    server = memkit_server_factory()
    text = blocks("python")[1]
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


def test_the_map_names_what_is_there():
    the_map = next(
        text for kind, text in re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL) if "memkit/policy" in text
    )
    for name in re.findall(r"(?<=[\s/])(\w+\.(?:py|c))\b", the_map):
        assert list((ROOT / "memkit").rglob(name)), name
    assert len(the_map.strip().splitlines()) == 10


if __name__ == "__main__":
    FIGURE.parent.mkdir(exist_ok=True)
    FIGURE.write_bytes(show(draw_incident()).svg)
