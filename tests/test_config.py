"""Expected TTLs are read from files and texts, and an unreadable one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from memkit.config import configured_expectations, expectations, parse_expectation
from memkit.errors import PolicyError
from memkit.policy import UNIT_MS, ExpiryPolicy

DAY_MS = UNIT_MS["d"]


def test_several_ttls_on_purpose() -> None:
    one = parse_expectation("sess:*=30d|1d,absolute,jitter=5%")
    assert (one.ttl_ms, one.other_ttls_ms, one.policy.kind, one.jitter) == (30 * DAY_MS, (DAY_MS,), "absolute", 0.05)
    assert str(one) == "sess:*=absolute 1d|30d"
    assert parse_expectation(one.text) == one
    assert expectations({"sess:*": ["1d", "30d"]}) == [parse_expectation("sess:*=1d|30d")]


def test_narrower_patterns_come_first() -> None:
    patterns = ["*", "chat:*", "chat:*:meta", "chat:guest:*"]
    found = expectations(dict.fromkeys(patterns, "7d"))
    assert [one.pattern for one in found] == ["chat:guest:*", "chat:*:meta", "chat:*", "*"]


@pytest.mark.parametrize("text", ["sess:*=1d|", "sess:*=1d|never", "sess:*=1d|soon"])
def test_unreadable_ttl_among_several(text: str) -> None:
    with pytest.raises(PolicyError, match="sess"):
        parse_expectation(text)


TABLE = """
"chat:*" = "7d"
"user:*" = "never"
"sess:*" = ["1d", "30d"]
"agent:*" = {ttl = "2h", kind = "absolute", jitter = "5%"}
"""


def test_nearest_parent_configuration_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMKIT_CONFIG", raising=False)
    below = tmp_path / "service" / "tests"
    below.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[tool.memkit.expect]" + TABLE)
    (tmp_path / "service" / "pyproject.toml").write_text("[tool.ruff]\n")
    found = {one.pattern: one for one in configured_expectations(below)}
    assert found["chat:*"].policy == ExpiryPolicy.sliding("7d")
    assert found["user:*"].policy == ExpiryPolicy.never()
    assert found["sess:*"].other_ttls_ms == (DAY_MS,)
    assert (found["agent:*"].policy, found["agent:*"].jitter) == (ExpiryPolicy.absolute("2h"), 0.05)
    (tmp_path / "service" / "memkit.toml").write_text('[expect]\n"near:*" = "1h"\n')
    assert [one.pattern for one in configured_expectations(below)] == ["near:*"]
    monkeypatch.setenv("MEMKIT_CONFIG", str(tmp_path / "pyproject.toml"))
    assert len(configured_expectations(below)) == 4


UNREADABLE = [
    *("'soon'", "0", "[]", "['1d', 'never']", "{kind = 'absolute'}", "{ttl = '7d', kind = 'slide'}"),
    *("{ttl = '7d', jitter = 0.1}", "{ttl = '7d', k = 1}"),
]


@pytest.mark.parametrize("ttl", UNREADABLE)
def test_unreadable_ttl_is_named(ttl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMKIT_CONFIG", raising=False)
    (tmp_path / "memkit.toml").write_text(f"[expect]\n'chat:*' = {ttl}\n")
    with pytest.raises(PolicyError, match=r"memkit\.toml: 'chat:\*': "):
        configured_expectations(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("memkit.toml", "[expect]\nchat =", "cannot read the configuration"),
        ("memkit.toml", "[expects]", r"memkit\.toml: expected the table \[expect\] alone; got 'expects'"),
        ("memkit.toml", "'chat:*' = '7d'", r"alone; got 'chat:\*"),
        ("memkit.toml", "expect = '7d'", "alone; got '7d'"),
        ("pyproject.toml", "[tool.memkit.expects]", r"the table \[tool\.memkit\.expect\] alone; got 'expects'"),
        ("pyproject.toml", "[tool]\nmemkit = '7d'", "alone; got '7d'"),
    ],
)
def test_unreadable_configuration_is_named(
    name: str, text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEMKIT_CONFIG", raising=False)
    (tmp_path / name).write_text(text)
    with pytest.raises(PolicyError, match=message):
        configured_expectations(tmp_path)


def test_no_file_gives_no_expectations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMKIT_CONFIG", raising=False)
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert configured_expectations(tmp_path) == []
