"Promises in use: threads, pipelines, cross-validation, updates through a file, old files, and a second library."
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import GroupKFold, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import clad
from clad.conformal import certify, cluster_p_values, conformal_offset, conformal_p_values
from clad.metrics import auroc

FIXTURES = Path(__file__).parent / "fixtures"


def pictures() -> np.ndarray:
    "Digits 0, 3 and 8 of the training part, uint8 [N,1,28,28]."
    train, _ = clad.load_dataset("digits")
    return train.images[np.isin(train.labels, (0, 3, 8))]


@pytest.fixture(scope="module")
def remembering():
    "CLAD with a nearest-neighbour search among its features, clusters and a calibration; fitted once."
    brief = dict.fromkeys(("representation__epochs", "self_labels__epochs", "classifier__epochs"), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return clad.CLAD.from_settings("smoke", confidence=clad.Neighbours(3), calibration_fraction=0.4, alpha=0.1,
                                       **brief).fit(pictures()[:200])


# -------------------------------------------------------------------------------------------------------------- threads

@pytest.mark.parametrize("kind", ["CLAD", "OCSVM"])
def test_threads_get_what_one_gets(kind, remembering):
    "Scores, p-values and clusters of eight threads at once."
    x = pictures()[200:]
    fitted = remembering if kind == "CLAD" else clad.OCSVM(calibration_fraction=0.3).fit(x[:60])
    calls = [fitted.score_samples, fitted.p_values] + ([fitted.predict_cluster] if kind == "CLAD" else [])
    parts = np.array_split(np.arange(len(x)), 6)
    alone = [call(x) for call in calls]
    with ThreadPoolExecutor(8) as pool:
        jobs = [(k, part, pool.submit(call, x[part])) for k, call in 3 * list(enumerate(calls)) for part in parts]
        for k, part, job in jobs:
            spread = np.ptp(alone[0]) if k == 0 else 1
            assert np.abs(job.result() - alone[k][part]).max() <= 1e-3 * spread + (k == 1) / len(parts[0])


# --------------------------------------------------------------------------------------------------------- scikit-learn

def rows() -> tuple[np.ndarray, np.ndarray]:
    "Scikit-learn's digits as rows, and 1 for the digits 3 and 8."
    raw = load_digits()
    return raw.data / 16, np.isin(raw.target, (3, 8)).astype(int)


def test_a_pipeline_is_fitted_scores_and_decides():
    x, normal = rows()
    pipe = make_pipeline(StandardScaler(), PCA(20, random_state=0), clad.OCSVM(gamma=0.02, alpha=0.1))
    pipe.fit(x[normal == 1][:250])
    assert (pipe.predict(x[normal == 1][250:]) < 0).mean() < 0.25
    assert np.array_equal(pipe.score_samples(x[:9]) - pipe[-1].offset_, pipe.decision_function(x[:9]))
    assert clone(pipe).set_params(ocsvm__alpha=0.2)[-1].alpha == 0.2


def test_cross_validation_scores_unseen_folds():
    "y says what is normal and is read by the scorer only: each fold is fitted on its normal images."
    x, normal = rows()
    folds = [(train[normal[train] == 1], test) for train, test in KFold(3, shuffle=True, random_state=0).split(x)]
    pipe = make_pipeline(PCA(20, random_state=0), clad.OCSVM(gamma=0.02, calibration_fraction=0))
    found = cross_val_score(pipe, x, normal, cv=folds, scoring=lambda d, x, y: auroc(y == 0, -d.score_samples(x)))
    assert found.shape == (3,) and found.min() > 0.75
    groups = np.arange(len(x)) // 6
    grouped = cross_val_score(clad.OCSVM(gamma=0.02, alpha=0.2), x[normal == 1], groups=groups[normal == 1],
                              cv=GroupKFold(3), scoring=lambda d, x, y=None: (d.predict(x) > 0).mean())
    assert grouped.min() > 0.6


# -------------------------------------------------------------------------------------------------------------- updates

def test_an_update_goes_through_the_file(remembering, tmp_path):
    "Load, update, save over the same file, load: memory, threshold, clusters and report come back."
    x, file = pictures(), tmp_path / "model.clad"
    remembering.save(file)
    updated = clad.load(file).update(x[200:250])
    updated.save(file)
    again = clad.load(file)
    assert [p.name for p in tmp_path.iterdir()] == ["model.clad"]
    assert len(again.confidence_.bank_) == len(remembering.confidence_.bank_) + 25
    assert again.fit_report_["updates"] == [{"images": 50, "remembered": 25, "calibrated": 25, "picked": False}]
    assert np.array_equal(again.score_samples(x), updated.score_samples(x)) and again.offset_ == updated.offset_
    assert np.array_equal(again.calibration_clusters_, updated.calibration_clusters_)
    assert (again.score_samples(x) >= remembering.score_samples(x) - 1e-9).all()


def test_the_default_detector_remembers(tmp_path):
    "CLADPlus: both of its searches grow, no score falls, an inverted digit that is called fine is fine."
    x = pictures()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = clad.CLADPlus(budget=2_000, alpha=0.1, calibration_fraction=0.3).fit(x[:160])
    before, count = model.score_samples(x), len(model.gcn_.bank_)
    model.update(x[160:210])
    assert (model.score_samples(x) >= before - 1e-9).all()
    assert len(model.gcn_.bank_) == model.transforms_.bank_.shape[1] == count + 25
    assert model.predict(255 - x[:1])[0] == -1
    for _ in range(5):  # the fifth neighbour counts
        model.update(255 - x[:1], picked=True)
    assert model.predict(255 - x[:1])[0] == 1
    model.save(tmp_path / "plus.clad")
    assert np.array_equal(clad.load(tmp_path / "plus.clad").score_samples(x), model.score_samples(x))


def test_two_updates_are_the_same_before_and_after_loading(remembering, tmp_path):
    "The lot that shares out the images depends on the fit and on the number of updates, not on the process."
    x = pictures()
    remembering.save(tmp_path / "a.clad")
    one, two = (clad.load(tmp_path / "a.clad").update(x[200:220]) for _ in range(2))
    two.save(tmp_path / "b.clad")
    two = clad.load(tmp_path / "b.clad")
    assert one.update(x[220:240]).offset_ == two.update(x[220:240]).offset_
    assert np.array_equal(one.score_samples(x), two.score_samples(x))


def test_a_picture_called_fine_is_fine_at_once(remembering, tmp_path):
    strange = 255 - pictures()[:1]
    remembering.save(tmp_path / "a.clad")
    model = clad.load(tmp_path / "a.clad")
    first = model.score_samples(strange)[0]
    n = len(model.calibration_scores_)
    for _ in range(3):  # the score is the distance to the third neighbour
        model.update(strange, picked=True)
    assert model.score_samples(strange)[0] > max(first, model.offset_) and len(model.calibration_scores_) == n
    assert model.predict(strange)[0] == 1


def test_an_update_that_is_refused_changes_nothing(remembering, tmp_path):
    remembering.save(tmp_path / "a.clad")
    model = clad.load(tmp_path / "a.clad")
    for bad in (np.full((3, 1, 28, 28), np.nan), pictures()[:3, :, 1:], pictures()[:0]):
        with pytest.raises(ValueError):
            model.update(bad)
    with pytest.raises(ValueError, match="groups has shape"):
        model.update(pictures()[:3], groups=[1, 2])
    assert model.offset_ == remembering.offset_ and "updates" not in model.fit_report_


@pytest.mark.parametrize("by_group", [False, True])
def test_the_rate_holds_through_updates(by_group):
    "150 draws: a calibration, two updates, new images; by group, tracks of four nearly equal images."
    alpha, each, found = 0.1, 4 if by_group else 1, []

    def drawn(n, rng):
        return np.repeat(rng.normal(size=(n, 3)), each, axis=0) + rng.normal(0, 0.02, (n * each, 3))

    for seed in range(150):
        rng = np.random.default_rng(seed)
        detector = Memory(alpha=alpha, calibration_fraction=0, random_state=seed).fit(rng.normal(size=(200, 3)))
        groups = {n: np.repeat(np.arange(n), each) for n in (20, 30)}
        detector.calibrate(drawn(30, rng), groups[30])
        for n in (20, 30):
            detector.update(drawn(n, rng), groups[n])
        found.append((detector.predict(drawn(200 // each, rng)) < 0).mean())
    error = 3 * np.std(found) / len(found) ** 0.5
    assert 0.04 < np.mean(found) <= alpha + error


class Memory(clad.Detector):
    "Minus the distance to the nearest remembered row."
    accepts_flat = True

    def _fit(self, images, groups, work):
        self.rows_ = images

    def _score(self, images):
        return -cdist(images, self.rows_).min(1)

    def _has_memory(self):
        return True

    def _remember(self, images):
        self.rows_ = np.concatenate([self.rows_, images])


# -------------------------------------------------------------------------------------------------------------- classes

def test_the_rate_holds_in_each_class_and_by_group():
    """1,000 draws of 30 tracks a class of five images; the p-value of one image of a new track, by class. Taking frames
    for images, or classes for one pool, breaks the promise in the second class."""
    def one(seed: int) -> list[float]:
        rng = np.random.default_rng(seed)
        kind, groups = np.repeat([0, 1], 31), np.repeat(np.arange(62), 5)
        centre = rng.normal(size=62) * np.array([1, 3])[kind]
        scores, clusters = centre[groups] + rng.normal(0, 0.1, 310), kind[groups]
        new = groups == 61  # a track of the second class
        known, s, mine = scores[~new], scores[new][:1], clusters[new][:1]
        return [cluster_p_values(known, s, clusters[~new], mine, 19, groups[~new])[0],
                cluster_p_values(known, s, clusters[~new], mine, 19)[0], conformal_p_values(known, s, groups[~new])[0]]

    p = np.array([one(seed) for seed in range(1000)])
    rates = (p <= 0.1 + 1e-9).mean(0)
    assert rates[0] <= 0.1 + 3 * 0.3 / 1000**0.5 and rates[2] > 0.15, rates


def test_fewer_than_59_normals_cannot_be_certified_for_5_percent():
    assert certify(np.arange(59.0), 1 / 60).rate < 0.05 < certify(np.arange(58.0), 1 / 59).rate
    with pytest.raises(ValueError, match="set no threshold"):
        certify(np.arange(10.0), 0.05)


# ------------------------------------------------------------------------------------------------------------ old files

@pytest.mark.parametrize("version", [2])
def test_a_file_of_each_format_loads_and_scores_as_it_did(version):
    "Written when the format was new: an OCSVM on 120 of scikit-learn's digits 3 and 8, as rows."
    file = FIXTURES / f"format{version}.clad"
    x = rows()[0][rows()[1] == 1][:120]
    model = clad.load(file, device="cpu")
    assert file.stat().st_size < 100_000 and clad.base.FORMAT == version
    np.testing.assert_allclose(model.score_samples(x[:3]), [23.03484493584757, 23.021103115923847, 24.831974058430667])
    np.testing.assert_allclose(model.offset_, 20.686450896595133)
    assert model.predict(x).shape == (120,) and model.p_values(x).min() > 0
    assert len(model.update(x[:9]).calibration_scores_) == 39


# ------------------------------------------------------------------------------------------------------ other libraries

def test_crepes_agrees():
    base = pytest.importorskip("crepes.base")
    rng = np.random.default_rng(0)
    known, new = rng.normal(size=300).round(1), rng.normal(size=400).round(1)
    assert np.array_equal(conformal_p_values(known, new), base.p_values_batch(-known, -new, smoothing=False))
    c, d = rng.integers(0, 3, 300), rng.integers(0, 3, 400)
    mondrian = base.p_values_batch(-known, -new, c, d, smoothing=False)
    assert np.array_equal(cluster_p_values(known, new, c, d, 19), mondrian)
    for alpha in (0.01, 0.05, 0.2):
        assert np.array_equal(new < conformal_offset(known, alpha), conformal_p_values(known, new) <= alpha + 1e-9)
