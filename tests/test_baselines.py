"""The baselines beyond their chapters: colour images, odd sizes, kills, and published numbers on the real data."""
import numpy as np
import pytest
import torch
from real_data import real
from torchvision.models import alexnet

from clad.base import CHECKS, check_detector, load, seeded
from clad.baselines.deepsvdd import ContrastPixels, LeNet, fit_sphere
from clad.baselines.kernel import OCSVM, published_svdd_rule, standardised
from clad.baselines.occnn import OCCNN
from clad.baselines.ocnn import OCNN
from clad.detector import released_settings
from clad.experiments import METHODS
from clad.metrics import auroc
from clad.scenarios import get_scenario
from clad.training import Checkpoint, Loop


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
    n_clusters = {"n_clusters": 2} if method == "CLAD" else {}
    assert len(check_detector(smoke(method, calibration_fraction=0.1, **n_clusters), discs(60))) == len(CHECKS)


@pytest.mark.parametrize("method", ["OCNN", "OCCNN", "DeepSVDD"])
@pytest.mark.parametrize("size", [(45, 33), (16, 16)])
def test_any_size(method, size):
    images = discs(40, size)
    assert np.ptp(smoke(method).fit(images).score_samples(images)) > 0


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_makes_a_detector_for_every_data_set(method):
    for name in ("paper", "released", "short", "smoke"):
        for dataset, scenario in (("digits", "CUR"), ("mnist", "CUR"), ("mnist", "0"), ("cifar10", "THG"),
                                  ("cifar10", "cat"), ("gtsrb", "SPEC"), ("tiny-imagenet", "ANML")):
            assert METHODS[method].settings(name, dataset, scenario)["calibration_fraction"] == 0


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


@pytest.mark.parametrize("batches", [12, 22])
def test_a_killed_sphere_goes_on_where_it_was(tmp_path, batches):
    whole = sphere(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        sphere(tmp_path / "killed", batches)
    centre, radius, history = sphere(tmp_path / "killed")
    assert torch.equal(centre, whole[0]) and (radius, history) == whole[1:] and radius > 0


def test_alexnet(tmp_path):
    with seeded(0):
        torch.save(alexnet(weights=None).state_dict(), tmp_path / "alexnet.pth")
    images = discs(12)
    detector = OCCNN(alexnet_weights=str(tmp_path / "alexnet.pth"), iterations=2, batch_size=6).fit(images)
    score = detector.score_samples(images[:, :1].repeat(3, 1))
    assert score.shape == (12,) and "autoencoder" not in detector.fit_report_
    detector.save(tmp_path / "detector.safetensors")
    (tmp_path / "alexnet.pth").unlink()
    again = load(tmp_path / "detector.safetensors")
    assert np.array_equal(again.score_samples(images), detector.score_samples(images))
    torch.save({"weights": torch.ones(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth does not hold torchvision's AlexNet"):
        OCCNN(alexnet_weights=str(tmp_path / "other.pth")).fit(images)


def test_constant_features_do_not_break_the_scaling():
    images = np.repeat(discs(1), 30, axis=0)
    with pytest.warns(UserWarning):
        score = OCNN.from_settings("smoke").fit(images).score_samples(images)
    assert np.isfinite(score).all()


# ------------------------------------------------------------------------------------------------------- the real sets

def test_contrast_range_of_digits_is_the_official_one():
    official = [(-.8827, 9.0015), (-.6661, 20.1081), (-.7820, 11.6651), (-.7646, 12.8951), (-.7254, 12.6832),
                (-.7699, 13.1033), (-.7784, 10.4578), (-.7130, 12.0578), (-.8280, 10.5815), (-.7370, 10.6970)]
    train, _ = real("mnist")
    for digit, ends in enumerate(official):
        pixels = ContrastPixels(train.images[train.labels == digit], torch.device("cpu"))
        assert np.allclose((pixels.low, pixels.high), ends, atol=2e-4), digit


@pytest.mark.parametrize("dataset, scenario, expected", [
    ("mnist", "2", 82.0), ("mnist", "5", 79.7), ("cifar10", "automobile", 41.0)])
def test_published_ocsvm_cells_unfolded(dataset, scenario, expected):
    split = get_scenario(dataset, scenario).split(*real(dataset))
    detector = OCSVM.from_settings("released", dataset, scenario).fit(split.train.images)
    assert 100 * auroc(split.is_anomaly, detector.anomaly_score(split.test.images)) == pytest.approx(expected, abs=0.15)


def test_published_svdd_cell_is_a_hard_decision_of_equal_weights():
    split = get_scenario("mnist", "CUR").split(*real("mnist"))
    statistics = released_settings("mnist", "CUR")["statistics"]
    train, test = (standardised(part.images, *statistics) for part in (split.train, split.test))
    anomalous = published_svdd_rule(train, test)
    assert 100 * auroc(split.is_anomaly, anomalous.astype(float)) == pytest.approx(58.8, abs=0.15)
