"The package is the notebooks: exporting, cleaning and drawing the README anew changes nothing, and the book is tidy."
import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
REPORTS = [p for p in NOTEBOOKS if p.parent.name == "reports"]
DEVELOPMENT_ONLY = {"nbdev", "execnb", "fastcore", "IPython", "papermill", "ipykernel", "nbformat"}


def name(path: Path) -> str:
    return path.relative_to(ROOT / "nbs").as_posix()


def cells(path: Path, kind: str = "code") -> list[dict]:
    found = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]
    return [{**c, "source": "".join(c["source"])} for c in found]


def parsed(source: str) -> list[ast.stmt]:
    "The statements of a cell, without shell and magic lines."
    return ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE)).body


def module(path: Path) -> str | None:
    "What a notebook exports to."
    names = [m[1] for c in cells(path) for m in re.finditer(r"^#\|\s*default_exp\s+(\S+)", c["source"], re.MULTILINE)]
    assert len(names) <= 1, f"{name(path)} has more than one default_exp"
    return names[0] if names else None


def exported(path: Path) -> list[str]:
    return [c["source"] for c in cells(path) if re.search(r"^#\|\s*export\b", c["source"], re.MULTILINE)]


def run(command: str, folder: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "IN_TEST"}    # with IN_TEST nbdev_export does nothing
    done = subprocess.run([Path(sys.executable).parent / command], cwd=folder, env=environment, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for file in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / file, folder)
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return folder


def test_package_is_what_the_notebooks_export(copy):
    run("nbdev_export", copy)
    new, old = ({p.relative_to(base).as_posix(): p.read_text(encoding="utf-8") for p in (base / "clad").rglob("*.py")}
                for base in (copy, ROOT))
    assert sorted(new) == sorted(old), "stale or missing modules in clad/"
    changed = [file for file in new if new[file] != old[file]]
    assert not changed, f"{changed}: not what the notebooks export; edit the notebook and run nbdev_export"


def test_notebooks_are_clean(copy):
    run("nbdev_clean", copy)
    unclean = [name(p) for p in NOTEBOOKS if (copy / p.relative_to(ROOT)).read_bytes() != p.read_bytes()]
    assert not unclean, f"{unclean}: run nbdev_clean"


@pytest.mark.parametrize("tool", ["readme", "drawn"])
def test_what_is_drawn_from_notebooks_is_up_to_date(tool):
    "The README is the index, and Figures 1, 2 and 4 are the pictures of their chapters."
    done = subprocess.run([sys.executable, ROOT / f"tools/{tool}.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("tool", sorted((ROOT / "tools").glob("*.py")), ids=lambda path: path.stem)
def test_tools_use_names_that_exist(tool):
    "What a tool takes from the package is there."
    for statement in ast.walk(ast.parse(tool.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").partition(".")[0] == "clad":
            found = importlib.import_module(statement.module)
            assert not [a.name for a in statement.names if not hasattr(found, a.name)], tool


def test_links_of_the_readme_lead_somewhere():
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    dead = [t for t in targets if not re.match(r"#|[a-z]+:", t) and not (ROOT / t).exists()]
    assert targets and not dead, f"the README links to what is not there: {dead}"


def test_one_notebook_one_module():
    modules = Counter(filter(None, map(module, NOTEBOOKS)))
    assert modules and max(modules.values()) == 1, f"exported twice: {[m for m, n in modules.items() if n > 1]}"
    orphans = [name(p) for p in NOTEBOOKS if exported(p) and not module(p)]
    assert not orphans, f"{orphans}: cells to export but no default_exp"


# The first digit of a notebook's number is its room. Rooms may use those before them in this order: the foundations are
# numbered, and read, last. Within a room a notebook uses those with lower numbers.
ROOMS = "501234"


def place(path: Path) -> tuple[int, str]:
    return ROOMS.index(path.name[0]), path.name


def wanted(statement: ast.stmt, own: str) -> list[str]:
    "The modules of the package that an import statement names."
    if isinstance(statement, ast.Import):
        return [a.name for a in statement.names]
    assert not statement.level, f"{own}: notebooks import absolutely, as in `from clad.data import`"
    return [f"clad.{a.name}" for a in statement.names] if statement.module == "clad" else [statement.module]


def test_rooms_are_import_order():
    earlier, chapters = [], [p for p in NOTEBOOKS if module(p) not in (None, "__init__")]
    for path in sorted(chapters, key=place):
        imports = [s for source in exported(path) for s in ast.walk(ast.Module(parsed(source), []))
                   if isinstance(s, (ast.Import, ast.ImportFrom))]
        used = [w for s in imports for w in wanted(s, name(path))]
        late = [w for w in used if re.match(r"clad\.(?!__)", w) and w.removeprefix("clad.") not in earlier]
        assert not late, f"{name(path)} imports {late}, which no notebook before it exports (rooms: {ROOMS})"
        earlier.append(module(path))


@pytest.mark.parametrize("path", REPORTS, ids=name)
def test_a_report_has_one_cell_of_annotated_parameters(path):
    tagged = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1, "papermill needs exactly one cell tagged `parameters`"
    for statement in parsed(tagged[0]["source"]):
        assert isinstance(statement, ast.AnnAssign), f"annotate every parameter: {ast.unparse(statement)}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_outputs_are_fit_to_commit(path):
    assert path.stat().st_size <= 300_000, f"{path.stat().st_size:,} bytes: over 300 KB; draw smaller pictures"
    for cell in cells(path):
        for output in cell["outputs"]:
            assert output["output_type"] != "error", f"a stored error: {output.get('evalue')}"
            shown = output.get("data", {}).items()
            texts = [output.get("text", "")] + [v for k, v in shown if k not in ("image/png", "image/jpeg")]
            text = "\n".join("".join(t) for t in texts if not isinstance(t, dict))
            absolute = re.search(r"(?<![\w.:/<~$}\\)-])/[A-Za-z_][\w.-]*/[\w.-]+|[A-Z]:\\\w+|\b0x[0-9a-f]{8,}", text)
            assert not absolute, f"a path or address of this machine in an output: {absolute[0]}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_cells_are_short_and_sorted(path):
    for cell in cells(path):
        lines = [line for line in cell["source"].splitlines() if not line.startswith("#|")]
        whole = any(isinstance(s, ast.ClassDef) for s in parsed("\n".join(lines)))    # a class may stand whole
        assert len(lines) <= (280 if whole else 40), f"a cell of {len(lines)} lines: {lines[0]}"
    for source in exported(path):
        kinds = {isinstance(s, (ast.Import, ast.ImportFrom)) for s in parsed(source)}
        assert len(kinds) <= 1, f"imports share an exported cell with other code: {source.splitlines()[1]}"
    merged = [c["source"] for c in cells(path, "markdown") if re.match(r"`?(<<<<<<<|=======|>>>>>>>)", c["source"])]
    assert not merged, "left over from a merge conflict"
