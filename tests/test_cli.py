"""The command line: what it refuses, how it fails, what it leaves behind."""
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

import clad
from clad import data, experiments, files, runs
from clad.cli import check_parameters, kernel_for_many, main, render

ROOT = Path(clad.__file__).parents[1]
NOTEBOOK = ROOT / "nbs" / "reports" / "scenario.ipynb"
pytestmark = pytest.mark.skipif(not NOTEBOOK.is_file(), reason="needs a checkout")
pytest.importorskip("papermill")


def tagged(path: Path = NOTEBOOK) -> list:
    "The cells of a report that hold parameters."
    return [cell for cell in nbformat.read(path, 4).cells if "parameters" in cell.metadata.get("tags", [])]


def notebook(path: Path, code: str, parameters: str | None = None) -> Path:
    "A notebook with the parameters of the scenario report (or others) and one more cell."
    if parameters is None:
        parameters = tagged()[0].source
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    made = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    made.cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
                  nbformat.v4.new_code_cell(code)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(made, path)
    return path


def fake_checkout(folder: Path, code: str) -> Path:
    "A folder that has a scenario report which does something else."
    notebook(folder / "nbs" / "reports" / "scenario.ipynb", code)
    return folder


def refused(capsys, *words: str) -> str:
    "The one sentence with which the command fails."
    assert main(words) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.err.startswith("clad: ") and "Traceback" not in said.err
    return said.err


@pytest.mark.parametrize("words, expected", [
    (("--dataset", "digit"), "digits, mnist"), (("--scenario", "CUR", "SPEC"), "SPEC"),
    (("--settings", "quick"), "smoke"), (("--methods", "CLAD", "OCSWM"), "OCSWM"), (("--seeds", "-1"), "seed"),
    (("--seeds", "12345678901234567890123456"), "4294967295"), (("--all", "--dataset", "mnist"), "leave out --dataset"),
    (("--all", "--n_clusters", "3"), "leave out --n_clusters"), (("--sweep", "--epsilon=0"), "leave out --epsilon"),
    (("--n_clusters", "3", "--methods", "OCSVM"), "OCSVM has no parameter"),
    (("--jobs", "0"), "jobs"), (("--backend", "lokky"), "loky"), (("--data-root", ""), "--data-root")])
def test_unknown_names(capsys, monkeypatch, tmp_path, words, expected):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(experiments, "estimate", lambda *_: pytest.fail("something ran"))
    places = [f"--{name}={tmp_path / name}" for name in ("results", "runs", "figures")]
    assert expected in refused(capsys, "reproduce", *words, *places)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("flag", ["results", "runs", "figures", "cache-dir"])
@pytest.mark.parametrize("kind", ["empty", "file", "read-only"])
def test_folders_are_tried_before_anything_runs(capsys, monkeypatch, tmp_path, flag, kind):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(experiments, "estimate", lambda *_: pytest.fail("something ran"))
    place = {"empty": "", "file": tmp_path / "file", "read-only": "/proc/here"}[kind]
    (tmp_path / "file").write_text("")
    places = {name: tmp_path / name for name in ("results", "runs", "figures", "cache-dir")} | {flag: place}
    said = refused(capsys, "reproduce", *(f"--{name}={value}" for name, value in places.items()))
    assert f"(--{flag})" in said and str(place) in said


