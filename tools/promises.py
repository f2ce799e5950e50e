"""Measure how often normal test images are flagged, against the rate that was promised.

usage: python tools/promises.py OUT.csv [--clad]      figures/promises.csv in the repository

MNIST CUR and GTSRB SPDL (in CLAD_DATA), alpha = 0.01, 0.05, 0.1, five seeds of a detector without training; with --clad
CLAD `short` on MNIST CUR instead, one seed (some six minutes on one core). Rows of the same name in OUT.csv are
replaced. A fifth of the training groups (images, where there are none) is put aside before each fit: "aside" are normal
images of the same source as the calibration, "test" those of the published test part.
"""
import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

import clad
from clad.ablation import write_rows
from clad.base import Detector
from clad.conformal import held_out

ALPHAS = (0.01, 0.05, 0.1)
SETS = (("mnist", "CUR"), ("gtsrb", "SPDL"))
KEY = ["dataset", "scenario", "detector", "calibration", "where", "p_values", "alpha", "part"]


class PCANeighbours(Detector):
    "Minus the distance to the fifth neighbour among the codes of a PCA with 64 components; k-means gives 10 clusters."

    def _fit(self, images, groups, work):
        self.pca_ = PCA(64, random_state=work.seed % 2**32).fit(self._rows(images))
        codes = self.pca_.transform(self._rows(images))
        self.search_ = NearestNeighbors(n_neighbors=5).fit(codes)
        self.kmeans_ = KMeans(10, n_init=3, random_state=work.seed % 2**32).fit(codes)
        self.labels_ = self.kmeans_.labels_.astype(np.int64)

    def _rows(self, images):
        return images.reshape(len(images), -1) / np.float32(255)

    def _score(self, images):
        return -self.search_.kneighbors(self.pca_.transform(self._rows(images)))[0][:, -1]

    def predict_cluster(self, X):
        return self.kmeans_.predict(self.pca_.transform(self._rows(self._checked(X)))).astype(np.int64)


def rows(detector, images, classes, where: str, fixed: dict):
    "False alarms among normal images: overall, by predicted cluster, by true hidden class."
    scores, own = detector.score_samples(images), detector.predict_cluster(images)
    for by in ("pool", "cluster"):
        detector.score_samples = lambda X: scores  # they do not depend on alpha: once is enough
        detector.predict_cluster = lambda X: own
        for alpha in ALPHAS:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                flagged = detector.set_params(alpha=alpha).p_values(images, by) <= alpha + 1e-9
            parts = [("all", np.ones(len(own), bool))]
            parts += [(f"cluster {c}", own == c) for c in np.unique(own)]
            parts += [(f"class {c}", classes == c) for c in np.unique(classes)]
            for part, mask in parts:
                yield {**fixed, "where": where, "p_values": by, "alpha": alpha, "part": part, "n": int(mask.sum()),
                       "flagged": int(flagged[mask].sum()), "scarce": len(detector.scarce_clusters_)}
    del detector.score_samples, detector.predict_cluster


def measured(dataset: str, scenario: str, make, seeds, name: str):
    train, test = clad.load_dataset(dataset)
    split = clad.get_scenario(dataset, scenario).split(train, test)
    normal = split.test.subset(~split.is_anomaly)
    for seed in seeds:
        aside = held_out(len(split.train), 0.2, split.train.groups, seed=1000 + seed)
        rest, other = split.train.subset(~aside), split.train.subset(aside)
        for calibration in ("images",) if rest.groups is None else ("images", "groups"):
            fitted = make(seed).fit(rest.images, groups=rest.groups if calibration == "groups" else None)
            fixed = {"dataset": dataset, "scenario": scenario, "detector": name, "seed": seed,
                     "calibration": calibration, "calibrated": len(np.unique(fitted.calibration_groups_))}
            for where, part in (("aside", other), ("test", normal)):
                names = np.array(part.classes)[part.labels]
                yield from rows(fitted, part.images, names, where, fixed)
            print(dataset, scenario, name, seed, calibration, flush=True)


def found_rows(with_clad: bool) -> list[dict]:
    if with_clad:
        return list(measured("mnist", "CUR", lambda seed: clad.CLAD.from_settings(
            "short", "mnist", "CUR", calibration_fraction=0.2, random_state=seed), [0], "CLAD short"))
    return [row for dataset, scenario in SETS for row in measured(
        dataset, scenario, lambda seed: PCANeighbours(calibration_fraction=0.2, random_state=seed), range(5),
        "PCA + 5 neighbours")]


def summary(found: pd.DataFrame) -> pd.DataFrame:
    "Means over seeds; of clusters, whose numbers differ from fit to fit, the lowest and the highest rate."
    found = found.assign(rate=found.flagged / found.n)
    one = KEY[:-1]
    clusters = found[found.part.str.startswith("cluster") & (found.n >= 50)].groupby([*one, "seed"])
    extremes = [clusters.agg(rate=("rate", f), n=("n", "min"), calibrated=("calibrated", "first"),
                             scarce=("scarce", "first")).assign(part=f"{word} cluster").reset_index()
                for f, word in (("min", "lowest"), ("max", "highest"))]
    rest = found[~found.part.str.startswith("cluster")]
    return pd.concat([rest, *extremes]).groupby(KEY).agg(
        seeds=("seed", "nunique"), n=("n", "mean"), calibrated=("calibrated", "mean"), scarce=("scarce", "mean"),
        rate=("rate", "mean"), sd=("rate", "std")).reset_index().round(4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--clad", action="store_true")
    args = parser.parse_args()
    new = summary(pd.DataFrame(found_rows(args.clad)))
    old = pd.read_csv(args.out) if Path(args.out).exists() else new[:0]
    write_rows(pd.concat([old, new]).drop_duplicates(KEY, keep="last"), args.out)
