"""Speed and memory of reading images.

    python benchmarks/bench_input.py            # a few minutes
    python benchmarks/bench_input.py --quick    # fewer images and rounds, to test the script

loop     percentage of a training step outside the model's forward and backward pass
store    images per second of decoding a folder of JPEGs into arrays and of an epoch from these arrays, and of two
         passes over the folder with torchvision's ImageFolder: a DataLoader with the same number of worker processes,
         PIL images, RGB, shorter side resized, center crop, float tensor in 0..1. The images have 32 pixels, or 500x375
         resized to 224 pixels. There are 1,000 unique images, and copies of them. The runs alternate; results are
         medians over the rounds. All files are in the page cache.
memory   decoding and one epoch of training with a limit on memory of half the size of the decoded images. The limit is
         RLIMIT_DATA for each process. The decoded images are dropped from the page cache before training, so that
         training reads from disk. The peak is the sum over all processes, from /proc.

With --json one object on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import loop_share
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from camkd.data import open_data
from camkd.data.dataset import cache_folder, no_progress
from camkd.data.shapes import SHAPES, draw_split
from camkd.data.views import Views
from camkd.runs.folder import collect_environment

BATCH = 128
NUM_UNIQUE = 1000
"""Number of unique JPEGs. The others are copies."""

SIZES = {"32 px": ((32, 32), 32), "224 px": ((500, 375), 224)}
"""Width and height of the JPEGs, and the size they are decoded to."""

TRAIN_WITH_LIMIT = """
import os, resource, sys
from pathlib import Path
limit, folder, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
from camkd.cli.main import main
from camkd.data import open_data
open_data(folder, size=224)
for path in Path(os.environ["CAMKD_CACHE"]).rglob("*.npy"):
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
sys.exit(main(["teacher", "--data", folder, "--size", "224", "--model", "resnet8", "--epochs", "1", "--json",
               "--batch-size", "16", "--figure-every", "0", "--out", out]))
"""


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Torchvision's ImageFolder with Resize(size), CenterCrop(size) and ToTensor()."""

    def __init__(self, root: Path, size: int) -> None:
        folders = sorted(root.iterdir())
        self.samples = [(path, label) for label, folder in enumerate(folders) for path in sorted(folder.iterdir())]
        self.size = size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        with path.open("rb") as file:
            image = Image.open(file).convert("RGB")
        size = self.size
        if image.size != (size, size):
            shorter_side = min(image.size)
            width, height = (round(side * size / shorter_side) for side in image.size)
            left = (width - size) // 2
            top = (height - size) // 2
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            image = image.crop((left, top, left + size, top + size))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255), label


def make_jpegs(root: Path, num_images: int, size: tuple[int, int]) -> Path:
    """Write ``root/<shape>/<number>.jpg``: synthetic shapes, resized and with noise if ``size`` is not 32 x 32."""
    drawn = draw_split("train", min(num_images, NUM_UNIQUE), 32, no_progress)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 8, (size[1], size[0], 3)).astype(np.int16)
    for number in range(num_images):
        row = number % NUM_UNIQUE
        folder = root / list(SHAPES)[drawn.labels[row]]
        folder.mkdir(parents=True, exist_ok=True)
        if number >= NUM_UNIQUE:
            shutil.copyfile(folder / f"{row:05d}.jpg", folder / f"{number:05d}.jpg")
            continue
        image = Image.fromarray(drawn.images[row])
        if image.size != size:
            resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
            image = Image.fromarray((resized + np.roll(noise, row, (0, 1))).clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:05d}.jpg", quality=90)
    return root


