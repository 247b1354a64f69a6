"""What is fuzzed: files of each kind that camkd reads, what reads them, and which errors may follow.

A reader may refuse a file with the error that its caller turns into a sentence; anything else is a bug. `test_files.py`
tries some mutations of each, always the same ones; `atheris_files.py` tries as many as there is time for.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from camkd.data.cifar import CIFAR10, PIXELS, read
from camkd.data.dataset import Split, SplitArrays, build_or_open
from camkd.data.images import decode, own_size
from camkd.distill.cache import Manifest, RecordFormat, Store
from camkd.evaluate.per_image import read_per_image, write_per_image
from camkd.models import build
from camkd.models.io import ModelInfo, save
from camkd.report.gallery import gallery_rows
from camkd.runs.checkpoints import Checkpoints
from camkd.runs.folder import Run
from camkd.runs.load_model import load, read_model_info
from camkd.types import InputError, Prediction
from camkd.utils.files import dump_checksummed, sha256_of


@dataclass(frozen=True)
class Target:
    """``read`` gets the content of a file, ``seeds`` are whole ones, ``errors`` is what it may raise."""

    seeds: tuple[bytes, ...]
    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...] = (InputError,)

    def __call__(self, content: bytes) -> None:
        """Read ``content``; whatever is not allowed is raised."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damage; what is damaged is what this is about
            try:
                self.read(content)
            except self.errors as refused:
                if not str(refused):
                    raise AssertionError("it does not say what is wrong") from refused


Edit = tuple[str, float, bytes]
"""What is done to a file: flip, put, cut or double; where, as a share of its length; with which bytes."""


def mutated(content: bytes, edits: Sequence[Edit]) -> bytes:
    """``content`` after all ``edits``."""
    for kind, share, given in edits:
        place = int(share * len(content))
        head, tail = content[:place], content[place:]
        if kind == "flip":
            changed = bytes(a ^ b for a, b in zip(tail, given, strict=False))
            content = head + changed + tail[len(changed) :]
        elif kind == "put":
            content = head + given + tail
        elif kind == "cut":
            content = head + tail[len(given) * 9 :] if given else head
        else:
            content = head + tail + tail
    return content


def targets(folder: Path) -> dict[str, Target]:
    """All of them; their files lie in ``folder``."""
    makers = (_pictures, _archives, _checkpoints, _models, _runs, _data, _knowledge)
    return {name: target for make in makers for name, target in make(folder / make.__name__).items()}


