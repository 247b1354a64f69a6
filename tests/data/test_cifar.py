"""The CIFAR archives: download, md5, records, cache key and invalid archives."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from camkd.data import cifar
from camkd.data.cifar import CIFAR10, CIFAR100, CifarArchive, cache_key, download, open_cifar, read_archive
from camkd.data.dataset import no_progress
from camkd.types import InputError

TRAIN = 50
TEST = 8
CLASSES = 4


def make_records(count: int, label_bytes: int, seed: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Return binary records, and their images ``(N, 32, 32, 3)`` and labels."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    labels = np.arange(count) % CLASSES
    rows = [
        bytes([99] * (label_bytes - 1) + [label]) + image.transpose(2, 0, 1).tobytes()
        for label, image in zip(labels, images, strict=True)
    ]
    return b"".join(rows), images, labels


def make_members(archive: CifarArchive) -> dict[str, bytes]:
    files = {name: make_records(TRAIN, archive.label_bytes, seed)[0] for seed, name in enumerate(archive.train_files)}
    files |= {name: make_records(TEST, archive.label_bytes, 100)[0] for name in archive.test_files}
    return files | {archive.classes_file: b"\n".join(b"class_%d" % label for label in range(CLASSES)) + b"\n\n"}


def make_tar(files: dict[str, bytes], folder: str = "some-folder") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@dataclass
class Server:
    """HTTP server: the content of its file, its faults and the number of requests."""

    url: str
    content: bytes = b""
    stops_after: int | None = None
    status: int = 200
    num_requests: int = 0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.num_requests += 1
            if state.status != 200:
                self.send_error(state.status)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(state.content)))
            self.end_headers()
            self.wfile.write(state.content[: state.stops_after])

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        state = Server(f"http://127.0.0.1:{http.server_port}/small.tar.gz")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


def serve_archive(server: Server, archive: CifarArchive = CIFAR10) -> CifarArchive:
    server.content = make_tar(make_members(archive))
    return replace(archive, url=server.url, md5=hashlib.md5(server.content).hexdigest())


# --- the dataset


@pytest.mark.parametrize("official", [CIFAR10, CIFAR100], ids=["cifar10", "cifar100"])
def test_archive_becomes_a_dataset(server: Server, tmp_path: Path, official: CifarArchive) -> None:
    archive = serve_archive(server, official)
    calls: list[tuple[int, int, str]] = []
    data = open_cifar(archive, None, tmp_path, lambda *arguments: calls.append(arguments))
    assert data.name == official.name
    assert data.classes == tuple(f"class_{label}" for label in range(CLASSES))
    total = TRAIN * len(official.train_files)
    assert len(data.val) == pytest.approx(total / 10, abs=CLASSES / 2)
    assert len(data.train) + len(data.val) == total
    _, images, labels = make_records(TEST, official.label_bytes, 100)
    np.testing.assert_array_equal(data.test.images, images)
    np.testing.assert_array_equal(data.test.labels, labels)
    stored_labels = {
        image.tobytes(): label
        for split in (data.train, data.val)
        for image, label in zip(split.images, split.labels, strict=True)
    }
    for seed in range(len(official.train_files)):
        _, images, labels = make_records(TRAIN, official.label_bytes, seed)
        assert [stored_labels[image.tobytes()] for image in images] == list(labels)
    assert calls[-1] == (len(server.content), len(server.content), "downloading small.tar.gz")


def test_stored_dataset_needs_neither_server_nor_archive(server: Server, tmp_path: Path) -> None:
    archive = serve_archive(server)
    data = open_cifar(archive, 32, tmp_path, no_progress)
    (tmp_path / "downloads" / "small.tar.gz").unlink()
    assert open_cifar(archive, None, tmp_path, no_progress).fingerprint == data.fingerprint
    assert server.num_requests == 1


def test_other_size_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_cifar(CIFAR10, 64, tmp_path, no_progress)
    assert str(caught.value) == "size must be 32 for cifar10, got 64. Leave size out."


def test_official_archives() -> None:
    for archive in (CIFAR10, CIFAR100):
        assert re.fullmatch(r"https://www\.cs\.toronto\.edu/~kriz/cifar-100?-binary\.tar\.gz", archive.url)
        assert re.fullmatch("[0-9a-f]{32}", archive.md5)


# --- the cache key

CIFAR100_KEY = (
    '{"classes":"fine_label_names.txt","label_bytes":2,"md5":"03b5dce01913d631647c71ecec9e9cb8","source":"cifar100",'
    '"test":["test.bin"],"train":["train.bin"],"val_fraction":0.1,"version":1}'
)


def test_cache_key_is_stable() -> None:
    assert cache_key(CIFAR100) == CIFAR100_KEY


def test_cache_key_is_independent_of_the_class_name_and_the_url() -> None:
    Renamed = type("Renamed", (CifarArchive,), {})
    assert cache_key(Renamed(**vars(CIFAR100))) == CIFAR100_KEY
    assert cache_key(replace(CIFAR100, url="https://example.org/mirror.tar.gz")) == CIFAR100_KEY


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"md5": "0" * 32},
        {"label_bytes": 1},
        {"train_files": ("other.bin",)},
        {"test_files": ("other.bin",)},
        {"classes_file": "coarse_label_names.txt"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_cache_key_changes_with_the_archive(change: dict[str, object]) -> None:
    assert cache_key(replace(CIFAR100, **change)) != CIFAR100_KEY  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), [("VERSION", 2), ("VAL_FRACTION", 0.2)])
def test_cache_key_changes_with_the_settings(monkeypatch: pytest.MonkeyPatch, name: str, value: float) -> None:
    monkeypatch.setattr(cifar, name, value)
    assert cache_key(CIFAR100) != CIFAR100_KEY


# --- download


def test_file_placed_by_hand_is_used(server: Server, tmp_path: Path) -> None:
    archive = serve_archive(server)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "small.tar.gz").write_bytes(server.content)
    open_cifar(archive, None, tmp_path, no_progress)
    assert server.num_requests == 0


@pytest.mark.fault("failed download")
def test_incomplete_download_leaves_no_file(server: Server, tmp_path: Path) -> None:
    archive = serve_archive(server)
    path = tmp_path / "small.tar.gz"
    server.stops_after = 1000
    with pytest.raises(InputError, match=rf"ended after 1,000 of {len(server.content):,} bytes"):
        download(archive, path, no_progress)
    assert list(tmp_path.iterdir()) == []
    server.stops_after = None
    assert download(archive, path, no_progress).read_bytes() == server.content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.fault("failed download")
def test_interrupted_download_leaves_no_file(server: Server, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(serve_archive(server), tmp_path / "small.tar.gz", interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("failed download")
def test_wrong_md5_of_a_download_leaves_no_file(server: Server, tmp_path: Path) -> None:
    archive = serve_archive(server)
    wrong = replace(archive, md5="0" * 32)
    with pytest.raises(InputError, match=f"md5 must be {wrong.md5}, got {archive.md5}"):
        download(wrong, tmp_path / "small.tar.gz", no_progress)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("failed download")
def test_wrong_md5_of_an_existing_file(server: Server, tmp_path: Path) -> None:
    archive = serve_archive(server)
    path = tmp_path / "small.tar.gz"
    path.write_bytes(b"something else")
    with pytest.raises(InputError) as caught:
        download(archive, path, no_progress)
    assert str(caught.value) == (
        f"the md5 of '{path}' must be {archive.md5}, got 6c7ba9c5a141421e1c03cb9807c97c74. Delete the file to download "
        f"it again from {server.url}."
    )


@pytest.mark.fault("failed download")
def test_missing_file_on_the_server(server: Server, tmp_path: Path) -> None:
    archive = serve_archive(server)
    server.status = 404
    with pytest.raises(InputError) as caught:
        open_cifar(archive, None, tmp_path, no_progress)
    assert str(caught.value) == (
        f"cannot download cifar10 from {server.url} (the server returned 404 Not Found). Run the command again, or "
        f"download the file by other means and save it as '{tmp_path / 'downloads' / 'small.tar.gz'}', or choose a "
        "folder of images with --data PATH, or --data shapes."
    )
    assert not list((tmp_path / "downloads").iterdir())
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.fault("failed download")
def test_server_is_not_reachable(server: Server, tmp_path: Path) -> None:
    archive = replace(serve_archive(server), url="http://127.0.0.1:9/small.tar.gz")
    with pytest.raises(InputError, match=r"cannot download cifar10 from http://127\.0\.0\.1:9/.*refused"):
        download(archive, tmp_path / "small.tar.gz", no_progress)
    assert list(tmp_path.iterdir()) == []


# --- invalid archives


def write_archive(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "a.tar.gz").write_bytes(content)
    return tmp_path / "a.tar.gz"


@pytest.mark.fault("hostile archive")
def test_members_are_not_written_to_disk(tmp_path: Path) -> None:
    path = write_archive(tmp_path, make_tar(make_members(CIFAR10), folder="../../escape"))
    assert len(read_archive(path, CIFAR10).test) == TEST
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.fault("hostile archive")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"data_batch_3.bin": None}, r"got an archive without data_batch_3\.bin"),
        ({"test_batch.bin": b"123"}, "multiple of 3,073 bytes, got 3 bytes"),
        ({"test_batch.bin": b""}, "got 0 bytes"),
        ({"test_batch.bin": bytes([200]) + bytes(3072)}, "less than 4, .* got 200"),
    ],
)
def test_invalid_archive_is_rejected(tmp_path: Path, change: dict[str, bytes | None], match: str) -> None:
    files = {name: content for name, content in (make_members(CIFAR10) | change).items() if content is not None}
    with pytest.raises(InputError, match=match):
        read_archive(write_archive(tmp_path, make_tar(files)), CIFAR10)


@pytest.mark.fault("hostile archive")
@pytest.mark.parametrize("content", [b"no archive", make_tar(make_members(CIFAR10))[:2000]], ids=["text", "truncated"])
def test_unreadable_archive_is_rejected(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match=r"a\.tar\.gz' must be a readable tar\.gz archive"):
        read_archive(write_archive(tmp_path, content), CIFAR10)
