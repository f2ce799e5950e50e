"""What each part of CLADPlus brings, and whether it helps to know the hidden classes, on the development scenarios.

usage: python tools/plus.py OUT.csv [--scenarios mnist/CUR gtsrb/SPDL cifar10/THG tiny-imagenet/STRT] [--seed 0]
                            [--cache FOLDER] [--encoder] [--budget 40000]
                            [--parts votes tried features scores labels optimizer budget]

Columns: dataset, scenario, seed, part, choice, auroc; rows of the same name in OUT.csv are replaced. Parts:
  member   one opinion alone
  without  the vote without one member (the network of chapter 18 is one member)
  vote     scales and weights: equal, by the turn test, by the best weights for the test labels ("oracle")
  encoder  its share of the vote: none, by the spread of its features alone, by the rule, by the rule of the fifth
           freeze (without the doubts of the network), a half, all, and the oracle's
  features the encoder alone: size of its pictures in pixels, and how far its features are whitened
  few      the same at 160 pixels, from so many normal pictures (the mean of five draws; with `features`)
  tried    recipes that were measured and not frozen: `PatchResidual` of chapter 16 as one more member, and the square
           of the share of `turn` in the network's vote
  score    hidden classes in the score: none, found (k-means, 10), over-split (50), true; for two distances, on the
           features of the network of chapter 18 and of the encoder
  labels   hidden classes in the labels: a network of `--budget` pictures that tells turns alone (none), or turns and
           classes that are found, over-split, or true; the distance is `near`
  budget   the whole after a longer and a shorter training of the network (by `vote`, "turn test" it is 480,000)
  optimizer  how that network learns turns alone: by SGD, by Muon
"""
import argparse
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from torch.nn import functional as F

from clad.ablation import write_rows
from clad.data import load_dataset
from clad.encoder import EncoderNeighbours, by_content, whiten, whitened
from clad.floors import PatchResidual
from clad.metrics import auroc
from clad.odin import neighbour_distance
from clad.plus import CLADPlus, trusted
from clad.runs import Run, build
from clad.scenarios import get_scenario
from clad.training import Pixels, channel_statistics
from clad.transforms import Muon, TurnNet, nearest, shifted, sized, turned

DEVELOPMENT = ("mnist/CUR", "gtsrb/SPDL", "cifar10/THG", "tiny-imagenet/STRT")
PARTS = ("votes", "tried", "features", "scores", "labels", "optimizer", "budget")
BUDGETS = (120_000, 960_000)
FEW = (10, 30, 100, 300, 1_000)
SHARES = np.linspace(0, 1, 11)
SGD = partial(torch.optim.SGD, momentum=0.9, weight_decay=5e-4, nesterov=True)


def votes(detector: CLADPlus, split) -> dict[tuple[str, str], float]:
    "AUROC by (part, choice) of the opinions of a fitted CLADPlus, alone and together."
    z, m, rows = detector.opinions(split.test.images), detector.members_, {}
    rows |= {("member", name): v for name, v in z.items()}
    share = m["encoder"]["weight"] if "encoder" in m else 0.0
    weights = {name: v["weight"] / (1 - share) for name, v in m.items() if name != "encoder"}
    vote = weights["near"] + weights["turn"]
    network = (weights["near"] * z.pop("near") + weights["turn"] * z.pop("turn")) / vote
    own = {"gcn": z["gcn"], "hog": z["hog"], "network": network}
    weights["network"] = vote
    for left in own:
        rows["without", left] = sum(weights[name] * v for name, v in own.items() if name != left)
    rows["vote", "equal"] = sum(own.values())
    rows["vote", "turn test"] = scratch = sum(weights[name] * v for name, v in own.items())
    areas = {key: float(auroc(split.is_anomaly, v)) for key, v in rows.items()}
    areas["vote", "oracle"] = max(
        auroc(split.is_anomaly, a * own["gcn"] + b * own["hog"] + (1 - a - b) * own["network"])
        for a, b in itertools.product(SHARES, SHARES) if a + b <= 1 + 1e-9)
    if share:
        before = trusted(detector.frozen_.spread_, m["encoder"]["turned"], max(m["gcn"]["turned"], m["hog"]["turned"]))
        parts = {"none": 0.0, "by spread": detector.frozen_.spread_, "by the fifth rule": before,
                 "by the rule": share, "half": 0.5, "all": 1.0}
        for choice, part in parts.items():
            areas["encoder", choice] = float(auroc(split.is_anomaly, (1 - part) * scratch + part * z["encoder"]))
        areas["encoder", "oracle"] = max(auroc(split.is_anomaly, (1 - p) * scratch + p * z["encoder"]) for p in SHARES)
    return areas


