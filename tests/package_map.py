"""The map of memkit, made from the first docstring line of each package and top-level module.

python tests/package_map.py --write     writes it to README.md, .github/CONTRIBUTING.md and memkit/__init__.py
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "memkit"
COLUMNS, NAME_COLUMNS = 96, 20
PLACES = (ROOT / "README.md", ROOT / ".github" / "CONTRIBUTING.md", PACKAGE / "__init__.py")
MAP = re.compile(r"^( *)memkit/\n(?:(?:\1 .*)?\n)*?(?=\1```|\"\"\")", re.MULTILINE)


def package_map(order: list[str]) -> str:
    """Return the map: each package and module in the order of the layers, a package with its modules."""
    lines = ["memkit/"]
    for name in order:
        folder, module = PACKAGE / name, PACKAGE / f"{name}.py"
        if module.exists():
            lines += _entry(f"{name}.py", _summary(module))
        elif (folder / "__init__.py").exists():
            modules = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
            folders = sorted(f"{path.parent.name}/" for path in folder.glob("*/__init__.py"))
            lines += _entry(f"{name}/", _summary(folder / "__init__.py"))
            lines += _entry("", f"({' '.join([*modules, *folders])})")
    return "\n".join(lines) + "\n"


def _entry(name: str, text: str) -> list[str]:
    begin = f"  {name}".ljust(NAME_COLUMNS)
    return textwrap.wrap(
        text, COLUMNS, initial_indent=begin, subsequent_indent=" " * NAME_COLUMNS, break_on_hyphens=False
    )


def _summary(path: Path) -> str:
    """Return the first sentence of a docstring's first line."""
    first_line = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n", 1)[0]
    return re.split(r"(?<=[a-z])\. ", first_line)[0].replace("``", "").removesuffix(".")


def with_map(text: str, the_map: str) -> str:
    """Return a text with its map replaced, in the indentation that it has there."""
    found = MAP.search(text)
    assert found, "no map to replace"
    return text[: found.start()] + textwrap.indent(the_map, found[1]) + text[found.end() :]


if __name__ == "__main__":
    from test_layers import ORDER

    for place in PLACES:
        before = place.read_text("utf-8")
        after = with_map(before, package_map(ORDER))
        if "--write" in sys.argv:
            place.write_text(after, "utf-8")
        print(f"{place.relative_to(ROOT)}: {'unchanged' if after == before else 'differs'}")
