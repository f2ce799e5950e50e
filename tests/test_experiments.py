"""Records under fault: kills, damage, races, wrong names, leaks. A detector that is done at once stands in for CLAD."""
import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clad import experiments, reports
from clad.base import Detector
from clad.data import load_dataset
from clad.scenarios import Split, get_scenario


class DistanceToMean(Detector):
    "Distance to the mean image; `shift` does nothing, it is there to be overridden."

    fits = 0

    def __init__(self, *, shift=0.0, alpha=0.05, calibration_fraction=0.1, random_state=0, verbose=False,
                 device="auto"):
        super().__init__(alpha=alpha, calibration_fraction=calibration_fraction, random_state=random_state,
                         verbose=verbose, device=device)
        self.shift = shift

    @classmethod
    def _settings(cls, name, dataset, scenario):
        return {}

    def _fit(self, images, groups, seed):
        type(self).fits += 1
        self.mean_ = images.mean(0)

    def _score(self, images):
        return -np.linalg.norm((images - self.mean_).reshape(len(images), -1), axis=1)


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setitem(experiments.METHODS, "CLAD", DistanceToMean)
    monkeypatch.setattr(DistanceToMean, "fits", 0)


def run(results, scenario="CUR", **arguments):
    return experiments.run("digits", scenario, settings="smoke", results=results, verbose=False, **arguments)


def files(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_run_once(tmp_path):
    first = run(tmp_path)
    assert run(tmp_path) == first and DistanceToMean.fits == 1
    assert run(tmp_path, again=True)["outcome"] == first["outcome"] and DistanceToMean.fits == 2
    assert files(tmp_path) == ["digits/CUR/CLAD-smoke-seed0.json", "digits/CUR/CLAD-smoke-seed0.ranks.npy"]


def test_provenance_takes_no_part_in_skipping(tmp_path):
    run(tmp_path)
    path = experiments.record_path(tmp_path, "digits", "CUR", settings="smoke")
    record = json.loads(path.read_text())
    record["provenance"] = {"commit": "another", "seconds": {}}
    path.write_text(json.dumps(record))
    assert run(tmp_path)["provenance"]["commit"] == "another" and DistanceToMean.fits == 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"overrides": {"shift": 1.0}}, {"scenario": "STR"}])
def test_another_identity_is_another_record(tmp_path, change):
    run(tmp_path)
    run(tmp_path, **change)
    assert DistanceToMean.fits == 2 and len(files(tmp_path)) == 4


