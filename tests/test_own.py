"Somebody's own pictures: odd and broken files, faults on the way to the disk, rows of numbers, the page in a browser."
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import PROGRAM, Browser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.utils.estimator_checks import check_estimator

import clad
from clad.cli import main
from clad.conformance import CHECKS, Trial, check_detector
from clad.files import read_bundle, write_bundle
from clad.folders import read_pictures, ruled_size
from clad.report import reasons_for, score_pictures, write_report, write_scores

ROOT = Path(clad.__file__).parents[1]
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
RNG = np.random.default_rng(0)


def picture(size: tuple[int, int] = (12, 12), mode: str = "L", seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def fill(folder: Path, n: int = 60, size: tuple[int, int] = (12, 12)) -> Path:
    "Smooth grey pictures of two kinds."
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        ramp = np.add.outer(np.arange(size[0]), (i % 2) * np.arange(size[1])) * 9 + RNG.integers(0, 60, size)
        Image.fromarray(ramp.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    "A fitted detector in a file, beside the folder `good` that it was fitted on."
    folder = tmp_path_factory.mktemp("model")
    good = fill(folder / "good")
    words = ["fit", str(good), "--out", str(folder / "m.clad"), "--detector", "OCSVM", "--quiet"]
    assert main(words) == 0
    return folder / "m.clad"


def started(code: str, **more) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **more)


def said(capsys, *words) -> tuple[int, str]:
    "Exit code and error stream of a command."
    code = main([str(w) for w in words])
    return code, capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- odd files

KINDS = {"16 bits": lambda: Image.fromarray(np.full((9, 9), 40000, np.uint16)), "cmyk": lambda: picture(mode="CMYK"),
         "palette": lambda: picture(mode="P"), "one bit": lambda: picture(mode="1"),
         "alpha": lambda: picture(mode="RGBA"), "grey alpha": lambda: picture(mode="LA"),
         "16 bits, other end first": lambda: Image.frombytes("I;16B", (9, 9), np.full((9, 9), 40000, ">u2").tobytes()),
         "wide": lambda: picture((2, 400)), "dot": lambda: picture((1, 1))}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_every_kind_are_read(tmp_path, kind):
    KINDS[kind]().save(tmp_path / ("a.tif" if kind in ("cmyk", "16 bits, other end first") else "a.png"))
    found = read_pictures(tmp_path, size=16)
    assert found.images.shape[2:] == (16, 16) and not found.skipped and len(found) == 1


@pytest.mark.parametrize("kind", ["png", "webp", "jpg", "tif"])
def test_a_picture_that_lies_on_its_side_is_turned_and_not_squashed(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture((20, 60), "RGB").save(tmp_path / f"a.{kind}", exif=exif)
    assert read_pictures(tmp_path).images.shape == (1, 3, 60, 20)


@QUICK
@given(st.lists(st.tuples(st.sampled_from(["a.png", "b.JPG", "sub/c.tiff", "ü ñ 漢.bmp", "d.txt", "e.png"]),
                          st.binary(max_size=60), st.sampled_from(["junk", "whole", "cut", "flipped"])),
                min_size=1, max_size=5), st.integers(0, 2**16))
def test_every_file_is_accounted_for(tmp_path_factory, files, at):
    "Whatever lies in a folder: each file is a picture, or skipped with a reason, or no picture by its name."
    folder = tmp_path_factory.mktemp("any")
    for name, junk, how in files:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if how == "junk" or path.suffix == ".txt":
            path.write_bytes(junk)
            continue
        picture((20, 30), "RGB").save(path)
        content = bytearray(path.read_bytes())
        if how == "flipped":
            content[at % len(content)] ^= 0xFF
        path.write_bytes(content[:len(content) // 2] if how == "cut" else content)
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    try:
        found = read_pictures(folder)
    except ValueError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
        return
    named = {*found.files, *found.skipped}
    assert len(found) == len(found.files) == len(named) - len(found.skipped)
    assert named == {name for name in there if not name.endswith(".txt")}
    assert found.plan.scan.others == len(there) - len(named) and found.images.dtype == np.uint8


@QUICK
@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1), st.integers(8, 200))
def test_the_ruled_size(sizes, longest):
    height, width = ruled_size(sizes, longest)
    middle = np.median(sizes, axis=0)
    assert 8 <= height and 8 <= width and max(height, width) <= max(longest, 8)
    if middle.max() <= longest and middle.min() >= 8:
        assert (height, width) == tuple(map(round, middle))


def test_names_of_every_kind(tmp_path, model, capsys):
    "Long, in other scripts, with a line break, quotes and bytes that are no text: read, scored, written, shown."
    names = [b"x" * 251 + b".png", "漢字 ß 🙂.png".encode(), b"line\nbreak.png", b'quo"te, comma.png',
             b"raw\xff\xfe.png", b"<b>&amp;.png", b"=1+1.png"]
    for i, name in enumerate(names):
        picture(seed=i).save(open(os.path.join(os.fsencode(tmp_path), name), "wb"), "PNG")
    out, page = tmp_path / "s.csv", tmp_path / "r.html"
    code, err = said(capsys, "score", model, tmp_path, "--out", out, "--report", page)
    assert code == 0, err
    table = pd.read_csv(out)
    assert len(table) == len(names) and r"raw\xff\xfe.png" not in set(table.file) and page.stat().st_size > 5000
    assert {"line\nbreak.png", 'quo"te, comma.png', "漢字 ß 🙂.png", "x" * 251 + ".png"} <= set(table.file)


def test_one_giant_picture(tmp_path):
    "A bomb, 600 million pixels in some kilobytes, is named and left out; nothing of it is decoded."
    fill(tmp_path, 3)
    header = b"P5\n30000 20000\n255\n"
    with open(tmp_path / "bomb.pgm", "wb") as file:
        file.write(header)
        file.truncate(30000 * 20000 + len(header))  # a hole on the disk
    Image.new("1", (12000, 9000)).save(tmp_path / "large.png")   # 108 million: Pillow only warns
    found = read_pictures(tmp_path)
    assert len(found) == 3 and set(found.skipped) == {"bomb.pgm", "large.png"}
    assert all("exceeds limit" in why for why in found.skipped.values())


# ---------------------------------------------------------------------------------------------- the command's words

def test_mistakes_are_one_sentence(tmp_path, model, capsys):
    good, notes = model.parent / "good", tmp_path / "notes.txt"
    notes.write_text("Monday")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.png").write_text("Dear Sir")
    picture(mode="RGB").save(tmp_path / "colour.png")
    out = tmp_path / "m.clad"
    for words, expected in [
            (("fit", tmp_path / "god", "--out", out), "there is no folder"),
            (("fit", notes, "--out", out), "is a file"), (("fit", tmp_path / "empty", "--out", out), "holds no files"),
            (("fit", tmp_path / "text", "--out", out), "the only picture"),
            (("fit", good, "--out", notes / "m.clad"), "(--out)"), (("fit", good, "--out", tmp_path), "(--out)"),
            (("fit", good, "--out", "/proc/m.clad"), "(--out)"),
            (("fit", good, "--out", out, "--detector", "CLUD"), "choose one of CLAD"),
            (("fit", good, "--out", out, "--detector", "SVDD", "--n_clusters", "3"), "--detector CLAD"),
            (("fit", good, "--out", out, "--set", "hidden_dim"), "no NAME=VALUE"),
            (("fit", good, "--out", out, "--detector", "CLAD", "--set", "representation=3"), "is a part of CLAD"),
            (("fit", good, "--out", out, "--set", "hidden_dum=3"), "no parameter 'hidden_dum'"),
            (("fit", good, "--out", out, "--settings", "quick"), "quick"),
            (("fit", good, "--out", out, "--set", "calibration_fraction=0"), "calibration_fraction is 0"),
            (("fit", good, "--out", out, "--set", "calibration_fraction=much"), "calibration_fraction is 'much'"),
            (("score", model, good, "--out", model), "a name of its own"),
            (("score", model, good, "--out", out, "--report", out), "a name of its own"),
            (("fit", good, "--out", out, "--size", "3", "3"), "from 8 to 4096"),
            (("fit", good, "--out", out, "--alpha", "5"), "alpha is 5"),
            (("fit", good, "--out", out, "--device", "cuda:77"), "cuda:77"),
            (("score", notes, good, "--out", out), "was not written by clad"),
            (("score", tmp_path / "no.clad", good, "--out", out), "does not exist"),
            (("score", model, tmp_path, "--out", out), "fitted on grey pictures"),
            (("score", model, good, "--out", out, "--alpha", "0.001"), "at least 999 are needed"),
            (("score", model, good, "--out", out, "--fdr", "7"), "fdr is 7"),
            (("score", model, good, "--out", out, "--report", tmp_path), "(--report)"),
            (("score", model, good, "--out", out, "--reasons", "-1"), "--reasons is -1"),
            (("update", model, tmp_path / "god"), "there is no folder")]:
        before = sorted(p.name for p in tmp_path.iterdir())
        code, err = said(capsys, *words, "--quiet")
        assert code == 1 and err.startswith("clad: ") and err.count("\n") == 1 and expected in err, (words, err)
        assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_session(tmp_path, capsys):
    "Fit, score with a page, update; broken files are named, kept in the table, or refused."
    good, new = fill(tmp_path / "good", 80), fill(tmp_path / "new" / "sub", 20).parent
    for path in (new / "sub").iterdir():
        Image.open(path).resize((36, 24)).save(path)
    Image.fromarray(255 * RNG.integers(0, 2, (12, 12), dtype=np.uint8)).save(new / "noise.png")
    (new / "cut.png").write_bytes((good / "000.png").read_bytes()[:90])
    file, out, page = tmp_path / "m.clad", tmp_path / "deep" / "s.csv", tmp_path / "r.html"
    code, err = said(capsys, "fit", good, "--out", file, "--detector", "OCSVM")
    assert code == 0 and "80 pictures in" in err and "all 12x12 pixels, kept, grey: 11.5 KB in memory" in err
    kept = clad.load(file)
    assert kept.fit_report_["folder"]["pictures"] == 80 and len(kept.fit_report_["looks"]) == 8
    assert len(kept.calibration_scores_) == 20 and kept.examples_.shape == (20, 1, 12, 12)
    assert main(["score", str(file), str(new), "--out", str(out), "--report", str(page), "--quiet"]) == 0
    printed = capsys.readouterr().out
    table, told = pd.read_csv(out), re.search(r'"why": .*?"text": "(.*?)"', page.read_text("utf-8"))[1]
    assert f"{table.flagged.sum()} of 21 pictures flagged" in printed and table.flagged[0]
    assert told.startswith(f"For the {table.flagged.sum()} flagged pictures, by 20 normal ones")
    code, err = said(capsys, "score", file, new, "--out", out, "--report", page, "--reasons", "0")
    assert code == 0 and '"told": []' in page.read_text("utf-8") and "reasons for" not in err
    assert table.file[0] == "noise.png" and table.file.iloc[-1] == "cut.png" and "truncated" in table.note.iloc[-1]
    assert len(table) == 22 and np.isnan(table.score.iloc[-1])
    code, err = said(capsys, "score", file, new, "--out", out, "--strict")
    assert code == 1 and "cut.png cannot be read" in err
    before = file.read_bytes()
    assert main(["update", str(file), str(fill(tmp_path / "more", 30)), "--out", str(tmp_path / "n.clad")]) == 0
    assert file.read_bytes() == before and len(clad.load(tmp_path / "n.clad").calibration_scores_) == 50
    assert main(["update", str(file), str(tmp_path / "more")]) == 0 and len(clad.load(file).calibration_scores_) == 50


def on_the_page(page: Path) -> dict:
    return json.loads(re.search(r">(\{\"file\": .*?\})</script>", page.read_text("utf-8"), re.S)[1])


@pytest.mark.parametrize("fdr", [None, 0.06, 0.3])
def test_page_and_table_flag_the_same_pictures(tmp_path, model, fdr):
    "Also where nothing is discovered, and where a p-value has no short decimal."
    detector, images = clad.load(model), read_pictures(fill(tmp_path / "new", 30)).images
    images[:8] = 255 * RNG.integers(0, 2, (8, 1, 12, 12), dtype=np.uint8)
    table = score_pictures(detector, images, [f"{i}.png" for i in range(len(images))], fdr)
    data = on_the_page(write_report(tmp_path / "r.html", detector, table, images, fdr=fdr))
    shown = [p <= data["alpha"] + 1e-12 for p in data["p"]]
    assert shown == table.flagged.tolist() and (sum(shown) > 0) == (fdr != 0.06)


def test_a_page_after_pictures_were_picked(tmp_path, model, capsys):
    file, new = tmp_path / "m.clad", fill(tmp_path / "new", 30)
    for i in range(5):
        Image.fromarray(255 * RNG.integers(0, 2, (12, 12), dtype=np.uint8)).save(new / f"{i:03}.png")
    assert main(["update", str(model), str(new), "--picked", "--out", str(file), "--quiet"]) == 0
    assert main(["score", str(file), str(new), "--out", str(tmp_path / "s.csv"), "--report", str(tmp_path / "r.html"),
                 "--quiet"]) == 0
    assert on_the_page(tmp_path / "r.html")["picked"] > 0
    assert "No certificate: " in (tmp_path / "r.html").read_text("utf-8")


def test_a_share_of_ones_own_to_set_the_threshold(tmp_path, model):
    words = ["fit", str(model.parent / "good"), "--out", str(tmp_path / "m.clad"), "--detector", "OCSVM", "--quiet"]
    assert main([*words, "--set", "calibration_fraction=0.5"]) == 0
    assert len(clad.load(tmp_path / "m.clad").calibration_scores_) == 30


def test_as_many_clusters_as_the_pictures_suggest(tmp_path, model, capsys):
    "--n-clusters auto on pictures of two kinds; the evidence is in the file."
    brief = [f"--set={stage}__epochs=1" for stage in ("representation", "self_labels", "classifier")]
    assert main(["fit", str(model.parent / "good"), "--out", str(tmp_path / "m.clad"), "--detector", "CLAD",
                 "--settings", "smoke", "--n-clusters", "auto", "--quiet", *brief]) == 0
    assert "2 hidden classes, as the pictures suggest" in capsys.readouterr().out
    kept = clad.load(tmp_path / "m.clad")
    assert kept.n_clusters_ == 2 and kept.n_clusters_evidence_.stability.idxmax() == 0
    with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", sys.stdout)
        main(["fit", "good", "--out", "m.clad", "--n-clusters", "few"])
    assert "'few' is no whole number, and not auto" in capsys.readouterr().out


def test_help_teaches_and_is_quick(capsys):
    for words, expected in ((["--help"], "clad fit good/ --out model.clad"), (["fit", "--help"], "examples:"),
                            (["score", "--help"], "--fdr 0.1"), (["update", "--help"], "--picked")):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0 and expected in capsys.readouterr().out
    code = """import sys
from clad.cli import main
try:
    main(["fit", "--help"])
finally:
    print(sorted({"torch", "sklearn", "numpy", "pandas"} & set(sys.modules)))"""
    out, err = started(code).communicate(timeout=60)
    assert out.endswith("[]\n"), (out, err)


# ------------------------------------------------------------------------------------------------ faults on the disk

def test_a_full_disk_while_saving(tmp_path, model):
    "The old file survives, one sentence names it, no partial file is left; the same for table, page and stream."
    target = tmp_path / "m.clad"
    target.write_bytes(model.read_bytes())
    code = f"""import resource, sys, os
from clad.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
words = [["update", {str(target)!r}, {str(fill(model.parent / "more", 30))!r}],
         ["score", {str(model)!r}, {str(model.parent / "good")!r}, "--out", {str(tmp_path / "s.csv")!r},
          "--report", {str(tmp_path / "r.html")!r}],
         ["fit", {str(model.parent / "good")!r}, "--out", {str(tmp_path / "n.clad")!r}, "--detector", "SVDD",
          "--cache-dir", {str(tmp_path / "cache")!r}]]
print([main([*w, "--quiet"]) for w in words])
"""
    out, err = started(code).communicate(timeout=120)
    assert out.endswith("[1, 1, 1]\n") and err.count("\n") == 3 and "Traceback" not in err, (out, err)
    assert "m.clad cannot be written (File too large)" in err
    assert target.read_bytes() == model.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} <= {"m.clad", ".m.clad.lock", "cache", "s.csv"}
    assert not list((tmp_path / "cache").iterdir())


def test_a_kill_while_saving(tmp_path, model):
    "Whenever the process is killed, the file is a whole one."
    target = tmp_path / "m.clad"
    code = f"""import clad, sys
d = clad.load({str(model)!r})
while True:
    d.save({str(target)!r})
    print("saved", flush=True)
"""
    process = started(code)
    assert process.stdout.readline() == "saved\n"
    expected = clad.load(model).calibration_scores_
    for pause in (0.0, 0.0013, 0.0029):
        os.kill(process.pid, signal.SIGSTOP)   # as good as dead for whoever looks at the file
        assert np.array_equal(clad.load(target).calibration_scores_, expected)
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert np.array_equal(clad.load(target).calibration_scores_, expected)


@QUICK
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_flipped_byte_is_refused(tmp_path_factory, model, where, flip):
    "Wherever a byte of the model file changes, it is refused with its name, and nothing of it is run."
    content = bytearray(model.read_bytes())
    content[int(where * len(content))] ^= flip
    spoilt = tmp_path_factory.mktemp("spoilt") / "m.clad"
    spoilt.write_bytes(content)
    with pytest.raises(ValueError, match="m.clad"):
        clad.load(spoilt)


@pytest.mark.parametrize("n", [0, 7, 100, -1])
def test_a_file_cut_short_is_refused(tmp_path, model, n):
    (tmp_path / "m.clad").write_bytes(model.read_bytes()[:n])
    with pytest.raises(ValueError, match="m.clad was not written by clad, or it is damaged"):
        clad.load(tmp_path / "m.clad")


def test_a_file_of_a_newer_version_is_refused(tmp_path, model, capsys):
    header, arrays = read_bundle(model)
    write_bundle(tmp_path / "m.clad", arrays, {**header, "format": 99})
    code, err = said(capsys, "score", tmp_path / "m.clad", model.parent / "good", "--out", tmp_path / "s.csv")
    assert code == 1 and "format 99, newer than format" in err


def test_a_stream_takes_the_memory_of_some_blocks(tmp_path):
    "Peak of the process while 2,000 pictures of 96x96 RGB, 55 MB, are streamed: a third of them at most."
    noise = RNG.integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "0.bmp")
    content = (tmp_path / "0.bmp").read_bytes()
    for i in range(1, 2000):
        (tmp_path / f"{i}.bmp").write_bytes(content)
    code = f"""import resource, json, clad.folders as f
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
f.read_pictures({str(tmp_path)!r}, size=32, cache={str(tmp_path / "cache")!r})
before = peak()
found = f.read_pictures({str(tmp_path)!r}, size=96, mode="RGB", cache={str(tmp_path / "cache")!r})
print(json.dumps([(peak() - before) * 1024 / found.images.nbytes, type(found.images).__name__]))
"""
    out, err = started(code).communicate(timeout=120)
    share, kind = json.loads(out)
    assert kind == "memmap" and share < 0.75, (share, err)


