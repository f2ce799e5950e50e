"Odd but lawful: integer rows, NumPy scalars, named columns, extreme values, folders that fail, updates at once."
import csv
import io
import os
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock, Timeout
from PIL import Image, features
from scipy.stats import norm
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score

import clad
import clad.base
import clad.cli
import clad.encoder
import clad.floors
import clad.training
from clad import reports
from clad.cli import main
from clad.conformal import certify, conformal_offset
from clad.dec import GivenLabels
from clad.encoder import EncoderNeighbours
from clad.floors import RowNeighbours
from clad.metrics import delong_test
from clad.report import score_pictures, write_report
from clad.transforms import Transforms

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


NUMPY = {"nu": lambda: clad.OCSVM(nu=np.float32(0.3)), "C": lambda: clad.SVDD(C=np.float32(0.3)),
         "statistics": lambda: clad.OCSVM(statistics=((np.float32(0.3),), (np.float32(0.2),))),
         "budget": lambda: clad.CLADPlus(budget=np.int64(1000)),
         "batch_size": lambda: clad.CLADPlus(transforms=Transforms(batch_size=np.int64(16)), budget=1000),
         "iterations": lambda: clad.OCCNN.from_settings("smoke", iterations=np.int64(2), representation__epochs=1)}


@pytest.mark.parametrize("name", NUMPY)
def test_parameters_may_be_numbers_of_numpy(tmp_path, name):
    folder = {"cache_dir": tmp_path / "stages"} if name in ("budget", "batch_size", "iterations") else {}
    detector = NUMPY[name]().set_params(calibration_fraction=0.3, **folder).fit(PICTURES)
    detector.update(PICTURES[:, :, ::-1], picked=np.bool_(True))
    assert (reloaded(detector, tmp_path / "m.clad").score_samples(PICTURES) == detector.score_samples(PICTURES)).all()


def test_epochs_may_be_numbers_of_numpy():
    clad.Autoencoder(4, epochs=np.int64(2)).fit(PICTURES)


def test_a_rate_of_float32_is_the_same_after_a_file(tmp_path):
    detector = clad.OCSVM(alpha=np.float32(0.01), calibration_fraction=0.33).fit(RNG.normal(size=(300, 3)))
    assert len(detector.calibration_scores_) == 99
    assert reloaded(detector, tmp_path / "m.clad").offset_ == detector.offset_


def test_a_page_at_a_rate_of_float32(tmp_path):
    detector = clad.OCSVM(calibration_fraction=0.5).fit(PICTURES)
    table = score_pictures(detector, PICTURES, [f"{i}.png" for i in range(len(PICTURES))])
    assert write_report(tmp_path / "page.html", detector, table, PICTURES, fdr=np.float32(0.1)).stat().st_size


def test_none_for_a_stage_is_the_default_one():
    detector = clad.CLADPlus(neighbours=RowNeighbours(k=1)).set_params(neighbours=None)
    assert detector.neighbours.k == RowNeighbours().k and len(detector.fit(ROWS).members_) == 2
    assert clone(clad.CLAD(hidden_dim=7).set_params(representation=None)).hidden_dim == clad.CLAD().hidden_dim


WRONG = {"statistics is 3": lambda: clad.CLAD(statistics=3).fit(ROWS),
         r"statistics is \[\['a'\], \['b'\]\]": lambda: clad.CLAD(statistics=[["a"], ["b"]]).fit(PICTURES),
         "statistics is 3:": lambda: clad.OCSVM(statistics=3).fit(PICTURES),
         r"device \[1\]": lambda: clad.OCSVM(device=[1]).fit(ROWS),
         "cache_dir is 5": lambda: clad.CLADPlus(cache_dir=5).fit(ROWS),
         "random_state is 100000000000000000000000": lambda: clad.OCSVM(random_state=10**23).fit(ROWS)}


@pytest.mark.parametrize("words", WRONG)
def test_a_parameter_of_a_wrong_type_is_named(words):
    with pytest.raises(ValueError, match=words):
        WRONG[words]()