def features(split, seed: int) -> dict[tuple[str, str], float]:
    "AUROC by (part, choice) of the encoder alone: by size and whitening, and by the number of normal images."
    normal = split.train.images[by_content(split.train.images, 4_000)]
    test, odd, rows = several(split.test.images, 2_500), several(split.is_anomaly, 2_500), {}

    def area(bank: np.ndarray, new: np.ndarray, power: float) -> float:
        own = whitened(bank, power)
        return float(auroc(odd, neighbour_distance(whiten(new, *own), whiten(bank, *own), EncoderNeighbours().k)))

    for size in (96, 160):
        describe = EncoderNeighbours(size=size).fit(normal[:2]).rows
        bank, new = describe(normal), describe(test)
        for power in (0.0, 0.5, 1.0):
            rows["features", f"{size} pixels, whitened {power:g}"] = area(bank, new, power)
    for n, power in itertools.product(FEW, (0.0, 0.5)):
        draws = [np.random.default_rng(seed + i).choice(len(bank), n, replace=False) for i in range(5)]
        rows["few", f"{n} normal, whitened {power:g}"] = np.mean([area(bank[draw], new, power) for draw in draws])
    return rows


class WithPatches(CLADPlus):
    "CLADPlus with the third floor of chapter 16 as one more member."
    patches = PatchResidual()

    @property
    def stages(self):
        return super().stages | {"patches": ()}


def tried(detector: CLADPlus, split) -> dict[tuple[str, str], float]:
    "AUROC by (part, choice) of recipes that are not those of the fitted CLADPlus."
    more = WithPatches(**detector.get_params(deep=False)).fit(split.train.images, groups=split.train.groups)
    z, weights = detector.opinions(split.test.images), {name: v["weight"] for name, v in detector.members_.items()}
    both = weights["near"] + weights["turn"]
    weights["turn"] **= 2
    weights["turn"] /= both
    weights["near"] = both - weights["turn"]
    squared = sum(weights[name] * v for name, v in z.items())
    found = {"with patches": more.anomaly_score(split.test.images), "turn's share squared": squared}
    return {("tried", choice): float(auroc(split.is_anomaly, score)) for choice, score in found.items()}