def test_new_revision_runs_again(tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setitem(experiments.REVISION, "CLAD", 99)
    assert run(tmp_path)["identity"]["revision"] == 99 and DistanceToMean.fits == 2 and len(files(tmp_path)) == 2


def test_record_is_fit_to_publish(tmp_path):
    record = json.dumps(run(tmp_path))
    for private in (str(tmp_path), str(Path(experiments.__file__).parent), platform.node(), "NaN", "Infinity"):
        assert private not in record
    outcome = run(tmp_path)["outcome"]
    assert outcome["n_normal"] + outcome["n_anomaly"] == len(load_dataset("digits")[1])


@pytest.mark.parametrize("damage", [b"", b'{"identity": {', b"[]", b'{"identity": {}}', b"\xff\xfe"])
def test_damaged_record_is_named(tmp_path, damage):
    run(tmp_path)
    path = experiments.record_path(tmp_path, "digits", "CUR", settings="smoke")
    path.write_bytes(damage)
    for call in (lambda: run(tmp_path), lambda: experiments.read_records(tmp_path),
                 lambda: experiments.plan("digits", ["CUR"], settings="smoke", results=tmp_path)):
        with pytest.raises(ValueError, match="damaged record .*CLAD-smoke-seed0.json"):
            call()


def test_damaged_or_missing_ranks_are_named(tmp_path):
    run(tmp_path)
    path = experiments.record_path(tmp_path, "digits", "CUR", settings="smoke")
    experiments.ranks_path(path).write_bytes(experiments.ranks_path(path).read_bytes()[:200])
    with pytest.raises(ValueError, match="ranks.npy"):
        experiments.read_ranks(path)
    experiments.ranks_path(path).unlink()
    with pytest.raises(FileNotFoundError, match="ranks.npy"):
        experiments.read_ranks(path)


@pytest.mark.parametrize("arguments, words", [
    ({"dataset": "digit"}, "digits, mnist"), ({"scenario": "SPEC"}, "CUR"), ({"method": "CLADD"}, "one of OCSVM"),
    ({"settings": "quick"}, "short"), ({"overrides": {"shfit": 1}}, "shift"), ({"seed": -1}, "seed"),
    ({"seed": 0.5}, "seed")])
def test_unknown_names_before_anything_is_loaded(tmp_path, monkeypatch, arguments, words):
    monkeypatch.setattr(experiments, "load_dataset", lambda *_: pytest.fail("data were loaded"))
    with pytest.raises(ValueError, match=words):
        experiments.run(**{"dataset": "digits", "scenario": "CUR", "results": tmp_path} | arguments)
    assert files(tmp_path) == []


def test_test_set_without_anomalies_is_refused_before_training(tmp_path, monkeypatch):
    class AllNormal:
        def split(self, train, test):
            return Split(self, train, test, np.zeros(len(test), bool))
    monkeypatch.setattr(experiments, "get_scenario", lambda *_: AllNormal())
    with pytest.raises(ValueError, match="no anomalies"):
        run(tmp_path)
    assert DistanceToMean.fits == 0 and files(tmp_path) == []


@pytest.mark.parametrize("call", ["_fit", "_score"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interruption_leaves_nothing(tmp_path, monkeypatch, call, error):
    def stop(*_):
        raise error
    monkeypatch.setattr(DistanceToMean, call, stop)
    with pytest.raises(error):
        run(tmp_path)
    assert files(tmp_path) == []


def test_failing_disk_leaves_no_halves(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(experiments.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        run(tmp_path)
    assert files(tmp_path) == []


def test_no_record_without_its_ranks(tmp_path, monkeypatch):
    whole, written = experiments.write_atomically, []

    def kill_at_second(path, content):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        return whole(path, content)
    monkeypatch.setattr(experiments, "write_atomically", kill_at_second)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert files(tmp_path) == ["digits/CUR/CLAD-smoke-seed0.ranks.npy"]


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import test_experiments as here
here.experiments.METHODS["CLAD"] = here.DistanceToMean
if {slow}:
    def fit(*_):
        print("fitting", flush=True)
        time.sleep(60)
    here.DistanceToMean._fit = fit
for scenario in ("CUR", "STR", "MIX"):
    here.run({results!r}, scenario)
"""


def process(results, slow: bool = False) -> subprocess.Popen:
    script = SCRIPT.format(tests=str(Path(__file__).parent), results=str(results), slow=slow)
    paths = os.pathsep.join([str(Path(experiments.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": paths})


def test_killed_batch_goes_on(tmp_path):
    run(tmp_path)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in files(tmp_path)}
    batch = process(tmp_path, slow=True)
    assert batch.stdout.readline() == "fitting\n"      # CUR was skipped, STR has begun
    batch.send_signal(signal.SIGKILL)
    batch.wait()
    assert files(tmp_path) == list(before)
    for scenario in ("CUR", "STR", "MIX"):
        run(tmp_path, scenario)
    assert DistanceToMean.fits == 3 and len(files(tmp_path)) == 6
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before


def test_two_processes_on_one_store(tmp_path):
    both = [process(tmp_path), process(tmp_path)]
    assert [one.wait(120) for one in both] == [0, 0]
    assert len(files(tmp_path)) == 6 and len(experiments.read_records(tmp_path)) == 3


def test_labels_do_not_leak_through_a_run(tmp_path, monkeypatch):
    run(tmp_path / "a")
    rng = np.random.default_rng(0)
    normal = [int(name) for name in get_scenario("digits", "CUR").normal]

    def renamed(*_):
        "The same images; labels permuted among the normal classes, and among the anomalous ones."
        sets = []
        for images in load_dataset("digits"):
            labels = images.labels.copy()
            for kind in (np.isin(labels, normal), ~np.isin(labels, normal)):
                labels[kind] = rng.permutation(labels[kind])
            sets.append(dataclasses.replace(images, labels=labels))
        return tuple(sets)
    monkeypatch.setattr(experiments, "load_dataset", renamed)
    run(tmp_path / "b")
    ranks = [(tmp_path / name / "digits/CUR/CLAD-smoke-seed0.ranks.npy").read_bytes() for name in "ab"]
    assert ranks[0] == ranks[1]


def test_reports_are_made_from_records_alone(tmp_path, monkeypatch):
    for seed in range(2):
        run(tmp_path / "results", seed=seed)
    monkeypatch.setattr(experiments, "load_dataset", lambda *_: pytest.fail("data were loaded"))
    made = []
    for folder in ("one", "two"):
        paths = reports.write_reports(tmp_path / "results", tmp_path / folder)
        assert [path.name for path in paths] == ["digits.md", "digits.csv", "digits.png", "table5.md", "table5.csv"]
        made.append([path.read_bytes() for path in paths])
    assert made[0] == made[1]
    table = pd.read_csv(tmp_path / "one" / "digits.csv")
    assert table.verdict.tolist() == ["not comparable: smoke settings are for tests"] and table.seeds.tolist() == [2]


def test_records_of_an_older_revision_are_not_shown(tmp_path, monkeypatch):
    run(tmp_path / "results")
    assert len(reports.comparison(experiments.read_records(tmp_path / "results"))) == 1
    monkeypatch.setitem(experiments.REVISION, "CLAD", experiments.REVISION["CLAD"] + 1)
    assert len(reports.comparison(experiments.read_records(tmp_path / "results"))) == 0
    assert reports.write_reports(tmp_path / "results", tmp_path / "figures") == []


def test_overrides_stay_out_of_tables(tmp_path):
    run(tmp_path, overrides={"shift": 2.0})
    assert len(experiments.read_records(tmp_path)) == 1
    assert len(reports.comparison(experiments.read_records(tmp_path))) == 0


def test_planning_400_runs_is_quick(tmp_path):
    started = time.perf_counter()
    table = experiments.plan("digits", ["CUR", "STR", "MIX"], seeds=range(134), results=tmp_path)
    assert len(table) == 402 and not table.recorded.any() and time.perf_counter() - started < 5
