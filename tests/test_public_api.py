"""What scripts and other people's tests depend on."""

import ast
import inspect
import subprocess
import sys
from datetime import UTC, datetime
from importlib import import_module

import pytest
import redis
import redis.asyncio

import memkit
from memkit import errors
from memkit.store import AsyncMemoryStore, MemoryStore

EXCEPTIONS = {name for name, value in vars(errors).items() if getattr(value, "__module__", "") == errors.__name__}


def test_everything_exported_exists_and_is_described():
    for name in memkit.__all__:
        assert inspect.getdoc(getattr(memkit, name)), name


def test_dir_shows_the_public_names_only():
    promised = """
        AsyncMemoryStore Expectation ExpiryPolicy MemoryStore RedisServer Sandbox ServerClock Session connect
        inspect_session observe_expiry
    """.split()  # noqa: SIM905
    assert dir(memkit) == sorted([*promised, *EXCEPTIONS])


def test_other_names_are_refused():
    for name in ("remember", "NoPermissionError"):  # the second is in memkit.errors, and redis-py's
        with pytest.raises(AttributeError, match=f"module 'memkit' has no attribute '{name}'"):
            getattr(memkit, name)


def run_python(script):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_no_public_name_loads_redis_before_its_use():
    loaded = "print('redis' in sys.modules, 'memkit.inspect' in sys.modules)"
    script = f"import sys, memkit, memkit.cli; dir(memkit); {loaded}; memkit.inspect_session; {loaded}"
    assert run_python(script) == "False False\nTrue True\n"


@pytest.mark.parametrize("arguments", [["-h"], ["--version"], ["audit", "-h"], ["audit", "--nonsense"]])
def test_help_and_version_do_not_load_redis(arguments):
    script = f"""
import sys
from memkit.cli import main
try:
    main({arguments!r})
except SystemExit:
    print({{"redis", "importlib.metadata", "dataclasses"}} & set(sys.modules))
"""
    assert run_python(script).splitlines()[-1] == "set()"


def test_connect_stays_the_function():
    for first in ("memkit.connect", "memkit.store", "memkit.readonly"):
        script = f"import {first}, memkit, memkit.connect as again; print(memkit.connect.__name__, again.__name__)"
        assert run_python(script) == "connect connect\n"


def test_from_memkit_import_star_has_every_name():
    assert run_python("from memkit import *; import memkit; print(set(memkit.__all__) <= set(dir()))") == "True\n"


def test_public_classes_are_where_pickle_looks():
    for name in set(memkit.__all__) - {"connect", "inspect_session", "observe_expiry"}:
        kind = getattr(memkit, name)
        assert getattr(import_module(kind.__module__), kind.__qualname__) is kind


def test_type_checkers_see_every_public_name():
    tree = ast.parse(inspect.getsource(memkit))
    checked = next(node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    seen = {alias.name for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen - {"InteractiveShell"} == set(memkit.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = memkit.nothing


def test_the_tree_of_errors_is_as_drawn():
    drawn = {
        line.replace("│", " ").replace("├──", "   ").replace("└──", "   ").split()[0]
        for line in errors.__doc__.splitlines()
        if "──" in line or line.strip() == "MemkitError"
    }
    assert drawn == EXCEPTIONS


@pytest.mark.parametrize(
    ("name", "also"),
    [
        ("PolicyError", ValueError), ("EncodeError", ValueError), ("DecodeError", ValueError),
        ("SessionNotFound", LookupError), ("Conflict", Exception), ("SandboxError", Exception),
        ("ProductionGuardError", errors.SandboxError), ("ServerNotFound", errors.ServerError),
        ("ClockUnavailable", errors.ServerError),
    ],
)  # fmt: skip
def test_errors_are_also_standard_exceptions(name, also):
    kind = getattr(errors, name)
    assert issubclass(kind, errors.MemkitError)
    assert issubclass(kind, also)


PROMISED = {
    "save": ["session_id", "messages", "version"],
    "load": ["session_id", "last"],
    "append": ["session_id", "messages", "create"],
    "get": ["session_id"],
    "update": ["session_id", "summary", "metadata", "version"],
    "put_vectors": ["session_id", "array"],
    "get_vectors": ["session_id"],
    "touch": ["session_id"],
    "ttl": ["session_id"],
    "delete": ["session_id"],
    "sessions": [],
}


@pytest.mark.parametrize("store", [MemoryStore, AsyncMemoryStore])
@pytest.mark.parametrize("method", PROMISED)
def test_both_stores_have_the_promised_methods(store, method):
    assert list(inspect.signature(getattr(store, method)).parameters)[1:] == PROMISED[method]


@pytest.mark.parametrize("method", PROMISED)
def test_the_two_stores_have_the_same_signatures(method):
    one, other = (inspect.signature(getattr(store, method)).parameters for store in (MemoryStore, AsyncMemoryStore))
    assert [str(parameter) for parameter in one.values()] == [str(parameter) for parameter in other.values()]


@pytest.mark.parametrize("store", [MemoryStore, AsyncMemoryStore])
def test_stores_are_made_by_keyword(store):
    parameters = inspect.signature(store).parameters
    assert [p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters.values()] == [False, True, True, True]
    assert list(parameters) == ["client", "prefix", "ttl", "shorten"]


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert memkit.__version__ == version("redis-memkit")


@pytest.mark.parametrize("arguments", [{}, {"prefix": "chat:", "ttl": "7d"}])
@pytest.mark.parametrize("store", [MemoryStore, AsyncMemoryStore])
@pytest.mark.parametrize(
    "client", ["redis://localhost", b"redis://localhost", None, redis.Redis, redis.Redis().pipeline()]
)
def test_what_is_not_a_client_is_a_type_error(store, client, arguments):
    with pytest.raises(TypeError, match=r"redis-py client; got .*memkit\.connect"):
        store(client, **arguments)


def test_a_client_of_the_other_kind_is_a_type_error():
    with pytest.raises(TypeError, match="use AsyncMemoryStore"):
        MemoryStore(redis.asyncio.Redis(), prefix="", ttl=None)
    with pytest.raises(TypeError, match="use MemoryStore"):
        AsyncMemoryStore(redis.Redis(), prefix="", ttl=None)


def test_a_store_without_ttl_warns_once():
    client = redis.Redis()
    with pytest.warns(memkit.NoTtlWarning, match=r"prefix='chat:'.*ttl=None") as caught:
        store = MemoryStore(client, prefix="chat:")
    assert caught[0].filename == __file__
    assert store.policy == memkit.ExpiryPolicy.never()
    assert MemoryStore(client, prefix="chat:").policy == memkit.ExpiryPolicy.never()
    assert MemoryStore(redis.Redis(), prefix="chat:", ttl=None).policy == memkit.ExpiryPolicy.never()


def test_repr_of_a_session_shows_no_text():
    fields = {"summary": "secret", "metadata": {"name": "secret"}, "policy": memkit.ExpiryPolicy.sliding("7d")}
    times = {"created_at": datetime.now(UTC), "updated_at": datetime.now(UTC)}
    session = memkit.Session("user-42", [{"content": "secret"}], ttl=60, version=3, **fields, **times)
    assert repr(session) == str(session) == "<Session 'user-42': 1 message, version 3, sliding 7d>"
