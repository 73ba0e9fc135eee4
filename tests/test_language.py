"""The words of texts that a user reads: no word that CONTRIBUTING.md lists under "Not"."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_docs import ROOT

from memkit.cli.parser import command_line

# Each word with the words to use instead.
WORDS = {
    r"meant|(?:as|was|were|is|are) meant": "configured, expected",
    r"life|li(?:ves|ved|ving)|alive|outlive\w*": "observed lifetime, exist",
    r"immortals?|mortals?": "persistent, volatile",
    r"gone|dead|die[sd]?|dying|buried|bury": "expired, evicted, deleted, no longer exists",
    r"says|said|tells|told": "report, print, message, error",
    r"strangers?|nobody|whose": "name the server, the connection or the owner",
    r"torn": "partly expired, mixed TTLs",
}
# The same letters in another sense, each with the reason.
OTHER_SENSES = (
    r"live (?:Redis|server|servers)\b",  # a server in production: the field's own word
    r"dead server",
    r"told apart",  # distinguished
)
CODE = re.compile(r"```.*?```|``.*?``|`[^`\n]+`|https?://\S+", re.DOTALL)
SOURCES = sorted((ROOT / "memkit").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
LONGEST_TEST_NAME = 50
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def forbidden(text: str) -> list[str]:
    """Return the words in a text that a user should not have to translate, each with its surroundings."""
    text = CODE.sub("`…`", text)
    for sense in OTHER_SENSES:
        text = re.sub(sense, "…", text)
    found = re.finditer(rf"(?<![\w-])(?:{'|'.join(WORDS)})(?![\w-])", text, re.IGNORECASE)
    return [" ".join(text[max(0, match.start() - 30) : match.end() + 30].split()) for match in found]


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each docstring, each string with a space and each comment of a module, with its line."""
    source = path.read_text("utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_markdown_uses_the_fields_words() -> None:
    pages = [ROOT / "README.md", *(ROOT / ".github").glob("*.md")]
    assert {path.name: words for path in pages if (words := forbidden(path.read_text("utf-8")))} == {}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_use_the_fields_words(path: Path) -> None:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    found = {cell["id"]: forbidden("".join(cell["source"])) for cell in cells if cell["cell_type"] == "markdown"}
    outputs = {f"{cell['id']} output": forbidden(json.dumps(cell["outputs"])) for cell in cells if cell.get("outputs")}
    assert not {name: words for name, words in (found | outputs).items() if words}


def test_texts_in_code_use_the_fields_words() -> None:
    found = {f"{path}:{line}": forbidden(text) for path in SOURCES for line, text in texts(path)}
    assert {place: words for place, words in found.items() if words} == {}


def test_test_names_have_at_most_50_characters() -> None:
    found = re.compile(r"^ *(?:async )?def (test_\w+)", re.MULTILINE)
    names = [(path.name, name) for path in TESTS for name in found.findall(path.read_text("utf-8"))]
    assert [(file, name) for file, name in names if len(name) > LONGEST_TEST_NAME] == []


def test_help_uses_the_fields_words() -> None:
    parser = command_line()
    commands = next(action.choices for action in parser._actions if action.choices and "lab" in action.choices)
    assert not [word for one in (parser, *commands.values()) for word in forbidden(one.format_help())]


@pytest.mark.parametrize(
    "text", ["the key is gone", "As meant: 3 keys", "it says so", "an immortal key", "it lived 5m"]
)
def test_a_forbidden_word_is_found(text: str) -> None:
    assert forbidden(text)


@pytest.mark.parametrize("text", ["a live Redis", "`alive`", "the session is delivered", "meaning", "told-you-so"])
def test_other_senses_and_code_are_exempt(text: str) -> None:
    assert not forbidden(text)
