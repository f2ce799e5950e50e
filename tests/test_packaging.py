"A wheel holds the package and nothing else, and works where neither nbdev nor Jupyter is installed."
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = """
import sys

class Absent:
    "Pretend that the tools of the book are not installed."
    names = ("nbdev", "execnb", "fastcore", "ghapi", "IPython", "ipykernel", "ipywidgets", "papermill", "nbformat",
             "nbclient", "nbconvert", "jupyter", "jupyter_core", "jupyter_client", "jupyterlab", "notebook")

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    "Built from a copy, so that the checkout stays as it is."
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for file in ("pyproject.toml", "README.md", "LICENSE", "settings.ini"):
        shutil.copy(ROOT / file, source)
    for folder in ("clad", "tests", "tools"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def python(code: str, site: Path, folder: Path) -> str:
    "Run code on the unpacked wheel, without the tools of the book."
    done = subprocess.run([sys.executable, "-c", BLOCK + code], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    package = {p.relative_to(ROOT).as_posix() for p in (ROOT / "clad").rglob("*")
               if p.suffix in (".py", ".csv", ".typed")}
    assert {"clad/py.typed", "clad/published.csv", "clad/published_figure3.csv", "clad/metrics.py"} <= package
    assert {n for n in names if ".dist-info/" not in n} == package
    assert {n.partition("/")[0].partition("-")[0] for n in names} == {"clad", "clad_detector"}


def test_the_wheel_says_what_it_is(site):
    metadata = next(site.glob("*.dist-info/METADATA")).read_text(encoding="utf-8")
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"Name: {configured['name']}\n" in metadata and configured["name"] != "clad"    # which is another project's
    version = next(line for line in (ROOT / "settings.ini").read_text().splitlines() if line.startswith("version"))
    assert f"Version: {version.partition('=')[2].strip()}\n" in metadata
    python_versions = next(line for line in metadata.splitlines() if line.startswith("Requires-Python: "))
    assert set(python_versions[17:].split(",")) == set(configured["requires-python"].split(","))
    assert "clad = clad.cli:main" in next(site.glob("*.dist-info/entry_points.txt")).read_text()


def test_no_module_needs_nbdev_or_jupyter(site, tmp_path):
    out = python("""
import importlib, pkgutil
import clad
for module in pkgutil.walk_packages(clad.__path__, "clad."):
    importlib.import_module(module.name)
print(clad.__file__)
""", site, tmp_path)
    assert Path(out.strip()).is_relative_to(site)


def test_the_wheel_fits_and_saves_and_loads(site, tmp_path):
    python("""
import numpy as np
from clad.data import load_dataset
from clad.detector import CLAD
from clad.scenarios import get_scenario

split = get_scenario("digits", "CUR").split(*load_dataset("digits"))
detector = CLAD.from_settings("smoke", representation__epochs=2, classifier__epochs=1).fit(split.train.images[:60])
detector.save("detector.clad")
new = split.test.images[:20]
assert np.array_equal(CLAD.load("detector.clad").score_samples(new), detector.score_samples(new))
""", site, tmp_path)


def test_constraints_pin_what_the_project_needs():
    "Every requirement, extras included, is pinned once and exactly; nothing is tied to this machine."
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    pinned = [line.partition("==")[0].lower().replace("_", "-") for line in lines]
    assert all("==" in line and "@" not in line and "/" not in line for line in lines)
    assert len(set(pinned)) == len(pinned)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + sum(project["optional-dependencies"].values(), [])
    wanted = {w.replace("=", ">").partition(">")[0].partition("[")[0].strip() for w in wanted} - {"clad-detector"}
    assert wanted <= set(pinned), f"not pinned in constraints.txt: {sorted(wanted - set(pinned))}"