def test_no_data(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(experiments, "load_dataset", functools.partial(data.load_dataset, download=False))
    monkeypatch.setattr(experiments, "batch_folder", lambda *_: pytest.fail("something ran"))
    places = [f"--{name}={tmp_path / name}" for name in ("results", "runs", "figures", "cache-dir")]
    assert main(["reproduce", "--dataset=mnist", "--scenario=CUR", f"--data-root={tmp_path / 'none'}", *places]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "clad: reading mnist" and str(tmp_path / "none") in said[1] and len(said) == 2


def test_damaged_record(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    path = runs.record_path(tmp_path / "results", "digits", "CUR")
    files.write_atomically(path, b"{")
    places = [f"--{name}={tmp_path / name}" for name in ("results", "runs", "figures", "cache-dir")]
    assert path.name in refused(capsys, "reproduce", *places)
    assert path.name in refused(capsys, "figures", *places[::2])


def test_outside_a_checkout(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for words in ((), ("--all",)):
        assert "needs a clone of the repository" in refused(capsys, "reproduce", *words)


def test_without_papermill(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, "papermill", None)
    assert ".[reproduce]" in refused(capsys, "reproduce")


def test_words_that_do_not_exist(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for words in ([], ["reproduce", "--seed", "1"], ["reproduce", "--seeds", "one"], ["repoduce"]):
        with pytest.raises(SystemExit) as stop:
            main([*words])
        assert stop.value.code == 2
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and clad.__version__ in capsys.readouterr().out


def test_list(capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert "digits: CUR STR MIX" in said and "CLAD: paper released short smoke" in said


def test_help_is_quick():
    code = "import sys, clad.cli; sys.exit(bool({'torch', 'papermill', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_misspelt_parameter(tmp_path):
    with pytest.raises(ValueError, match="no parameter 'n_clustes': choose among n_clusters"):
        render(notebook(tmp_path / "a.ipynb", "1", "n_clusters: int = 3"), tmp_path / "b.ipynb", {"n_clustes": 4})
    assert not (tmp_path / "b.ipynb").exists()


@pytest.mark.parametrize("name, words", [
    ("scenario", "dataset scenario methods settings seeds n_clusters hidden_dim temperature epsilon results data_root"),
    ("sweep", "dataset scenario settings seeds results"), ("tables", "results out"), ("figure3", "results out"),
    ("findings", "results out")])
def test_report_takes_every_parameter(name, words):
    path = NOTEBOOK.with_name(f"{name}.ipynb")
    check_parameters(path, words.split())
    lines = tagged(path)[0].source.splitlines()
    assert len(tagged(path)) == 1 and len(lines) == len(words.split())
    assert all("#" in line and ": " in line for line in lines)


def test_reports_need_records_and_pages_share_a_kernel_without_variables(tmp_path):
    "No report computes what is not recorded."
    code = "import os\nprint(os.getpid(), 'mark' in globals())\nmark = 1"
    source, said = notebook(tmp_path / "a.ipynb", code, "number: int = 1"), []
    with kernel_for_many() as kernel:
        for turn in "bc":
            made = render(source, tmp_path / f"{turn}.ipynb", {"number": 2}, tmp_path, kernel())
            said.append(nbformat.read(made, 4).cells[-1].outputs[0].text)
        wanted = dict.fromkeys(("tables", "figure3", "findings"), "no records .*: `clad reproduce")
        wanted |= dict.fromkeys(("scenario", "sweep"), "no record of digits CUR CLAD smoke.* in .*: `clad reproduce")
        for name, words in wanted.items():
            with pytest.raises(RuntimeError, match=words):
                render(NOTEBOOK.with_name(f"{name}.ipynb"), tmp_path / "out.ipynb", {"results": str(tmp_path / "r")},
                       ROOT, kernel())
    assert said[0] == said[1] and said[0].endswith(" False\n") and not (tmp_path / "out.ipynb").exists()
    assert not list(tmp_path.rglob("*.json"))
    with pytest.raises(ProcessLookupError):
        os.kill(int(said[0].split()[0]), 0)


def test_figures_fill_in_the_reports(capsys, monkeypatch, tmp_path):
    "From a store with one run of MNIST: the pages write what the command writes without them."
    monkeypatch.chdir(ROOT)
    kept = ROOT / "figures" / "results" / "mnist" / "CUR"
    for name in ("CLAD-short-seed0.json", "CLAD-short-seed0.ranks.npy", "truth.npy"):
        (tmp_path / "results/mnist/CUR").mkdir(parents=True, exist_ok=True)
        shutil.copy(kept / name, tmp_path / "results/mnist/CUR")
    places = [f"--results={tmp_path / 'results'}"]
    assert main(["figures", *places, f"--figures={tmp_path / 'a'}"]) == 0
    assert main(["figures", *places, f"--figures={tmp_path / 'b'}", f"--runs={tmp_path / 'runs'}"]) == 0
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab")
    assert one == two and {"table1.csv", "mnist.png", "figure3.png", "findings.md"} <= set(one)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"tables.ipynb", "figure3.ipynb", "findings.ipynb"}
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert "needs a clone" in refused(capsys, "figures", *places, "--runs=runs")


def test_executed_notebook_is_fit_to_publish(tmp_path):
    code = """import os, sys
print('in', os.path.basename(os.getcwd()), place == '', number)
print('x', file=sys.stderr)"""
    source = notebook(tmp_path / "a.ipynb", code, 'place: str = ""\nnumber: int = 1')
    made = [render(source, tmp_path / "out" / name, {"place": str(tmp_path), "number": 2}, tmp_path)
            for name in ("b.ipynb", "c.ipynb")]
    text = made[0].read_text()
    assert f"in {tmp_path.name} False 2" in text and str(tmp_path) not in text and "papermill" not in text
    assert text == made[1].read_text() and len(list((tmp_path / "out").iterdir())) == 2
    nbformat.validate(nbformat.read(made[0], 4))


@pytest.mark.parametrize("code, expected", [
    ("raise ValueError('train[7] is not an image')", "clad: train[7] is not an image\n"),
    ("import os; os.kill(os.getpid(), 9)", "clad: scenario.ipynb: its kernel died, most likely killed because memory")])
def test_failing_report(capsys, monkeypatch, tmp_path, recorded, code, expected):
    monkeypatch.chdir(fake_checkout(tmp_path, code))
    shutil.copytree(recorded, tmp_path / "figures" / "results")
    assert expected in refused(capsys, *CHEAP, "--cache-dir=stages")
    assert list((tmp_path / "figures").rglob("*.*")) and not list((tmp_path / "figures" / "runs").rglob("*.ipynb"))


def test_failure_keeps_the_last_good_notebook(capsys, monkeypatch, tmp_path, recorded):
    monkeypatch.chdir(fake_checkout(tmp_path, "raise ValueError('no')"))
    shutil.copytree(recorded, tmp_path / "figures" / "results")
    good = tmp_path / "figures" / "runs" / "digits" / "CUR.ipynb"
    good.parent.mkdir(parents=True)
    good.write_text("good")
    refused(capsys, *CHEAP, "--cache-dir=stages")
    assert good.read_text() == "good" and len(list(good.parent.iterdir())) == 1


def test_ctrl_c(tmp_path, recorded):
    "While a page is drawn: exit code 130, one line, no notebook, no kernel left running, no wait."
    mark = tmp_path / "kernel"
    fake_checkout(tmp_path, f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(120)")
    shutil.copytree(recorded, tmp_path / "figures" / "results")
    start = "import sys; from clad.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, *CHEAP, "--cache-dir=stages"]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                           env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a job of `&` ignores it
    waited = time.time() + 90
    while not (mark.exists() and mark.read_text()) and time.time() < waited:
        time.sleep(0.2)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    lines = [line for line in said.splitlines() if not line.startswith("clad: drawing digits/CUR, page 1 of 1")]
    assert run.returncode == 130 and len(lines) == 1 and lines[0].startswith("clad: interrupted"), said
    assert not list((tmp_path / "figures").rglob("*.ipynb"))
    assert not list((tmp_path / "figures" / "results" / ".batch").glob("*-*"))
    time.sleep(0.5)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_failed_runs_are_left_off_the_page(capsys, monkeypatch, tmp_path):
    "The other runs are carried out and drawn, the exit code and the last sentence say which failed and why."
    monkeypatch.chdir(fake_checkout(tmp_path, "print(methods)"))

    def refuse(self, images, **_):
        raise MemoryError("too many images")
    monkeypatch.setattr(runs.METHODS["SVDD"], "fit", refuse)
    words = ["reproduce", "--scenario=CUR", "--methods", "OCSVM", "SVDD", "--settings=smoke", "--jobs=1"]
    assert main([*words, "--cache-dir=stages"]) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("clad: 1 of 2 runs failed, digits CUR SVDD smoke seed 0 for one: "
                                                "MemoryError: too many images")
    page = nbformat.read(tmp_path / "figures/runs/digits/CUR.ipynb", 4)
    assert page.cells[-1].outputs[0].text == "OCSVM\n" and (tmp_path / "figures" / "digits.csv").is_file()
    assert (tmp_path / "figures/results/digits/CUR/SVDD-smoke-seed0.failed.json").is_file()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    "A folder with the record of one run."
    folder = tmp_path_factory.mktemp("results")
    experiments.run("digits", "CUR", "OCSVM", settings="smoke", results=folder, verbose=False)
    return folder


CHEAP = ["reproduce", "--scenario=CUR", "--methods=OCSVM", "--settings=smoke"]


def test_resumes_and_writes_everything(capsys, monkeypatch, tmp_path, recorded):
    "The real report on a run that is recorded: nothing is fitted, the notebook, table and figures appear."
    monkeypatch.chdir(ROOT)
    shutil.copytree(recorded, tmp_path / "results")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*seed*.*")}
    places = [f"--{name}={tmp_path / name}" for name in ("results", "runs", "figures", "cache-dir")]
    assert main([*CHEAP, *places]) == 0
    said = capsys.readouterr().out
    assert "1 run: 1 recorded" in said and "| digits | CUR | OCSVM | smoke | 1 |" in said
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*seed*.*")} == before
    made = tmp_path / "runs" / "digits" / "CUR.ipynb"
    assert made.stat().st_size < 300_000 and str(tmp_path) not in made.read_text()
    written = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert {"digits.csv", "digits.md", "digits.png"} <= set(written)
    assert main(["figures", places[0], f"--figures={tmp_path / 'again'}"]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == written


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("variables, expected", [
    ({"RESULTS": "my results"}, "--results=my results\n"), ({"SEEDS": "0; echo X"}, "--seeds\n0;\necho\nX\n"),
    ({"RESULTS": "a'b $HOME"}, None), ({"N_CLUSTERS": "4", "METHODS": "CLAD OCSVM"}, "--methods\nCLAD\nOCSVM\n")])
def test_make_passes_variables_on_as_they_are(tmp_path, variables, expected):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("constraints.txt", "pyproject.toml", ".venv/installed"):
        (tmp_path / name).write_text("")
    program = tmp_path / ".venv" / "bin" / "clad"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    words = [f"{name}={value.replace('$', '$$')}" for name, value in variables.items()]
    said = subprocess.run(["make", "reproduce", *words], cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0 and said.stdout.startswith("reproduce\n--dataset=digits\n--scenario\nCUR\n")
    assert (expected or f"--results={variables.get('RESULTS')}\n") in said.stdout
    inherited = subprocess.run(["make", "reproduce-all"], cwd=tmp_path, capture_output=True, text=True,
                               env={**os.environ, "SETTINGS": "paper"})
    assert "--all\n--settings=paper\n" in inherited.stdout


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_wants_an_interpreter(tmp_path):
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    said = subprocess.run(["make", "environment", "PYTHON=/bin/true"], cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 2 and re.search(r"No Python 3.11.* among: /bin/true", said.stderr)


def test_alive_says_that_it_goes_on(tmp_path):
    code = "import time; print('first', flush=True); time.sleep(7); print('last')"
    said = subprocess.run([sys.executable, ROOT / "tools/alive.py", sys.executable, "-c", code], capture_output=True,
                          text=True)
    assert said.stdout == "first\nlast\n" and said.stderr.count("goes on") == 1 and said.returncode == 0
    assert subprocess.run([sys.executable, ROOT / "tools/alive.py", "false"]).returncode == 1
