"""Run the experiment of chapter 15, and merge what several processes have found.

usage: python tools/ablation.py OUT.csv [--scenarios CUR STR MIX] [--seeds 0 1 2 3 4] [--counts 2 3 4 6 8 10 15 20]
                                [--labels true pixels codes DEC random split cut] [--cache FOLDER] [--merge CSV...]
                                [--dataset digits] [--thin 1] [--epochs N]

Rows that OUT.csv holds are not run again. With --merge nothing is run: the rows of those files are added to OUT.csv.
The budget of a larger data set is cut by --thin (every so many-th image, of both parts) and --epochs (of the
classifier); both are noted in the rows. One seed of MNIST, some 40 minutes:

    python tools/ablation.py figures/ablation.csv --dataset mnist --thin 4 --epochs 6 --seeds 0 --counts 3 10 20 \\
        --labels true pixels codes DEC random
"""
import argparse
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from clad.ablation import COUNTS, LABELS, extend, read_rows, run, write_rows
from clad.classifier import PseudoLabelClassifier
from clad.data import load_dataset
from clad.scenarios import Split, get_scenario


def thinned(split: Split, thin: int) -> Split:
    "Every so many-th image of both parts."
    if thin == 1:
        return split
    train, test = (np.arange(0, len(part), thin) for part in (split.train, split.test))
    return replace(split, train=split.train.subset(train), test=split.test.subset(test),
                   is_anomaly=split.is_anomaly[test])


def noted(split: Split, *what, epochs: int | None, **more) -> dict:
    "A row with the size of its budget."
    classifier = None if epochs is None else PseudoLabelClassifier(epochs=epochs)
    return run(split, *what, classifier=classifier, **more) | {"images": len(split.train), "epochs": epochs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--scenarios", nargs="+", default=["CUR", "STR", "MIX"])
    parser.add_argument("--seeds", nargs="+", type=int, default=range(5))
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS)
    parser.add_argument("--labels", nargs="+", choices=LABELS, default=LABELS)
    parser.add_argument("--cache")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--thin", type=int, default=1)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--merge", nargs="+", default=[])
    args = parser.parse_args()
    if args.merge:
        rows = read_rows(args.out, *args.merge)
        write_rows(rows, args.out)
        return print(f"{len(rows)} rows in {args.out}")
    torch.set_num_threads(1)
    parts = load_dataset(args.dataset)
    splits = [thinned(get_scenario(args.dataset, name).split(*parts), args.thin) for name in args.scenarios]
    extend(args.out, splits, args.seeds, labels=args.labels, counts=args.counts, cache=args.cache,
           say=lambda line: print(line, flush=True), runner=partial(noted, epochs=args.epochs))


if __name__ == "__main__":
    main()
