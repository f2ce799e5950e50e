"""Measure what anomalies among the training images cost: digits, CUR, every method.

usage: python tools/dirty.py OUT.csv      figures/dirty.csv in the repository

0, 1, 5 and 10 % of the training images are digits of other classes, drawn at random; three seeds for the networks (of
CLAD the file of the repository has one), five for the kernel methods. The named setting `short`, with a fifth held
out. Columns: AUROC on the test images; at alpha = 5 %, the share of flagged normal and anomalous test images; the share
of the planted anomalies among as many most suspect images (`clad.dirty`, kernel methods); AUROC and hits of a fit
without the planted among twice as many most suspect images, as a person takes them out who looks at those.
"""
import argparse
import time
import warnings

import numpy as np
import pandas as pd
import torch

import clad
from clad.ablation import write_rows
from clad.dirty import suspects
from clad.metrics import auroc

SHARES = (0.0, 0.01, 0.05, 0.1)
KERNELS = ("OCSVM", "SVDD")
NETWORKS = ("DeepSVDD", "OCNN", "OCCNN", "CLAD")


def mixed(split, train, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    "Normal training images with anomalies among them, and which are anomalies."
    rng = np.random.default_rng(seed)
    normal = {split.train.classes[k] for k in np.unique(split.train.labels)}
    others = train.images[~np.isin(np.array(train.classes)[train.labels], list(normal))]
    count = round(share * len(split.train) / (1 - share))
    images = np.concatenate([split.train.images, others[rng.permutation(len(others))[:count]]])
    order = rng.permutation(len(images))
    return images[order], (np.arange(len(images)) >= len(split.train))[order]


def detector_of(method: str, seed: int):
    return getattr(clad, method).from_settings("short", "digits", "CUR", calibration_fraction=0.2, random_state=seed)


def row(method: str, share: float, seed: int, split, train) -> dict:
    images, planted = mixed(split, train, share, seed)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        made = detector_of(method, seed).fit(images)
        found = {"method": method, "share": share, "seed": seed, "n": len(images), "planted": int(planted.sum()),
                 "auroc": auroc(split.is_anomaly, made.anomaly_score(split.test.images))}
        flagged = made.predict(split.test.images) < 0
        found |= {"false_alarms": flagged[~split.is_anomaly].mean(), "hits": flagged[split.is_anomaly].mean()}
        if method in KERNELS and planted.any():
            first = suspects(detector_of(method, seed), images)["image"].to_numpy()
            found["suspects"] = planted[first[: planted.sum()]].mean()
            looked = first[: 2 * planted.sum()]
            left = np.delete(images, looked[planted[looked]], axis=0)
            again = detector_of(method, seed).fit(left)
            found["auroc_cleaned"] = auroc(split.is_anomaly, again.anomaly_score(split.test.images))
            found["hits_cleaned"] = (again.predict(split.test.images) < 0)[split.is_anomaly].mean()
    print(found, round(time.process_time() - start, 1), flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    train, test = clad.load_dataset("digits")
    split = clad.get_scenario("digits", "CUR").split(train, test)
    found = [row(m, share, seed, split, train) for m in KERNELS for share in SHARES for seed in range(5)]
    found += [row(m, share, seed, split, train) for seed in range(3) for m in NETWORKS for share in SHARES]
    write_rows(pd.DataFrame(found).round(4), out)
