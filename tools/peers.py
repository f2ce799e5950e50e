"""What other detectors make of the same features of the same images.

usage: python tools/peers.py OUT.csv [--scenarios mnist/CUR gtsrb/SPDL ...] [--peers "PyOD KNN" ...] [--cache FOLDER]

Needs the extras `encoder` and `peers`. Every peer gets the encoder's features (chapter 17, rows of length one) of at
most 4,000 normal images, and scores at most 2,500 test images; parameters are the peer's own defaults. Columns: version
of the peer; auroc; seconds of fit and score; memory, of the process at its peak in MiB; false_alarms, the share of
normal test images beyond the threshold that the peer gives when 5 % are asked for (empty where it gives none). `clad`
is the distance to the fifth neighbour, half whitened, with the threshold of chapter 54, set on a tenth of the normal
images that the neighbours do not include. anomalib's PatchCore looks at pictures, of 96 to 224 pixels (at 160, as the
encoder sees small ones, there would be nearly three times as many patches to select from and to keep): with the same
network as its backbone (its outputs at an eighth and a sixteenth of the size, as by default), 1,000 normal images, and
one patch in a hundred kept; it gives no threshold without anomalies.
"""
import argparse
import importlib.metadata
import multiprocessing
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from torch.nn import functional as F

from clad.ablation import write_rows
from clad.conformal import conformal_offset, held_out
from clad.data import load_dataset
from clad.encoder import EncoderNeighbours, by_content, make_encoder, whiten, whitened
from clad.metrics import auroc
from clad.runs import peak_memory
from clad.scenarios import get_scenario
from clad.training import StageStore, Workspace

ALPHA = 0.05
SCENARIOS = ("mnist/CUR", "gtsrb/SPDL", "cifar10/THG", "tiny-imagenet/STRT", "mnist/STR", "mnist/MIX", "gtsrb/INST",
             "gtsrb/WARN", "gtsrb/DIRC", "gtsrb/SPEC", "gtsrb/REGN", "cifar10/LIV", "tiny-imagenet/ANML",
             "tiny-imagenet/ISCT", "tiny-imagenet/ISTM", "tiny-imagenet/VHCL")


class Clad:
    "Fifth neighbour, half whitened, threshold from held-out normal rows (whole groups)."
    package, pictures = "clad-detector", False

    def fit(self, rows, groups):
        held = held_out(len(rows), 0.1, groups, 0)
        self.white = whitened(rows[~held], EncoderNeighbours().whitening)
        self.search = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(whiten(rows[~held], *self.white))
        self.offset = conformal_offset(-self.score(rows[held]), ALPHA, None if groups is None else groups[held])

    def score(self, rows):
        return self.search.kneighbors(whiten(rows, *self.white))[0][:, -1]

    def alarms(self, scores):
        return -scores < self.offset


class Pyod(Clad):
    "A detector of PyOD with its contamination set to 5 %."
    package = "pyod"

    def __init__(self, module, name, **more):
        self.module, self.name, self.more = module, name, more

    def fit(self, rows, groups):
        kind = getattr(importlib.import_module(f"pyod.models.{self.module}"), self.name)
        self.model = kind(contamination=ALPHA, **{k: v(rows) for k, v in self.more.items()}).fit(rows)

    def score(self, rows):
        return self.model.decision_function(rows)

    def alarms(self, scores):
        return scores > self.model.threshold_


class Sklearn(Clad):
    "A detector of scikit-learn with its contamination set to 5 %."
    package = "scikit-learn"

    def __init__(self, model):
        self.model = model.set_params(contamination=ALPHA)

    def fit(self, rows, groups):
        self.model.fit(rows)

    def score(self, rows):
        return -self.model.score_samples(rows)

    def alarms(self, scores):
        return -scores < self.model.offset_


class Cleanlab(Clad):
    "cleanlab's OutOfDistribution on features; it gives no threshold."
    package = "cleanlab"

    def fit(self, rows, groups):
        from cleanlab.outlier import OutOfDistribution

        self.model = OutOfDistribution()
        self.model.fit(features=rows, verbose=False)

    def score(self, rows):
        return -self.model.score(features=rows)

    def alarms(self, scores):
        return None