# -------------------------------------------------------------------------------------------------- rows of numbers

SMALL = {"CLADPlus": {},
         "CLAD": {"n_clusters": 2, "representation__epochs": 1, "self_labels__epochs": 1, "self_labels__n_init": 1,
                  "classifier__epochs": 1},
         "DeepSVDD": {"pretraining__epochs": 1, "sphere__epochs": 1},
         "OCNN": {"rounds": 20, "representation__epochs": 1}, "OCCNN": {"iterations": 5, "representation__epochs": 1}}
KNOBS = "a knob is stored in the stage that has it, and a stage cannot be a number"
EXPECTED = dict.fromkeys(("check_parameters_default_constructible", "check_set_params",
                          "check_do_not_raise_errors_in_init_or_set_params"), KNOBS)
ROUNDING = dict.fromkeys(("check_methods_subset_invariance", "check_methods_sample_order_invariance"),
                         "float32: 1e-5 is promised, 1e-7 is asked for")
ONE = dict.fromkeys(("check_dont_overwrite_parameters", "check_methods_subset_invariance", "check_fit2d_1feature",
                     "check_fit2d_predict1d"), "it sets n_clusters to 1, and one label teaches a classifier nothing")


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.filterwarnings("ignore")
def test_rows_keep_the_contract_of_scikit_learn(name):
    "All of scikit-learn's checks on tables but those that a detector made of stages cannot pass, each with its reason."
    more = ONE if name == "CLAD" else ROUNDING
    detector = getattr(clad, name).from_settings("smoke", alpha=0.5, calibration_fraction=0.3, **SMALL[name])
    found = check_estimator(detector, on_fail=None, expected_failed_checks=EXPECTED | more)
    failed = {f["check_name"]: f["exception"] for f in found if f["status"] == "failed"}
    assert not failed and Counter(f["status"] for f in found)["passed"] >= 36


