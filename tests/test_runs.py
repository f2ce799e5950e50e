"Records under fault: damage, wrong names, leaks, doubles. A detector that is done at once stands in for CLAD."
import dataclasses
import json
import platform
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stubs import DistanceToMean

from clad import experiments, files, pictures, reports, runs
from clad.data import load_dataset
from clad.runs import Run
from clad.scenarios import Split, get_scenario

ROOT = Path(runs.__file__).parents[1]


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setitem(runs.METHODS, "CLAD", DistanceToMean)
    monkeypatch.setattr(DistanceToMean, "fits", 0)


def run(results, scenario="CUR", **arguments):
    return experiments.run("digits", scenario, settings="smoke", results=results, verbose=False, **arguments)


def visible(folder) -> list[str]:
    "Files below a folder that are not hidden, without those that say which test images are anomalies."
    found = [path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file() and path.stem != "truth"]
    return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))


def test_run_once(tmp_path):
    first = run(tmp_path)
    assert run(tmp_path) == first and DistanceToMean.fits == 1
    assert run(tmp_path, again=True)["outcome"] == first["outcome"] and DistanceToMean.fits == 2
    assert visible(tmp_path) == ["digits/CUR/CLAD-smoke-seed0.json", "digits/CUR/CLAD-smoke-seed0.ranks.npy"]


def test_provenance_takes_no_part_in_skipping(tmp_path):
    run(tmp_path)
    path = runs.record_path(tmp_path, "digits", "CUR", settings="smoke")
    record = json.loads(path.read_text())
    record["provenance"] = {"commit": "another", "seconds": {}}
    path.write_text(json.dumps(record))
    assert run(tmp_path)["provenance"]["commit"] == "another" and DistanceToMean.fits == 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"overrides": {"shift": 1.0}}, {"scenario": "STR"}])
def test_another_identity_is_another_record(tmp_path, change):
    run(tmp_path)
    run(tmp_path, **change)
    assert DistanceToMean.fits == 2 and len(visible(tmp_path)) == 4


def test_an_override_that_changes_nothing_is_no_other_run(tmp_path):
    assert run(tmp_path) == run(tmp_path, overrides={"shift": 0.0}) == run(tmp_path, overrides={"shift": 0})
    assert DistanceToMean.fits == 1


@pytest.mark.parametrize("name", ["random_state", "device", "calibration_fraction", "alpha", "verbose", "cache_dir"])
def test_what_no_override_may_touch(name):
    with pytest.raises(ValueError, match=f"{name!r} cannot be overridden"):
        Run("digits", "CUR", overrides={name: 3})


@pytest.mark.parametrize("one, other", [("/a/b", "/a_b"), ("a,shift=1", "a_shift=1"), ("1", 1), ("None", "none "),
                                        ("x" * 300, "x" * 301), ("é", "è"), ([1, 2], "[1, 2]")])
def test_different_overrides_have_different_files(one, other):
    names = {Run("digits", "CUR", overrides={"shift": value}).path("r").name for value in (one, other)}
    assert len(names) == 2 and all(len(name) < 200 and name.isascii() for name in names)


def test_new_revision_runs_again(tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setitem(runs.REVISION, "CLAD", 99)
    assert run(tmp_path)["identity"]["revision"] == 99 and DistanceToMean.fits == 2 and len(visible(tmp_path)) == 2


def test_record_is_fit_to_publish(tmp_path):
    record = json.dumps(run(tmp_path))
    for private in (str(tmp_path), str(ROOT), platform.node(), "NaN", "Infinity"):
        assert private not in record
    outcome = run(tmp_path)["outcome"]
    assert outcome["n_normal"] + outcome["n_anomaly"] == len(load_dataset("digits")[1])


DAMAGE = {b"": "not JSON", b'{"identity": {': "not JSON", b"[]": "not JSON", b"\xff\xfe": "not JSON",
          b'{"identity": {}}': "lacks identity.dataset"}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_record_is_named(tmp_path, damage):
    run(tmp_path)
    path = runs.record_path(tmp_path, "digits", "CUR", settings="smoke")
    path.write_bytes(damage)
    for call in (lambda: run(tmp_path), lambda: runs.read_records(tmp_path),
                 lambda: experiments.execute([Run("digits", "CUR", settings="smoke")], results=tmp_path)):
        with pytest.raises(ValueError, match=f"damaged record .*CLAD-smoke-seed0.json, which (is )?{DAMAGE[damage]}"):
            call()


@pytest.mark.parametrize("part, entry", [("provenance", "seconds"), ("outcome", "auroc"), ("identity", "seed")])
def test_record_that_lacks_something_is_named(tmp_path, part, entry):
    run(tmp_path)
    path = runs.record_path(tmp_path, "digits", "CUR", settings="smoke")
    record = json.loads(path.read_text())
    del record[part][entry]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"CLAD-smoke-seed0.json, which lacks {part}.{entry}"):
        runs.read_records(tmp_path)


