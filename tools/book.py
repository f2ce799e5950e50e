"""Build the book as a web site from the notebooks as they are stored; nothing is run and nothing is fetched.

usage: python tools/book.py [FOLDER]      FOLDER: where the site goes (default: _book)

Chapters stand in the part that their number or folder names; what they link to outside nbs/ is added to the site.
Cells with `#| hide` or `#| default_exp` are left out; of a cell with `#| echo: false` only the outputs are shown.
"""
import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from shown import ROOT, relinked, shown
from sphinx.application import Sphinx

# the parts in reading order, each with its notebooks in nbs/
PARTS = {
    "The question": "0*.ipynb",
    "The method": "1*.ipynb",
    "The baselines": "2*.ipynb",
    "Measuring": "3*.ipynb",
    "Reports": "reports/*.ipynb",
    "Using": "4*.ipynb",
    "Tutorials": "tutorials/*.ipynb",
    "Foundations": "5*.ipynb",
}


def place(path: str) -> str:
    "Where a file of the repository stands in the site: the notebooks on top, all others where they are."
    return path.removeprefix("nbs/")


def title(path: str) -> str:
    "The first heading of a page."
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".ipynb"):
        text = "\n".join(c.source for c in nbformat.reads(text, 4).cells if c.cell_type == "markdown")
    heading = re.search(r"^# (.+)$", text, re.MULTILINE)
    return heading[1].strip() if heading else Path(path).stem


def notebook(path: str) -> tuple[str, set[str]]:
    "A notebook as it is shown, and the files that it links to; outside nbs/ it is outside the table of contents."
    book = nbformat.read(ROOT / path, 4)
    cells, links = [], set()
    for cell, marks in shown(book.cells, {"hide", "default_exp"}):
        if cell.cell_type == "markdown":
            cell.source, more = relinked(cell.source, path, place)
            links |= more
        for output in cell.get("outputs", []):
            if "text/markdown" in (data := output.get("data", {})):
                data["text/markdown"], more = relinked("".join(data["text/markdown"]), path, place)
                links |= more
        if marks.get("echo") == "false":
            cell.metadata["tags"] = ["remove-input"]
        if "fig-alt" in marks:
            cell.metadata["mystnb"] = {"image": {"alt": marks["fig-alt"]}}
        cells.append(cell)
    if path == "nbs/index.ipynb":
        cells.append(nbformat.v4.new_markdown_cell(contents()))
    book.cells = cells
    if not path.startswith("nbs/"):
        book.metadata["orphan"] = True
    return nbformat.writes(book), links


def markdown(path: str) -> tuple[str, set[str]]:
    "A Markdown file as a page: with a title, and outside the table of contents."
    text, links = relinked((ROOT / path).read_text(encoding="utf-8"), path, place)
    heading = "" if text.startswith("# ") else f"# {title(path)}\n\n"
    return f"---\norphan: true\n---\n{heading}{text}", links


def contents() -> str:
    "The table of contents, made from the names of the notebooks."
    text = "```{toctree}\n:hidden:\n\nThe idea <self>\n```\n\n"
    for part, pattern in PARTS.items():
        pages = [p.relative_to(ROOT / "nbs") for p in sorted((ROOT / "nbs").glob(pattern))]
        entries = [f"{p.stem[:2] if p.stem[0].isdigit() else ''} {title(f'nbs/{p}')} <{p}>".strip() for p in pages]
        if entries:
            text += "\n".join([f"```{{toctree}}\n:hidden:\n:caption: {part}\n", *entries, "```\n\n"])
    return text


def gather(folder: Path) -> None:
    "Write the notebooks, and all that can be reached from them by links, to a folder as Sphinx wants it."
    found = [p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    waiting = {p.relative_to(ROOT).as_posix() for p in found}
    done = set()
    while waiting - done:
        path = (waiting - done).pop()
        target = folder / place(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        make = {".ipynb": notebook, ".md": markdown}.get(target.suffix)
        if make:
            text, links = make(path)
            target.write_text(text, encoding="utf-8")
            waiting |= {link for link in links if (ROOT / link).is_file()}
        else:
            shutil.copy(ROOT / path, target)
        done.add(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=ROOT / "_book", type=Path, help="where the site goes")
    folder = parser.parse_args().folder
    if folder.exists() and not (folder / ".buildinfo").exists():
        sys.exit(f"{folder} is there and is no site built before; name another folder")
    with tempfile.TemporaryDirectory() as work:
        source, trees, site = (Path(work, name) for name in ("source", "trees", "site"))
        gather(source)
        app = Sphinx(source, ROOT / "tools/site", site, trees, "html", status=None, warningiserror=True)
        app.build()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(site, folder)
    if app.statuscode:
        sys.exit(f"{folder}: built, but with the warnings above")
    print(f"open {folder / 'index.html'} in a browser")


if __name__ == "__main__":
    main()