def test_another_pipe_that_breaks_is_an_error(tmp_path):
    "A table that is written to a pipe whose reader leaves is cut short, whoever reads the output."
    code = ("import sys, unittest.mock as m; from clad.cli import main\n"
            "with m.patch('clad.cli._list', side_effect=BrokenPipeError(32, 'Broken pipe')): sys.exit(main(['list']))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "clad: Broken pipe\n")


def test_a_device_that_is_not_there_is_no_fault_of_the_file(tmp_path, capsys):
    clad.OCSVM().fit(PICTURES).save(tmp_path / "m.clad")
    assert main(["score", str(tmp_path / "m.clad"), str(tmp_path), "--out", str(tmp_path / "s.csv"),
                 "--device", "cuda:9"]) == 1
    assert capsys.readouterr().err.startswith("clad: device 'cuda:9' is not available here")


# ------------------------------------------------------------------------------------------------- extreme numbers

@pytest.mark.parametrize("far", [1e25, 3e38])
def test_one_extreme_row_is_flagged_and_stops_nothing(far):
    detector, rows = clad.CLADPlus(alpha=0.1, calibration_fraction=0.4).fit(ROWS), ROWS[:3]
    found = detector.score_samples(np.vstack([rows, np.full(6, far)]))
    assert (found[:3] == detector.score_samples(rows)).all() and np.isfinite(found[3])
    assert detector.predict(np.full((1, 6), -far)).tolist() == [-1]


def test_a_column_that_never_changes_may_lie_anywhere():
    for value in (2e6, 1e20):
        at_zero, far = (clad.CLADPlus().fit(np.c_[ROWS, np.full(len(ROWS), v)]) for v in (0, value))
        found = far.score_samples(np.c_[ROWS, np.full(len(ROWS), value)])
        assert np.abs(found - at_zero.score_samples(np.c_[ROWS, np.zeros(len(ROWS))])).max() < 1e-3
    with pytest.raises(ValueError, match="column 1 lies around 1e"):
        clad.CLADPlus().fit(np.c_[ROWS[:, 0], 1e12 + 1e3 * ROWS[:, 1], np.full(len(ROWS), 1e20)])


# ------------------------------------------------------------------------------------------------- folders that fail

def kept(folder):
    return clad.OCNN.from_settings("smoke", rounds=5, representation__epochs=1, cache_dir=folder)


@pytest.mark.parametrize("fault", ["a file", "no way in", "no way to delete"])
def test_a_folder_for_stages_that_fails_costs_the_time(tmp_path, monkeypatch, fault):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    expected, folder = kept(None).fit(PICTURES).score_samples(PICTURES), tmp_path / "stages"
    if fault == "a file":
        folder.write_text("no folder")
    elif fault == "no way in":
        monkeypatch.setattr(clad.training.Path, "exists", denied)
    else:
        monkeypatch.setattr(clad.training.Path, "unlink", denied)
    with pytest.warns(UserWarning, match="not kept|Permission denied"):
        assert (kept(folder).fit(PICTURES).score_samples(PICTURES) == expected).all()


# ------------------------------------------------------------------------------------------------- updates

def save_all(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[0]).save(folder / f"{i:03}.png")
    return str(folder)


def test_a_picture_counts_once(tmp_path, capsys):
    "Neither those of the fit nor those of an earlier update calibrate again; new ones beside them do."
    good, more = save_all(tmp_path / "good", PICTURES), save_all(tmp_path / "more", PICTURES[:30, :, ::-1])
    both = save_all(tmp_path / "both", np.r_[PICTURES[:25, :, ::-1], PICTURES[:25, :, :, ::-1]])
    file = tmp_path / "m.clad"
    assert main(["fit", good, "--out", str(file), "--detector", "OCSVM", "--quiet"]) == 0
    n = len(clad.load(file).calibration_scores_)
    for folder, code, words in ((good, 1, "all 120 images were taken in before"), (more, 0, ""),
                                (more, 1, "all 30 images were taken in before"),
                                (both, 0, "25 of 50 images were taken in before")):
        assert main(["update", str(file), folder, "--yes"]) == code and words in capsys.readouterr().err
    assert len(clad.load(file).calibration_scores_) == n + 55


def test_equal_pictures_of_one_update_count_once():
    detector = clad.OCSVM(calibration_fraction=0.3).fit(PICTURES)
    n, mirrored = len(detector.calibration_scores_), PICTURES[:10, :, ::-1]
    with pytest.warns(UserWarning, match="10 of 20 images"):
        detector.update(np.concatenate([mirrored, mirrored]))
    assert len(detector.calibration_scores_) == n + 10


def test_what_is_only_remembered_may_come_again_and_rows_may_be_alike():
    detector = clad.GCN(alpha=0.2, calibration_fraction=0.3).fit(PICTURES)
    bank = len(detector.member_.bank_)
    for _ in range(2):
        detector.update(PICTURES[:2, :, ::-1], picked=True)
    assert len(detector.member_.bank_) == bank + 4
    with pytest.raises(ValueError, match="all 2 images"):
        detector.update(PICTURES[:2, :, ::-1])
    rows = clad.OCSVM(calibration_fraction=0.3).fit(ROWS)
    assert len(rows.update(ROWS[:9]).update(ROWS[:9]).calibration_scores_) == 72 + 18


def test_two_updates_at_once_both_count(tmp_path, monkeypatch):
    "A second command that begins and ends while the first reads its pictures; the file is locked while it changes."
    file, first = tmp_path / "m.clad", save_all(tmp_path / "first", PICTURES[:20, :, ::-1])
    clad.OCSVM(calibration_fraction=0.3).fit(PICTURES).save(file)
    second, read, update = save_all(tmp_path / "second", PICTURES[20:50, :, ::-1]), clad.cli._read, clad.OCSVM.update

    def slow(words, *more, **how):
        if words.folder == first:
            assert main(["update", str(file), second, "--quiet"]) == 0
        return read(words, *more, **how)

    def watched(*arguments, **how):
        with pytest.raises(Timeout):
            FileLock(tmp_path / ".m.clad.lock").acquire(timeout=0)
        return update(*arguments, **how)

    monkeypatch.setattr(clad.cli, "_read", slow)
    monkeypatch.setattr(clad.OCSVM, "update", watched)
    assert main(["update", str(file), first, "--quiet"]) == 0
    assert len(clad.load(file).calibration_scores_) == 36 + 50


# -------------------------------------------------------------------------------- copies, encoders, interruptions

def test_copies_of_a_picture_are_held_out_together_and_set_the_threshold_as_one():
    "Copies on both sides of the split would look too normal, and the threshold would flag new normal pictures."
    fourfold = np.repeat(PICTURES[:60], 4, axis=0)
    with pytest.warns(UserWarning, match="180 of 240 pictures are copies"):
        detector = clad.GCN(alpha=0.1, calibration_fraction=0.4).fit(fourfold)
    held = detector.held_out_.reshape(60, 4)
    assert (held == held[:, :1]).all() and len(np.unique(detector.calibration_groups_)) == held[:, 0].sum()
    assert (detector.certificate().units, detector.certificate().n) == ("images", held[:, 0].sum())
    seen = []    # where nothing is held out, as in every record, a fit is what it was: it gets no groups
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(clad.GCN, "_fit", lambda self, images, groups, work: seen.append(groups))
        clad.GCN(calibration_fraction=0).fit(fourfold)
    assert seen == [None]
    assert clad.OCSVM().fit(PICTURES).calibrate(np.repeat(PICTURES[:9], 3, axis=0)).calibration_groups_.max() == 8
    assert len(np.unique(clad.OCSVM(calibration_fraction=0.5).fit(np.repeat(ROWS[:40], 2, axis=0))
                         .calibration_groups_)) == 40    # rows may well be alike


def test_a_failed_update_changes_nothing(monkeypatch):
    detector = clad.GCN(alpha=0.2, calibration_fraction=0.3).fit(PICTURES)
    before = (len(detector.member_.bank_), len(detector.calibration_scores_), str(detector.fit_report_), detector.seen_)
    monkeypatch.setattr(type(detector), "_add_to_calibration", lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(RuntimeError, match="no"):
        detector.update(PICTURES[:20, :, ::-1])
    after = (len(detector.member_.bank_), len(detector.calibration_scores_), str(detector.fit_report_))
    assert after == before[:3] and (detector.seen_ == before[3]).all()


def test_an_update_knows_the_pictures_of_the_fit_and_of_a_calibration():
    "Else half of them would be learnt twice, and the threshold would rest on pictures that the memory holds."
    detector = clad.GCN(alpha=0.2, calibration_fraction=0.3).fit(PICTURES)
    as_floats = PICTURES.astype(np.float32) / 255    # the same pictures
    for known in (PICTURES, PICTURES[:5], as_floats):
        with pytest.raises(ValueError, match="taken in before"):
            detector.update(known)
    finer = clad.training.fingerprints(np.concatenate([as_floats[:1], as_floats[:1] * 0.999]))
    assert (finer[0] == clad.training.fingerprints(PICTURES[:1])[0]).all() and (finer[0] != finer[1]).any()
    with pytest.raises(ValueError, match="taken in before"):
        detector.calibrate(PICTURES[:20, :, ::-1]).update(PICTURES[:20, :, ::-1])


def test_too_few_pictures_are_refused_before_the_fit_and_rates_that_nothing_can_reach(tmp_path, capsys):
    folder, file = save_all(tmp_path / "p", PICTURES[:60]), tmp_path / "m.clad"
    assert main(["fit", folder, "--detector", "OCSVM", "--out", str(file), "--alpha", "0.01"]) != 0
    said = capsys.readouterr().err
    assert "60 different pictures are too few" in said and "give 198 or more" in said and "--alpha 0.0323" in said
    assert not file.exists()
    for n, code in ((37, 1), (38, 0)):    # what the README says of 5 %
        few = save_all(tmp_path / str(n), PICTURES[:n])
        assert main(["fit", few, "--detector", "OCSVM", "--out", str(tmp_path / f"{n}.clad"), "--quiet"]) == code
    capsys.readouterr()
    assert main(["fit", folder, "--detector", "OCSVM", "--out", str(file), "--quiet"]) == 0
    assert main(["score", str(file), folder, "--out", str(tmp_path / "s.csv"), "--fdr", "0.01"]) != 0
    assert "cannot promise fdr=0.01" in capsys.readouterr().err


def test_an_encoder_stays_as_its_owner_left_it_and_says_what_it_gives_wrong():
    layers = torch.nn.Flatten(), torch.nn.LazyLinear(8), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(8)
    net = torch.nn.Sequential(*layers)
    net[3].eval()
    detector = clad.EncoderKNN(member=EncoderNeighbours(net, size=16)).fit(PICTURES)
    assert [m.training for m in net] == [True, True, True, False]
    assert (detector.score_samples(PICTURES) == detector.score_samples(PICTURES)).all()
    for wrong, said in ((lambda x: x.flatten(1)[:1], r"shape \(1, 768\) for"), (lambda x: (x,), "a tuple for"),
                        (lambda x: x.flatten(1) / 0, "NaN or infinity")):
        with pytest.raises(ValueError, match=said):
            clad.EncoderKNN(member=EncoderNeighbours(wrong, size=16)).fit(PICTURES)


def test_an_encoder_that_tells_nothing_apart_gets_next_to_no_vote():
    blind = clad.CLADPlus(budget=1000, encoder=lambda x: torch.zeros(len(x), 4)).fit(PICTURES)
    assert blind.frozen_.spread_ == 0 and blind.fit_report_["members"]["encoder"]["weight"] == 0


def test_rates_at_the_edge():
    "Equality counts, also where the numbers are those of NumPy in single precision."
    detector = clad.OCSVM(calibration_fraction=0.5, alpha=np.float32(0.01)).fit(PICTURES)
    detector.calibrate(np.concatenate([PICTURES, PICTURES[:, :, ::-1]])[:99])
    odd = 255 - PICTURES[:6]
    assert (detector.predict(odd) == -1).all() and score_pictures(detector, odd, list("abcdef")).flagged.all()
    detector._clusters = lambda X: None
    detector.p_values = lambda X, by: np.array([0.1, 0.8, 0.9])
    assert detector.discoveries(odd[:3], fdr=0.3).tolist() == [True, False, False]


def test_reasons_for_bytes_beside_floats():
    detector = clad.OCSVM(calibration_fraction=0.3).fit(PICTURES)
    told = clad.Reasons(detector, PICTURES[:40], window=8).explain((255 - PICTURES[:1]) / 255.0)
    same = clad.Reasons(detector, PICTURES[:40], window=8).explain(255 - PICTURES[:1])
    assert np.allclose(told[0].saliency, same[0].saliency, atol=1e-4)


def test_a_pipe_is_written_to_and_a_picture_is_not_written_over(tmp_path, capsys):
    folder = save_all(tmp_path / "p", PICTURES[:40])
    assert main(["fit", folder, "--detector", "OCSVM", "--out", str(tmp_path / "m.clad"), "--quiet"]) == 0
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    assert main(["score", str(tmp_path / "m.clad"), folder, "--out", str(pipe), "--quiet"]) == 0
    reader.join(60)
    assert pipe.is_fifo() and got[0].startswith("file,score")
    first = next(iter(sorted((tmp_path / "p").iterdir())))
    assert main(["score", str(tmp_path / "m.clad"), folder, "--out", str(first)]) != 0
    assert "has the name of a picture" in capsys.readouterr().err and Image.open(first).size == (16, 16)


def test_parameters_that_are_tables_come_back(tmp_path):
    detector = Plain(scale={"a": 1.5, "b": [1, 2]}).fit(PICTURES)
    assert reloaded(detector, tmp_path / "m.clad").scale == {"a": 1.5, "b": (1, 2)}
    with pytest.raises(ValueError, match="names of several types"):
        Plain().fit(PICTURES, groups=["a", None] * 60)


class Plain(clad.base.Detector):
    "Brightness, with a parameter that is a table."

    def __init__(self, *, scale=None, alpha=0.05, calibration_fraction=0.3, random_state=0, verbose=False,
                 device="auto"):
        super().__init__(alpha=alpha, calibration_fraction=calibration_fraction, random_state=random_state,
                         verbose=verbose, device=device)
        self.scale = scale

    def _fit(self, images, groups, work):
        pass

    def _score(self, images):
        return -images.reshape(len(images), -1).mean(1)


@pytest.mark.parametrize("words, said", [
    ("fit here --out m.clad --detektor CLAD", "is --detector meant?"), ("list --foo", "unknown: --foo"),
    ("fit here --out m.clad --budget 3000", "is --set budget=... meant?"),
    ("fit here --out m.clad --budgt=3000", "is --set budget=... meant?"),
    ("score m.clad here --out s.csv --budget 3", "unknown: --budget 3\n"),
    ("reproduce --methodz CLAD", "usage: clad reproduce")])
def test_a_misspelt_flag_gets_the_usage_of_its_command(words, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error():
    "As in `clad list | head -1`."
    reading, writing = os.pipe()
    os.close(reading)
    code = "import sys; from clad.cli import main; sys.exit(main(['list']))"
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_device_that_is_not_there_is_refused_before_the_folder_is_read(tmp_path, capsys):
    assert main(["fit", str(tmp_path / "none"), "--out", str(tmp_path / "m.clad"), "--device", "moon"]) == 1
    assert "device 'moon' is not available" in capsys.readouterr().err


def test_copies_count_once_in_the_command(tmp_path, capsys):
    "40 pictures, each twice: nothing is fitted that can set no threshold."
    (tmp_path / "good").mkdir()
    for i, picture in enumerate(np.repeat(PICTURES[:40, 0], 2, axis=0)):
        Image.fromarray(picture).save(tmp_path / "good" / f"{i}.png")
    words = ["fit", str(tmp_path / "good"), "--out", str(tmp_path / "m.clad"), "--detector", "OCSVM"]
    assert main([*words, "--alpha", "0.04"]) == 1 and not (tmp_path / "m.clad").exists()
    assert "40 different pictures are too few" in capsys.readouterr().err
    assert main([*words, "--alpha", "0.1"]) == 0
    said = capsys.readouterr()
    assert "on 30 pictures; 10 set the threshold" in said.err and "With 95% confidence" in said.out
    assert main(["score", str(tmp_path / "m.clad"), str(tmp_path / "good"), "--out", str(tmp_path / "s.csv")]) == 0
    assert "60 of 80 pictures were learnt from" in capsys.readouterr().err


def test_a_threshold_does_not_rest_on_pictures_that_were_learnt_from(tmp_path):
    detector = clad.GCN(alpha=0.2, calibration_fraction=0.3).fit(PICTURES)
    learnt, held = PICTURES[~detector.held_out_], PICTURES[detector.held_out_]
    again = reloaded(detector, tmp_path / "m.clad")
    for one in (detector, again):
        with pytest.raises(ValueError, match="all 84 images were learnt from"):
            one.calibrate(learnt)
        with pytest.warns(UserWarning, match="3 of 39 images were learnt from"):
            one.calibrate(np.concatenate([learnt[:3], held]))
    new = PICTURES[:40, :, ::-1]
    remembered = detector.update(new).learnt_prints_
    assert len(remembered) == len(learnt) + detector.fit_report_["updates"][-1]["remembered"] > len(learnt)


def test_a_parameter_that_is_not_there_sets_no_other():
    detector = brief()
    with pytest.raises(ValueError, match="Invalid parameter 'bogus' for CLAD"):
        detector.set_params(representation=clad.Autoencoder(hidden_dim=7), bogus=1)
    assert detector.representation.hidden_dim == brief().representation.hidden_dim


def test_copies_do_not_vouch_for_one_another():
    odd = np.full((1, 1, 16, 16), 255, np.uint8)
    odd[..., ::2, :] = 0
    table = clad.suspects(clad.GCN(), np.concatenate([PICTURES, *[odd] * 10]))
    assert set(table.image[:14]) >= set(range(120, 130))    # the strangest of their fold, as four others are of theirs


def test_a_file_with_a_part_of_another_version_is_named(tmp_path):
    path = tmp_path / "m.clad"
    clad.GCN(alpha=0.2, calibration_fraction=0.3).fit(PICTURES).save(path)
    header, arrays = clad.files.read_bundle(path)
    header["stages"]["member"]["what"]["module"] = "clad.later"
    clad.files.write_bundle(path, arrays, header)
    with pytest.raises(ValueError, match=r"m\.clad cannot be loaded: .*it names clad\.later"):
        clad.load(path)


def test_an_update_with_what_is_flagged_asks_whether_it_is_normal():
    detector = clad.GCN(alpha=0.2, calibration_fraction=0.3).fit(PICTURES)
    with pytest.warns(UserWarning, match="100% of these images were flagged before"):
        detector.update(RNG.integers(0, 255, (20, 1, 16, 16)).astype(np.uint8))


def test_files_that_are_no_pictures_are_counted_and_closed_streams_are_no_failure(tmp_path):
    (tmp_path / "good").mkdir()
    for i, picture in enumerate(PICTURES[:60, 0]):
        Image.fromarray(picture).save(tmp_path / "good" / f"{i}.png")
    (tmp_path / "good" / "notes.txt").write_text("")
    (tmp_path / "good" / "one.HEIC").write_bytes(b"GIF")
    command = f"{sys.executable} -c 'import sys; from clad.cli import main; sys.exit(main(sys.argv[1:]))' "
    fit = command + "fit good --out m.clad --detector GCN --alpha 0.2"
    said = subprocess.run(fit, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0 and (
        "left out: 2 files that are no pictures by their names (1 .txt, 1 .heic; a .heic" in said.stderr
        or "left out: 2 files that are no pictures by their names (1 .heic, 1 .txt; a .heic" in said.stderr)
    assert "pillow-heif" in said.stderr
    silent = subprocess.run(command + "score m.clad good --out s.csv >&- 2>&-", shell=True, cwd=tmp_path)
    assert silent.returncode == 0 and len((tmp_path / "s.csv").read_text().splitlines()) == 61


def test_a_sorted_table_keeps_its_pictures(tmp_path):
    detector = clad.GCN(alpha=0.2, calibration_fraction=0.3).fit(PICTURES)
    images = np.stack([np.full((1, 16, 16), 20 * i, np.uint8) for i in range(6)])
    table = score_pictures(detector, images, [f"{i}.png" for i in range(6)])
    turned = table.iloc[::-1]
    same = write_report(tmp_path / "a.html", detector, turned.reset_index(drop=True), images[::-1]).read_text()
    assert write_report(tmp_path / "b.html", detector, turned, images).read_text() == same
    assert write_report(tmp_path / "c.html", detector, table, images).read_text() != same
    for wrong, pictures in ((table, images[:5]), (table.set_index("file"), images)):
        with pytest.raises(ValueError, match="which of the"):
            write_report(tmp_path / "d.html", detector, wrong, pictures)
    with pytest.raises(FileNotFoundError, match="name of the folder is empty"):
        clad.read_pictures("")


def test_an_encoder_that_is_not_there_is_said_before_anything_is_trained(monkeypatch):
    def needed(module):
        raise ImportError(f"{module} is not installed")

    monkeypatch.setattr(clad.encoder, "_needed", needed)
    monkeypatch.setattr(clad.floors.GCNNeighbours, "_fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ImportError, match="timm is not installed"):
        clad.CLADPlus(encoder="auto").fit(PICTURES)


def test_frames_of_a_track_count_once_in_errors_and_tests():
    "GTSRB: thirty frames as one, so errors are the square root of thirty times as large."
    runs = pd.DataFrame({"auroc": [0.7, 0.71, 0.72], "auroc_se": [0.01] * 3})
    places = (("mnist", "CUR"), ("gtsrb", "REGN"))
    assert np.allclose([reports._row(*place, "OCSVM", "short", runs)["se"] for place in places], [1, np.sqrt(30)])
    truth, good, poor = np.arange(200) % 2 == 1, np.arange(200) % 2 + RNG.normal(0, 1, 200), RNG.normal(0, 1, 200)
    read = {"a": (truth, good), "b": (truth, poor)}
    own = pd.DataFrame({"method": ["CLAD", "OCSVM"], "path": ["a", "b"], "auroc": [0.7, 0.5]})
    plain, careful = (reports._paired(own.assign(dataset=name), read, "OCSVM")["p"] for name, _ in places)
    assert np.isclose(plain, delong_test(truth, good, poor)[1]) and plain < 1e-3
    assert np.isclose(norm.isf(careful / 2), norm.isf(plain / 2) / np.sqrt(30))


# --------------------------------------------------------------------------------------------------------- odd files

def first_of(folder, content: bytes, name: str) -> np.ndarray:
    "The picture of 16x16 that `read_pictures` makes of a file."
    (folder / name).write_bytes(content)
    return clad.read_pictures(folder, size=16, mode="L").images[-1, 0]


@pytest.mark.parametrize("kind", ["16 bits", "floats"])
def test_a_deep_tiff_in_which_zero_is_white_is_no_negative(tmp_path, kind):
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    deep = ramp if kind == "floats" else np.rint(ramp * 65535).astype(np.uint16)
    Image.fromarray(deep).save(file := io.BytesIO(), "TIFF")
    entry = struct.pack("<HHI", 262, 3, 1)    # PhotometricInterpretation, one number of 16 bits
    place = file.getvalue().index(entry) + len(entry)
    assert file.getvalue()[place:place + 2] == b"\1\0"
    turned = file.getvalue()[:place] + b"\0" + file.getvalue()[place + 1:]
    plain = first_of(tmp_path, file.getvalue(), "a.tif")
    assert (plain == np.arange(256).reshape(16, 16)).all()
    assert (first_of(tmp_path, turned, "b.tif") == 255 - plain).all()


def png(values: np.ndarray, kind: int) -> bytes:
    "Values uint16 [H,W,C] as a PNG of 16 bits; kind 0 grey, 2 RGB, 4 grey with alpha, 6 RGB with alpha."
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("kind, channels, word", [(0, 1, "grey"), (2, 3, "colour"), (4, 2, "grey"), (6, 4, "colour")])
def test_twelve_bits_in_sixteen_are_announced_in_every_kind_of_png(tmp_path, kind, channels, word):
    faint = np.full((16, 16, channels), 4000, np.uint16)
    (tmp_path / "a.png").write_bytes(png(faint, kind))
    with pytest.warns(UserWarning, match=f"a.png holds 16-bit {word} values that all lie below 4,096"):
        clad.read_pictures(tmp_path)
    (tmp_path / "a.png").write_bytes(png(16 * faint, kind))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clad.read_pictures(tmp_path)


# ---------------------------------------------------------------------------------------------- streams, locks, words

@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A fitted detector in a file, beside the folder `good` that it was fitted on."
    folder = tmp_path_factory.mktemp("model")
    save_all(folder / "good", PICTURES[:40])
    clad.OCSVM(calibration_fraction=0.5, alpha=0.2).fit(PICTURES[:40]).save(folder / "m.clad")
    return folder / "m.clad"


def test_a_table_goes_into_a_pipe_and_behind_what_a_file_holds(model, tmp_path):
    command = f"{sys.executable} -c 'import sys; from clad.cli import main; sys.exit(main())' "
    score = command + f"score {model} {model.parent / 'good'} --quiet --out "

    def shell(line: str) -> str:
        done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and "of 40 pictures flagged" in done.stderr, done.stderr
        return done.stdout

    table = shell(score + "/dev/stdout | cat")
    assert table.startswith("file,score") and table.count("\n") == 41
    (tmp_path / "kept.csv").write_text("kept\n")
    (tmp_path / "link").symlink_to("/dev/stdout")
    shell(score + "/dev/stdout >> kept.csv")
    shell(score + "link >> kept.csv")
    shell(f"({score} /dev/fd/3 >&2) 3>> kept.csv")
    assert (tmp_path / "kept.csv").read_text() == "kept\n" + 3 * table
    shell(f"(echo first; {score} /dev/stdout; echo last) > all.csv")
    assert (tmp_path / "all.csv").read_text() == f"first\n{table}last\n"
    more = save_all(tmp_path / "more", PICTURES[40:60])
    made = subprocess.run(command + f"update {model} {more} --out /dev/stdout | cat",
                          shell=True, capture_output=True)
    (tmp_path / "n.clad").write_bytes(made.stdout)
    assert len(clad.load(tmp_path / "n.clad").calibration_scores_) == 40 and b"remembered" in made.stderr


def test_an_update_that_waits_for_another_says_so(model, tmp_path, capsys, monkeypatch):
    "Once, after two seconds; then it goes on. A lock that is free is taken without a word."
    (tmp_path / "m.clad").write_bytes(model.read_bytes())
    more, other = save_all(tmp_path / "more", PICTURES[40:60]), FileLock(tmp_path / ".m.clad.lock")
    read, taken = clad.cli._read, threading.Event()

    def hold():
        with other:
            taken.set()
            time.sleep(4)

    def held(*words, **how):
        threading.Thread(target=hold).start()
        taken.wait(60)
        return read(*words, **how)

    monkeypatch.setattr(clad.cli, "_read", held)
    assert main(["update", str(tmp_path / "m.clad"), more]) == 0
    said = f"clad: waiting until another `clad update` has written {tmp_path / 'm.clad'}\n"
    assert capsys.readouterr().err.count(said) == 1 and len(clad.load(tmp_path / "m.clad").calibration_scores_) == 40
    monkeypatch.setattr(clad.cli, "_read", read)
    assert main(["update", str(tmp_path / "m.clad"), save_all(tmp_path / "new", PICTURES[60:70])]) == 0
    assert "waiting" not in capsys.readouterr().err


def test_a_scorer_of_scikit_learn_ranks_where_there_are_too_few_for_a_threshold():
    "At default parameters: the order is known, a verdict is not."
    x = np.concatenate([PICTURES, RNG.integers(0, 256, (30, 1, 16, 16), dtype=np.uint8)])
    normal = np.arange(len(x)) < len(PICTURES)
    folds = [(np.arange(90), np.arange(90, len(x)))]
    with pytest.warns(UserWarning, match="ranked and not judged. 9 calibration images"):
        found = cross_val_score(clad.OCSVM(), x, normal, scoring="roc_auc", cv=folds)
    assert found[0] > 0.9
    detector = clad.OCSVM().fit(PICTURES)
    assert (detector.decision_function(x) == detector.score_samples(x)).all()
    with pytest.raises(ValueError, match="at least 19 are needed"):
        detector.predict(x)
    with pytest.raises(ValueError, match="alpha is 7"):
        detector.set_params(alpha=7).decision_function(x)
    with pytest.raises(NotFittedError, match="no threshold yet"):    # none was asked for
        clad.OCSVM(calibration_fraction=0).fit(PICTURES).decision_function(x)


def test_files_that_were_left_out_are_all_named_somewhere(model, tmp_path, capsys):
    "The first five on the error stream, all in the model file or in the table."
    folder, names = save_all(tmp_path / "some", PICTURES[40:80]), [f"broken {i}.png" for i in range(8)]
    for name in names:
        (tmp_path / "some" / name).write_bytes(b"no picture")
    file, out = tmp_path / "m.clad", tmp_path / "s.csv"
    assert main(["fit", folder, "--out", str(file), "--detector", "OCSVM", "--alpha", "0.2"]) == 0
    err = capsys.readouterr().err
    assert err.count("broken") == 5 and f'3 more files, all named in the "folder" of the fit_report_ of {file}' in err
    assert clad.load(file).fit_report_["folder"]["left_out"] == names
    assert main(["update", str(model), folder, "--out", str(file)]) == 0
    assert f'all named in the last of the "updates" in the fit_report_ of {file}' in capsys.readouterr().err
    assert clad.load(file).fit_report_["updates"][-1]["left_out"] == names
    assert main(["score", str(model), folder, "--out", str(out)]) == 0
    assert f"all named in {out}" in capsys.readouterr().err and pd.read_csv(out).file.isin(names).sum() == 8


@pytest.mark.parametrize("words, both", [
    (["--alpha", "0.2", "--set", "alpha=0.1"], "alpha is given twice, by --alpha and by --set alpha=0.1"),
    (["--set", "nu=0.1", "--set", "nu=0.2"], "nu is given twice, by --set nu=0.1 and by --set nu=0.2"),
    (["--n-clusters", "2", "--set", "n_clusters=3"], "n_clusters is given twice, by --n-clusters and by --set"),
    (["--seed", "2", "--set", "random_state=3"], "random_state is given twice, by --seed and by --set")])
def test_a_parameter_that_is_given_twice_is_refused(model, tmp_path, capsys, words, both):
    out = tmp_path / "m.clad"
    assert main(["fit", str(model.parent / "good"), "--out", str(out), "--detector", "OCSVM", *words]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"clad: {both}") and err.count("\n") == 1 and not out.exists()


@pytest.mark.parametrize("device", ["meta", "meta:0", "hpu", "mps", "gpu"])
def test_a_device_that_computes_nothing_is_named_before_any_picture_is_read(model, tmp_path, capsys, device):
    empty, out = str(tmp_path), str(tmp_path / "out")    # a folder without pictures would be the next complaint
    for words in (["fit", empty, "--out", out, "--detector", "OCSVM", "--device", device],
                  ["fit", empty, "--out", out, "--detector", "OCSVM", "--set", f"device={device}"],
                  ["score", str(model), empty, "--out", out, "--device", device],
                  ["update", str(model), empty, "--out", out, "--device", device]):
        assert main(words) == 1
        assert capsys.readouterr().err == f"clad: device {device!r} is not available here: use 'auto' or 'cpu'.\n"
    with pytest.raises(ValueError, match=f"device {device!r} is not available"):
        clad.GCN(device=device).fit(PICTURES)


def test_names_that_a_spreadsheet_would_obey(model, tmp_path):
    "They stay names of the same files, and a carriage return does not break a row in two."
    names = ["=1+1.png", "+a.png", "-b.png", "@c.png", "\td.png", "\re.png", "f\rg.png", "\uff1dh.png", "plain.png",
             "i\nj.png"]
    folder = tmp_path / "odd"
    folder.mkdir()
    for i, name in enumerate(names):
        Image.fromarray(PICTURES[i, 0]).save(folder / name)
    (folder / "=broken.png").write_bytes(b"no picture")
    out = tmp_path / "s.csv"
    assert main(["score", str(model), str(folder), "--out", str(out), "--quiet"]) == 0
    with open(out, newline="") as file:
        header, *rows = list(csv.reader(file))
    assert {len(row) for row in rows} == {len(header)} and len(rows) == 11
    assert all((folder / row[0]).is_file() and row[0].startswith(("./", "plain", "f", "i")) for row in rows)
    assert sorted(row[0].removeprefix("./") for row in rows) == sorted([*names, "=broken.png"])
    assert sorted(pd.read_csv(out).file) == sorted(row[0] for row in rows)


def test_figures_of_no_records_are_no_success(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    assert main(["figures", "--results", str(tmp_path / "results"), "--figures", str(tmp_path / "figures")]) == 1
    err = capsys.readouterr().err
    assert err == f"clad: there are no records in {tmp_path / 'results'} (--results): `clad reproduce` makes some\n"


def test_the_extra_is_named_as_it_is_installed_from_an_index_and_from_a_clone(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    why = clad.cli.default_detector()[2]
    assert "pip install 'clad-detector[encoder]'" in why and "in a clone pip install '.[encoder]'" in why


def test_discoveries_say_when_so_few_calibration_images_can_pick_nothing():
    far = np.full((1, 6), 500.0)
    detector = clad.OCSVM(alpha=0.2, calibration_fraction=0.1).fit(ROWS)    # 24 calibrate: no p-value below 0.04
    with pytest.warns(UserWarning, match="at fdr=0.01 none of 10 images can be picked.*below 0.04. It takes 999 of "
                                         "them to pick a single image; at least 99 to pick any"):
        assert not detector.discoveries(np.repeat(far, 10, 0), 0.01).any()
    with pytest.warns(UserWarning, match="at fdr=0.1 fewer than 4 of 10 images cannot be picked.*It takes 99 of them"):
        assert not detector.discoveries(np.concatenate([far, ROWS[:9]]), 0.1).any()
    with pytest.warns(UserWarning, match="of them in its cluster to pick a single image"):
        detector = brief(calibration_fraction=0.5, alpha=0.2).fit(ROWS)
        assert not detector.discoveries(np.concatenate([far, ROWS[:59]]), 0.01, by="cluster").any()
    detector = clad.OCSVM(alpha=0.2, calibration_fraction=0.1).fit(ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert detector.discoveries(np.repeat(far, 10, 0), 0.1).all()
        assert not detector.discoveries(ROWS[detector.p_values(ROWS) > 0.3][:20], 0.1).any()    # nothing is strange


def test_a_folder_that_many_links_lead_to_is_read_once(tmp_path):
    "Twelve folders outside, each with two links to the next: 2 to the 12th ways to the last one."
    outside, mine = tmp_path / "outside", tmp_path / "mine"
    outside.mkdir()
    for i in range(12):
        save_all(outside / f"{i:02}", PICTURES[i:i + 1])
        (outside / f"{i:02}" / "notes.txt").write_text("")
        for name in ("x", "y"):
            (outside / f"{i:02}" / name).symlink_to(outside / f"{i + 1:02}" if i < 11 else outside / "00")
    save_all(mine, PICTURES[20:21])
    for name, target in {"a": "00", "b": "00", "c": "05"}.items():
        (mine / name).symlink_to(outside / target)
    found = clad.read_pictures(mine, size=16)
    assert len({p.tobytes() for p in found.images}) == len(found) == 13 and found.plan.scan.others == 12
    assert {"000.png", "a/000.png", "c/000.png"} < set(found.files) and "b/000.png" not in found.files


def test_a_picture_above_the_limit_is_told_what_to_do(tmp_path, monkeypatch):
    folder = save_all(tmp_path / "p", PICTURES[:3])
    Image.new("L", (90, 90)).save(tmp_path / "p" / "large.png")
    for limit in (5000, 3000):    # Pillow warns above the limit, and refuses above twice of it
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        found = clad.read_pictures(folder)
        assert len(found) == 3 and "large.png is too large (Image size (8100 pixels) exceeds limit of" in (
            why := found.skipped["large.png"]) and "make a smaller copy or cut it into parts" in why
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert len(clad.read_pictures(folder)) == 4


# ------------------------------------------------------------------------------------------------------------ tables

def test_a_table_with_names_is_quiet_where_they_match():
    "As in scikit-learn: no warning in a fit, a score or an update; a bare array, and other names, are noticed."
    frame = pd.DataFrame(ROWS, columns=list("abcdef"))
    new, other = (pd.DataFrame(ROWS[:60] + shift, columns=list("abcdef")) for shift in (0.5, 0.25))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for detector in (clad.OCSVM(alpha=0.2), clad.CLADPlus(alpha=0.2)):
            detector.fit(frame).update(new).calibrate(other)
            detector.predict(new), detector.discoveries(new, 0.2), detector.p_values(new)
        assert detector.feature_names_in_.tolist() == list("abcdef")
        brief(calibration_fraction=0.5, alpha=0.2).fit(frame).p_values(new)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        detector.score_samples(ROWS)
    for call in (detector.update, detector.calibrate):
        with pytest.raises(ValueError, match="feature names"):
            call(new[list("fedcba")])
        assert detector.feature_names_in_.tolist() == list("abcdef")


def test_masked_values_are_refused_by_name():
    rows, pictures = np.ma.array(ROWS, mask=False), np.ma.array(PICTURES, mask=False)
    fitted = clad.OCSVM().fit(rows)
    assert (fitted.score_samples(rows) == clad.OCSVM().fit(ROWS).score_samples(ROWS)).all()
    clad.GCN().fit(pictures)
    rows[7, 2] = pictures[5, 0, 3, 3] = np.ma.masked
    for detector, x, i in ((clad.OCSVM(), rows, 7), (clad.OCSVM(), pictures, 5), (clad.GCN(), pictures, 5),
                           (clad.GCN(), list(pictures), 5), (clad.CLADPlus(), rows, 7)):
        with pytest.raises(ValueError, match=rf"X\[{i}\] has masked values: leave it out"):
            detector.fit(x)
    with pytest.raises(ValueError, match=r"X\[7\] has masked values"):
        fitted.score_samples(rows)


def test_a_threshold_does_not_rest_on_rows_that_were_learnt_from(tmp_path):
    rows = RNG.normal(size=(200, 4))
    detector = reloaded(clad.OCSVM(alpha=0.2, calibration_fraction=0.3).fit(rows), tmp_path / "m.clad")
    learnt, held = rows[~detector.held_out_], rows[detector.held_out_]
    with pytest.warns(UserWarning, match="70 of 130 rows were learnt from"):
        detector.calibrate(np.concatenate([learnt[:70], held]))
    with pytest.warns(UserWarning, match="140 of 140 rows were learnt from"):
        detector.calibrate(learnt)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.calibrate(held).calibrate(RNG.normal(size=(50, 4)))
        clad.OCSVM(alpha=0.2).fit(np.repeat(rows, 2, 0)).calibrate(rows)    # rows that may well be alike
    memory = clad.CLADPlus(alpha=0.2).fit(rows).update(rows[:9] + 0.1, picked=True)
    with pytest.warns(UserWarning, match="9 of 59 rows were learnt from"):
        memory.calibrate(np.concatenate([rows[:9] + 0.1, RNG.normal(size=(50, 4))]))


# ------------------------------------------------------------------------------------------ what a first user met

def test_an_update_with_anomalies_is_refused_by_the_command(model, tmp_path, capsys):
    "It would overwrite the model; with --yes it does, and says so even where it is to be quiet."
    file, before = tmp_path / "m.clad", model.read_bytes()
    file.write_bytes(before)
    odd = save_all(tmp_path / "odd", RNG.integers(0, 255, (20, 1, 16, 16)).astype(np.uint8))
    for words in (["--quiet"], [], ["--out", str(tmp_path / "n.clad")]):
        assert main(["update", str(file), odd, *words]) == 1
        err = capsys.readouterr().err
        assert err.count("flagged") == 2 and "100% of these pictures are flagged" in err and "--yes" in err
        assert file.read_bytes() == before and not (tmp_path / "n.clad").exists()
    assert main(["update", str(file), odd, "--quiet", "--yes"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("clad: warning: 100% of these images were flagged") and said.count("\n") == 1
    assert "are they normal" in clad.load(file).fit_report_["updates"][-1]["warning"]


def test_one_copy_among_the_calibration_pictures_costs_no_certificate():
    "60 pictures and a copy are certified as 60 pictures; the claim fails once in twenty, with copies or not."
    rng, alone = np.random.default_rng(0), certify(np.arange(60.0), 0.05)
    names = np.r_[np.arange(60), 7]
    for noise in (0, 1e-7):
        bound = certify(names * (1 + noise * rng.normal(size=61)), 0.05, groups=names)
        assert (bound.rate, bound.n, bound.units) == (alone.rate, 60, "images")
    for scores in (names + 1e-3 * (np.arange(61) == 60), 1e6 + 1e-3 * np.r_[np.arange(60), 7.5],
                   np.r_[-1e9, np.arange(1, 60), 7.5], np.where(np.arange(61) == 60, np.inf, names)):
        assert certify(scores, 0.05, groups=names).units == "groups"    # no copies, whatever the scale
    failed = []
    for _ in range(3000):
        groups = np.repeat(np.arange(60), rng.integers(1, 30, 60) ** rng.integers(0, 2, 60))
        scores = rng.random(60)[groups] * (1 + 1e-7 * rng.normal(size=len(groups)))    # uniform: their own rates
        failed.append(conformal_offset(scores, 0.05, groups) > certify(scores, 0.05, groups=groups).rate)
    assert 0.035 < np.mean(failed) < 0.062, np.mean(failed)


@pytest.mark.parametrize("fault", [ModuleNotFoundError("No module named 'gone'", name="gone"), ImportError("broken")])
def test_a_module_that_cannot_be_imported_is_no_unknown_detector(tmp_path, monkeypatch, fault):
    path = tmp_path / "m.clad"
    clad.GCN(alpha=0.2, calibration_fraction=0.3).fit(PICTURES).save(path)

    def broken(name):
        raise fault

    monkeypatch.setattr(clad.base.importlib, "import_module", broken)
    with pytest.raises(ImportError, match=f"clad.floors, which it needs, cannot be imported: {fault}") as caught:
        clad.load(path)
    assert caught.value.__cause__ is fault


def written(folder) -> dict:
    "Pictures of every kind as files, and of those without loss the values that they hold."
    folder.mkdir()
    rng = np.random.default_rng(1)
    values = {"grey.png": rng.integers(0, 256, (40, 30), dtype=np.uint8),
              "rgb.png": rng.integers(0, 256, (17, 50, 3), dtype=np.uint8),
              "opacity.png": rng.integers(0, 256, (30, 30, 4), dtype=np.uint8),
              "deep.png": rng.integers(0, 65536, (40, 30, 1), dtype=np.uint16),
              "deep rgb.png": rng.integers(0, 65536, (40, 30, 3), dtype=np.uint16),
              "deep opacity.png": rng.integers(0, 65536, (40, 30, 4), dtype=np.uint16)}
    for name, value in values.items():
        if value.dtype == np.uint16:
            (folder / name).write_bytes(png(value, {1: 0, 3: 2, 4: 6}[value.shape[2]]))
        else:
            Image.fromarray(value).save(folder / name)
    smooth = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).resize((640, 480))
    exif = smooth.getexif()
    exif[0x0112] = 6    # turn it by a quarter
    smooth.save(folder / "photo.jpg", exif=exif)
    smooth.quantize(20).save(folder / "palette.png")
    return values


@pytest.mark.parametrize("shape, mode", [((3, 24, 20), None), ((1, 24, 20), "L")])
def test_a_frame_from_memory_is_what_its_file_would_be(tmp_path, shape, mode):
    values, of_files = written(tmp_path / "all"), clad.read_pictures(tmp_path / "all", mode=mode, like=shape)
    paths, expected = [tmp_path / "all" / name for name in of_files.files], of_files.images
    assert len(expected) == 8 and expected.dtype == np.uint8
    assert np.array_equal(clad.prepare(paths, shape, mode), expected)
    opened = [Image.open(path) for path in paths]
    assert np.array_equal(clad.prepare(opened, shape, mode), expected)
    assert opened[paths.index(tmp_path / "all" / "photo.jpg")].size == (640, 480)    # the caller's stays as it is
    for name, value in values.items():
        i = of_files.files.index(name)
        for frame in (value, value[::-1][::-1], value.astype(value.dtype.newbyteorder(">"))):
            assert np.array_equal(clad.prepare(frame, shape, mode), expected[i:i + 1]), name
    assert np.array_equal(clad.prepare(np.stack([values["rgb.png"]] * 2), shape, mode)[1],
                          expected[of_files.files.index("rgb.png")])


def test_what_is_no_frame_is_refused_in_a_sentence(tmp_path):
    detector, grey = clad.OCSVM(calibration_fraction=0.5, alpha=0.2).fit(PICTURES[:40]), PICTURES[0, 0]
    assert np.array_equal(clad.prepare(grey, detector), PICTURES[:1])
    (tmp_path / "cut.png").write_bytes(b"no picture")
    for what, word in ((np.zeros((5, 6, 3), np.uint8), "the picture is in colour .*mode='L'"),
                       ([grey, grey / 255], r"picture 1 is float64 \[16, 16\]: give uint8"),
                       (np.zeros((3, 5, 6), np.uint8), r"uint8 \[3, 5, 6\]"), ([], "list is empty"),
                       (np.zeros((0, 6), np.uint8), "give uint8"), (3, "is a int"), ([None], "picture 0 is a NoneType"),
                       (tmp_path, "is a folder: read_pictures"), (tmp_path / "cut.png", "cut.png cannot be read"),
                       (np.ma.masked_equal(grey, grey[0, 0]), "masked values")):
        with pytest.raises(ValueError, match=word):
            clad.prepare(what, detector)
    with pytest.raises(FileNotFoundError):
        clad.prepare(tmp_path / "none.png", detector)
    with pytest.raises(ValueError, match="rows of 6 numbers"):
        clad.prepare(grey, clad.OCSVM().fit(ROWS))
    with pytest.raises(ValueError, match="leave out mode='L'"):
        clad.prepare(grey, (3, 16, 16), "L")
    with pytest.warns(UserWarning, match="picture 1 holds 16-bit colour values"):
        clad.prepare([grey, np.full((9, 9, 3), 4000, np.uint16)], (3, 16, 16))


def test_a_table_is_not_written_over_a_model(model, tmp_path, capsys):
    other, out = tmp_path / "other.clad", tmp_path / "s.csv"
    other.write_bytes(model.read_bytes())
    for words in (["--out", str(other)], ["--out", str(out), "--report", str(other)]):
        assert main(["score", str(model), str(model.parent / "good"), *words, "--quiet"]) == 1
        assert f"{other} holds a model ({words[-2]})" in capsys.readouterr().err
        assert other.read_bytes() == model.read_bytes() and not out.exists()
    assert main(["score", str(model), str(model.parent / "good"), "--out", str(out), "--report",
                 str(tmp_path / "page")]) == 0
    assert "page will hold a page in HTML" in capsys.readouterr().err
    for content in (b"", b"{", b"file,score\n", (200).to_bytes(8, "little") + b"{}"):
        out.write_bytes(content)
        assert not clad.files.is_bundle(out)


def test_one_coloured_picture_stops_no_folder_of_grey_ones(model, tmp_path, capsys):
    folder, out = save_all(tmp_path / "new", PICTURES[40:44]), tmp_path / "s.csv"
    for i, name in enumerate(("red.png", "blue.png", "green.png", "grey.png", "pink.png")):
        Image.new("RGB", (16, 16), name.partition(".")[0]).save(tmp_path / "new" / name)
        code = main(["score", str(model), folder, "--out", str(out), "--quiet"])
        if i == 4:
            assert code == 1 and "5 of 9 in " in capsys.readouterr().err    # most: another kind of pictures
    notes = pd.read_csv(out).set_index("file").note.dropna()
    assert code == 1 and set(notes.index) == {"red.png", "blue.png", "green.png", "grey.png"}
    assert notes.str.contains("in colour .*--grey").all()
    assert main(["score", str(model), folder, "--out", str(out), "--quiet", "--grey"]) == 0
    assert pd.read_csv(out).note.isna().all()
    (tmp_path / "new" / "pink.png").unlink()
    assert main(["score", str(model), folder, "--out", str(out), "--quiet", "--strict"]) == 1


def test_pictures_of_another_shape_than_those_of_the_fit_are_announced(tmp_path, capsys):
    wide = save_all(tmp_path / "wide", PICTURES[:40, :, :12])
    high = save_all(tmp_path / "high", PICTURES[40:50, ..., :12])
    file, out = str(tmp_path / "m.clad"), str(tmp_path / "s.csv")
    assert main(["fit", wide, "--out", file, "--detector", "OCSVM", "--alpha", "0.2", "--size", "16", "16"]) == 0
    assert "squashed" not in capsys.readouterr().err
    assert main(["score", file, wide, "--out", out]) == 0 and "squashed" not in capsys.readouterr().err
    assert main(["score", file, high, "--out", out]) == 0
    assert "0.75 times as wide as high (the median) and those of the fit were 1.33 times" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="squashed"):
        clad.prepare(PICTURES[0, 0, :, :12], clad.load(file))


@pytest.mark.parametrize("name", ["a.jpe", "a.JFIF", "a.gif", "a.avif", "a.jp2"])
def test_pictures_by_rarer_names_are_read(tmp_path, name):
    if not features.check({"avif": "avif", "jp2": "jpg_2000"}.get(name[2:], "zlib")):
        pytest.skip("this Pillow cannot open them")
    kind = {"jpe": "JPEG", "JFIF": "JPEG", "jp2": "JPEG2000"}.get(name[2:], name[2:].upper())
    picture = Image.fromarray(np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4)
    more = {"save_all": True, "append_images": [picture.transpose(1)]} if kind == "GIF" else {}
    picture.save(tmp_path / name, kind, **more)
    (tmp_path / "README").write_text("")
    found = clad.read_pictures(tmp_path, mode="L")
    assert found.files == (name,) and found.plan.scan.endings == {"": 1}
    assert np.abs(found.images[0, 0].astype(int) - np.asarray(picture)).max() < 30    # the first frame


def test_the_command_lists_what_may_not_belong_into_a_folder(tmp_path, capsys):
    folder, out = save_all(tmp_path / "good", PICTURES[:39]), tmp_path / "list.csv"
    Image.fromarray(RNG.integers(0, 255, (16, 16)).astype(np.uint8)).save(tmp_path / "good" / "=odd.png")
    (tmp_path / "good" / "broken.png").write_bytes(b"no picture")
    assert main(["suspects", folder, "--out", str(out), "--quiet"]) == 0
    assert "40 pictures, the most suspect first\n  stranger than 88%  =odd.png" in capsys.readouterr().out
    table = pd.read_csv(out)
    assert list(table.columns) == ["file", "stranger_than", "score", "note"] and len(table) == 41
    assert table.file[0] == "./=odd.png" and table.file[40] == "broken.png" and "cannot be read" in table.note[40]
    images = clad.read_pictures(folder)
    expected = clad.suspects(clad.GCN(), images.images)
    assert [name.removeprefix("./") for name in table.file[:40]] == [images.files[i] for i in expected.image]
    assert np.allclose(table.score[:40], expected.score)
    for words, said in ((["--folds", "1"], "folds is 1"), (["--set", "nu=1"], "no parameter 'nu'"),
                        (["--detector", "no"], "no detector 'no'")):
        assert main(["suspects", folder, "--out", str(out), *words]) == 1 and said in capsys.readouterr().err


def test_sub_folders_are_groups_where_the_command_is_told_so(tmp_path, capsys):
    "A track is learnt from or held out as one, and counts as one for the threshold."
    for i, picture in enumerate(PICTURES[:80]):
        track = tmp_path / "good" / f"track {i // 4}"
        track.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0]).save(track / f"{i}.png")
    fit = ["fit", str(tmp_path / "good"), "--out", str(tmp_path / "m.clad"), "--detector", "OCSVM"]
    assert main([*fit, "--groups", "folder"]) == 1
    assert "20 groups (sub-folders) are too few for a false-alarm rate of 0.05" in capsys.readouterr().err
    assert main([*fit, "--groups", "folder", "--alpha", "0.2"]) == 0
    said, kept = capsys.readouterr(), clad.load(tmp_path / "m.clad")
    assert "fitting OCSVM on 16 groups (sub-folders); 4 set the threshold" in said.err and "4 calibration g" in said.out
    assert len(np.unique(kept.calibration_groups_)) == 4 and len(kept.calibration_scores_) == 16
    tracks = np.array([name.rpartition("/")[0] for name in clad.read_pictures(tmp_path / "good").files])
    assert {len(set(kept.held_out_[tracks == track])) for track in set(tracks)} == {1}
    more = tmp_path / "more" / "a"
    more.mkdir(parents=True)
    for i, picture in enumerate(PICTURES[80:90]):
        Image.fromarray(picture[0]).save(more / f"{i}.png")
    assert main(["update", str(tmp_path / "m.clad"), str(more.parent), "--groups", "folder", "--yes"]) == 0
    kept = clad.load(tmp_path / "m.clad")
    assert len(np.unique(kept.calibration_groups_)) == 5 and len(kept.calibration_scores_) == 26


def test_known_anomalies_are_judged_by_what_the_model_has_not_seen(model, tmp_path, capsys):
    "Pictures of the fit, those that set the threshold too, are left out; what was counted agrees with Python."
    detector, fresh, dark = clad.load(model), PICTURES[40:70], 255 - PICTURES[:20]
    ok, kinds = save_all(tmp_path / "ok", PICTURES[20:70]), tmp_path / "bad"
    kinds.mkdir()
    save_all(kinds / "dark", dark)
    save_all(kinds / "noise", RNG.integers(0, 255, (5, 1, 16, 16)).astype(np.uint8))
    command = ["evaluate", str(model), "--normal", ok, "--quiet", "--anomalies"]
    assert main([*command, str(kinds), "--out", str(tmp_path / "found.csv")]) == 0
    found, said = pd.read_csv(tmp_path / "found.csv", index_col=0), capsys.readouterr().out
    assert found.pictures.to_dict() == {"normal": 30, "anomalous": 25, "dark/": 20, "noise/": 5}
    assert found.flagged[["normal", "dark/"]].tolist() == [(detector.predict(x) < 0).sum() for x in (fresh, dark)]
    area = clad.metrics.auroc(np.repeat([False, True], [30, 20]), detector.anomaly_score(np.r_[fresh, dark]))
    assert found.auroc["dark/"] == pytest.approx(area, abs=1e-5)
    assert "at alpha 0.2" in said and f"{found.flagged['normal']} of 30 flagged" in said and "  noise/ " in said
    assert main([*command, ok]) == 1 and "are the same picture (30 such)" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "none")]) == 1 and "there is no folder" in capsys.readouterr().err


def test_a_model_file_is_described(model, tmp_path, capsys):
    "Also one of an earlier version, without the versions and the date; what is no model is named."
    detector = clad.CLADPlus(budget=1000, alpha=0.2, calibration_fraction=0.5).fit(PICTURES)
    detector.update(RNG.integers(0, 255, (9, 1, 16, 16)).astype(np.uint8)).save(tmp_path / "m.clad")
    assert main(["info", str(tmp_path / "m.clad")]) == 0
    said = capsys.readouterr().out
    for words in ("m.clad: CLADPlus, ", f"by clad {clad.__version__}, torch {torch.__version__}, scikit-learn ",
                  "for pictures of 16x16 pixels, grey", "alpha 0.2", "With 95% confidence", "member gcn, weight ",
                  "1 update, the last of 9 pictures", "warning: 100% of these images were flagged", "  budget = 1000"):
        assert words in said, words
    header, arrays = clad.files.read_bundle(model)
    del header["saved"]
    clad.files.write_bundle(tmp_path / "old.clad", arrays, header)
    assert main(["info", str(tmp_path / "old.clad")]) == 0
    assert "wrote no date" in (said := capsys.readouterr().out) and "no updates" in said
    assert main(["info", str(tmp_path)]) == 1 and "is a folder" in capsys.readouterr().err
    clad.OCSVM().fit(ROWS).save(tmp_path / "rows.clad")
    assert main(["info", str(tmp_path / "rows.clad")]) == 0 and "for rows of 6 numbers" in capsys.readouterr().out


def test_numbers_and_names_are_said_as_a_reader_would(model, tmp_path, capsys):
    one = save_all(tmp_path / "one", RNG.integers(0, 255, (1, 1, 16, 16)).astype(np.uint8))
    assert main(["score", str(model), one, "--out", str(tmp_path / "s.csv"), "--report", str(tmp_path / "r.html")]) == 0
    said = capsys.readouterr()
    assert "1 picture in " in said.err and "1 of 1 picture flagged" in said.out and "more than half" not in said.err
    assert "1 pictures" not in said.err + said.out
    (tmp_path / "wide").mkdir()
    for i, picture in enumerate(PICTURES[:40]):
        Image.fromarray(picture[0, :12]).save(tmp_path / "wide" / f"{i}.png")
    fit = ["fit", str(tmp_path / "wide"), "--out", str(tmp_path / "m.clad"), "--alpha", "0.2"]
    assert main([*fit, "--set", "budgt=3"]) == 1
    assert "no parameter 'budgt': is budget meant? Leave it out; it has alpha, budget, " in capsys.readouterr().err
    assert main([*fit, "--set", "encoder=null", "--set", "budget=1000", "--size", "12", "16"]) == 0
    said = capsys.readouterr().err
    assert "all 12 high, 16 wide pixels, kept" in said and "fitting CLADPlus on" in said
    assert "encoder" not in said
    assert main(["score", str(model), one, "--out", str(tmp_path / "s.csv"), "--fdr", "0.01"]) == 1
    assert "20 held-out pictures cannot promise fdr=0.01: even the strangest" in capsys.readouterr().err


def test_sub_folders_that_hold_no_normal_pictures_by_their_names_are_announced(tmp_path, capsys):
    for place, images in (("train/good", PICTURES[:40]), ("test/bad", PICTURES[40:44]), ("Defects", PICTURES[44:46])):
        (tmp_path / "all" / place).parent.mkdir(parents=True, exist_ok=True)
        save_all(tmp_path / "all" / place, images)
    words = ["--out", str(tmp_path / "m.clad"), "--detector", "OCSVM", "--alpha", "0.2"]
    assert main(["fit", str(tmp_path / "all"), *words]) == 0
    said = capsys.readouterr().err
    assert "clad: from train/good: 40, test/bad: 4, Defects: 2\n" in said
    assert "clad: warning: test/bad, Defects: are these normal pictures?" in said
    assert main(["fit", str(tmp_path / "all" / "train"), *words]) == 0
    assert "warning: " not in (said := capsys.readouterr().err) and "clad: from good: 40\n" in said
