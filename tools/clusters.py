"""What CLAD's clusters look like and what they follow: a contact sheet for each scenario, and figures/followed.csv.

usage: python tools/clusters.py DATASET SCENARIO... [--stages FOLDER...] [--fit] [--data-root FOLDER]

The clusters are those of the record CLAD-short-seed0: they are looked for among the stage results in the folders, by
their sizes. With --fit the autoencoder and DEC are trained again where they are not found (minutes), and kept in the
first of the folders.
"""
import argparse
import re
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from sklearn.metrics import normalized_mutual_info_score

from clad.data import load_dataset
from clad.detector import CLAD
from clad.files import read_bundle
from clad.metrics import auroc
from clad.pictures import explained
from clad.runs import read_record, read_truth, record_path
from clad.scenarios import get_scenario
from clad.training import StageStore, Workspace

matplotlib.use("agg")
OUT = Path("figures")


def cached(folders: list[str], sizes: list[int]) -> np.ndarray | None:
    "Labels of these cluster sizes among stage results."
    for path in (p for folder in folders for p in Path(folder).glob("clusters-*.safetensors")):
        found = [value for name, value in read_bundle(path)[1].items() if name.endswith("labels")]
        if found and np.bincount(found[0], minlength=len(sizes)).tolist() == sizes:
            return found[0]
    return None


def fitted(dataset: str, scenario: str, images: np.ndarray, folder: str | None) -> np.ndarray:
    "Labels from an autoencoder and DEC with the settings and the seed of the record."
    clad = CLAD.from_settings("short", dataset, scenario)
    work = Workspace(seed=0, store=StageStore(folder and Path(folder)), verbose=True)
    codes = clad.representation.fit(images, workspace=work.at(0))
    return clad.self_labels.fit(images, codes, workspace=work.at(1)).labels_


def features(images: np.ndarray) -> dict[str, np.ndarray]:
    "What can be read off an image without knowing what it shows, float [N] or [N,C] each."
    x = images.astype(np.float32) / 255
    grey, rim = x.mean(1), max(2, x.shape[-1] // 10)
    border = np.ones(x.shape[-2:], dtype=bool)
    border[rim:-rim, rim:-rim] = False
    steps = np.abs(np.diff(grey, axis=1)).mean((1, 2)) + np.abs(np.diff(grey, axis=2)).mean((1, 2))
    return {"brightness": grey.mean((1, 2)), "contrast": grey.std((1, 2)), "edges": steps,
            "border": x[:, :, border].mean(2), "centre": x[:, :, ~border].mean(2)}


def binned(values: np.ndarray, bins: int) -> np.ndarray:
    "Values cut into so many parts of equal size, by their first principal component where there are several numbers."
    flat = values.reshape(len(values), -1) - values.mean(0)
    line = flat @ np.linalg.svd(flat, full_matrices=False)[2][0]
    return (line.argsort().argsort() * bins // len(line)).astype(int)


def sheet(dataset: str, scenario: str, train, labels: np.ndarray, test, truth: np.ndarray, ranks: np.ndarray,
          origin: str, k: int) -> None:
    """Draw each cluster as a row: its mean image, sixteen of its images, its size and its commonest class.

    origin: whose clusters they are; k: how many there could be."""
    rng, rows, names = np.random.default_rng(0), [], []
    for number in range(k):
        own = np.flatnonzero(labels == number)
        if not len(own):
            continue
        classes, counts = np.unique(train.labels[own], return_counts=True)
        top = re.sub(r"^n?\d+ (?=.)", "", train.classes[classes[counts.argmax()]])[:22]
        names.append(f"{len(own)} images, {100 * counts.max() / len(own):.0f} % {top}")
        mean = train.images[own].mean(0, keepdims=True).astype(np.uint8)
        rows.append(np.concatenate([mean, train.images[rng.choice(own, 16, replace=len(own) < 16)]]))
    empty = k - len(rows)
    order = np.argsort(ranks, kind="stable")
    for name, chosen in (("anomalies that look most normal", order[truth[order]][:17]),
                         ("normals that look most anomalous", order[~truth[order]][::-1][:17])):
        names.append(name)
        rows.append(test.images[chosen])
    side = train.images.shape[-1]
    grid = np.concatenate([np.concatenate(list(row), axis=2) for row in rows], axis=1).transpose(1, 2, 0).squeeze()
    figure = Figure((9, 0.4 * len(rows) + 0.5), dpi=90)
    ax = figure.subplots()
    ax.imshow(grid, cmap="gray", vmin=0, vmax=255)
    ax.set_yticks(side * (np.arange(len(rows)) + 0.5), names, fontsize=7)
    ax.set_xticks([side / 2], ["mean"], fontsize=7)
    ax.axhline(side * (len(rows) - 2) - 0.5, color="w", lw=3)
    ax.get_yticklabels()[-2].set_color("C3")
    ax.set_title(f"{dataset} {scenario}: clusters {origin}" + f", {empty} of {k} empty" * (empty > 0)
                 + ", each with its mean image; below: mistakes of the record", fontsize=8)
    figure.savefig(OUT / f"clusters-{scenario}.jpg", bbox_inches="tight", pil_kwargs={"quality": 75})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("scenarios", nargs="+")
    parser.add_argument("--stages", nargs="+", default=[])
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--data-root")
    args = parser.parse_args()
    parts, table = load_dataset(args.dataset, args.data_root), []
    for scenario in args.scenarios:
        path = record_path(OUT / "results", args.dataset, scenario)
        split = get_scenario(args.dataset, scenario).split(*parts)
        sizes = read_record(path)["outcome"]["clusters"]["sizes"]
        labels = cached(args.stages, sizes)
        if labels is None and not args.fit:
            print(f"{scenario}: its clusters are not among the stage results", file=sys.stderr)
            continue
        if labels is None:
            labels = fitted(args.dataset, scenario, split.train.images, next(iter(args.stages), None))
        same = np.bincount(labels, minlength=len(sizes)).tolist() == sizes
        truth, ranks = read_truth(path)
        origin = "of the record" if same else "fitted again"
        sheet(args.dataset, scenario, split.train, labels, split.test, truth, ranks, origin, len(sizes))
        kinds = len(split.scenario.normal)
        seen, new = features(split.train.images), features(split.test.images)
        row = {"dataset": args.dataset, "scenario": scenario, "clusters": origin}
        one_hot = (split.train.labels[:, None] == np.unique(split.train.labels)).astype(float)
        table.append(row | {"feature": "hidden class", "explained": explained(one_hot, labels),
                            "nmi": normalized_mutual_info_score(split.train.labels, labels)})
        for name, values in seen.items():
            nmi = normalized_mutual_info_score(binned(values, kinds), labels)
            more = {"explained": explained(values, labels), "nmi": nmi}
            if values.ndim == 1:
                more |= {"spearman": spearmanr(new[name], ranks).statistic, "auroc": auroc(truth, new[name])}
            table.append(row | {"feature": name} | more)
        print(f"{scenario}: {row['clusters']}", flush=True)
    old = OUT / "followed.csv"
    before = [pd.read_csv(old)] if old.is_file() else []
    rows = pd.concat([*before, pd.DataFrame(table)], ignore_index=True)
    rows = rows.drop_duplicates(["dataset", "scenario", "feature"], keep="last").sort_values(["dataset", "scenario"],
                                                                                             kind="stable")
    rows.to_csv(old, index=False, float_format="%.4f", lineterminator="\n")


if __name__ == "__main__":
    main()
