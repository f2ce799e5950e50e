"""Time and memory of `clad fit` and `clad score` on folders of 1,000, 10,000 and 60,000 pictures.

usage: python tools/own_folders.py [--sizes N ...] [--detector NAME] [--set NAME=VALUE]... [--read-only] [--out CSV]

MNIST is written as PNG files into a temporary folder, each size is read alone (streamed through a file), fitted and
scored, as a user would with the command, and a row for each is added to figures/own_folders.csv: seconds on the clock
and of the processor, the largest memory of the process, and what it wrote. Seconds on the clock say little where other
programs run. For Linux.
"""
import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from joblib import cpu_count
from PIL import Image

from clad.cli import default_detector
from clad.data import load_dataset

COMMAND = "import sys; from clad.cli import main; code = main(sys.argv[1:])"
READ = "import sys; from clad.folders import read_pictures; read_pictures(sys.argv[1], cache=sys.argv[2]); code = 0"
PEAK = "; print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], file=sys.stderr); sys.exit(code)"


def write(images: np.ndarray, folder: Path) -> int:
    "Images as PNG files, a thousand to a sub-folder; how many bytes they take."
    for i, image in enumerate(images):
        (folder / f"{i // 1000:02}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(folder / f"{i // 1000:02}" / f"{i:05}.png")
    return sum(path.stat().st_size for path in folder.rglob("*.png"))


def measured(*words: object, code: str = COMMAND) -> dict[str, float]:
    "One command in a process of its own: seconds on the clock and of the processor, and its largest memory in MB."
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code + PEAK, *map(str, words)], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))} failed: {done.stderr}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"seconds": time.perf_counter() - begun, "peak_mb": int(done.stderr.split()[-1]) * 1024 / 1e6,
            "cpu_seconds": used.ru_utime - before.ru_utime + used.ru_stime - before.ru_stime}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 60_000])
    parser.add_argument("--detector", help="default: the one of clad fit, with an encoder where one is installed")
    parser.add_argument("--set", action="append", default=[], help="a parameter of the detector, as for clad fit")
    parser.add_argument("--read-only", action="store_true", help="neither fit nor score")
    parser.add_argument("--out", default="figures/own_folders.csv")
    words = parser.parse_args()
    images = load_dataset("mnist")[0].images
    name, settings, _ = default_detector() if words.detector is None else (words.detector, {}, "")
    named = " ".join([name, *(f"{k}={v}" for k, v in settings.items()), *words.set])
    machine = (f"{cpu_count()} cores, {psutil.getloadavg()[0]:.1f} of them busy before, "
               f"{psutil.virtual_memory().total / 2**30:.0f} GiB, no GPU")
    for n in words.sizes:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            files = write(images[:n], place / "pictures")
            model, table, page = place / "m.clad", place / "s.csv", place / "r.html"
            rows, wrote = {"read": measured(place / "pictures", place, code=READ)}, {"read": images[:n].nbytes}
            if not words.read_only:
                chosen = () if words.detector is None else ("--detector", words.detector)
                rows["fit"] = measured("fit", place / "pictures", "--out", model, *chosen,
                                       *(word for pair in words.set for word in ("--set", pair)))
                rows["score"] = measured("score", model, place / "pictures", "--out", table, "--report", page)
                wrote |= {"fit": model.stat().st_size, "score": page.stat().st_size}
        new = pd.DataFrame([{"pictures": n, "png_mb": files / 1e6, "command": command,
                             "detector": "" if command == "read" else named,
                             **row, "wrote_mb": wrote[command], "threads": os.environ.get("OMP_NUM_THREADS", "all"),
                             "machine": machine} for command, row in rows.items()])
        new["wrote_mb"] /= 1e6
        known = [pd.read_csv(words.out, keep_default_na=False)] if Path(words.out).exists() else []
        whole = pd.concat([*known, new]).drop_duplicates(["pictures", "command", "detector"], keep="last")
        order = ["detector", "pictures", "command"]
        whole.sort_values(order).round(1).to_csv(words.out, index=False, lineterminator="\n")
        print(new.to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
