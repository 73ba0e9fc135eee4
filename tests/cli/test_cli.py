"""The command line as people and scripts use it: output, exit codes, errors in one line."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from waiting import wait_for

from memkit import MemoryStore, RedisServer, connect
from memkit.cli import main
from memkit.errors import ServerError
from memkit.formats.capture import load_capture
from memkit.server import free_port

COMMANDS = ["lab", "server", "audit", "inspect", "history", "record", "triage", "conformance"]


@pytest.fixture
def client(memkit_server_factory):
    server = memkit_server_factory()
    with server.client() as client:
        client.url = server.url
        yield client


def run(capsys, *arguments):
    code = main(arguments)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["-h"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_without_a_command_it_prints_the_help(capsys):
    code, out, err = run(capsys)
    assert (code, out) == (2, "")
    assert all(command in err for command in COMMANDS)


@pytest.mark.parametrize("command", ["inspect", "history"])
def test_the_session_may_stand_behind_an_option(capsys, client, tmp_path, command):
    client.set("chat:1", "x", ex=300)
    file = tmp_path / "incident.db"
    assert run(capsys, "record", client.url, "-o", str(file), "--for", "10ms")[0] == 0
    source = client.url if command == "inspect" else str(file)
    out = run(capsys, command, source, "--json", "chat:1")[1]
    assert json.loads(out)["session"] == "chat:1"


@pytest.mark.parametrize(
    ("arguments", "command", "unknown"),
    [
        (["audit", "r.rdb", "--expct", "7d"], "memkit audit", "--expct 7d"),
        (["audit", "r.rdb", "s"], "memkit audit", "s"),
        (["inspect", "r.rdb", "s", "--json", "t"], "memkit inspect", "t"),
        (["history", "r.rdb", "--json", "s", "-x"], "memkit history", "s -x"),
        (["--x"], "memkit", "--x"),
    ],
)
def test_an_unknown_argument_names_its_command(capsys, arguments, command, unknown):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    error = f"{command}: unrecognized arguments: {unknown}; see {command} -h\n"
    assert (ended.value.code, capsys.readouterr().err) == (2, error)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_has_an_example_in_80_columns(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "-h"])
    out = capsys.readouterr().out
    assert f"example:\n  memkit {command}" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("arguments", [["nonsense"], ["inspect"], ["audit", "a", "b"], ["server", "--port", "x"]])
def test_wrong_use_is_exit_2(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("memkit")
    assert line.endswith(" -h")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("MEMKIT_REDIS_URL", "REDIS_URL", "REDISCLI_AUTH", "MEMKIT_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["MEMKIT_REDIS_URL", "REDIS_URL"])
def test_the_url_may_come_from_the_environment(capsys, client, monkeypatch, name):
    MemoryStore(client, prefix="chat:", ttl="7d").save("user-42", [{"role": "user", "content": "hi"}])
    monkeypatch.setenv(name, client.url)
    code, out, _ = run(capsys, "inspect", "chat:user-42", "--json")
    assert (code, json.loads(out)["store"]) == (0, "memkit")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    assert run(capsys, "inspect", client.url, "chat:user-42")[0] == 0


@pytest.mark.parametrize("user", ["", "default@"])
def test_the_password_may_come_from_the_environment(capsys, monkeypatch, user):
    with RedisServer(port=0) as server:
        with server.client() as client:
            client.set("chat:1", "{}", ex=60)
            client.config_set("requirepass", "s3cret/@:")
        url = f"redis://{user}127.0.0.1:{server.port}/0"
        code, _, err = run(capsys, "audit", url, "--expect", "chat:*=7d")
        assert (code, "REDISCLI_AUTH" in err) == (2, True)
        monkeypatch.setenv("REDISCLI_AUTH", "s3cret/@:")
        assert run(capsys, "inspect", url, "chat:1", "--json")[0] in (0, 1)
        monkeypatch.delenv("REDISCLI_AUTH")
        monkeypatch.setattr("getpass.getpass", lambda _: "s3cret/@:")
        assert run(capsys, "inspect", url, "chat:1", "--askpass", "--json")[0] in (0, 1)


def test_inspect_without_a_session_asks_for_it(capsys):
    assert "no SOURCE before SESSION_OR_KEY" in run(capsys, "inspect", "redis://u:hunter2@localhost:1/0")[2]


@pytest.mark.parametrize(
    "arguments",
    [
        ["audit"],
        ["inspect", "user-42"],
        ["audit", "redis://u:hunter2@localhost:1/0"],
        ["inspect", "redis://u:hunter2@localhost:1/0", "s"],
        ["inspect", "gopher://u:hunter2@h", "s"],
        ["audit", "redis://localhost:1", "--expect", "chat:*=soon"],
        ["audit", "redis://localhost:1", "--duty", "7"],
        ["triage", "redis://u:hunter2@localhost:1/0"],
        ["triage", "redis://localhost:1", "--expect", "chat"],
        ["triage", "-o", "/no/such/folder/report.html"],
        ["record", "redis://localhost:1", "-o", "/no/such/folder/incident.db"],
        ["audit", "redis://localhost:1", "--affected", "/no/such/folder/keys.txt"],
        ["conformance", "no.such:thing"],
        ["conformance", "nocolon"],
        ["conformance", "redis://localhost:6379/0"],
    ],
)
def test_an_error_is_one_line_without_a_traceback(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("memkit: ")
    assert err.count("\n") == 1
    assert "hunter2" not in err


REACH = [
    ("redis://127.0.0.1:{free}/0", "the port is right; try: redis-cli -u redis://127.0.0.1:{free}/0 ping"),
    ("redis://u:hunter2@127.0.0.1:{free}/0", "try: redis-cli -u redis://127.0.0.1:{free}/0 --user u ping"),
    ("redis://no-such-host.invalid/0", "the host name is unknown"),
    ("unix:///no/such.sock", "the socket is right; try: redis-cli -s /no/such.sock -n 0 ping"),
    ("redis://u:hunter2@127.0.0.1:{port}/0", "check the user in the URL and the password"),
    ("redis://noscan:hunter2@127.0.0.1:{port}/0", "the one that memkit audit URL --acl prints"),
    ("redis://127.0.0.1:{port}/99", "check the database number at the end of the URL; /0 always exists"),
    ("redis+cluster://127.0.0.1:{free}", "try: redis-cli -u redis://127.0.0.1:{free}/0 -c ping"),
    ("redis+cluster://127.0.0.1:{port}", "redis:// instead of redis+cluster://"),
    ("redis+sentinel://127.0.0.1:{free}/svc", "redis-cli -p PORT sentinel masters"),
    ("redis+sentinel://127.0.0.1:{port}/svc", "this server is no Sentinel"),
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
ASKED += [(command, *one) for one in REACH[:5] for command in ("history", "record")]
ASKED += [("lab", *REACH[0])]


@pytest.mark.parametrize(("command", "url", "advice"), ASKED)
def test_a_connection_error_has_advice(capsys, ports, tmp_path, command, url, advice):
    more = {"inspect": ["s"], "triage": ["-o", str(tmp_path / "report.html")], "audit": ["--expect", "chat:*=7d"]}
    more |= {"history": ["s", "--replication"], "record": ["-o", str(tmp_path / "incident.db"), "--for", "1s"]}
    more["lab"] = ["--no-browser", "--url", url.format(**ports)]
    given = [] if command == "lab" else [url.format(**ports)]
    code, out, err = run(capsys, command, *given, *more[command])
    assert (code, out) == (2, "")
    assert err.startswith("memkit: ")
    assert err.count("\n") == 1
    assert advice.format(**ports) in err
    assert "hunter2" not in err
    assert "<redis" not in err


def test_a_server_that_loads_its_data_has_advice(capsys):
    slow = {"key-load-delay": 5_000, "loading-process-events-interval-bytes": 1024, "enable-debug-command": "yes"}
    at_once = {"retry": Retry(NoBackoff(), 0)}
    with (
        RedisServer(port=0, config=slow) as server,
        server.client(**at_once) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        client.mset({f"chat:{n}": "x" * 100 for n in range(5_000)})
        reloaded = threads.submit(server.client(socket_timeout=60).execute_command, "DEBUG", "RELOAD")
        wait_for("a server that loads", lambda: is_loading(client))
        code, out, err = run(capsys, "audit", server.url)
        client.config_set("key-load-delay", 0)
        reloaded.result()
    assert (code, out) == (2, "")
    assert "wait until it has loaded its data" in err


def is_loading(client):
    try:
        return not client.ping()
    except redis.BusyLoadingError:
        return True


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    if not shutil.which("openssl"):
        pytest.skip("no openssl on this machine")
    key, certificate = (tmp_path_factory.mktemp("tls") / name for name in ("key.pem", "certificate.pem"))
    made = ["-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=memkit", "-newkey", "rsa:2048"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", "req", "-x509", "-nodes", *made, *names], check=True, capture_output=True)
    config = {"tls-port": free_port(), "tls-cert-file": certificate, "tls-key-file": key, "tls-auth-clients": "no"}
    config["tls-ca-cert-file"] = certificate
    try:
        with RedisServer(config={name: str(value) for name, value in config.items()}):
            yield {"tls": config["tls-port"], "certificate": certificate}
    except ServerError as error:
        pytest.skip(f"this server has no TLS: {error}")


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("redis://127.0.0.1:{tls}/0", "the port is right; if the port uses TLS, use rediss://; try: redis-cli"),
        ("rediss://127.0.0.1:{tls}/0", "put ?ssl_ca_certs=FILE, the certificate of its authority, at the end"),
        ("rediss://127.0.0.1:{tls}/0?ssl_ca_certs=/no/such.pem", "; check the names of the certificate files in"),
        ("rediss://localhost:{tls}/0?ssl_ca_certs={certificate}", "; put a host name that its certificate is for into"),
        ("rediss://127.0.0.1:{port}/0", "if the port does not use TLS, use redis://; try: redis-cli"),
        ("rediss://127.0.0.1:{tls}/0?ssl_ca_certs={certificate}", "no_data: the database is empty"),
    ],
)
def test_advice_about_tls(capsys, tls, ports, url, advice):
    code, out, err = run(capsys, "audit", url.format(**tls, **ports))
    assert code == 2
    assert advice in (err or out)


def test_a_recorder_without_rights_has_advice(capsys, ports, tmp_path):
    with connect(f"redis://127.0.0.1:{ports['port']}/0") as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", ">hunter2", "~*", "+get", "+ping")
    url = f"redis://reader:hunter2@127.0.0.1:{ports['port']}/0"
    err = run(capsys, "record", url, "-o", str(tmp_path / "incident.db"), "--for", "1s")[2]
    assert "the recording cannot begin: NOPERM" in err
    assert err.count("memkit record URL --acl") == 1


def test_history_of_a_server_with_password_has_advice(capsys):
    with RedisServer(port=0, config={"requirepass": "hunter2"}) as server:
        code, out, err = run(capsys, "history", f"redis://127.0.0.1:{server.port}/0", "--replication")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "was refused: NOAUTH Authentication required; check the user in the URL and the password" in err


@pytest.mark.parametrize("span", ["0s", "-5s", "soon"])
@pytest.mark.parametrize("option", ["--for", "--watch"])
def test_a_duration_that_is_none_names_its_option(capsys, tmp_path, option, span):
    command = {
        "--for": ["record", "redis://127.0.0.1:1", "-o", str(tmp_path / "x.db")],
        "--watch": ["audit", "redis://127.0.0.1:1"],
    }[option]
    code, _, err = run(capsys, *command, f"{option}={span}")
    assert (code, err) == (2, f"memkit: {option} {span}: expected a time above zero, such as 30s, 10m or 2h\n")


@pytest.mark.parametrize("command", ["triage", "record", "audit"])
@pytest.mark.parametrize("folder", ["/proc", "/sys"])
def test_a_file_that_cannot_be_written_is_named(capsys, ports, command, folder):
    if not Path(folder).is_dir():
        pytest.skip(f"no {folder} on this machine")
    file = f"{folder}/memkit-test"
    option = "--affected" if command == "audit" else "-o"
    more = ["--for", "1s"] if command == "record" else ["--expect", "s=7d"]
    code, _, err = run(capsys, command, f"redis://127.0.0.1:{ports['port']}/0", option, file, *more)
    assert code == 2
    assert err.count("\n") == 1
    assert file in err
    assert "Errno" not in err


def test_unwritable_file_is_named_before_the_audit(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    file = tmp_path / "keys.txt"
    code, _, err = run(capsys, "audit", "redis://127.0.0.1:1", "--expect", "s=7d", "--affected", str(file))
    assert (code, err) == (2, f"memkit: {file} cannot be written; give --affected another file\n")


def test_existing_file_is_named_before_the_audit(capsys, tmp_path):
    file = tmp_path / "keys.txt"
    file.write_text("chat:1")
    code, _, err = run(capsys, "audit", "redis://127.0.0.1:1", "--expect", "s=7d", "--affected", str(file))
    assert (code, err) == (2, f"memkit: cannot write {file}: File exists; give a new file\n")
    assert file.read_text() == "chat:1"


def test_replica_that_does_not_answer_hides_no_session(capsys):
    with RedisServer(port=0) as server, server.client() as client:
        client.set("chat:1", "x", ex=100)
        commands = ["inspect", server.url, "chat:1"], ["audit", server.url, "--expect", "chat:*=7d"]
        assert run(capsys, *commands[0])[0] == 0
        client.config_set("replica-serve-stale-data", "no")
        client.replicaof("127.0.0.1", 1)
        for command in commands:
            code, out, err = run(capsys, *command)
            assert (code, out) == (2, "")
            assert "this replica has no connection to its primary and does not answer" in err


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
def test_an_unencoded_password_is_not_printed(capsys, ports, command, url):
    code, out, err = run(capsys, command, url.format(**ports), *(["s"] if command == "inspect" else []))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert not any(piece in err for piece in ("hun", "ter@", "ter#", "ca?ts", "123"))


def test_an_encoded_password_is_decoded():
    with connect("redis://u:hun%40ter%2F%23%3F@127.0.0.1/3") as client:
        options = client.connection_pool.connection_kwargs
    assert (options["password"], options["host"], options["db"]) == ("hun@ter/#?", "127.0.0.1", 3)


@pytest.mark.parametrize("command", ["audit", "inspect", "triage"])
@pytest.mark.parametrize("path", ["abc", "1/2", "-1", "0x1", "%31"])
def test_an_invalid_database_number_is_an_error(capsys, ports, command, path):
    code, out, err = run(
        capsys, command, f"redis://127.0.0.1:{ports['port']}/{path}", *(["s"] if command == "inspect" else [])
    )
    assert (code, out) == (2, "")
    assert f"'/{path}' in the URL is not a database number; expected /0" in err


@pytest.mark.parametrize("name", ["langchain-community", "llama-index", "openai-agents"])
def test_inspect_finds_a_captured_session(capsys, client, name):
    session = load_capture(client, name)
    code, out, _ = run(capsys, "inspect", client.url, session, "--json")
    report = json.loads(out)
    assert (report["schema"], report["store"], report["session"]) == (2, name, session)
    assert [message["role"] for message in report["messages"]] == ["user", "assistant", "tool"]
    assert {message["text"] for message in report["messages"] if message["chars"]} == {None}
    assert code == (1 if report["problems"] else 0)
    revealed = json.loads(run(capsys, "inspect", client.url, session, "--json", "--reveal")[1])
    assert revealed["messages"][0]["text"]
    table = run(capsys, "inspect", client.url, session)[1]
    assert all(role in table for role in ("user", "assistant", "tool"))
    assert revealed["messages"][0]["text"] not in table


def test_inspect_reads_memkits_own(capsys, client):
    MemoryStore(client, prefix="chat:", ttl="7d").save("user-42", [{"role": "user", "content": "a secret"}])
    code, out, _ = run(capsys, "inspect", client.url, "chat:user-42", "--json")
    report = json.loads(out)
    assert (code, report["store"]) == (0, "memkit")
    assert [message["role"] for message in report["messages"]] == ["user"]
    assert report["keys"][0]["ttl_s"] == pytest.approx(604_800, abs=60)
    assert "a secret" not in out


def test_inspect_of_a_session_that_is_not_there(capsys, client):
    code, out, err = run(capsys, "inspect", client.url, "nobody")
    assert (code, out) == (2, "")
    assert "nobody" in err


def test_audit_finds_the_incident_and_prints_json(capsys, client):
    store = MemoryStore(client, prefix="chat:", ttl="5m")
    for number in range(200):
        store.save(f"user-{number}", [{"role": "user", "content": "hi"}])
    code, out, _ = run(capsys, "audit", client.url, "--expect", "chat:*=7d", "--json", "--duty", "1")
    report = json.loads(out)
    assert (code, report["schema"], report["verdict"]["cause"]) == (1, 2, "ttl_too_short")
    assert report["findings"][0]["expected_ttl_s"] == 604_800
    assert report["findings"][0]["observed_ttl_s"] == pytest.approx(300, rel=0.02)
    assert report["proof"]["writes"] == 0
    code, out, _ = run(capsys, "audit", client.url, "--expect", "chat:*=7d")
    assert code == 1
    assert "chat:" in out
    assert "\033" not in out


def test_audit_of_an_empty_database_is_no_data(capsys, client):
    code, _, _ = run(capsys, "audit", client.url, "--expect", "chat:*=7d")
    assert code == 2


def test_audit_prints_the_user_to_make(capsys):
    code, out, _ = run(capsys, "audit", "redis://localhost:1", "--acl", "--expect", "chat:*=7d")
    assert code == 0
    assert [line.startswith("ACL SETUSER ") for line in out.splitlines()[:2]] == [False, True]
    assert "%R~chat:*" in out
    assert "# Redis 7.0" in out
    code, out, _ = run(capsys, "audit", "--acl")
    assert code == 0
    assert "PREFIX" in out.splitlines()[-3]


def test_triage_of_the_demo_incident_writes_a_report(capsys, tmp_path):
    code, out, _ = run(capsys, "triage", "-o", str(tmp_path / "report.html"))
    assert code == 1
    assert "chat:" in out.splitlines()[0]
    assert (tmp_path / "report.html").read_text("utf-8").startswith("<!DOCTYPE html>")


def test_conformance_of_memkits_own_store(capsys):
    code, out, _ = run(capsys, "conformance", "memkit.conformance.memkit_adapter:MemkitAdapter", "--json")
    report = json.loads(out)
    other = {case["name"]: case["message"] for case in report["cases"] if case["outcome"] != "passed"}
    assert (code, report["schema"], other, report["root_causes"]) == (0, 2, {}, [])
    assert report["passed"] == len(report["cases"]) == 46
    # 6 s on two idle cores.
    assert report["took_s"] < 60


def test_a_closed_pipe_is_no_traceback(client):
    MemoryStore(client, prefix="chat:", ttl=None).save("s", [{"n": n} for n in range(2000)])
    inspect = [sys.executable, "-m", "memkit", "inspect", client.url, "chat:s"]
    with subprocess.Popen(inspect, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""


def test_text_is_escaped_for_other_encodings(client):
    MemoryStore(client, prefix="chat:", ttl=None).save("caf\u00e9", [{"role": "user", "content": "hi"}])
    inspect = [sys.executable, "-m", "memkit", "inspect", client.url, "chat:caf\u00e9"]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    printed = subprocess.run(inspect, capture_output=True, env=ascii_only, text=True, check=False)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert "chat:caf\\xe9" in printed.stdout


def test_a_closed_stdout_is_no_traceback(client):
    command = f"exec {sys.executable} -m memkit audit {client.url} >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is of Linux")
def test_a_full_disk_is_an_error_that_names_the_file(capsys, client):
    code, _, err = run(capsys, "triage", client.url, "--expect", "chat:*=7d", "-o", "/dev/full")
    assert code == 2
    assert err == "memkit: /dev/full is not complete: no space left; delete it and give -o another file\n"


def test_python_m_memkit_runs_the_command_line():
    printed = subprocess.run([sys.executable, "-m", "memkit", "--version"], capture_output=True, text=True, check=True)
    assert printed.stdout.startswith("memkit ")
    assert os.linesep in printed.stdout


def test_history_reads_what_record_wrote(capsys, client, tmp_path):
    path = str(tmp_path / "incident.db")
    stop = ["--for", "300ms", "--expect", "chat:*=7d"]
    client.set("chat:user-42", "hi", ex=604_800)
    code, out, err = run(capsys, "record", client.url, "-o", path, *stop)
    assert (code, err.count("\n")) == (0, 1)
    assert "recording chat:*" in err
    assert out.startswith(f"{path}: 1 key, 0 events, 0 gaps in ")
    code, out, _ = run(capsys, "history", path, "user-42")
    assert code == 0
    assert out.startswith("exists: chat:user-42 exists at the end of the sources")
    assert max(map(len, out.splitlines()[:3])) <= 80
    code, out, _ = run(capsys, "history", path, "--json")
    assert (code, json.loads(out)["fates"]) == (0, {"chat:": {"exists": 1}})


@pytest.mark.parametrize("source", ["missing.rdb", "no/such/directory", "missing.db", "redis://127.0.0.1:1/0"])
def test_history_of_what_cannot_be_read_is_exit_2(capsys, source):
    code, out, err = run(capsys, "history", source)
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_recording_needs_a_file(capsys, client):
    code, out, err = run(capsys, "record", client.url)
    assert (code, out) == (2, "")
    assert "give -o FILE.db" in err


def test_the_printed_user_can_record(capsys, client, tmp_path):
    _, out, _ = run(capsys, "record", "--acl", "--expect", "chat:*=7d")
    client.execute_command(*out.replace(">PASSWORD", ">pw").split())
    client.set("chat:1", "x")
    url = client.url.replace("://", "://memkit-record:pw@")
    code, out, _ = run(capsys, "record", url, "-o", str(tmp_path / "a.db"), "--for", "300ms", "--expect", "chat:*=7d")
    assert (code, out.partition(": ")[2][:5]) == (0, "1 key")
