"""Write Figures 1, 2 and 4 from the chapters that draw them, as their pictures are stored; nothing is run.

usage: python tools/drawn.py [--check]      --check writes nothing and fails if the files on disk differ

A code cell with `#| figure: NAME` gives `figures/NAME` of its picture; with several pictures, one name for each.
"""
import argparse
import base64
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def drawn() -> dict[Path, bytes]:
    "The content of each picture by its path."
    found = {}
    for notebook in sorted((ROOT / "nbs").glob("*.ipynb")):
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            names = re.findall(r"^#\|\s*figure:\s*(.+)$", "".join(cell["source"]), re.MULTILINE)
            if cell["cell_type"] != "code" or not names:
                continue
            data = [output["data"] for output in cell["outputs"] if "data" in output]
            pictures = [(kind, d[f"image/{kind}"]) for d in data for kind in ("png", "jpeg") if f"image/{kind}" in d]
            if len(pictures) != len(names[0].split()):
                sys.exit(f"{notebook.name}: {len(pictures)} pictures for {names[0]}; run tools/save_outputs.py")
            for name, (kind, text) in zip(names[0].split(), pictures):
                found[ROOT / "figures" / f"{name}.{kind.replace('jpeg', 'jpg')}"] = base64.b64decode("".join(text))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the files on disk differ")
    check = parser.parse_args().check
    for path, content in drawn().items():
        if check and (not path.is_file() or path.read_bytes() != content):
            sys.exit(f"{path.relative_to(ROOT)}: not what its chapter shows; run python tools/drawn.py")
        if not check:
            path.write_bytes(content)
            print(path.relative_to(ROOT).as_posix())


if __name__ == "__main__":
    main()
