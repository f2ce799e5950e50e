"""Run the experiment of chapter 15, and merge what several processes have found.

usage: python tools/ablation.py OUT.csv [--scenarios CUR STR MIX] [--seeds 0 1 2 3 4] [--counts 2 3 4 6 8 10 15 20]
                                [--labels true pixels codes DEC random split cut] [--cache FOLDER] [--merge CSV...]

Rows that OUT.csv holds are not run again. With --merge nothing is run: the rows of those files are added to OUT.csv.
"""
import argparse

import torch

from clad.ablation import COUNTS, LABELS, extend, read_rows, write_rows
from clad.data import load_dataset
from clad.scenarios import get_scenario


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--scenarios", nargs="+", default=["CUR", "STR", "MIX"])
    parser.add_argument("--seeds", nargs="+", type=int, default=range(5))
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS)
    parser.add_argument("--labels", nargs="+", choices=LABELS, default=LABELS)
    parser.add_argument("--cache")
    parser.add_argument("--merge", nargs="+", default=[])
    args = parser.parse_args()
    if args.merge:
        rows = read_rows(args.out, *args.merge)
        write_rows(rows, args.out)
        return print(f"{len(rows)} rows in {args.out}")
    torch.set_num_threads(1)
    splits = [get_scenario("digits", name).split(*load_dataset("digits")) for name in args.scenarios]
    extend(args.out, splits, args.seeds, labels=args.labels, counts=args.counts, cache=args.cache,
           say=lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