def classes_of(rows: np.ndarray, hidden: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    "Labels of rows [n,D]: none, found (10), over-split (50), true."
    return {"none": np.zeros(len(rows), int), "found": KMeans(10, n_init=3, random_state=seed).fit_predict(rows),
            "over-split": KMeans(50, n_init=1, random_state=seed).fit_predict(rows), "true": hidden}


def scores(normal: np.ndarray, hidden: np.ndarray, test: np.ndarray, odd: np.ndarray, seed: int, what: str) -> dict:
    """AUROC by (part, choice): Gaussians, one for each class with a common covariance (distance to the nearest), and
    the distance to the third neighbour over the median of that distance in the neighbour's class."""
    few, rows = PCA(min(64, normal.shape[1]), random_state=seed).fit_transform(normal), {}
    x, y = torch.from_numpy(normal), torch.from_numpy(test)
    far = nearest(y, x, 3).numpy()
    place = np.concatenate([(part @ x.T).argmax(1).numpy() for part in y.split(1024)])
    own = nearest(x, x, 4).numpy()    # the first neighbour is the image itself
    for choice, labels in classes_of(few, hidden, seed).items():
        names, labels = np.unique(labels, return_inverse=True)
        means = np.stack([normal[labels == k].mean(0) for k in range(len(names))])
        values, vectors = np.linalg.eigh(LedoitWolf().fit((normal - means[labels]).astype(np.float64)).covariance_)
        white = vectors / np.sqrt(np.maximum(values, 1e-9 * values[-1]))
        gaps = cdist(test @ white, means @ white).min(1)
        rows["score", f"{what}: Gaussians, {choice}"] = float(auroc(odd, gaps))
        typical = np.array([np.median(own[labels == k]) for k in range(len(names))])
        aligned = far / np.maximum(typical, 1e-6)[labels[place]]
        rows["score", f"{what}: neighbours, {choice}"] = float(auroc(odd, aligned))
    return rows


def joint(images: np.ndarray, labels: np.ndarray | None, test: np.ndarray, odd: np.ndarray, seed: int,
          budget: int, optimizer_of: Callable = Muon, size: int = 64) -> float:
    "AUROC of `near` after training on turns and, where given, labels [n] of classes, with a head of their own."
    torch.manual_seed(seed)
    pixels, other = (Pixels(v, *channel_statistics(images), torch.device("cpu")) for v in (images, test))
    net = TurnNet(images.shape[1]).to(memory_format=torch.channels_last).train()
    count = 0 if labels is None else int(labels.max()) + 1
    head = torch.nn.Linear(net.head.in_features, max(1, count))
    steps, answer = budget // (4 * size), torch.arange(4).repeat_interleave(size)
    optimizer = optimizer_of([*net.parameters(), *head.parameters()] if count else net.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps + 1)
    for _ in range(steps):
        index = np.random.default_rng(int(torch.randint(2**31, ()))).choice(len(images), size, replace=False)
        h = net.features(turned(shifted(sized(pixels[index]))))
        loss = F.cross_entropy(net.head(h), answer)
        if count:
            loss = loss + F.cross_entropy(head(h), torch.from_numpy(labels[index]).long().repeat(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return float(auroc(odd, near(net, pixels, other)))


@torch.inference_mode()
def near(net: TurnNet, normal: Pixels, other: Pixels, most: int = 5_000) -> np.ndarray:
    "Mean over turns of the distance to the third neighbour among at most so many normal images turned alike."
    net.eval()
    some = Pixels(normal.images[:: -(-len(normal) // most)], normal.mean, normal.std, normal.device)
    bank, rows = (torch.cat([F.normalize(net.features(turned(sized(x))), dim=1).view(4, len(x), -1)
                             for x in v.batches(256)], 1) for v in (some, other))
    return torch.stack([nearest(rows[r], bank[r], 3) for r in range(4)]).mean(0).numpy()


def several(array: np.ndarray, most: int) -> np.ndarray:
    "At most about so many, evenly spread."
    return array[:: -(-len(array) // most)]


def scenario_rows(dataset: str, name: str, seed: int, args) -> dict[tuple[str, str], float]:
    "All rows of one scenario."
    split = get_scenario(dataset, name).split(*load_dataset(dataset))
    run = Run(dataset, name, "CLADPlusEncoder" if args.encoder else "CLADPlus", seed=seed)
    detector = build(run, cache_dir=args.cache).fit(split.train.images, groups=split.train.groups)
    rows = votes(detector, split) if "votes" in args.parts else {}
    if "tried" in args.parts:
        rows |= tried(detector, split)
    if "features" in args.parts:
        rows |= features(split, seed)
    for budget in BUDGETS if "budget" in args.parts else ():
        other = clone(detector).set_params(budget=budget).fit(split.train.images, groups=split.train.groups)
        area = auroc(split.is_anomaly, other.anomaly_score(split.test.images))
        rows["budget", f"{budget:,}"] = float(area)
    if not {"scores", "labels", "optimizer"} & set(args.parts):
        return rows
    index = by_content(split.train.images, 4_000)
    train, hidden = split.train.images[index], split.train.labels[index]
    test, odd = several(split.test.images, 2_500), several(split.is_anomaly, 2_500)
    what = {"turns": lambda v: detector.transforms_.seen(v)[0][0].numpy()}
    if args.encoder:
        what["encoder"] = detector.frozen_.rows
    described = {key: (rows_of(train), rows_of(test)) for key, rows_of in what.items()}
    for key, (a, b) in described.items() if "scores" in args.parts else ():
        rows |= scores(a, hidden, b, odd, seed, key)
    if "labels" in args.parts:
        for choice, labels in classes_of(described["turns"][0], hidden, seed).items():
            given = None if choice == "none" else np.unique(labels, return_inverse=True)[1]
            rows["labels", choice] = joint(train, given, test, odd, seed, args.budget)
    for choice, kind in (("SGD", SGD), ("Muon", Muon)) if "optimizer" in args.parts else ():
        rows["optimizer", choice] = joint(train, None, test, odd, seed, args.budget, kind)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--scenarios", nargs="+", default=DEVELOPMENT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--encoder", action="store_true", help="with the encoder of the extra `encoder`")
    parser.add_argument("--budget", type=int, default=40_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    key = ["dataset", "scenario", "seed", "part", "choice"]
    for scenario in args.scenarios:
        dataset, name = scenario.split("/")
        found = scenario_rows(dataset, name, args.seed, args)
        new = pd.DataFrame([(dataset, name, args.seed, *k, v) for k, v in found.items()], columns=[*key, "auroc"])
        old = pd.read_csv(args.out) if Path(args.out).exists() else new[:0]
        rows = pd.concat([old, new]).drop_duplicates(key, keep="last").sort_values(key, ignore_index=True)
        write_rows(rows.round({"auroc": 5}), args.out)
        print(new.to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
