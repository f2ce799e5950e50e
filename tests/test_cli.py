"""The command line: what it refuses, how it fails, what it leaves behind."""
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

import clad
from clad import data, experiments
from clad.cli import check_parameters, execute, main

ROOT = Path(clad.__file__).parents[1]
NOTEBOOK = ROOT / "nbs" / "reports" / "scenario.ipynb"
pytestmark = pytest.mark.skipif(not NOTEBOOK.is_file(), reason="needs a checkout")
pytest.importorskip("papermill")


def tagged() -> list:
    "The cells of the scenario report that hold parameters."
    return [cell for cell in nbformat.read(NOTEBOOK, 4).cells if "parameters" in cell.metadata.get("tags", [])]


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
    (("--settings", "quick"), "smoke"), (("--methods", "CLAD", "OCSWM"), "OCSWM"), (("--seeds", "-1"), "seed")])
def test_unknown_names(capsys, monkeypatch, tmp_path, words, expected):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("clad.cli.execute", lambda *_: pytest.fail("something ran"))
    places = [f"--{name}={tmp_path / name}" for name in ("results", "runs", "figures")]
    assert expected in refused(capsys, "reproduce", *words, *places)
    assert list(tmp_path.iterdir()) == []


def test_no_data(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(data, "load_dataset", functools.partial(data.load_dataset, download=False))
    monkeypatch.setattr("clad.cli.execute", lambda *_: pytest.fail("something ran"))
    said = refused(capsys, "reproduce", "--dataset=mnist", "--scenario=CUR", f"--data-root={tmp_path / 'none'}")
    assert str(tmp_path / "none") in said


def test_damaged_record(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    path = experiments.record_path(tmp_path, "digits", "CUR")
    experiments.write_atomically(path, b"{")
    assert path.name in refused(capsys, "reproduce", f"--results={tmp_path}")


def test_outside_a_checkout(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "root folder of a checkout" in refused(capsys, "reproduce")


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
        execute(notebook(tmp_path / "a.ipynb", "1", "n_clusters: int = 3"), tmp_path / "b.ipynb", {"n_clustes": 4})
    assert not (tmp_path / "b.ipynb").exists()


def test_report_takes_every_parameter():
    names = "dataset scenario methods settings seeds results data_root cache_dir again verbose".split()
    check_parameters(NOTEBOOK, names)
    lines = tagged()[0].source.splitlines()
    assert len(tagged()) == 1 and len(lines) == len(names) and all("#" in line and ": " in line for line in lines)


def test_executed_notebook_is_fit_to_publish(tmp_path):
    code = """import os, sys
print('in', os.path.basename(os.getcwd()), place == '', number)
print('x', file=sys.stderr)"""
    source = notebook(tmp_path / "a.ipynb", code, 'place: str = ""\nnumber: int = 1')
    made = [execute(source, tmp_path / "out" / name, {"place": str(tmp_path), "number": 2}, tmp_path)
            for name in ("b.ipynb", "c.ipynb")]
    text = made[0].read_text()
    assert f"in {tmp_path.name} False 2" in text and str(tmp_path) not in text and "papermill" not in text
    assert text == made[1].read_text() and len(list((tmp_path / "out").iterdir())) == 2
    nbformat.validate(nbformat.read(made[0], 4))


@pytest.mark.parametrize("code, expected", [
    ("raise ValueError('train[7] is not an image')", "clad: train[7] is not an image\n"),
    ("import os; os._exit(3)", "died")])
def test_failing_report(capsys, monkeypatch, tmp_path, code, expected):
    monkeypatch.chdir(fake_checkout(tmp_path, code))
    assert expected in refused(capsys, "reproduce", "--scenario=CUR")
    assert not (tmp_path / "figures").exists()


def test_failure_keeps_the_last_good_notebook(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(fake_checkout(tmp_path, "raise ValueError('no')"))
    good = tmp_path / "figures" / "runs" / "digits" / "CUR.ipynb"
    good.parent.mkdir(parents=True)
    good.write_text("good")
    refused(capsys, "reproduce", "--scenario=CUR")
    assert good.read_text() == "good" and len(list(good.parent.iterdir())) == 1


def test_ctrl_c(tmp_path):
    "Exit code 130, one line, no notebook, and no kernel left running."
    mark = tmp_path / "kernel"
    fake_checkout(tmp_path, f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(120)")
    start = "import sys; from clad.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "reproduce", "--scenario", "CUR"]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                           env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a job of `&` ignores it
    waited = time.time() + 90
    while not (mark.exists() and mark.read_text()) and time.time() < waited:
        time.sleep(0.2)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130 and said.count("\n") == 1 and said.startswith("clad: interrupted"), said
    assert not (tmp_path / "figures").exists()
    time.sleep(0.5)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_resumes_and_writes_everything(capsys, monkeypatch, tmp_path):
    "The real report on a run that is recorded: nothing is fitted, the notebook, table and figures appear."
    monkeypatch.chdir(ROOT)
    experiments.run("digits", "STR", settings="smoke", results=tmp_path / "results", verbose=False)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.*")}
    places = [f"--{name}={tmp_path / name}" for name in ("results", "runs", "figures", "cache-dir")]
    assert main(["reproduce", "--scenario", "STR", "--methods", "CLAD", "--settings", "smoke", *places]) == 0
    said = capsys.readouterr().out
    assert "digits STR: 1 run, 1 recorded" in said and "| digits | STR | CLAD | smoke | 1 |" in said
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.*")} == before
    made = tmp_path / "runs" / "digits" / "STR.ipynb"
    assert made.stat().st_size < 300_000 and str(tmp_path) not in made.read_text()
    written = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert written == ["digits.csv", "digits.md", "digits.png"]
