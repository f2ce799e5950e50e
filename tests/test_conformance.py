"The contract where its chapter does not reach: without asserts, between processes, in little memory, on a GPU."
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import check_estimator

import clad
from clad.autoencoder import Autoencoder
from clad.base import Detector
from clad.conformal import conformal_offset
from clad.dec import DEC
from clad.training import StageStore, Workspace

ROOT = Path(__file__).resolve().parents[1]
SMOKE = "clad.CLAD.from_settings('smoke', representation__epochs=1, self_labels__epochs=1, classifier__epochs=1"
IMAGES = "np.random.default_rng(0).integers(0, 256, (60, 1, 16, 16)).astype('u1') // np.arange(1, 17, dtype='u1')"


def started(code: str, *flags: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen([sys.executable, *flags, "-c", "import numpy as np, clad\n" + code], env=environment,
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def images() -> np.ndarray:
    return eval(IMAGES)


def small(**changes) -> Detector:
    "CLAD with the setting smoke and one epoch of everything."
    return eval(SMOKE + ", **changes)")


# ----------------------------------------------------------------------------------------------------------- the check

def test_planted_faults_are_caught_without_asserts():
    "Chapter 41 as it stands, under python -O."
    cells = json.loads((ROOT / "nbs/41_conformance.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    code += """
wrong = {k: v for k, v in expected.items() if k not in table or names[table[k][0]] != v}
if __debug__ or wrong or set(table) != set(expected) or len(table) < 33:
    raise SystemExit(f"{__debug__=}, not caught as expected: {wrong}")
"""
    assert "RoundsOnLoad" in finished(started(code, "-O"))


@pytest.mark.parametrize("name", ["OCSVM", "SVDD"])
def test_rows_keep_the_contract_of_scikit_learn(name):
    "Every detector that takes rows; alpha is 0.5, since most of those sets have a handful of rows."
    found = check_estimator(getattr(clad, name)(alpha=0.5), on_fail=None)
    failed = {f["check_name"]: f["exception"] for f in found if f["status"] not in ("passed", "skipped")}
    count = Counter(f["status"] for f in found)
    assert not failed and count["passed"] >= 40 and count["skipped"] <= 1, (count, failed)


def test_every_detector_that_takes_rows_is_tested_with_them():
    kinds = {name: getattr(clad, name) for name in clad.__all__}
    takes = {n for n, k in kinds.items() if isinstance(k, type) and issubclass(k, Detector) and k.accepts_flat}
    assert takes == {"OCSVM", "SVDD", "CLAD", "CLADPlus", "DeepSVDD", "OCNN", "OCCNN"}  # the last five in test_own.py


# ------------------------------------------------------------------------------------------------- names of the package

def test_importing_the_package_imports_nothing_else():
    out = finished(started("""
import subprocess, sys, time
code = "import sys, time; a = time.perf_counter(); import clad; b = time.perf_counter(); dir(clad); print(b - a); " \
       "print(sorted({m.partition('.')[0] for m in sys.modules} & {'torch', 'numpy', 'sklearn', 'scipy', 'pandas'}))"
for _ in range(3):
    print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
""")).split()
    assert out[1::2] == ["[]"] * 3 and min(map(float, out[::2])) < 0.2


# ------------------------------------------------------------------------------------------------------------ processes

def test_two_processes_on_one_store_train_once_and_a_third_loads(tmp_path):
    code = f"""
import json
x = {IMAGES}
d = {SMOKE}, cache_dir={str(tmp_path / "store")!r}).fit(x)
d.save({str(tmp_path)!r} + "/%s.clad")
print(json.dumps([d.fit_report_.get("reused", []), d.score_samples(x).tolist()]))
"""
    (first, one), (second, two) = map(json.loads, map(finished, [started(code % name) for name in "ab"]))
    kept = [stage.name for stage in small().get_params(deep=False).values() if getattr(stage, "stored", False)]
    assert len(kept) >= 3 and sorted(first + second) == sorted(kept), "each stage is trained once and found once"
    assert one == two == small().fit(images()).score_samples(images()).tolist()
    third = clad.load(tmp_path / "b.clad")
    assert type(third) is clad.CLAD and third.score_samples(images()).tolist() == one


@pytest.mark.parametrize("change, again", [
    ({}, ["autoencoder", "clusters"]), ({"self_labels__n_clusters": 2}, ["autoencoder"]),
    ({"representation__lr": 1e-3}, []), ({"random_state": 1}, [])])
def test_what_invalidates_a_stored_stage(change, again, tmp_path):
    "A stage is computed again when a parameter of it or of a stage below it changes, or the seed."
    def stages(seed=0, **changed):
        work = Workspace(seed=seed, store=StageStore(tmp_path))
        parts = {"representation": Autoencoder(hidden_dim=5, epochs=1), "self_labels": DEC(3, epochs=1, n_init=1)}
        for name, value in changed.items():
            part, _, parameter = name.partition("__")
            parts[part].set_params(**{parameter: value})
        below = parts["representation"].fit(x, workspace=work.at(0))
        parts["self_labels"].fit(x, below, workspace=work.at(1))
        return work.report.get("reused", [])

    x, change = images(), dict(change)
    assert stages() == []
    assert stages(change.pop("random_state", 0), **change) == again


def test_images_and_revisions_invalidate_a_stored_stage(tmp_path, monkeypatch):
    def reused(x):
        work = Workspace(store=StageStore(tmp_path))
        Autoencoder(hidden_dim=5, epochs=1).fit(x, workspace=work)
        return work.report.get("reused", [])

    x = images()
    assert (reused(x), reused(x)) == ([], ["autoencoder"])
    assert reused(x[::-1]) == []
    monkeypatch.setattr(Autoencoder, "revision", Autoencoder.revision + 1)
    assert reused(x) == []


# ----------------------------------------------------------------------------------------------------- the alarm rate

def test_the_rate_of_false_alarms_holds_for_tracks():
    """Images of one track are alike. By groups, at most alpha of the images of a new track are flagged; by images, as
    if each stood alone, more. OCSVM on 200 draws of 12 tracks for the threshold and one new track each."""
    rng, alpha = np.random.default_rng(0), 0.1

    def tracks(n):  # 30 rows a track, nearly the same
        return np.repeat(rng.normal(0, 1, (n, 4)), 30, axis=0) + rng.normal(0, 0.1, (30 * n, 4))

    detector = clad.OCSVM(alpha=alpha, calibration_fraction=0).fit(tracks(10))
    groups, rates = np.repeat(np.arange(12), 30), []
    for _ in range(200):
        scores = detector.calibrate(tracks(12), groups=groups).calibration_scores_
        new = detector.score_samples(tracks(1))
        rates.append([(new < detector.offset_).mean(), (new < conformal_offset(scores, alpha)).mean()])
    (by_group, by_image), error = np.mean(rates, 0), np.std(rates, 0)[0] / len(rates)**0.5
    assert by_group < alpha + 2 * error and by_image > by_group + 0.02


# ------------------------------------------------------------------------------------------------------ memory, devices

def test_a_fit_on_a_memory_map_needs_little_more_than_the_map(tmp_path):
    "200 MB of images in a file: its pages are counted once for the fit and once for the scores, nothing is copied."
    size = (16_000, 3, 65, 65)
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, size)[:, 0, 0, 0] = np.arange(16_000) % 251
    out = finished(started(f"""
import resource, sys
from clad.base import Detector
from clad.training import Pixels
class Brightness(Detector):
    def _fit(self, images, groups, work):
        pixels = Pixels(images, (0.5,) * 3, (0.5,) * 3, work.device)
        self.mean_ = sum(float(batch.sum()) for batch in pixels.batches(256)) / images.size
    def _score(self, images):
        pixels = Pixels(images, (0.5,) * 3, (0.5,) * 3, __import__("torch").device("cpu"))
        return np.concatenate([-abs(b.mean((1, 2, 3)) - self.mean_).numpy() for b in pixels.batches(256)])
x = np.load({str(tmp_path / "x.npy")!r}, mmap_mode="r")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
Brightness().fit(x[:300])
before = peak()
Brightness().fit(x).score_samples(x)
print((peak() - before) / x.nbytes)
"""))
    assert float(out) < 2.4, f"the fit took {float(out):.2f} times the bytes of the images"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["CLAD", "DeepSVDD", "OCNN", "OCCNN", "OCSVM", "SVDD"])
def test_a_gpu_scores_like_the_cpu(name, tmp_path):
    "One fitted detector on both; on either, the same scores each time."
    x = images()
    getattr(clad, name).from_settings("smoke", device="cpu").fit(x).save(tmp_path / "x.clad")
    cpu, gpu = (clad.load(tmp_path / "x.clad", device=device) for device in ("cpu", "cuda"))
    scores = cpu.score_samples(x)
    assert np.abs(gpu.score_samples(x) - scores).max() <= 1e-3 * np.ptp(scores)
    assert np.array_equal(gpu.score_samples(x), gpu.score_samples(x))
    fits = [getattr(clad, name).from_settings("smoke", device="cuda").fit(x).score_samples(x) for _ in range(2)]
    assert np.array_equal(*fits)