def time_call(function: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure_round(root: Path, size: int, cache: Path, workers: int) -> dict[str, float]:
    """Return images per second of decoding, of an epoch from the arrays, and of two passes over the folder."""
    loader = DataLoader(ImageFolder(root, size), BATCH, shuffle=True, num_workers=workers)
    num_images = len(loader.dataset)  # type: ignore[arg-type]
    rates = {"imagefolder_first": num_images / time_call(lambda: sum(len(x) for x, _ in loader))}
    rates["build"] = num_images / time_call(lambda: open_data(root, size=size, workers=workers, cache=cache))
    data = open_data(root, size=size, cache=cache)
    views = Views(data.train, len(data.classes), "none", 0, torch.device("cpu"))
    batches = torch.randperm(len(views)).split(BATCH)
    rates["imagefolder_later"] = num_images / time_call(lambda: sum(len(x) for x, _ in loader))
    rates["store_epoch"] = len(views) / time_call(lambda: sum(len(views[0, samples].x) for samples in batches))
    shutil.rmtree(cache)
    return rates


def measure_store(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure decoding and an epoch from the arrays, and passes over the folder."""
    results: dict[str, Any] = {"images": options.images, "workers": options.workers, "rounds": options.rounds}
    for name, (jpeg_size, size) in SIZES.items():
        root = make_jpegs(folder / name, options.images, jpeg_size)
        rounds = [measure_round(root, size, folder / "cache", options.workers) for _ in range(options.rounds)]
        rates = {case: median(round_rates[case] for round_rates in rounds) for case in rounds[0]}
        ratios = {
            "build_over_imagefolder": rates["build"] / rates["imagefolder_first"],
            "epoch_over_imagefolder": rates["store_epoch"] / rates["imagefolder_later"],
        }
        results[name] = {"images_per_second": rates, "ratios": ratios, "rounds": rounds}
        shutil.rmtree(root)
    return results


def show_store(results: dict[str, Any]) -> None:
    """Print the section as Markdown."""
    print(
        f"{results['images']:,} JPEGs, {results['workers']} worker processes, medians of {results['rounds']} rounds\n"
    )
    print("| images/s | decoding | ImageFolder, first | ratio | epoch from arrays | ImageFolder, later | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name in SIZES:
        rates = results[name]["images_per_second"]
        ratios = results[name]["ratios"]
        print(
            f"| {name} | {rates['build']:,.0f} | {rates['imagefolder_first']:,.0f} "
            f"| {ratios['build_over_imagefolder']:.2f} | {rates['store_epoch']:,.0f} "
            f"| {rates['imagefolder_later']:,.0f} | {ratios['epoch_over_imagefolder']:.1f} |"
        )


def anonymous_bytes(pid: int) -> int:
    """Return the anonymous memory of a process and its descendants in bytes."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # the process has just ended
        return 0
    own_kib = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0)
    return 1024 * own_kib + sum(anonymous_bytes(int(child)) for child in children)


def measure_memory(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Decode and train with half as much memory as the decoded images need."""
    root = make_jpegs(folder / "small", options.stored, (32, 32))
    store_bytes = options.stored * 224 * 224 * 3
    limit = store_bytes // 2
    child = subprocess.Popen(
        [sys.executable, "-c", TRAIN_WITH_LIMIT, str(limit), str(root), str(folder / "run")],
        env={**os.environ, "CAMKD_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = 0
    while child.poll() is None:
        peak = max(peak, anonymous_bytes(child.pid))
        time.sleep(0.02)
    out, err = child.communicate()
    metrics = json.loads(out) if child.returncode == 0 else {}
    return {
        "limit": "RLIMIT_DATA of each process",
        "store_bytes": store_bytes,
        "limit_bytes": limit,
        "peak_anonymous_bytes": peak,
        "trained": child.returncode == 0,
        "images_per_second": metrics.get("images_per_second"),
        "error": err.strip().splitlines()[-1:] if child.returncode else [],
    }


def show_memory(results: dict[str, Any]) -> None:
    """Print the section as Markdown."""
    print("| decoded images | limit | peak anonymous memory | trained an epoch | images/s |\n|---|---|---|---|---|")
    store, limit, peak = (results[f"{name}_bytes"] / 1e6 for name in ("store", "limit", "peak_anonymous"))
    trained = "yes" if results["trained"] else f"no: {' '.join(results['error'])}"
    rate = f"{results['images_per_second']:,.0f}" if results["trained"] else "-"
    print(f"| {store:,.0f} MB | {limit:,.0f} MB ({results['limit']}) | {peak:,.0f} MB | {trained} | {rate} |")


SECTIONS = {
    "loop": (loop_share.measure, loop_share.show),
    "store": (measure_store, show_store),
    "memory": (measure_memory, show_memory),
}
"""For each section ``measure(options, empty_folder) -> results`` and ``show(results)``."""


def main() -> None:
    """Measure and print the sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--images", type=int, default=10_000, help="number of JPEGs of the store section")
    parser.add_argument(
        "--stored", type=int, default=16_000, help="number of images of the memory section, 0.15 MB each"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="2,000 JPEGs and one round")
    parser.add_argument("--folder", type=Path, default=cache_folder(), help="a folder with some gigabytes of free disk")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    if options.quick:
        options.images = 2_000
        options.rounds = 1
    results: dict[str, Any] = {"environment": collect_environment()}
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.sections or SECTIONS:
        measure, show = SECTIONS[name]
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-input-") as folder:
            results[name] = measure(options, Path(folder))
        if not options.json:
            print(f"\n## {name}\n")
            show(results[name])
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