@pytest.mark.parametrize("name", ["OCSVM", "SVDD", *SMALL])
@pytest.mark.filterwarnings("ignore")
def test_rows_keep_our_contract(name):
    "Every clause of chapter 41 on three heaps of rows; but that OCNN learns from rows, which that chapter denies."
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 4, (3, 20))[np.arange(120) % 3] + rng.normal(size=(120, 20))
    detector = getattr(clad, name).from_settings("smoke", **SMALL.get(name, {}))
    if name != "OCNN":
        return check_detector(detector, rows)
    trial = Trial(detector, rows)
    for check in CHECKS:
        if check.__name__ != "_check_learning":
            check(trial)


def test_a_fit_makes_no_copy_of_the_set():
    "30 MB of pictures: what a fit and scoring take besides is a fraction of them."
    out, err = started("""
import resource, numpy as np
from clad.base import Detector
from clad.training import Pixels, channel_statistics
class Brightness(Detector):
    def _fit(self, images, groups, work):
        pixels = Pixels(images, *channel_statistics(images), work.device)
        self.middle_ = sum(float(batch.sum()) for batch in pixels.batches(256)) / images.size
    def _score(self, images):
        return np.concatenate([-images[i:i + 256].mean((1, 2, 3)) for i in range(0, len(images), 256)])
images = np.random.default_rng(0).integers(0, 256, (10_000, 1, 55, 55), dtype=np.uint8)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
Brightness(calibration_fraction=0.02).fit(images[:600]).score_samples(images[:600])
before = peak()
Brightness(calibration_fraction=0.02).fit(images).score_samples(images)
print((peak() - before) / images.nbytes)
""").communicate(timeout=120)
    assert float(out) < 0.5, (out, err)


