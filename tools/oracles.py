"""Put the baselines beside numbers that a right implementation must give; writes figures/oracles.md.

usage: python tools/oracles.py [--data-root DIR] [--results figures/results] [--out figures/oracles.md]

Three tables: OCSVM with the released setting and DeepSVDD with the official schedule, both from records (made with
`make reproduce ... METHODS=OCSVM SETTINGS=released` and `METHODS=DeepSVDD SETTINGS=paper`), and the rule behind the
published SVDD row, evaluated here (two minutes).
"""
import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from clad.baselines.kernel import published_svdd_rule, standardised
from clad.data import load_dataset
from clad.metrics import auroc
from clad.reports import published, to_markdown
from clad.runs import read_records
from clad.scenarios import get_scenario
from clad.settings import released_statistics

RULE_CELLS = {  # data set -> scenario -> name of the first image in the original file order; "": ours is in that order
    "mnist": {"CUR": "", "STR": "", "MIX": ""},
    "cifar10": {"THG": "camion_s_000148.png", "LIV": "leptodactylus_pentadactylus_s_000004.png"},
    "gtsrb": {"SPDL": "", "INST": "", "WARN": "", "DIRC": "", "SPEC": "", "REGN": ""},
}


def cells(records: pd.DataFrame, method: str, settings: str) -> pd.DataFrame:
    "Recorded cells of one method and setting, AUROC in %, beside the published value."
    known = published().query("method == @method")[["dataset", "scenario", "auroc"]]
    plain = records[(records.overrides == "{}") & (records.method == method) & (records.settings == settings)]
    runs = plain.groupby(["dataset", "scenario"], sort=False).auroc.agg(["mean", "std", "size"]).reset_index()
    runs[["mean", "std"]] *= 100
    return known.rename(columns={"auroc": "published"}).merge(runs, on=["dataset", "scenario"])


def ocsvm(records: pd.DataFrame) -> str:
    "OCSVM with the released setting: raw, folded, published."
    frame = cells(records, "OCSVM", "released")
    folded = np.maximum(frame["mean"], 100 - frame["mean"])
    table = pd.DataFrame({"dataset": frame.dataset, "scenario": frame.scenario,
                          "ours": frame["mean"].map("{:.2f}".format), "ours, folded": folded.map("{:.2f}".format),
                          "published": frame.published, "difference": (folded - frame.published).map("{:+.2f}".format)})
    away = (folded - frame.published).abs()
    text = f"{(away <= 0.15).sum()} of {len(frame)} cells lie within 0.15 of the published value."
    if (missed := frame[away > 0.15])["scenario"].size:
        named = ", ".join(missed.dataset + " " + missed.scenario)
        text += (f" The others ({named}) miss it by {away.max():.2f} at most. Signs are photographed at many sizes and"
                 " are resized before anything else; the interpolation that the authors used is not known.")
    return text + "\n\n" + to_markdown(table)


def svdd_rule(data_root: str | None) -> str:
    "The degenerate rule, AUROC of the hard decision in %."
    known = published().query("method == 'SVDD'").set_index(["dataset", "scenario"]).auroc
    rows = []
    for dataset, scenarios in RULE_CELLS.items():
        parts = load_dataset(dataset, data_root)
        for scenario, name in scenarios.items():
            split = get_scenario(dataset, scenario).split(*parts)
            first = next(i for i, path in enumerate(split.train.paths) if path.endswith(name)) if name else 0
            statistics = released_statistics(dataset, scenario)
            train, test = (standardised(part.images, *statistics) for part in (split.train, split.test))
            raw = 100 * auroc(split.is_anomaly, published_svdd_rule(train, test, first).astype(float))
            rows.append((dataset, scenario, name, f"{raw:.2f}", f"{max(raw, 100 - raw):.2f}", known[dataset, scenario]))
            print(*rows[-1], flush=True)
    return to_markdown(pd.DataFrame(rows, columns=["dataset", "scenario", "first image", "the rule", "folded",
                                                   "published"]))


def deepsvdd(records: pd.DataFrame) -> str:
    "DeepSVDD with the official schedule on single digits: mean and spread over our seeds, published 10-seed mean."
    frame = cells(records, "DeepSVDD", "paper").query("dataset == 'mnist'")
    table = pd.DataFrame({"digit": frame.scenario, "seeds": frame["size"], "ours": frame["mean"], "sd": frame["std"],
                          "published (10 seeds)": frame.published})
    return to_markdown(table) if len(table) else "Not run.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root")
    parser.add_argument("--results", default="figures/results")
    parser.add_argument("--out", default="figures/oracles.md")
    args = parser.parse_args()
    records = read_records(args.results)
    text = "\n".join([
        "# Numbers that a right implementation must give\n\nAUROC in %, unfolded where not said otherwise.\n",
        "## OCSVM with the released setting\n", ocsvm(records),
        "## The rule behind the published SVDD row\n\nNot SVDD: see chapter 20. The AUROC of a yes-or-no decision.\n",
        svdd_rule(args.data_root),
        "## DeepSVDD on single digits, official schedule\n", deepsvdd(records)])
    Path(args.out).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
