"""What scripts and other people's tests depend on."""

import inspect

import pytest

import memkit
from memkit import errors
from memkit.store import AsyncMemoryStore, MemoryStore


def test_everything_exported_exists_and_is_described():
    for name in memkit.__all__:
        assert inspect.getdoc(getattr(memkit, name)), name


def test_the_tree_of_errors_is_as_drawn():
    drawn = {
        line.replace("│", " ").replace("├──", "   ").replace("└──", "   ").split()[0]
        for line in errors.__doc__.splitlines()
        if "──" in line or line.strip() == "MemkitError"
    }
    defined = {
        name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, errors.MemkitError)
    }
    assert drawn == defined


@pytest.mark.parametrize(
    ("name", "also"),
    [
        ("PolicyError", ValueError), ("EncodeError", ValueError), ("DecodeError", ValueError),
        ("SessionNotFound", LookupError), ("Conflict", Exception), ("SandboxError", Exception),
        ("ProductionGuardError", errors.SandboxError), ("ServerNotFound", errors.ServerError),
        ("ClockUnavailable", errors.ServerError),
    ],
)  # fmt: skip
def test_errors_are_also_what_the_field_expects(name, also):
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