def _into(path: Path, reader: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Write the content to ``path``, then read that."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def read_it(content: bytes) -> object:
        path.write_bytes(content)
        return reader(path)

    return read_it


def _pictures(folder: Path) -> dict[str, Target]:
    seeds = []
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8))
    for kind, mode, more in (
        ("PNG", "RGB", {}),
        ("PNG", "P", {"transparency": 3}),
        ("PNG", "I;16", {}),
        ("JPEG", "CMYK", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"}),
        ("JPEG", "RGB", {"progressive": True}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("GIF", "P", {"save_all": True, "append_images": [image.convert("P")]}),
        ("BMP", "L", {}),
    ):
        stream = io.BytesIO()
        drawn = Image.new("I;16", (5, 4), 40_000) if mode == "I;16" else image.convert(mode)
        drawn.save(stream, kind, **more)
        seeds.append(stream.getvalue())

    def decoded(path: Path) -> None:
        own_size([str(path)])  # is silent about what is wrong
        pixels = decode(path, 8)
        assert pixels.shape == (8, 8, 3)
        assert pixels.dtype == np.uint8

    return {"picture": Target(tuple(seeds), _into(folder / "x.jpg", decoded), (ValueError,))}


def _archives(folder: Path) -> dict[str, Target]:
    archive = replace(CIFAR10, train=("train.bin",), test=("test.bin",), classes="names.txt")
    record = b"\1" + bytes(PIXELS)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in {"train.bin": record * 3, "test.bin": record, "names.txt": b"cat\ndog"}.items():
            info = tarfile.TarInfo(f"folder/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    whole = stream.getvalue()
    reader = _into(folder / "a.tar.gz", lambda path: read(path, archive))
    return {
        "archive": Target((whole,), lambda content: reader(gzip.compress(content, 0))),
        "packed archive": Target((gzip.compress(whole),), reader),
    }


def _checkpoints(folder: Path) -> dict[str, Target]:
    kept = Checkpoints(folder)
    kept.save(1, {"step": 1, "weight": torch.zeros(3), "rows": [{"epoch": 1}]}, (1, {"weight": torch.ones(2)}))
    state, manifest = folder / "last-00000001.pt", folder / "last-00000001.json"
    seeds = state.read_bytes(), manifest.read_bytes()

    def resealed(path: Path) -> object:
        entry = {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
        manifest.write_text(dump_checksummed({"last": entry}))
        return kept.load()

    def with_its_state(path: Path) -> object:
        state.write_bytes(seeds[0])
        return kept.load()

    return {
        "checkpoint": Target(seeds[:1], _into(state, resealed)),
        "checkpoint's manifest": Target(seeds[1:], _into(manifest, with_its_state)),
    }


def _models(folder: Path) -> dict[str, Target]:
    said = ModelInfo("resnet8", ("cat", "dog"), 16, 1, 1, "student", "plain", "easy", "f" * 64, 0)
    save(build("resnet8", 2, 16), folder, said)
    weights, description = folder / "model.safetensors", folder / "model.json"
    words = json.loads(description.read_text())
    seeds = weights.read_bytes(), description.read_bytes()

    def resealed(path: Path) -> object:
        description.write_text(json.dumps({**words, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}))
        return load(folder)

    return {
        "weights": Target(seeds[:1], _into(weights, resealed)),
        "description": Target(seeds[1:], _into(description, lambda path: read_model_info(folder))),
    }


def _runs(folder: Path) -> dict[str, Target]:
    run = Run(folder)
    table = folder / "per_image.npz"
    write_per_image(table, {"row": np.arange(4), "name": np.array(["a", "b", "c", "d"])})
    return {
        "configuration": Target(
            (b"data: easy\nlr: 0.1\nx: [1, {a: b}]\n",), _into(folder / "config.yaml", lambda path: run.config())
        ),
        "metrics": Target(
            (b'{"accuracy": 0.5, "params": 3, "ece": null}',), _into(run.metrics, lambda path: run.read_metrics())
        ),
        "history": Target(
            (b'{"epoch": 1, "train_loss": 0.5, "terms": {"ce": 1}}\n',),
            _into(run.history, lambda path: run.read_history()),
        ),
        "gallery": Target((b'{"version": 1, "pictures": [{"row": 3}]}',), _into(run.gallery, gallery_rows)),
        "table of pictures": Target((table.read_bytes(),), _into(table, read_per_image)),
    }


def _data(folder: Path) -> dict[str, Target]:
    def split(count: int) -> Split:
        return Split(np.zeros((count, 2, 2, 3), np.uint8), np.arange(count) % 2, names=("é",) * count)

    def opened() -> object:
        return build_or_open("easy", "key", folder, lambda _: SplitArrays(("cat", "dog"), split(3), split(2), split(2)))

    opened()
    (place,) = (folder / "data").iterdir()
    manifest = place / "dataset.json"
    whole = manifest.read_bytes()
    found = {"data store's manifest": Target((whole,), _into(manifest, lambda path: opened()))}
    for name in ("train_images.npy", "train_labels.npy", "val_sums.npy"):
        content = (place / name).read_bytes()

        def resealed(path: Path, content: bytes = content) -> object:
            values = {key: value for key, value in json.loads(whole).items() if key != "sha256"}
            values["sha256_of"] = {**values["sha256_of"], path.name: sha256_of(path)}
            manifest.write_text(dump_checksummed(values))
            try:
                return opened()
            finally:
                path.write_bytes(content)

        found[f"data store's {name}"] = Target((content,), _into(place / name, resealed))
    return found


def _knowledge(folder: Path) -> dict[str, Target]:
    said = Manifest("teacher", "resnet8", "easy", "light", 7, "fp32", 5, RecordFormat(3, 2, 1))
    rows, answer = np.arange(5), Prediction(torch.rand(5, 3), torch.rand(5, 3, 2, 1))
    Store(folder, said).write(0, rows, said.layout.encode(answer))
    path, manifest = Store(folder, said).path(0), folder / "store.json"
    seeds, expected = (path.read_bytes(), manifest.read_bytes()), Store(folder, said).read(0, rows)
    assert expected is not None
    assert expected.cams is not None

    def answers(path: Path) -> None:
        found = Store(folder, said).read(0, rows)
        if found is not None:  # then it is what was written
            assert found.cams is not None
            assert torch.equal(found.cams, expected.cams)
            assert torch.equal(found.logits, expected.logits)

    return {
        "answers": Target(seeds[:1], _into(path, answers)),
        "knowledge store's manifest": Target(seeds[1:], _into(manifest, lambda path: Manifest.of(folder))),
    }
