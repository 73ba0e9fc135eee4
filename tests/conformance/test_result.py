"""A result and the matrix as text, JSON, HTML and a figure."""

from __future__ import annotations

import json

import pytest
from libraries import LIBRARIES

from memkit.conformance import CASES, CaseResult, Matrix, Result
from memkit.conformance.adapter import error_line
from memkit.conformance.case import Case
from memkit.conformance.outcomes import Symptom
from memkit.render import width

NAMES = {case.name: case for case in CASES}


def case_result(name: str, message: str = "", symptom: str = "") -> CaseResult:
    case = NAMES[name]
    outcome = "failed" if symptom else "passed"
    about = {"meaning": case.meaning, "why": case.why, "fix": case.fix, "symptom": symptom}
    return CaseResult(name, outcome=outcome, message=message or case.meaning, **about)  # type: ignore[arg-type]


FAILED = Result(
    "a\x1b[31mstore",
    server="redis 8.2.3 (PATH), clock by preload",
    cases=(
        case_result("round_trip"),
        case_result("reopen_longer", "expected 3 messages, the session reads as empty", Symptom.EARLY_EXPIRY),
        case_result("append_renews", "observed <b>\u202e " + "long " * 40, Symptom.EARLY_EXPIRY),
        case_result("growth", "a remark"),
    ),
    took_s=1.5,
)


def test_json_has_the_documented_form() -> None:
    document = json.loads(FAILED.to_json())
    assert {name: document[name] for name in ("schema", "passed", "failed", "skipped")} == {
        "schema": 2,
        "passed": 2,
        "failed": 2,
        "skipped": 0,
    }
    assert document["root_causes"] == [
        {"case": "append_renews", "sentence": FAILED.root_causes[0].sentence, "cases": ["reopen_longer"]}
    ]
    first, second = document["cases"][:2]
    assert (first["name"], first["outcome"], first["root_cause"]) == ("round_trip", "passed", None)
    assert first["message"] == NAMES["round_trip"].meaning
    assert second["root_cause"] == "append_renews"


def test_text_begins_with_the_root_cause() -> None:
    lines = FAILED.to_text().splitlines()
    assert lines[0].startswith("likely root cause: an append does not renew")
    assert "may follow from it: reopen_longer" in lines
    for part in ("observed: ", "tested: ", "why it loses memory: ", "usual fix: ", "passed growth: a remark"):
        assert any(line.startswith(part) for line in lines)
    assert "2 failed, 2 passed in 1.50s" in lines[-1]


def test_text_is_safe_and_80_columns_wide() -> None:
    text = FAILED.to_text()
    assert max(map(width, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\x1b[31mFAILED\x1b[0m" in FAILED.to_text(color=True)


def test_text_of_a_hostile_error_is_safe() -> None:
    cases = [
        case_result(name, "raised \x1b[2J" + "long" * 1000, "raised ValueError") for name in ("round_trip", "order")
    ]
    text = Result("x", server="redis", cases=tuple(cases)).to_text()
    assert "\x1b" not in text
    assert error_line(ValueError("\x1b[2J\n" + "long" * 1000)).startswith("ValueError: \\x1b[2J long")
    assert len(error_line(ValueError("long" * 1000))) < 260


def test_text_of_a_passed_run() -> None:
    text = Result("x", server="redis", cases=(case_result("roles"),)).to_text()
    assert text.splitlines()[0] == "store: x"
    assert "1 passed" in text


def test_html_is_escaped() -> None:
    page = FAILED._repr_html_()
    assert "observed &lt;b&gt;" in page
    assert "Likely root cause: an append" in page
    assert "round_trip" not in page


def test_every_case_has_a_meaning_and_a_fix() -> None:
    for case in CASES:
        assert isinstance(case, Case)
        assert all(text.endswith((".", "!")) for text in (case.meaning, case.why, case.fix))
    assert len(NAMES) == len(CASES)


# The matrix


def test_shipped_matrix_is_complete() -> None:
    matrix = Matrix.shipped()
    assert [result["store"] for result in matrix.stores] == [library.store for library in LIBRARIES]
    for library, result in zip(LIBRARIES, matrix.stores, strict=True):
        assert [case["name"] for case in result["cases"]] == [case.name for case in CASES]
        if library.requirements:
            assert library.requirements[0].endswith((f"=={result['version']}", f"@{result['version']}"))
    assert matrix.failures("memkit") == {}
    assert "7d" in matrix.failures("langchain-community")["reopen_shorter"].replace("7 d", "7d")


def test_matrix_has_no_result_of_an_unknown_store() -> None:
    tested = {"store": "a", "cases": [{"name": "roles", "outcome": "failed", "message": "seen"}]}
    matrix = Matrix([tested, {"store": "c", "error": "no modules"}])
    assert matrix.cases == ["roles"]
    assert matrix.failures("a") == {"roles": "seen"}
    with pytest.raises(LookupError, match="there is no result of 'c'; there are a"):
        matrix.failures("c")


def test_matrix_figure_has_alt_text() -> None:
    from memkit.plot import plot_matrix

    ax = plot_matrix(Matrix.shipped())
    assert ax.get_label().startswith(f"Cases failed, of {len(CASES)}, by store: memkit 0, ")
    assert {text.get_text() for text in ax.get_legend().get_texts()} >= {"passed", "failed"}