# -------------------------------------------------------------------------------------- what the command says and keeps

@pytest.mark.parametrize("command", ["fit", "score"])
def test_an_outcome_that_cannot_be_written_is_refused_before_the_work(capsys, tmp_path, model, command):
    words = {"fit": ["fit", model.parent / "good", "--out"], "score": ["score", model, model.parent / "good", "--out"]}
    (tmp_path / "file").write_text("no folder")
    for place in (tmp_path / "file" / "out", tmp_path):
        assert main([*map(str, words[command]), str(place)]) == 1
        said = capsys.readouterr().err
        assert said.startswith("clad: ") and said.count("\n") == 1 and place.name in said


def test_names_that_the_terminal_cannot_show(tmp_path, model):
    "A place with letters beyond ASCII, on a terminal that has only those; afterwards the stream is as it was."
    code = f"""
import sys
from clad.cli import main
before = sys.stdout.errors
assert main(["fit", {str(model.parent / 'good')!r}, "--out", {str(tmp_path / 'modèle.clad')!r}, "--detector", "OCSVM",
             "--quiet"]) == 0
assert sys.stdout.errors == before == "strict"
"""
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii:strict"})
    assert done.returncode == 0 and "mod\\xe8le.clad: OCSVM" in done.stdout, done.stderr


