"""Measure how much of the bare network's speed the classifier and ODIN reach, what a batch gains by one thread a run
and by kernel matrices in float32, and how fast CLADPlus scores; writes figures/benchmark.md.

usage: python tools/benchmark.py [--threads N] [--size 28] [--out figures/benchmark.md]

Run it on an idle machine. Each rate is the best of three rounds, and the rounds of the variants take turns.
"""
import argparse
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from clad.base import seeded
from clad.baselines.kernel import gram
from clad.classifier import fit_classifier, make_resnet, trimmed
from clad.odin import odin_scores
from clad.plus import CLADPlus
from clad.training import Loop, Pixels

CPU, BATCH = torch.device("cpu"), 128


def best_of(variants: dict, images: dict, rounds: int = 3) -> dict[str, float]:
    "Images per second of each variant, the best round; variants take turns."
    rates = dict.fromkeys(variants, 0.0)
    for _ in range(rounds):
        for name, work in variants.items():
            start = time.perf_counter()
            work()
            rates[name] = max(rates[name], images[name] / (time.perf_counter() - start))
    return rates


def bare_training(net: nn.Module, n: int, size: int) -> None:
    "The least a training loop can do: the same batch over and over."
    net = net.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(net.parameters(), 1e-4, fused=True)
    x = torch.randn(BATCH, 1, size, size).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (BATCH,))
    for _ in range(n // BATCH):
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def bare_trimmed(n: int, size: int) -> None:
    "The bare loop over the trimmed network."
    with trimmed(make_resnet(10, 1), (1, size, size)) as net:
        bare_training(net, n, size)


def bare_odin(net: nn.Module, n: int, size: int, batch: int = 256) -> None:
    "Two forward passes and one input gradient on the same batch over and over."
    x = torch.randn(batch, 1, size, size).contiguous(memory_format=torch.channels_last)
    for _ in range(n // batch):
        moving = x.detach().requires_grad_()
        nn.functional.cross_entropy(net(moving), torch.zeros(batch, dtype=torch.long)).backward(inputs=[moving])
        with torch.inference_mode():
            net(x)


def single_threads(pool: ProcessPoolExecutor, processes: int, n: int, size: int) -> None:
    "The trimmed loop in several processes at once."
    list(pool.map(bare_trimmed, [n] * processes, [size] * processes))


def whole_batch(threads: int, n: int, size: int) -> list[str]:
    "Lines on processes against threads, and on the precision of a kernel matrix."
    with ProcessPoolExecutor(threads, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        single_threads(pool, threads, BATCH, size)    # started and warm
        together = best_of({"threads": lambda: bare_trimmed(n, size),
                            "processes": lambda: single_threads(pool, threads, n, size)},
                           {"threads": n, "processes": threads * n})
    rows = np.random.default_rng(0).random((6_000, size * size), dtype=np.float32)
    small, large = (partial(gram, rows, 1 / rows.shape[1], CPU, error=error) for error in (1e-3, 0.0))
    kernel = best_of({"float32": small, "float64": large}, {"float32": len(rows), "float64": len(rows)})
    gap = np.abs(small() - large()).max()
    first = together["threads"]
    return ["", "| a batch | images/s | share |", "|---|---|---|",
            f"| one run of {threads} threads, trimmed network | {first:.0f} | 100 % |",
            f"| {threads} runs of one thread each | {together['processes']:.0f} | "
            f"{100 * together['processes'] / first:.0f} % |",
            "", "| Gram matrix of 6,000 rows | rows/s | share |", "|---|---|---|",
            f"| float64 | {kernel['float64']:.0f} | 100 % |",
            f"| float32 | {kernel['float32']:.0f} | {100 * kernel['float32'] / kernel['float64']:.0f} % |",
            "", f"Largest difference of an entry: {gap:.1e}."]


def plus_scoring(threads: int) -> list[str]:
    "Lines on how fast CLADPlus, from scratch, scores: it remembers 25,000 colour images of 32x32."
    images, lines = np.random.default_rng(0).integers(0, 256, (25_000, 3, 32, 32), dtype=np.uint8), []
    fitted = CLADPlus(budget=1_000).fit(images)
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        with threadpool_limits(count):
            rate = best_of({"score": lambda: fitted.score_samples(images[:2_000])}, {"score": 2_000})["score"]
        lines.append(f"| {count} | {rate:.0f} |")
    torch.set_num_threads(threads)
    return ["", "| CLADPlus from scratch, threads | scores/s |", "|---|---|", *lines]


def main() -> None:
    "Measure, print and write the table."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--out", default="figures/benchmark.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size, n = args.size, 20 * BATCH
    rng = np.random.default_rng(0)
    pixels = Pixels(rng.integers(0, 256, (n, 1, size, size), dtype=np.uint8), (0.5,), (0.3,), CPU)
    labels, net = rng.integers(0, 10, n), make_resnet(10, 1).to(memory_format=torch.channels_last).eval()
    single = Pixels(pixels.images[:64], (0.5,), (0.3,), CPU)
    scores = {}

    def one_by_one() -> None:
        scores["one"] = odin_scores(net, single, std=(0.3,), batch_size=1)

    with seeded(0):
        training = best_of({
            "bare loop, torchvision's network": lambda: bare_training(make_resnet(10, 1), n, size),
            "bare loop, trimmed network": lambda: bare_trimmed(n, size),
            "fit_classifier": lambda: fit_classifier(pixels, labels, 10, Loop(2, BATCH, 1e-4)),
        }, {"bare loop, torchvision's network": n, "bare loop, trimmed network": n, "fit_classifier": 2 * n})
        scoring = best_of({
            "bare batches of 256": lambda: bare_odin(net, n, size),
            "odin_scores": lambda: odin_scores(net, pixels, std=(0.3,)),
            "odin_scores, one image at a time": one_by_one,
        }, {"bare batches of 256": n, "odin_scores": n, "odin_scores, one image at a time": 64})
    gap = float(np.abs(odin_scores(net, single, std=(0.3,)) - scores["one"]).max())
    lines = [f"Measured on {args.threads} threads of {platform.machine()}, torch {torch.__version__.split('+')[0]}, "
             f"{size}x{size} grey images, best of three rounds.", "",
             "| training, batch 128 | images/s | share of the bare loop over torchvision's network |", "|---|---|---|"]
    first = training["bare loop, torchvision's network"]
    lines += [f"| {name} | {rate:.0f} | {100 * rate / first:.0f} % |" for name, rate in training.items()]
    lines += ["", "| ODIN | images/s | share of bare batches |", "|---|---|---|"]
    first = scoring["bare batches of 256"]
    lines += [f"| {name} | {rate:.0f} | {100 * rate / first:.0f} % |" for name, rate in scoring.items()]
    lines += ["", f"Largest difference between batched and one-at-a-time scores: {gap:.1e}."]
    lines += [*whole_batch(args.threads, n, size), *plus_scoring(args.threads), ""]
    print("\n".join(lines))
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    Path(args.out).write_text("\n".join(lines))


if __name__ == "__main__":
    main()
