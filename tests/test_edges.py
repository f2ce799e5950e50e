"Odd but lawful: integer rows, NumPy scalars, named columns, extreme values, folders that fail, commands at once."
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

import clad
from clad.dec import GivenLabels

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
RNG = np.random.default_rng(0)
HEAPS = np.arange(240) % 2
ROWS = (30 * HEAPS[:, None] + RNG.normal(0, 4, (240, 6))).round()
PICTURES = (RNG.integers(0, 120, (120, 1, 16, 16)) + 8 * np.arange(16)).astype(np.uint8)
BRIEF = {"n_clusters": 2, "representation__epochs": 1, "self_labels__epochs": 1, "self_labels__n_init": 1,
         "classifier__epochs": 1}


def brief(**more) -> clad.CLAD:
    return clad.CLAD.from_settings("smoke", **{**BRIEF, **more})


def reloaded(detector, path):
    detector.save(path)
    return clad.load(path)


@pytest.fixture(scope="module")
def on_rows() -> clad.CLAD:
    return brief(calibration_fraction=0.5, alpha=0.2).fit(ROWS)


# ------------------------------------------------------------------------------------------------- clusters and rows

def test_whole_numbers_are_rows_for_every_method(on_rows):
    whole = ROWS.astype(int)
    for name in ("predict_cluster", "encode", "score_samples"):
        assert (getattr(on_rows, name)(whole) == getattr(on_rows, name)(ROWS)).all()
    assert (on_rows.side_scores(whole)["base"] == on_rows.side_scores(ROWS)["base"]).all()
    p = on_rows.p_values(ROWS, by="cluster")
    assert (on_rows.p_values(whole, by="cluster") == p).all() and (p != on_rows.p_values(ROWS)).any()
    kept = on_rows.calibration_clusters_
    assert on_rows.calibrate(whole) is on_rows and len(on_rows.calibration_clusters_) == len(ROWS) > len(kept)


def test_p_values_within_clusters_need_clusters(on_rows, monkeypatch):
    monkeypatch.setattr(type(on_rows.self_labels_), "predict", lambda *_: (_ for _ in ()).throw(ValueError("none")))
    with pytest.raises(ValueError, match="gives these images no cluster"):
        on_rows.p_values(ROWS, by="cluster")


# ------------------------------------------------------------------------------------------------- files and parameters

def test_columns_keep_their_names_in_a_file(tmp_path):
    frame = pd.DataFrame(ROWS, columns=list("abcdef"))
    again = reloaded(clad.CLADPlus().fit(frame), tmp_path / "m.clad")
    assert (again.score_samples(frame) == clad.CLADPlus().fit(frame).score_samples(frame)).all()
    with pytest.raises(ValueError, match="feature names"):
        again.score_samples(frame[list("fedcba")])
    again = reloaded(clad.CLADPlus().fit(ROWS), tmp_path / "m.clad")
    assert not hasattr(again, "feature_names_in_")


def test_given_labels_are_saved_and_cloned(tmp_path):
    detector = clad.CLAD.from_settings("smoke", self_labels=GivenLabels(HEAPS), representation__epochs=1,
                                       classifier__epochs=1, calibration_fraction=0)
    assert clone(detector).n_clusters is None
    detector.fit(ROWS)
    assert (reloaded(detector, tmp_path / "m.clad").score_samples(ROWS) == detector.score_samples(ROWS)).all()


def test_a_refused_calibration_changes_nothing():
    detector = clad.OCSVM(alpha=0.2, calibration_fraction=0.3).fit(ROWS)
    detector.update(ROWS + RNG.normal(0, 30, ROWS.shape), picked=True)
    assert detector.fit_report_["picked"]
    with pytest.raises(ValueError, match="groups has shape"):
        detector.calibrate(ROWS, groups=[1, 2])
    with pytest.raises(ValueError, match="picked by a person"):
        detector.certificate()
