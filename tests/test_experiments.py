"Batches under fault: kills, neighbours, failures, full memory; and the same numbers however they are carried out."
import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from stubs import DistanceToMean

from clad import experiments, runs
from clad.data import load_dataset
from clad.experiments import execute
from clad.runs import Run, grid, read_ranks, read_record

PATHS = os.pathsep.join([str(Path(__file__).parent), str(Path(runs.__file__).parents[1])])
PLAN = 'grid("digits", ["CUR", "STR"], ["OCSVM", "OCNN"], "smoke", [0, 1])'
SMOKE = eval(PLAN)    # the same in this process and in those that are killed


def outcomes(results) -> dict[str, tuple]:
    "Outcome and ranks of each record by its path."
    records = {path.relative_to(results).as_posix(): path for path in Path(results).glob("*/*/[!.]*seed?.json")}
    return {name: (read_record(path)["outcome"], read_ranks(path).tolist()) for name, path in records.items()}


def rest(results) -> list[str]:
    "What lies below a store besides records, ranks, truths and the locks of runs."
    found = [path.relative_to(results).as_posix() for path in Path(results).rglob("*") if path.is_file()]
    return [name for name in found if not re.search(r"seed\d(\.ranks\.npy|\.json)$|/truth\.npy$|^\.batch/locks/", name)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    "The outcomes of the small batch, one run after the other in this process, without a folder for stage results."
    folder = tmp_path_factory.mktemp("unbroken")
    assert set(execute(SMOKE, jobs=1, results=folder, progress=False).status) == {"done"}
    assert len(outcomes(folder)) == len(SMOKE) == 6 and rest(folder) == []
    return outcomes(folder)


@pytest.fixture
def cheap(monkeypatch):
    monkeypatch.setitem(runs.METHODS, "CLAD", DistanceToMean)
    monkeypatch.setattr(DistanceToMean, "fits", 0)


def start(code: str, **variables) -> subprocess.Popen:
    "A process, in a group of its own, that has imported what a batch needs."
    head = "import sys\nfrom clad.experiments import execute\nfrom clad.runs import Run, grid, METHODS\n"
    return subprocess.Popen([sys.executable, "-c", head + code], stderr=subprocess.PIPE, text=True,
                            start_new_session=True, env={**os.environ, "PYTHONPATH": PATHS, **variables})


def batch(results, jobs: int, stages="None") -> str:
    return f"""
if __name__ == "__main__":
    table = execute({PLAN}, jobs={jobs}, results={str(results)!r}, cache_dir={stages})
    sys.exit(int("failed" in set(table.status)))
"""


def running(results, process: subprocess.Popen) -> list[Path]:
    "The notes of the runs that a batch has begun."
    return list(Path(results).glob(f".batch/{process.pid}-*/running/*"))


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_processes_give_what_one_process_gives(tmp_path, unbroken):
    table = execute(SMOKE, jobs=2, results=tmp_path / "r", cache_dir=tmp_path / "stages", progress=False)
    assert set(table.status) == {"done"} and outcomes(tmp_path / "r") == unbroken and rest(tmp_path / "r") == []


def test_a_dask_cluster_gives_what_one_process_gives(tmp_path, unbroken):
    distributed = pytest.importorskip("distributed")
    with warnings.catch_warnings(action="ignore"), distributed.Client(
            n_workers=1, threads_per_worker=1, dashboard_address=None, memory_limit=0):
        table = execute(SMOKE[:3], backend="dask", jobs=1, results=tmp_path, progress=False)
    found = outcomes(tmp_path)
    assert set(table.status) == {"done"} and len(found) == 3 and rest(tmp_path) == []
    assert found == {name: unbroken[name] for name in found}


def test_a_killed_batch_goes_on(tmp_path, unbroken):
    "Killed at random moments, with all its processes; what was finished is not done again, and the end is the same."
    chance, seen = random.Random(0), {}
    for _ in range(2):
        process = start(batch(tmp_path / "r", 2, repr(str(tmp_path / "stages"))))
        waited, before = time.time() + 100, len(outcomes(tmp_path / "r"))
        while process.poll() is None and time.time() < waited and not running(tmp_path / "r", process):
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 2))
        kill(process)
        now = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").glob("*/*/*") if path.suffix == ".json"}
        assert {path: now[path] for path in seen} == seen and len(now) >= before
        assert all(not path.name.endswith(".failed.json") for path in now)
        outcomes(tmp_path / "r")    # whatever is there can be read
        seen = now
    for folder in (tmp_path / "r").glob(".batch/*-*"):
        os.utime(folder, (0, 0))
    last = execute(SMOKE, jobs=1, results=tmp_path / "r", cache_dir=tmp_path / "stages", progress=False)
    assert last.status.tolist().count("recorded") == len(seen)
    assert {path: path.stat().st_mtime_ns for path in seen} == seen
    assert outcomes(tmp_path / "r") == unbroken
    assert rest(tmp_path / "r") == [], "a killed batch left something behind"


def test_two_batches_share_the_work(tmp_path):
    "Each run is done once, whoever does it, and both batches end with all of them."
    log = tmp_path / "fits"
    code = f"""
import time
from stubs import DistanceToMean
METHODS["CLAD"] = DistanceToMean
slowly = DistanceToMean._fit
DistanceToMean._fit = lambda *a: (time.sleep(0.2), slowly(*a))[1]
table = execute(grid("digits", ["CUR", "STR", "MIX"], "CLAD", "smoke", range(5)), jobs=1, results={str(tmp_path)!r},
                progress=False)
sys.exit(int(not set(table.status) <= {{"done", "recorded"}} or len(table) != 15))
"""
    both = [start(code, FITS=str(log)) for _ in range(2)]
    said = [one.communicate(timeout=300)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert log.read_text().count("fit") == 15 and len(runs.read_records(tmp_path)) == 15


def test_a_run_that_another_batch_has_is_waited_for(cheap, tmp_path):
    "The others come first; the one that was taken is found recorded in the end."
    code = f"""
import time
from stubs import DistanceToMean
METHODS["CLAD"] = DistanceToMean
fit = DistanceToMean._fit
DistanceToMean._fit = lambda *a: (print("fitting", file=sys.stderr, flush=True), time.sleep(1), fit(*a))[2]
execute([Run("digits", "CUR", settings="smoke")], jobs=1, results={str(tmp_path)!r}, progress=False)
"""
    other = start(code)
    assert other.stderr.readline() == "fitting\n"
    table = execute(grid("digits", ["CUR", "STR"], settings="smoke"), jobs=1, results=tmp_path, progress=False)
    assert table.status.tolist() == ["recorded", "done"] and DistanceToMean.fits == 1
    assert other.wait(60) == 0


def test_a_failure_is_recorded_and_tried_again(cheap, tmp_path, monkeypatch):
    def choosy(self, images, *_):
        if len(images) > 400:
            raise MemoryError(f"cannot take {len(images)} images from {tmp_path}/images.npy")
        DistanceToMean.mean_ = images.mean(0)
    plan = grid("digits", ["CUR", "MIX", "STR"], settings="smoke")
    monkeypatch.setattr(DistanceToMean, "_fit", choosy)
    table = execute(plan, jobs=1, results=tmp_path, progress=False)
    assert table.status.tolist() == ["done", "failed", "done"] and "MemoryError" in table.reason[1]
    path = runs.failure_path(plan[1].path(tmp_path))
    failed = json.loads(path.read_text())
    assert failed["identity"] == plan[1].identity() and "images from images.npy" in failed["failure"]["reason"]
    assert str(tmp_path) not in path.read_text() and str(Path(runs.__file__).parent) not in path.read_text()
    assert "test_experiments.py" in path.read_text() and len(runs.read_records(tmp_path)) == 2
    monkeypatch.undo()
    monkeypatch.setitem(runs.METHODS, "CLAD", DistanceToMean)
    assert execute(plan, jobs=1, results=tmp_path, progress=False).status.tolist() == ["recorded", "done", "recorded"]
    assert not path.exists()


def test_threads_do_not_mix_up_random_numbers(tmp_path):
    plan = grid("digits", "CUR", "OCNN", "smoke", [0, 1, 2])
    execute(plan, jobs=3, backend="threading", results=tmp_path / "threads", progress=False)
    execute(plan, jobs=1, results=tmp_path / "one", progress=False)
    assert outcomes(tmp_path / "threads") == outcomes(tmp_path / "one")


def test_a_line_every_few_seconds(cheap, tmp_path, monkeypatch, capfd):
    fit = DistanceToMean._fit
    monkeypatch.setattr(DistanceToMean, "_fit", lambda *arguments: (time.sleep(5), fit(*arguments)))
    execute([Run("digits", "CUR", settings="smoke")], jobs=1, results=tmp_path)
    said = capfd.readouterr().err
    assert re.search(r"^clad: 1 run to do, 1 at a time \(loky\): about .*\(1 measured\).*GiB.*disk", said, re.M)
    assert "clad: 0 of 1 runs done, about" in said and "left; digits CUR CLAD smoke seed 0" in said


def test_what_is_refused_before_anything_is_computed(cheap, tmp_path, monkeypatch):
    plan = [Run("digits", "CUR", settings="smoke")]
    (tmp_path / "file").write_text("")
    for arguments, error, words in [
            ({"results": ""}, OSError, "empty name"), ({"results": tmp_path / "file"}, OSError, "hold the records"),
            ({"cache_dir": tmp_path / "file"}, OSError, "cannot hold stage results"), ({"jobs": 0}, ValueError, "jobs"),
            ({"jobs": 1.5}, ValueError, "jobs"), ({"backend": "lokky"}, ValueError, "choose one of")]:
        with pytest.raises(error, match=words):
            execute(plan, **{"results": tmp_path / "r", "progress": False, **arguments})
    monkeypatch.setattr(experiments, "load_dataset", functools.partial(load_dataset, download=False))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        execute([Run("mnist", "CUR")], results=tmp_path / "r", data_root=tmp_path / "nowhere", progress=False)
    assert DistanceToMean.fits == 0


def test_no_more_at_once_than_fit_in_memory(monkeypatch):
    size = {"train": 30_000, "test": 10_000, "numbers": 3072, "bytes": 184_320_000}
    need = experiments.memory(Run("cifar10", "LIV", "OCSVM"), size)
    assert need > 8 * 30_000**2
    for free, jobs in ((10 * need, 4), (2.5 * need, 2), (0.5 * need, 1)):
        monkeypatch.setattr(experiments, "free_memory", lambda free=free: int(free))
        assert experiments.width(need, 4) == jobs


def test_estimates_come_from_records_and_are_scaled(tmp_path, monkeypatch):
    plan = grid("digits", ["CUR", "MIX"], "OCSVM", "smoke")
    execute(plan[:1], jobs=1, results=tmp_path, progress=False)
    path = plan[0].path(tmp_path)
    record = json.loads(path.read_text())
    record["provenance"]["seconds"] = {"kernel": 6.0, "fit": 2.0, "score": 1.0}    # the kernel was in the cache
    path.write_text(json.dumps(record))
    monkeypatch.setattr(experiments, "_measured", lambda *_: pytest.fail("there is a record"))
    frame, size = experiments.estimate(plan, tmp_path, report=lambda _: None), experiments.sizes("digits")
    assert frame.basis.tolist() == ["recorded"] * 2
    assert np.allclose(frame.seconds, [7, 7 * (size.train["MIX"] / size.train["CUR"]) ** 2])
