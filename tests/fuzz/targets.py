"""Fuzz targets: valid files of each kind that camkd reads, the function that reads them, and its allowed errors.

A reader may reject a file with the exception that its caller reports to the user. Any other exception is a bug.
`test_files.py` tries a fixed number of mutations; `atheris_files.py` tries as many as the time allows.
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

from camkd.data.cifar import CIFAR10, PIXEL_BYTES, read_archive
from camkd.data.dataset import Split
from camkd.data.images import common_size, decode
from camkd.data.store import SplitArrays, build_or_open
from camkd.distill.cache import Manifest, RecordFormat, Store
from camkd.models import build
from camkd.models.io import ModelInfo, save
from camkd.report.gallery import gallery_rows
from camkd.runs.checkpoints import Checkpoints
from camkd.runs.folder import Run
from camkd.runs.loading import load, read_model_info
from camkd.runs.per_image import read_per_image, write_per_image
from camkd.types import InputError, Prediction, Preprocessing
from camkd.utils.files import dump_checksummed, sha256_of


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Args:
        seeds: Contents of valid files.
        read: Reader of a file's content.
        errors: Exceptions that the reader may raise.
    """

    seeds: tuple[bytes, ...]
    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...] = (InputError,)

    def __call__(self, content: bytes) -> None:
        """Read ``content``. An allowed exception must have a message; any other exception is raised."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about corrupt content are expected
            try:
                self.read(content)
            except self.errors as error:
                if not str(error):
                    raise AssertionError("the exception has no message") from error


Edit = tuple[str, float, bytes]
"""Edit of a file: flip, insert, cut or double; the offset as a fraction of the length; the bytes."""


def apply_edits(content: bytes, edits: Sequence[Edit]) -> bytes:
    for kind, fraction, data in edits:
        offset = int(fraction * len(content))
        head = content[:offset]
        tail = content[offset:]
        if kind == "flip":
            flipped = bytes(a ^ b for a, b in zip(tail, data, strict=False))
            content = head + flipped + tail[len(flipped) :]
        elif kind == "insert":
            content = head + data + tail
        elif kind == "cut":
            content = head + tail[len(data) * 9 :] if data else head
        else:
            content = head + tail + tail
    return content


def make_targets(folder: Path) -> dict[str, Target]:
    """Create all targets by name. Their files are in ``folder``."""
    factories = (_images, _archives, _checkpoints, _models, _runs, _datasets, _teacher_cache)
    return {
        name: target for factory in factories for name, target in factory(folder / factory.__name__.strip("_")).items()
    }


def _via_file(path: Path, reader: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Return a function that writes its content to ``path`` and reads the file."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def read_content(content: bytes) -> object:
        path.write_bytes(content)
        return reader(path)

    return read_content


def _images(folder: Path) -> dict[str, Target]:
    seeds = []
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8))
    for file_format, mode, options in (
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
        converted = Image.new("I;16", (5, 4), 40_000) if mode == "I;16" else image.convert(mode)
        converted.save(stream, file_format, **options)
        seeds.append(stream.getvalue())

    def decode_image(path: Path) -> None:
        common_size([str(path)])  # ignores files that it cannot read
        pixels = decode(path, Preprocessing(8))
        assert pixels.shape == (8, 8, 3)
        assert pixels.dtype == np.uint8

    return {"image": Target(tuple(seeds), _via_file(folder / "x.jpg", decode_image), (ValueError,))}


def _archives(folder: Path) -> dict[str, Target]:
    archive = replace(CIFAR10, train_files=("train.bin",), test_files=("test.bin",), classes_file="names.txt")
    record = b"\1" + bytes(PIXEL_BYTES)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in {"train.bin": record * 3, "test.bin": record, "names.txt": b"cat\ndog"}.items():
            info = tarfile.TarInfo(f"folder/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    content = stream.getvalue()
    reader = _via_file(folder / "a.tar.gz", lambda path: read_archive(path, archive))
    return {
        "archive": Target((content,), lambda content: reader(gzip.compress(content, 0))),
        "compressed archive": Target((gzip.compress(content),), reader),
    }


def _checkpoints(folder: Path) -> dict[str, Target]:
    checkpoints = Checkpoints(folder)
    state = {"step": 1, "weight": torch.zeros(3), "rows": [{"epoch": 1}]}
    checkpoints.save(1, state, (1, {"weight": torch.ones(2)}))
    state_path = folder / "last-00000001.pt"
    manifest_path = folder / "last-00000001.json"
    state_content = state_path.read_bytes()
    manifest_content = manifest_path.read_bytes()

    def load_with_valid_checksum(path: Path) -> object:
        entry = {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
        manifest_path.write_text(dump_checksummed({"last": entry}))
        return checkpoints.load()

    def load_with_valid_state(path: Path) -> object:
        state_path.write_bytes(state_content)
        return checkpoints.load()

    return {
        "checkpoint": Target((state_content,), _via_file(state_path, load_with_valid_checksum)),
        "checkpoint manifest": Target((manifest_content,), _via_file(manifest_path, load_with_valid_state)),
    }


def _models(folder: Path) -> dict[str, Target]:
    info = ModelInfo("resnet8", ("cat", "dog"), 16, 1, 1, "student", "plain", "easy", "f" * 64, 0)
    save(build("resnet8", 2, 16), folder, info)
    weights_path = folder / "model.safetensors"
    info_path = folder / "model.json"
    weights_content = weights_path.read_bytes()
    info_content = info_path.read_bytes()

    def load_with_valid_checksum(path: Path) -> object:
        values = {**json.loads(info_content), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        info_path.write_text(json.dumps(values))
        return load(folder)

    return {
        "weights": Target((weights_content,), _via_file(weights_path, load_with_valid_checksum)),
        "model info": Target((info_content,), _via_file(info_path, lambda path: read_model_info(folder))),
    }


def _runs(folder: Path) -> dict[str, Target]:
    run = Run(folder)
    table_path = folder / "per_image.npz"
    write_per_image(table_path, {"row": np.arange(4), "name": np.array(["a", "b", "c", "d"])})
    return {
        "configuration": Target(
            (b"data: easy\nlr: 0.1\nx: [1, {a: b}]\n",), _via_file(folder / "config.yaml", lambda path: run.config())
        ),
        "metrics": Target(
            (b'{"accuracy": 0.5, "params": 3, "ece": null}',),
            _via_file(run.metrics_file, lambda path: run.read_metrics()),
        ),
        "history": Target(
            (b'{"epoch": 1, "train_loss": 0.5, "terms": {"ce": 1}}\n',),
            _via_file(run.history_file, lambda path: run.read_history()),
        ),
        "gallery": Target((b'{"version": 2, "images": [{"row": 3}]}',), _via_file(run.gallery_file, gallery_rows)),
        "per-image table": Target((table_path.read_bytes(),), _via_file(table_path, read_per_image)),
    }


def _datasets(folder: Path) -> dict[str, Target]:
    def split(count: int) -> Split:
        return Split(np.zeros((count, 2, 2, 3), np.uint8), np.arange(count) % 2, names=("é",) * count)

    def open_dataset() -> object:
        return build_or_open("easy", "key", folder, lambda _: SplitArrays(("cat", "dog"), split(3), split(2), split(2)))

    open_dataset()
    (dataset_folder,) = (folder / "data").iterdir()
    manifest_path = dataset_folder / "dataset.json"
    manifest_content = manifest_path.read_bytes()
    targets = {"dataset manifest": Target((manifest_content,), _via_file(manifest_path, lambda path: open_dataset()))}
    for name in ("train_images.npy", "train_labels.npy", "val_sums.npy"):
        content = (dataset_folder / name).read_bytes()

        def open_with_valid_checksum(path: Path, content: bytes = content) -> object:
            values = {key: value for key, value in json.loads(manifest_content).items() if key != "sha256"}
            values["sha256_of"] = {**values["sha256_of"], path.name: sha256_of(path)}
            manifest_path.write_text(dump_checksummed(values))
            try:
                return open_dataset()
            finally:
                path.write_bytes(content)

        targets[f"dataset {name}"] = Target((content,), _via_file(dataset_folder / name, open_with_valid_checksum))
    return targets


def _teacher_cache(folder: Path) -> dict[str, Target]:
    manifest = Manifest("teacher", "resnet8", "easy", "light", 7, "fp32", 5, RecordFormat(3, 2, 1))
    samples = np.arange(5)
    prediction = Prediction(torch.rand(5, 3), torch.rand(5, 3, 2, 1))
    store = Store(folder, manifest)
    store.write(0, samples, manifest.record_format.encode(prediction))
    records_path = store.path(0)
    manifest_path = folder / "store.json"
    records_content = records_path.read_bytes()
    manifest_content = manifest_path.read_bytes()
    expected = Store(folder, manifest).read(0, samples)
    assert expected is not None
    assert expected.cams is not None

    def read_outputs(path: Path) -> None:
        outputs = Store(folder, manifest).read(0, samples)
        if outputs is not None:  # then it must equal what was written
            assert outputs.cams is not None
            assert torch.equal(outputs.cams, expected.cams)
            assert torch.equal(outputs.logits, expected.logits)

    return {
        "teacher outputs": Target((records_content,), _via_file(records_path, read_outputs)),
        "teacher cache manifest": Target(
            (manifest_content,), _via_file(manifest_path, lambda path: Manifest.read(folder))
        ),
    }
