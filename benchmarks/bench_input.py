"""How fast pictures come in, and how little memory they take.

    python benchmarks/bench_input.py            # some minutes
    python benchmarks/bench_input.py --quick    # a trial with fewer pictures and rounds

loop     The share of a training step that is spent outside the model's forward and backward.
store    Pictures a second of building the store of a folder of JPEGs and of an epoch from it, against two passes over
         the same folder as torchvision's ImageFolder makes them (a DataLoader with as many worker processes; PIL: open,
         RGB, shorter side to size, centre, float tensor in 0..1), for pictures of 32 px and for 500x375 to 224 px. A
         thousand different ones, copied. Runs alternate; medians over the rounds. Files are in the page cache.
memory   `camkd teacher` on a store of 224 px pictures that is twice as large as the memory a process may have: a hard
         limit on its private writable memory (RLIMIT_DATA), which decoding has to keep as well. Clean pages of the
         store, which the system can take back at any time, do not count; they are dropped before the epoch, so that it
         reads from disk. The peak is that of all processes together, from /proc.

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
from camkd.data.augment import Views
from camkd.data.dataset import cache_folder, no_progress
from camkd.data.shapes import SHAPES, draw_split
from camkd.runs.folder import collect_environment

BATCH = 128
DIFFERENT = 1000
SIZES = {"32 px": ((32, 32), 32), "224 px": ((500, 375), 224)}
"""Width and height of the JPEGs, and the size they are decoded to."""

CHILD = """
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
    """What torchvision's does with Resize(size), CenterCrop(size) and ToTensor()."""

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
        size, short = self.size, min(image.size)
        if image.size != (size, size):
            width, height = (round(side * size / short) for side in image.size)
            left, top = (width - size) // 2, (height - size) // 2
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            image = image.crop((left, top, left + size, top + size))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255), label


