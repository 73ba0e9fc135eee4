"""The command line as people and scripts use it: output, exit codes, errors in one line."""

import json
import os
import subprocess
import sys

import pytest

from memkit import MemoryStore
from memkit.cli import main
from memkit.formats.capture import load_capture

COMMANDS = ["lab", "server", "audit", "inspect", "triage", "conformance"]


@pytest.fixture
def client(memkit_server_factory):
    server = memkit_server_factory()
    with server.client() as client:
        client.url = server.url
        yield client


def say(capsys, *arguments):
    code = main(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["-h"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_alone_it_lists_the_commands(capsys):
    code, out, err = say(capsys)
    assert (code, out) == (2, "")
    assert all(command in err for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_commands_help_has_an_example(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "-h"])
    out = capsys.readouterr().out
    assert f"example:\n  memkit {command}" in out


@pytest.mark.parametrize("arguments", [["nonsense"], ["audit"], ["inspect", "redis://h"], ["server", "--port", "x"]])
def test_wrong_use_is_exit_2(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: memkit" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["audit", "redis://u:hunter2@localhost:1/0"],
        ["inspect", "redis://u:hunter2@localhost:1/0", "s"],
        ["inspect", "gopher://u:hunter2@h", "s"],
        ["audit", "redis://localhost:1", "--expect", "chat:*=soon"],
        ["audit", "redis://localhost:1", "--expect-file", "/no/such/file"],
        ["audit", "redis://localhost:1", "--duty", "7"],
        ["triage", "redis://u:hunter2@localhost:1/0"],
        ["triage", "redis://localhost:1", "--expect", "chat"],
        ["triage", "-o", "/no/such/folder/report.html"],
        ["conformance", "no.such:thing"],
        ["conformance", "nocolon"],
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_without_a_traceback(capsys, arguments):
    code, out, err = say(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("memkit: ")
    assert err.count("\n") == 1
    assert "hunter2" not in err


@pytest.mark.parametrize("name", ["langchain-community", "llama-index", "openai-agents"])
def test_inspect_finds_a_captured_session(capsys, client, name):
    session = load_capture(client, name)
    code, out, _ = say(capsys, "inspect", client.url, session, "--json")
    report = json.loads(out)
    assert (report["schema"], report["store"], report["session"]) == (1, name, session)
    assert [message["role"] for message in report["messages"]] == ["user", "assistant", "tool"]
    assert {message["text"] for message in report["messages"] if message["chars"]} == {None}
    assert code == (1 if report["problems"] else 0)
    revealed = json.loads(say(capsys, "inspect", client.url, session, "--json", "--reveal")[1])
    assert revealed["messages"][0]["text"]
    table = say(capsys, "inspect", client.url, session)[1]
    assert all(role in table for role in ("user", "assistant", "tool"))
    assert revealed["messages"][0]["text"] not in table


def test_inspect_reads_memkits_own(capsys, client):
    MemoryStore(client, prefix="chat:", ttl="7d").save("user-42", [{"role": "user", "content": "a secret"}])
    code, out, _ = say(capsys, "inspect", client.url, "chat:user-42", "--json")
    report = json.loads(out)
    assert (code, report["store"]) == (0, "memkit")
    assert [message["role"] for message in report["messages"]] == ["user"]
    assert report["keys"][0]["ttl_s"] == pytest.approx(604_800, abs=5)
    assert "a secret" not in out


def test_inspect_of_a_session_that_is_not_there(capsys, client):
    code, out, err = say(capsys, "inspect", client.url, "nobody")
    assert (code, out) == (2, "")
    assert "nobody" in err


def test_audit_finds_the_incident_and_prints_json(capsys, client):
    store = MemoryStore(client, prefix="chat:", ttl="5m")
    for number in range(200):
        store.save(f"user-{number}", [{"role": "user", "content": "hi"}])
    code, out, _ = say(capsys, "audit", client.url, "--expect", "chat:*=7d", "--json", "--duty", "1")
    report = json.loads(out)
    assert (code, report["schema"], report["verdict"]["cause"]) == (1, 1, "ttl_too_short")
    assert report["findings"][0]["expected_ttl_s"] == 604_800
    assert report["findings"][0]["observed_ttl_s"] == pytest.approx(300, rel=0.02)
    assert report["proof"]["writes"] == 0
    code, out, _ = say(capsys, "audit", client.url, "--expect", "chat:*=7d")
    assert code == 1
    assert "chat:" in out
    assert "\033" not in out


def test_audit_of_an_empty_database_is_no_data(capsys, client):
    code, _, _ = say(capsys, "audit", client.url, "--expect", "chat:*=7d")
    assert code == 2


def test_audit_prints_the_user_to_make(capsys):
    code, out, _ = say(capsys, "audit", "redis://localhost:1", "--acl", "--expect", "chat:*=7d")
    assert code == 0
    assert out.startswith("ACL SETUSER ")
    assert "%R~chat:*" in out


def test_triage_of_the_demo_incident_writes_a_report(capsys, tmp_path):
    code, out, _ = say(capsys, "triage", "-o", str(tmp_path / "report.html"))
    assert code == 1
    assert "chat:" in out.splitlines()[0]
    assert (tmp_path / "report.html").read_text("utf-8").startswith("<!DOCTYPE html>")


def test_conformance_of_memkits_own_store(capsys):
    code, out, _ = say(capsys, "conformance", "memkit.conformance.adapters.memkit_store:MemkitAdapter", "--json")
    report = json.loads(out)
    failed = [case for case in report["cases"] if case["outcome"] == "failed"]
    assert (code, report["schema"], failed) == (0, 1, [])
    assert report["passed"] >= 30
    assert report["passed"] + report["failed"] + report["skipped"] == len(report["cases"])


def test_a_closed_pipe_is_no_traceback(client):
    MemoryStore(client, prefix="chat:").save("s", [{"n": n} for n in range(2000)])
    inspect = [sys.executable, "-m", "memkit", "inspect", client.url, "chat:s"]
    with subprocess.Popen(inspect, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


def test_the_module_runs_too():
    said = subprocess.run([sys.executable, "-m", "memkit", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("memkit ")
    assert os.linesep in said.stdout
