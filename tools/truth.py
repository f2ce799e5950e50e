"""Keep beside the records of every scenario which of its test images are anomalies (one bit an image).

usage: python tools/truth.py [RESULTS [DATA_ROOT]]      RESULTS: default figures/results

Runs do so themselves; this is for records that were made before they did, and it needs the data sets. A scenario
without records is left alone.
"""
import sys
from pathlib import Path

from clad.data import load_dataset
from clad.runs import read_records, read_truth, write_truth
from clad.scenarios import get_scenario


def main(results: str = "figures/results", data_root: str | None = None) -> None:
    for dataset, own in read_records(results).groupby("dataset"):
        parts = load_dataset(dataset, data_root)
        for scenario, paths in own.groupby("scenario").path:
            write_truth(get_scenario(dataset, scenario).split(*parts).is_anomaly, Path(results) / paths.iloc[0])
            for path in paths:
                read_truth(Path(results) / path)    # it must give the AUROC of every record
            print(f"{dataset} {scenario}: {len(paths)} records", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
