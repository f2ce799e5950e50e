"""Kill a batch twenty times at random moments: the same command must end with what an unbroken batch gives.

usage: python tools/killed.py [KILLS]      every batch is a fork of this process, so that no time goes into imports

Between kills: no finished run is done again, what is there can be read and is as unbroken. A store that is complete is
left, and the next kill begins another. `tests/test_experiments.py` does the same twice over two processes.
"""
import argparse
import os
import random
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

import torch

from clad.experiments import execute
from clad.runs import grid, read_ranks, read_record

PLAN = grid("digits", ["CUR", "STR", "MIX"], ["OCSVM", "SVDD", "OCNN"], "smoke", [0, 1])


def outcomes(results: Path) -> dict[str, tuple]:
    "Outcome and ranks of each record by its path."
    return {path.relative_to(results).as_posix(): (read_record(path)["outcome"], read_ranks(path).tolist())
            for path in results.glob("*/*/*seed?.json")}


def batch(results: Path, stages: Path) -> int:
    "Start the batch in a process of its own; its number."
    if number := os.fork():
        return number
    try:
        execute(PLAN, jobs=1, results=results, cache_dir=stages, progress=False)
    finally:
        os._exit(0)


def rest(results: Path) -> list[str]:
    "What lies below a store besides records, ranks, truths and the locks of runs."
    names = [path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()]
    return [name for name in names
            if not re.search(r"seed\d(\.ranks\.npy|\.json)$|/truth\.npy$|^\.batch/locks/", name)]


def main(kills: int = 20) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        home, chance = Path(folder), random.Random(0)
        os.waitpid(batch(home / "unbroken", home / "none"), 0)
        unbroken, stages = outcomes(home / "unbroken"), home / "stages"
        print(f"unbroken: {len(unbroken)} of {len(PLAN)} records", flush=True)
        results, seen, stores = home / "0", {}, 1
        for kill in range(1, kills + 1):
            number = batch(results, stages)
            time.sleep(chance.uniform(0, 15))
            ended = os.waitpid(number, os.WNOHANG)[0]
            if not ended:
                os.kill(number, signal.SIGKILL)
                os.waitpid(number, 0)
            now = {path: path.stat().st_mtime_ns for path in results.glob("*/*/*.json")}
            assert {path: now[path] for path in seen} == seen, "a finished run was done again, or a record was lost"
            assert all(unbroken[name] == found for name, found in outcomes(results).items())
            print(f"{kill}: {'had ended' if ended else 'killed'}, {len(now)} of {len(PLAN)} records", flush=True)
            seen = now
            if len(now) == len(PLAN):
                results, seen, stores = home / str(stores), {}, stores + 1
                shutil.rmtree(stages)
        for left in results.glob(".batch/*-*"):
            os.utime(left, (0, 0))
        os.waitpid(batch(results, stages), 0)
        assert outcomes(results) == unbroken and rest(results) == []
        print(f"after {kills} kills on {stores} stores: the records of the unbroken batch, nothing left behind")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", nargs="?", type=int, default=20)
    main(parser.parse_args().kills)