def test_damaged_or_missing_ranks_are_named(tmp_path):
    run(tmp_path)
    path = runs.record_path(tmp_path, "digits", "CUR", settings="smoke")
    runs.ranks_path(path).write_bytes(runs.ranks_path(path).read_bytes()[:200])
    with pytest.raises(ValueError, match="ranks.npy"):
        runs.read_ranks(path)
    runs.ranks_path(path).unlink()
    with pytest.raises(FileNotFoundError, match="ranks.npy"):
        runs.read_ranks(path)


@pytest.mark.parametrize("arguments, words", [
    ({"dataset": "digit"}, "digits, mnist"), ({"scenario": "SPEC"}, "CUR"), ({"method": "CLADD"}, "one of OCSVM"),
    ({"settings": "quick"}, "short"), ({"overrides": {"shfit": 1}}, "shift"), ({"seed": -1}, "seed"),
    ({"seed": 0.5}, "seed"), ({"seed": 10**25}, "4294967295")])
def test_unknown_names_before_anything_is_loaded(tmp_path, monkeypatch, arguments, words):
    monkeypatch.setattr(experiments, "load_dataset", lambda *_: pytest.fail("data were loaded"))
    with pytest.raises(ValueError, match=words):
        experiments.run(**{"dataset": "digits", "scenario": "CUR", "results": tmp_path} | arguments)
    assert visible(tmp_path) == []


def test_test_set_without_anomalies_is_refused_before_training(tmp_path, monkeypatch):
    class AllNormal:
        def split(self, train, test):
            return Split(self, train, test, np.zeros(len(test), bool))
    monkeypatch.setattr(experiments, "get_scenario", lambda *_: AllNormal())
    with pytest.raises(ValueError, match="no anomalies"):
        run(tmp_path)
    assert DistanceToMean.fits == 0 and visible(tmp_path) == []


