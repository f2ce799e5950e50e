"""The baselines beyond their chapters: colour images, odd sizes, kills, and published numbers on the real data."""
import numpy as np
import pytest
import torch
from real_data import real
from torch import nn

from clad import conformance
from clad.base import load
from clad.baselines.deepsvdd import ContrastPixels, DeepSVDD, LeNet, fit_sphere
from clad.baselines.kernel import OCSVM, SVDD, published_svdd_rule, standardised
from clad.baselines.occnn import OCCNN, AlexNet
from clad.baselines.ocnn import OCNN
from clad.conformance import Trial
from clad.detector import CLAD
from clad.metrics import auroc
from clad.scenarios import get_scenario
from clad.settings import SETTINGS, released_statistics
from clad.training import Checkpoint, Loop, seeded

METHODS = {kind.__name__: kind for kind in (CLAD, OCSVM, OCNN, OCCNN, SVDD, DeepSVDD)}


def smoke(method: str, **changes):
    return METHODS[method].from_settings("smoke", "cifar10", **changes)


def discs(n: int, size: tuple[int, int] = (32, 32), seed: int = 0) -> np.ndarray:
    "Coloured discs on smooth backgrounds, uint8 [n,3,H,W]: two kinds of them, told apart by colour and place."
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    kind = np.arange(n) % 2
    centre = np.where(kind, 0.35, 0.65)[:, None] * size + rng.normal(0, 1, (n, 2))
    distance = np.hypot(y - centre[:, 0, None, None], x - centre[:, 1, None, None])
    inside = 1 / (1 + np.exp(distance - 7))
    colours = np.where(kind[:, None], (200, 60, 40), (40, 90, 210))[:, :, None, None]
    back = (80 + 60 * y / size[0] + rng.normal(0, 8, (n, 1, 1)))[:, None]
    return np.clip(inside[:, None] * colours + (1 - inside[:, None]) * back, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("method", METHODS)
def test_contract_on_colour_images(method):
    "What colour could change; every clause on grey images is in the chapters, on rows in test_own.py."
    n_clusters = {"n_clusters": 2} if method == "CLAD" else {}
    trial = Trial(smoke(method, calibration_fraction=0.1, **n_clusters), discs(60))
    for clause in ("layouts", "bad_input", "independence", "learning", "file"):
        getattr(conformance, f"_check_{clause}")(trial)


@pytest.mark.parametrize("method", ["OCNN", "OCCNN", "DeepSVDD"])
@pytest.mark.parametrize("size", [(29, 21), (16, 16)])
def test_any_size(method, size, tmp_path):
    "Fitted, saved and loaded; every single image has the score that it has among the others."
    detector = smoke(method).fit(discs(40, size))
    others = discs(20, size, seed=1)
    scores = detector.score_samples(others)
    assert len(np.unique(scores)) == 20
    detector.save(tmp_path / "detector.clad")
    again = load(tmp_path / "detector.clad")
    alone = np.concatenate([again.score_samples(others[i : i + 1]) for i in range(20)])
    assert np.abs(alone - scores).max() < 1e-3 * np.ptp(scores)


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_reaches_the_detector(method):
    "Each value of each named setting is found in the detector, on the part that uses it."
    for name in SETTINGS:
        for dataset, scenario in (("digits", "CUR"), ("mnist", "CUR"), ("mnist", "0"), ("cifar10", "THG"),
                                  ("cifar10", "cat"), ("gtsrb", "SPEC"), ("tiny-imagenet", "ANML")):
            detector = METHODS[method].from_settings(name, dataset, scenario)
            for key, value in METHODS[method].settings(name, dataset, scenario).items():
                stage, _, parameter = key.rpartition("__")
                assert getattr(getattr(detector, stage) if stage else detector, parameter) == value, (name, key)


@pytest.mark.parametrize("method, changes, words", [
    ("DeepSVDD", {"sphere__epochs": 0}, "epochs is 0"), ("OCNN", {"hidden": 0}, "hidden is 0"),
    ("OCCNN", {"sigma": -1}, "sigma is -1"), ("OCSVM", {"nu": 2}, "nu is 2"), ("SVDD", {"C": 0}, "C is 0")])
def test_a_refused_parameter_leaves_the_fit(method, changes, words):
    images = discs(40)
    detector = smoke(method, **({"pretraining__epochs": 1} if method == "DeepSVDD" else {})).fit(images)
    before = detector.score_samples(images)
    with pytest.raises(ValueError, match=words):
        detector.set_params(**changes).fit(images)
    assert np.array_equal(detector.score_samples(images), before)


@pytest.mark.parametrize("iterations, n", [(3, 40), (7, 40), (2, 200)])
def test_occnn_trains_for_exactly_its_iterations(iterations, n):
    "As many batches as asked for, whether a pass over the images is shorter or longer."
    report = smoke("OCCNN", iterations=iterations, batch_size=16).fit(discs(n)).fit_report_["classifier"]
    batches = n // 16 + (n % 16 > 1)
    assert report["iterations"] == iterations and len(report["loss"]) == -(-iterations // batches)


def test_methods_with_the_same_autoencoder_train_it_once(tmp_path):
    images = discs(40)
    alone = smoke("OCCNN").fit(images)
    smoke("OCNN", cache_dir=tmp_path).fit(images)
    shared = smoke("OCCNN", cache_dir=tmp_path).fit(images)
    assert shared.fit_report_["reused"] == ["autoencoder"]
    assert np.array_equal(shared.score_samples(images), alone.score_samples(images))


class Killed(ContrastPixels):
    "Pixels whose reading is interrupted after so many batches."

    batches_left = 10**9

    def __getitem__(self, index):
        self.batches_left -= 1
        if self.batches_left < 0:
            raise KeyboardInterrupt
        return super().__getitem__(index)


def sphere(path, batches_left: int = 10**9):
    "Centre, radius and loss of a soft-boundary sphere of six epochs, five batches each."
    with seeded(3):
        net = LeNet((3, 32, 32))
        pixels = Killed(discs(40), torch.device("cpu"))
        pixels.batches_left = batches_left
        return fit_sphere(net, pixels, Loop(6, 8, 1e-3), "soft-boundary", warm_up=2, checkpoint=Checkpoint(path, 0.0))


def test_short_soft_boundaries_get_a_radius():
    "The radius is measured on all images of the fit, so a share nu of them is outside, whatever nu is."
    for nu in (0.1, 0.4):
        detector = smoke("DeepSVDD", objective="soft-boundary", nu=nu, pretraining__epochs=1, sphere__epochs=3)
        detector.fit(discs(60))
        assert (detector.score_samples(discs(60)) < 0).mean() == pytest.approx(nu, abs=0.02)


@pytest.mark.parametrize("method", ["DeepSVDD", "OCSVM", "SVDD", "OCNN", "OCCNN"])
def test_blank_training_images_are_refused(method):
    with pytest.raises(ValueError, match="blank|one value"):
        smoke(method).fit(np.full((30, 3, 32, 32), 200, dtype=np.uint8))


@pytest.mark.parametrize("batches", [12, 22])
def test_a_killed_sphere_goes_on_where_it_was(tmp_path, batches):
    whole = sphere(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        sphere(tmp_path / "killed", batches)
    centre, radius, history = sphere(tmp_path / "killed")
    assert torch.equal(centre, whole[0]) and (radius, history) == whole[1:] and radius > 0


def test_alexnet(tmp_path, monkeypatch):
    "With narrow layers behind its convolutions: 57 of its 61 million weights are there, and no code looks at them."
    import torchvision.models

    def narrow(weights=None):
        net = whole(weights=weights)
        net.classifier[1], net.classifier[4] = nn.Linear(9216, 32), nn.Linear(32, 4096)
        net.classifier[6] = nn.Linear(4096, 10)
        return net

    whole = torchvision.models.alexnet
    monkeypatch.setattr(torchvision.models, "alexnet", narrow)
    path, images = tmp_path / "alexnet.pth", discs(12)
    with seeded(0):
        weights = narrow().state_dict()
    torch.save(weights, path)
    detector = OCCNN(representation=AlexNet(str(path)), iterations=2, batch_size=6, cache_dir=tmp_path / "stages")
    before = detector.fit(images).score_samples(images)
    assert len(np.unique(before)) == 12 and "autoencoder" not in detector.fit_report_
    # other weights at the same path are other weights, also for the stage store
    torch.save(weights | {"features.0.weight": -weights["features.0.weight"]}, path)
    after = detector.fit(images).score_samples(images)
    assert not np.allclose(before, after)
    detector.save(tmp_path / "detector.safetensors")
    path.unlink()
    assert np.array_equal(load(tmp_path / "detector.safetensors").score_samples(images), after)
    torch.save({"weights": torch.ones(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth does not hold torchvision's AlexNet"):
        OCCNN(representation=AlexNet(str(tmp_path / "other.pth"))).fit(images)


@pytest.mark.parametrize("method", ["OCNN", "OCCNN"])
def test_one_image_for_all_is_reported(method):
    images = np.repeat(discs(1), 30, axis=0)
    with pytest.warns(UserWarning, match="collapsed to a constant"):
        score = smoke(method).fit(images).score_samples(images)
    assert np.isfinite(score).all()
    with pytest.raises(ValueError, match="at least 2 images"):
        smoke(method).fit(discs(1))


# ------------------------------------------------------------------------------------------------------- the real sets

OFFICIAL_RANGES = {  # of single classes, from the official DeepSVDD
    "mnist": [(-.8827, 9.0015), (-.6661, 20.1081), (-.7820, 11.6651), (-.7646, 12.8951), (-.7254, 12.6832),
              (-.7699, 13.1033), (-.7784, 10.4578), (-.7130, 12.0578), (-.8280, 10.5815), (-.7370, 10.6970)],
    "cifar10": [(-28.9408, 13.8030), (-6.6818, 9.1581), (-34.9245, 14.4193), (-10.5992, 11.0932), (-11.9450, 10.6280),
                (-9.6920, 8.9483), (-9.1749, 13.8470), (-6.8767, 12.2824), (-15.6035, 15.2465), (-6.1329, 8.0461)]}


@pytest.mark.parametrize("dataset", OFFICIAL_RANGES)
def test_contrast_ranges_of_single_classes_are_the_official_ones(dataset):
    train, _ = real(dataset)
    for label, ends in enumerate(OFFICIAL_RANGES[dataset]):
        pixels = ContrastPixels(train.images[train.labels == label], torch.device("cpu"))
        assert np.allclose((pixels.low, pixels.high), ends, atol=3e-4), label


@pytest.mark.parametrize("dataset, scenario, expected", [
    ("mnist", "2", 82.0), ("mnist", "5", 79.7), ("cifar10", "automobile", 41.0)])
def test_published_ocsvm_cells_unfolded(dataset, scenario, expected):
    split = get_scenario(dataset, scenario).split(*real(dataset))
    detector = OCSVM.from_settings("released", dataset, scenario).fit(split.train.images)
    assert 100 * auroc(split.is_anomaly, detector.anomaly_score(split.test.images)) == pytest.approx(expected, abs=0.15)


def test_a_published_svdd_cell_is_hard_decisions_of_equal_weights():
    split = get_scenario("mnist", "CUR").split(*real("mnist"))
    statistics = released_statistics("mnist", "CUR")
    train, test = (standardised(part.images, *statistics) for part in (split.train, split.test))
    anomalous = published_svdd_rule(train, test)
    assert 100 * auroc(split.is_anomaly, anomalous.astype(float)) == pytest.approx(58.8, abs=0.15)
