"""What a batch survives, and whether a cluster gives what one process gives: OUT.md says what happened.

usage: python tools/batches.py OUT.md [KILLS]      every batch is a fork of this process: no time goes into imports

A batch is killed KILLS times (20) at random moments; the same command must end with what an unbroken batch gives.
Between kills: no finished run is done again, what is there can be read and is as unbroken. A store that is complete is
left, and the next kill begins another. Then every method on every scenario of the digits, in one process and on a
local Dask cluster. `tests/test_experiments.py` does both on a smaller scale.
"""
import argparse
import os
import random
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from clad.experiments import execute
from clad.files import write_atomically
from clad.runs import METHODS, grid, read_ranks, read_record

PLAN = grid("digits", ["CUR", "STR", "MIX"], ["OCSVM", "SVDD", "OCNN"], "smoke", [0, 1])
EVERY = grid("digits", ["CUR", "STR", "MIX"], METHODS, "smoke", 0)


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


def killed(kills: int, say: Callable[[str], None]) -> None:
    "Kill batches so many times; AssertionError where something was lost, done twice or left behind."
    with tempfile.TemporaryDirectory() as folder:
        home, chance = Path(folder), random.Random(0)
        os.waitpid(batch(home / "unbroken", home / "none"), 0)
        unbroken, stages = outcomes(home / "unbroken"), home / "stages"
        say(f"unbroken: {len(unbroken)} of {len(PLAN)} records")
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
            say(f"{kill}: {'had ended' if ended else 'killed'}, {len(now)} of {len(PLAN)} records")
            seen = now
            if len(now) == len(PLAN):
                results, seen, stores = home / str(stores), {}, stores + 1
                shutil.rmtree(stages)
        for left in results.glob(".batch/*-*"):
            os.utime(left, (0, 0))
        os.waitpid(batch(results, stages), 0)
        assert outcomes(results) == unbroken and rest(results) == []
        say(f"after {kills} kills on {stores} stores: the records of the unbroken batch, nothing left behind")


def on_a_cluster(say: Callable[[str], None]) -> None:
    "The same runs in this process and on a local Dask cluster of one worker."
    import distributed

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        execute(EVERY, jobs=1, results=home / "here", cache_dir=home / "a", progress=False)
        with distributed.Client(n_workers=1, threads_per_worker=1, dashboard_address=None, memory_limit=0):
            execute(EVERY, jobs=1, backend="dask", results=home / "there", cache_dir=home / "b", progress=False)
        here, there = outcomes(home / "here"), outcomes(home / "there")
        assert len(here) == len(EVERY) and here == there, "the cluster gives something else"
        say(f"{len(there)} of {len(EVERY)} runs ({', '.join(METHODS)} on CUR, STR, MIX of the digits) on a local Dask "
            "cluster: outcomes and ranks are those of one process")


def main(out: str, kills: int = 20) -> None:
    torch.set_num_threads(1)
    lines = []

    def say(line: str) -> None:
        lines.append(f"- {line}")
        print(line, flush=True)
    killed(kills, say)
    on_a_cluster(say)
    title = "# Batches: killed at random moments, and on a cluster\n\nBy `tools/batches.py`, setting `smoke`.\n\n"
    write_atomically(out, (title + "\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("kills", nargs="?", type=int, default=20)
    args = parser.parse_args()
    main(args.out, args.kills)
