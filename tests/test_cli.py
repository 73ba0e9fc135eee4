"""The command line as people and scripts use it: output, exit codes, errors in one line."""

import json
import os
import subprocess
import sys

import pytest

from memkit import MemoryStore, RedisServer, connect
from memkit.cli import main
from memkit.formats.capture import load_capture
from memkit.server import free_port

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


REACH = [
    ("redis://127.0.0.1:{free}/0", "is this its port? try: redis-cli -u 'redis://127.0.0.1:{free}/0' ping"),
    ("redis://u:hunter2@127.0.0.1:{free}/0", "try: redis-cli -u 'redis://u:***@127.0.0.1:{free}/0' ping"),
    ("redis://no-such-host.invalid/0", "check the name in the URL"),
    ("unix:///no/such.sock", "is this its socket? try: redis-cli -s /no/such.sock ping"),
    ("redis://u:hunter2@127.0.0.1:{port}/0", "check the user and the password in the URL"),
    ("redis://noscan:hunter2@127.0.0.1:{port}/0", "the one that memkit audit URL --acl prints"),
    ("redis://127.0.0.1:{port}/99", "the database's; /0 is always there"),
    ("redis+cluster://127.0.0.1:{free}", "try: redis-cli -u 'redis://127.0.0.1:{free}' ping"),
    ("redis+cluster://127.0.0.1:{port}", "redis:// instead of redis+cluster://"),
    ("redis+sentinel://127.0.0.1:{free}/svc", "redis-cli -p PORT sentinel masters"),
]


@pytest.fixture(scope="module")
def ports():
    with RedisServer(port=0) as server, server.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "noscan", "on", ">hunter2", "~*", "+@all", "-dbsize", "-scan", "-exists"
        )
        client.set("s", "x")
        yield {"port": server.port, "free": free_port()}


# Sentinels are asked for seconds, and inspect reads what it may.
ASKED = [
    (command, *one)
    for one in REACH
    for command in ("audit", "inspect", "triage")
    if command == "audit" or not ("sentinel" in one[0] or (command == "inspect" and "noscan" in one[0]))
]


@pytest.mark.parametrize(("command", "url", "advice"), ASKED)
def test_a_server_that_cannot_be_read_is_said_with_what_to_do_next(capsys, ports, tmp_path, command, url, advice):
    more = {"inspect": ["s"], "triage": ["-o", str(tmp_path / "report.html")], "audit": ["--expect", "chat:*=7d"]}
    code, out, err = say(capsys, command, url.format(**ports), *more[command])
    assert (code, out) == (2, "")
    assert err.startswith("memkit: ")
    assert err.count("\n") == 1
    assert advice.format(**ports) in err
    assert "hunter2" not in err
    assert "<redis" not in err


UNENCODED = [
    "redis://u:hun@ter#ca?ts@127.0.0.1:{free}/0", "redis://u:hun/ter@127.0.0.1:{free}/0", "redis://:hun?ter@h/0",
    "redis://u:hun#ter@127.0.0.1:{free}", "redis://u:hun#ter", "redis://u:12345/hunter@h", "redis://u:hun ter@h",
    "redis://u:hun\nter@h:1/0", "unix://u:hun/ter@/no/such.sock", "unix://u:hun#ter@/no/such.sock", "redis://u:hunter",
    "redis+cluster://u:hun@ter@127.0.0.1:{free}", "redis+cluster://u:hunter", "redis+sentinel://u:hun/ter@h:1/svc",
    "redis://h:1/0?password=hun#ter", "redis://u:1?hun=ter@h:1/0", "redis://u:hun[ter@h:1/0", "u:hunter@h:1",
    "redis://u:hun\u2100ter@h:1/0", "redis://u:pw@h:hunter/0",
]  # fmt: skip


@pytest.mark.parametrize("command", ["audit", "inspect", "triage"])
@pytest.mark.parametrize("url", UNENCODED)
def test_no_piece_of_a_password_that_is_not_encoded_is_shown(capsys, ports, command, url):
    code, out, err = say(capsys, command, url.format(**ports), *(["s"] if command == "inspect" else []))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert not any(piece in err for piece in ("hun", "ter@", "ter#", "ca?ts", "123"))


def test_a_password_that_is_encoded_is_read_as_it_was():
    with connect("redis://u:hun%40ter%2F%23%3F@127.0.0.1/3") as client:
        options = client.connection_pool.connection_kwargs
    assert (options["password"], options["host"], options["db"]) == ("hun@ter/#?", "127.0.0.1", 3)


@pytest.mark.parametrize("command", ["audit", "inspect", "triage"])
@pytest.mark.parametrize("path", ["abc", "1/2", "-1", "0x1", "%31"])
def test_a_path_that_is_no_database_number_is_named(capsys, ports, command, path):
    code, out, err = say(
        capsys, command, f"redis://127.0.0.1:{ports['port']}/{path}", *(["s"] if command == "inspect" else [])
    )
    assert (code, out) == (2, "")
    assert f"'/{path}' in the URL is no database number; expected /0" in err


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
    assert report["keys"][0]["ttl_s"] == pytest.approx(604_800, abs=60)
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
        assert process.stderr.read() == ""


def test_the_module_runs_too():
    said = subprocess.run([sys.executable, "-m", "memkit", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("memkit ")
    assert os.linesep in said.stdout