class Patchcore(Clad):
    "anomalib's PatchCore with the encoder of chapter 17 as its backbone, on pictures of 96 to 224 pixels."
    package, pictures = "anomalib", True

    @torch.inference_mode()
    def fit(self, pictures, groups):
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel

        self.model = PatchcoreModel(["blocks.2", "blocks.4"], "tf_efficientnet_lite0", pre_trained=False)
        net, *self.scale = make_encoder("auto")
        backbone = self.model.feature_extractor.feature_extractor
        missing = backbone.load_state_dict(net.state_dict(), strict=False).missing_keys
        if missing:
            raise ValueError(f"the backbone of PatchCore lacks weights: {missing}")
        self.model.train()
        self.model.feature_extractor.eval()
        for part in self.prepared(pictures[by_content(pictures, 1_000)]):
            self.model(part)
        self.model.subsample_embedding(0.01)
        self.model.eval()

    @torch.inference_mode()
    def score(self, pictures):
        return torch.cat([self.model(part).pred_score for part in self.prepared(pictures)]).numpy()

    def prepared(self, pictures):
        "Batches scaled as the encoder of chapter 17 expects them."
        mean, std = (torch.tensor(v)[:, None, None] for v in self.scale)
        for i in range(0, len(pictures), 64):
            x = torch.from_numpy(pictures[i : i + 64]).float().expand(-1, 3, -1, -1) / 255
            side = min(max(*x.shape[2:], 96), 224)
            yield (F.interpolate(x, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1) - mean) / std

    def alarms(self, scores):
        return None


def peers() -> dict:
    "Name -> peer, not yet fitted."
    return {"clad EncoderKNN": Clad(), "PyOD KNN": Pyod("knn", "KNN"), "PyOD ECOD": Pyod("ecod", "ECOD"),
            "PyOD DeepSVDD": Pyod("deep_svdd", "DeepSVDD", n_features=lambda rows: rows.shape[1]),
            "cleanlab OutOfDistribution": Cleanlab(), "anomalib PatchCore": Patchcore(),
            "LocalOutlierFactor": Sklearn(LocalOutlierFactor(novelty=True)),
            "IsolationForest": Sklearn(IsolationForest(random_state=0))}


def row(name: str, normal: np.ndarray, groups, test: np.ndarray, odd: np.ndarray) -> dict:
    "One peer's numbers on one scenario."
    torch.manual_seed(0)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    peer = peers()[name]
    begun = time.perf_counter()
    peer.fit(normal, groups)
    fitted = time.perf_counter()
    scores = np.asarray(peer.score(test), dtype=float)
    done = time.perf_counter()
    alarms = peer.alarms(scores)
    version = "" if peer.package == Clad.package else importlib.metadata.version(peer.package)
    return {"peer": name, "version": version, "auroc": float(auroc(odd, scores)), "fit": fitted - begun,
            "score": done - fitted, "memory": peak_memory(),
            "false_alarms": np.nan if alarms is None else float(np.mean(alarms[~odd]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--scenarios", nargs="+", default=SCENARIOS, choices=SCENARIOS)
    parser.add_argument("--peers", nargs="+", default=list(peers()), choices=list(peers()))
    parser.add_argument("--cache")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = pd.read_csv(args.out).to_dict("records") if Path(args.out).exists() else []
    for scenario in args.scenarios:
        dataset, name = scenario.split("/")
        there = {v["peer"] for v in table if (v["dataset"], v["scenario"]) == (dataset, name)}
        if there >= set(args.peers):
            continue
        split = get_scenario(dataset, name).split(*load_dataset(dataset))
        encoder = EncoderNeighbours().fit(split.train.images, workspace=Workspace(store=StageStore(args.cache)))
        encoder.folder_ = args.cache    # features of test images are remembered as well
        index, other = by_content(split.train.images, 4_000), -(-len(split.test) // 2_500)
        images, odd = (split.train.images[index], split.test.images[::other]), split.is_anomaly[::other]
        groups = None if split.train.groups is None else split.train.groups[index]
        rows = [encoder.rows(v).astype(np.float64) for v in images]
        for peer in (peer for peer in args.peers if peer not in there):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as own:
                normal, test = images if peers()[peer].pictures else rows
                found = own.submit(row, peer, normal, groups, test, odd).result()
            table.append({"dataset": dataset, "scenario": name, **found})
            print(table[-1], flush=True)
            write_rows(pd.DataFrame(table).round(4), args.out)


if __name__ == "__main__":
    main()
