"What a reader is shown of a notebook, and where its links lead: shared by readme.py and book.py."
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]


def directives(source: str) -> dict[str, str]:
    "The `#| name: value` lines of a cell."
    found = re.findall(r"^#\|\s*([\w-]+):?[ \t]*(.*)$", source, re.MULTILINE)
    return {name: value.strip() for name, value in found}


def shown(cells: list[NotebookNode], left_out: set[str]) -> Iterator[tuple[NotebookNode, dict[str, str]]]:
    "The cells without one of the directives `left_out`, without the directive lines; each with its directives."
    for cell in cells:
        marks = directives(cell.source) if cell.cell_type == "code" else {}
        if cell.cell_type == "raw" or marks.keys() & left_out:
            continue
        if cell.cell_type == "code":
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE)
        yield cell, marks


def relinked(text: str, path: str, place: Callable[[str], str]) -> tuple[str, set[str]]:
    """The text of the file `path` with its links to other files as seen from `place(path)`, and the files it links to.

    `place` says where a file of the repository (named by its path from the root) stands; all other links stay.
    """
    targets = set()

    def new(match: re.Match) -> str:
        link, mark, anchor = match[1].partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
        if not link or not (ROOT / target).exists():
            return match[0]
        targets.add(target)
        return f"]({posixpath.relpath(place(target), posixpath.dirname(place(path)) or '.')}{mark}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", new, text), targets