def test_interrupted_while_fitting(capsys, monkeypatch, tmp_path, model):
    "130, one sentence that promises no more than it keeps, and no file."
    monkeypatch.setattr(clad.OCSVM, "_fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    out = tmp_path / "m.clad"
    assert main(["fit", str(model.parent / "good"), "--out", str(out), "--detector", "OCSVM", "--quiet"]) == 130
    assert capsys.readouterr().err == "clad: interrupted; no file is half written\n" and not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------- the page in a browser

@pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")
def test_the_page_in_a_browser(tmp_path, model):
    "Count, slider, filters, sorting, galleries, zoom, reasons; nothing loaded; as wide as a telephone; light and dark."
    pytest.importorskip("websocket")
    detector = clad.load(model)
    images = np.concatenate([read_pictures(model.parent / "good").images,
                             RNG.integers(0, 256, (500, 1, 12, 12), dtype=np.uint8)])
    names = [f"{'good' if i < 60 else 'odd <i>'} {i}.png" for i in range(560)]
    table = score_pictures(detector, images, names).assign(hidden_class=[i % 2 for i in range(560)])
    page = write_report(tmp_path / "page.html", detector, table, images, skipped={"x.png": "x.png is <broken>"},
                        reasons=reasons_for(detector), explained=8)
    write_scores(tmp_path / "s.csv", table)
    with Browser() as browser:
        browser.open(page)
        text = browser.js("document.body.innerText")
        assert f"{table.flagged.sum()} of 560 pictures flagged" in text and "at most 5 % are flagged" in text
        assert browser.js("$('rows').children.length") >= 60 and "odd <i>" in text and "1 file was left out" in text
        assert f"For the 8 strangest of {table.flagged.sum()} flagged" in text
        assert browser.js("$('why').children.length") == 6
        browser.js("$('further').click()")
        assert browser.js("[$('why').children.length, $('further').hidden]") == [8, True]
        cards = browser.js("[...$('why').children].map(e => e.innerText)")
        assert all("Nearest normal" in card and "among its" in card for card in cards)
        assert {card.split(",")[0] for card in cards} <= set(table[table.flagged].file)
        browser.js("$('why').scrollIntoView()")
        browser.wait(lambda: browser.js("document.querySelector('.still').style.backgroundImage.startsWith('url(')"))
        shown = browser.js("zoom(D.why.told[0].i); $('reason').innerText")
        assert "Second nearest" in shown and browser.js("zoom(0); $('reason').innerText") == ""
        browser.js("$('card').close()")
        for alpha in (0.06, 0.3):
            browser.js(f"$('alpha').value = Math.log10({alpha}); $('alpha').oninput()")
            count = int((table.p_value <= browser.js("S.alpha") + 1e-12).sum())
            assert browser.js("$('flagged').textContent") == str(count)
        browser.js("$('name').value = 'GOOD'; $('class').value = '1'; $('class').oninput()")
        assert browser.js("$('count').textContent") == "30 of 560"
        browser.js("$('name').value = ''; $('class').value = ''; $('most').value = '0.5'; $('most').oninput()")
        assert browser.js("$('count').textContent") == f"{(table.p_value <= 0.5).sum()} of 560"
        browser.js("document.querySelector('[data-key=file]').click()")
        shown = browser.js("[...document.querySelectorAll('#rows td.name')].map(e => e.textContent)")
        assert shown[0].startswith("good") and browser.js("document.querySelectorAll('#galleries .strip').length") == 4
        browser.js("$('most').value = ''; $('only').checked = true; $('only').oninput(); zoom(7)")
        assert browser.js("$('card').open") and names[7] in browser.js("$('facts').innerText")
        browser.wait(lambda: browser.js("$('zoom').firstChild.style.backgroundImage.startsWith('url(\"blob:')"))
        for dark in (False, True):
            browser.open(page, 390, 844, dark)
            assert browser.js("document.documentElement.scrollWidth") == 390
            ground = browser.js("getComputedStyle(document.body).backgroundColor")
            assert ground == ("rgb(21, 24, 28)" if dark else "rgb(255, 255, 255)")
            assert len(browser.picture()) > 10_000
        assert not browser.faults() and browser.requests() <= {"file", "blob", "data"}
