"""Make README.md, and the pictures in figures/readme/, from nbs/index.ipynb as it is stored; nothing is run.

usage: python tools/readme.py [--check]      --check writes nothing and fails if the files on disk differ

Cells with `#| hide`, `#| export` or `#| default_exp` are left out; of a cell with `#| echo: false` only the outputs are
shown; `#| fig-alt: TEXT` describes its picture.
"""
import argparse
import re
import sys

import nbformat
from nbconvert import MarkdownExporter
from shown import ROOT, relinked, shown

INDEX = "nbs/index.ipynb"
PICTURES = "figures/readme"
HEAD = "<!-- made from nbs/index.ipynb by tools/readme.py: edit the notebook -->\n\n"


def from_root(text: str) -> str:
    "The text with its links as seen from the README."
    return relinked(text, INDEX, lambda path: "README.md" if path == INDEX else path)[0]


def build() -> tuple[str, dict[str, bytes]]:
    "The text of the README and its pictures by path."
    notebook = nbformat.read(ROOT / INDEX, 4)
    cells, described = [], {}
    for cell, marks in shown(notebook.cells, {"hide", "export", "default_exp"}):
        if cell.cell_type == "markdown":
            cell.source = from_root(cell.source)
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output["data"]["text/markdown"] = from_root(output["data"]["text/markdown"])
        if marks.get("echo") == "false":
            cell.source = ""
        described[len(cells)] = marks.get("fig-alt", "figure")
        cells.append(cell)
    notebook.cells = cells
    notebook.metadata["language_info"] = {"name": "python"}
    text, resources = MarkdownExporter().from_notebook_node(notebook, resources={"output_files_dir": PICTURES})
    text = re.sub(r"^```python\n\s*```$", "", text, flags=re.MULTILINE)
    text = re.sub(rf"!\[\w+\]\(({PICTURES}/\w+_(\d+)_\d+\.\w+)\)", lambda m: f"![{described[int(m[2])]}]({m[1]})", text)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.splitlines())).strip() + "\n"
    return HEAD + text, resources["outputs"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the files on disk differ")
    check = parser.parse_args().check
    text, pictures = build()
    wanted = {ROOT / "README.md": text.encode()} | {ROOT / name: data for name, data in pictures.items()}
    stale = set((ROOT / PICTURES).glob("*")) - wanted.keys()
    if check:
        differing = {p for p, data in wanted.items() if not p.is_file() or p.read_bytes() != data} | stale
        if differing:
            names = ", ".join(sorted(p.relative_to(ROOT).as_posix() for p in differing))
            sys.exit(f"{names}: not what {INDEX} gives; run python tools/readme.py")
        return
    for path in stale:
        path.unlink()
    for path, data in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