def make_jpegs(root: Path, count: int, size: tuple[int, int]) -> Path:
    """``root/<shape>/<number>.jpg``: drawn shapes, enlarged and under noise where ``size`` is larger than theirs."""
    drawn = draw_split("train", min(count, DIFFERENT), 32, no_progress)
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 8, (size[1], size[0], 3)).astype(np.int16)
    for number in range(count):
        row = number % DIFFERENT
        place = root / list(SHAPES)[drawn.labels[row]]
        place.mkdir(parents=True, exist_ok=True)
        if number >= DIFFERENT:
            shutil.copyfile(place / f"{row:05d}.jpg", place / f"{number:05d}.jpg")
            continue
        image = Image.fromarray(drawn.images[row])
        if image.size != size:
            large = np.asarray(image.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
            image = Image.fromarray((large + np.roll(noise, row, (0, 1))).clip(0, 255).astype(np.uint8))
        image.save(place / f"{number:05d}.jpg", quality=90)
    return root


def seconds_of(work: Callable[[], object]) -> float:
    """How long ``work`` takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def one_round(root: Path, size: int, cache: Path, workers: int) -> dict[str, float]:
    """Pictures a second of building, of an epoch from the store, and of two passes over the folder."""
    loader = DataLoader(ImageFolder(root, size), BATCH, shuffle=True, num_workers=workers)
    count = len(loader.dataset)  # type: ignore[arg-type]
    rates = {"imagefolder_first": count / seconds_of(lambda: sum(len(x) for x, _ in loader))}
    rates["build"] = count / seconds_of(lambda: open_data(root, size=size, workers=workers, cache=cache))
    data = open_data(root, size=size, cache=cache)
    views = Views(data.train, len(data.classes), "none", 0, torch.device("cpu"))
    batches = torch.randperm(len(views)).split(BATCH)
    rates["imagefolder_later"] = count / seconds_of(lambda: sum(len(x) for x, _ in loader))
    rates["store_epoch"] = len(views) / seconds_of(lambda: sum(len(views[0, samples].x) for samples in batches))
    shutil.rmtree(cache)
    return rates


def store(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Building the store and an epoch from it, against passes over the folder."""
    found: dict[str, Any] = {"pictures": options.pictures, "workers": options.workers, "rounds": options.rounds}
    for name, (made, size) in SIZES.items():
        root = make_jpegs(folder / name, options.pictures, made)
        rounds = [one_round(root, size, folder / "cache", options.workers) for _ in range(options.rounds)]
        rates = {case: median(each[case] for each in rounds) for case in rounds[0]}
        ratios = {
            "build_over_imagefolder": rates["build"] / rates["imagefolder_first"],
            "epoch_over_imagefolder": rates["store_epoch"] / rates["imagefolder_later"],
        }
        found[name] = {"images_per_second": rates, "ratios": ratios, "rounds": rounds}
        shutil.rmtree(root)
    return found


def show_store(found: dict[str, Any]) -> None:
    """Print the section as Markdown."""
    print(f"{found['pictures']:,} JPEGs, {found['workers']} worker processes, medians of {found['rounds']} rounds\n")
    print(
        "| pictures/s | build the store | ImageFolder, first | ratio | epoch from store | ImageFolder, later | ratio |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in SIZES:
        rate, ratio = found[name]["images_per_second"], found[name]["ratios"]
        print(
            f"| {name} | {rate['build']:,.0f} | {rate['imagefolder_first']:,.0f} "
            f"| {ratio['build_over_imagefolder']:.2f} | {rate['store_epoch']:,.0f} "
            f"| {rate['imagefolder_later']:,.0f} | {ratio['epoch_over_imagefolder']:.1f} |"
        )


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory of a process and of those it started."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has just ended
        return 0
    own = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0)
    return 1024 * own + sum(anonymous(int(child)) for child in children)


def memory(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Decoding and training with half as much memory as the pictures take."""
    root = make_jpegs(folder / "small", options.stored, (32, 32))
    size = options.stored * 224 * 224 * 3
    limit = size // 2
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(limit), str(root), str(folder / "run")],
        env={**os.environ, "CAMKD_CACHE": str(folder / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = 0
    while child.poll() is None:
        peak = max(peak, anonymous(child.pid))
        time.sleep(0.02)
    out, err = child.communicate()
    said = json.loads(out) if child.returncode == 0 else {}
    return {
        "limit": "RLIMIT_DATA of each process",
        "store_bytes": size,
        "limit_bytes": limit,
        "peak_anonymous_bytes": peak,
        "trained": child.returncode == 0,
        "images_per_second": said.get("images_per_second"),
        "error": err.strip().splitlines()[-1:] if child.returncode else [],
    }


def show_memory(found: dict[str, Any]) -> None:
    """Print the section as Markdown."""
    print("| store | hard limit | peak anonymous memory | trained an epoch | pictures/s |\n|---|---|---|---|---|")
    store, limit, peak = (found[f"{name}_bytes"] / 1e6 for name in ("store", "limit", "peak_anonymous"))
    trained = "yes" if found["trained"] else f"no: {' '.join(found['error'])}"
    rate = f"{found['images_per_second']:,.0f}" if found["trained"] else "-"
    print(f"| {store:,.0f} MB | {limit:,.0f} MB ({found['limit']}) | {peak:,.0f} MB | {trained} | {rate} |")


SECTIONS = {
    "loop": (loop_share.measure, loop_share.show),
    "store": (store, show_store),
    "memory": (memory, show_memory),
}
"""Each measures with ``(options, an empty folder)`` and has a function that prints what it found."""


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--pictures", type=int, default=10_000, help="JPEGs of the store section")
    parser.add_argument("--stored", type=int, default=16_000, help="pictures of the memory section, 0.15 MB each")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="2,000 JPEGs and one round")
    parser.add_argument("--folder", type=Path, default=cache_folder(), help="where there are some gigabytes of disk")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.pictures, options.rounds = 2_000, 1
    found: dict[str, Any] = {"environment": collect_environment()}
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.sections or SECTIONS:
        measure, show = SECTIONS[name]
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-input-") as folder:
            found[name] = measure(options, Path(folder))
        if not options.json:
            print(f"\n## {name}\n")
            show(found[name])
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