@pytest.mark.parametrize("call", ["_fit", "_score"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interruption_leaves_nothing(tmp_path, monkeypatch, call, error):
    def stop(*_):
        raise error
    monkeypatch.setattr(DistanceToMean, call, stop)
    with pytest.raises(error):
        run(tmp_path)
    assert visible(tmp_path) == []


def test_failing_disk_leaves_no_halves(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="CLAD-smoke-seed0.ranks.npy cannot be written .No space"):
        run(tmp_path)
    assert visible(tmp_path) == [] and not list(tmp_path.rglob("*.tmp"))


def test_no_record_without_its_ranks(tmp_path, monkeypatch):
    whole, written = runs.write_atomically, []

    def kill_at_second(path, content):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        return whole(path, content)
    monkeypatch.setattr(runs, "write_atomically", kill_at_second)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert visible(tmp_path) == ["digits/CUR/CLAD-smoke-seed0.ranks.npy"]


@pytest.mark.parametrize("tracks", [False, True])
def test_labels_do_not_leak_through_a_run(tmp_path, monkeypatch, tracks):
    "The same images and tracks; labels permuted among the normal classes, and among the anomalous ones."
    normal = [int(name) for name in get_scenario("digits", "CUR").normal]

    def renamed(seed):
        rng, sets = np.random.default_rng(seed), []
        for images in load_dataset("digits"):
            labels = images.labels.copy()
            for kind in (np.isin(labels, normal), ~np.isin(labels, normal)):
                labels[kind] = rng.permutation(labels[kind]) if seed else labels[kind]
            groups = np.arange(len(labels)) // 7 % 40 if tracks else None
            sets.append(dataclasses.replace(images, labels=labels, groups=groups))
        return tuple(sets)
    outcomes = []
    for seed in (0, 1):
        monkeypatch.setattr(experiments, "load_dataset", lambda *_, seed=seed: renamed(seed))
        outcomes.append(run(tmp_path / str(seed))["outcome"])
    ranks = [(tmp_path / name / "digits/CUR/CLAD-smoke-seed0.ranks.npy").read_bytes() for name in "01"]
    assert ranks[0] == ranks[1] and outcomes[0]["auroc"] == outcomes[1]["auroc"]
    assert outcomes[0]["per_class"] != outcomes[1]["per_class"]    # the labels were permuted indeed


def test_groups_reach_the_detector(tmp_path, monkeypatch):
    def tracked(*_):
        return tuple(dataclasses.replace(images, groups=np.arange(len(images)) ** 2 // 5000)
                     for images in load_dataset("digits"))
    plain = run(tmp_path / "a")
    monkeypatch.setattr(experiments, "load_dataset", tracked)
    assert run(tmp_path / "b")["outcome"] != plain["outcome"]


def test_reports_are_made_from_records_alone(tmp_path, monkeypatch):
    for seed in range(2):
        run(tmp_path / "results", seed=seed)
    monkeypatch.setattr(experiments, "load_dataset", lambda *_: pytest.fail("data were loaded"))
    made = []
    for folder in ("one", "two"):
        paths = pictures.write_reports(tmp_path / "results", tmp_path / folder)
        made.append({path.name: path.read_bytes() for path in paths})
    assert made[0] == made[1] and {"digits.md", "digits.csv", "digits.png"} <= set(made[0])
    table = pd.read_csv(tmp_path / "one" / "digits.csv")
    assert table.verdict.tolist() == ["not comparable: smoke settings are for tests"] and table.seeds.tolist() == [2]


def test_the_tables_of_this_repository_are_those_of_its_records(tmp_path, monkeypatch):
    "What is committed is what the records give: tables byte for byte, pictures where the drawing library is pinned."
    monkeypatch.undo()    # the real methods
    figures = ROOT / "figures"
    if not (figures / "results").is_dir():
        pytest.skip("needs a checkout")
    pinned = f"matplotlib=={metadata.version('matplotlib')}\n" in (ROOT / "constraints.txt").read_text()
    made = pictures.write_reports(figures / "results", tmp_path)
    assert {"detectors.md", "findings.md", "table1.csv", "figure3.png", "claims.png"} <= {path.name for path in made}
    kinds = {".md", ".csv"} | ({".png"} if pinned else set())
    stale = [path.name for path in made if path.suffix in kinds
             and path.read_bytes() != (figures / path.name).read_bytes()]
    assert stale == [], "run `make figures`"


def test_overrides_stay_out_of_tables(tmp_path):
    run(tmp_path, overrides={"shift": 2.0})
    assert len(runs.read_records(tmp_path)) == 1
    assert len(reports.comparison(runs.read_records(tmp_path))) == 0


def test_planning_400_runs_is_quick(monkeypatch):
    monkeypatch.undo()    # the real methods
    started = time.perf_counter()
    assert len(runs.paper_plan(seeds=(0, 1))) > 400 and time.perf_counter() - started < 10


def test_the_records_of_this_repository_are_read(monkeypatch):
    monkeypatch.undo()    # CLAD is itself here, with the parameters of its sweeps
    results = ROOT / "figures" / "results"
    if not results.is_dir():
        pytest.skip("needs a checkout")
    records = runs.read_records(results)
    assert len(records) >= 418 and records.path.is_unique
    clad = records[records.method == "CLAD"]
    assert clad["parameters.n_clusters"].notna().all() and (records["seconds.fit"] >= 0).all()
    for row in records.itertuples():
        one = Run(row.dataset, row.scenario, row.method, row.settings, row.seed, json.loads(row.overrides))
        assert one.path("").as_posix() == row.path, "this record would not be found again"


def test_the_ranks_of_this_repository_give_their_auroc():
    results = ROOT / "figures" / "results"
    if not results.is_dir():
        pytest.skip("needs a checkout")
    for path in runs.read_records(results).path:
        truth, ranks = runs.read_truth(results / path)
        assert 0 < truth.sum() < len(ranks)
