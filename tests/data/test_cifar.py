"""The CIFAR archives: read record by record, downloaded whole or not at all from a server in this process."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from camkd.data.cifar import CIFAR10, CIFAR100, CifarArchive, fetch, open_cifar, read
from camkd.data.dataset import no_progress
from camkd.types import InputError

TRAIN, TEST, CLASSES = 50, 8, 4


def records(count: int, label_bytes: int, seed: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Binary records, and the pictures ``(N, 32, 32, 3)`` and labels in them."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    labels = np.arange(count) % CLASSES
    rows = [
        bytes([99] * (label_bytes - 1) + [label]) + image.transpose(2, 0, 1).tobytes()
        for label, image in zip(labels, images, strict=True)
    ]
    return b"".join(rows), images, labels


def members(archive: CifarArchive) -> dict[str, bytes]:
    files = {name: records(TRAIN, archive.label_bytes, seed)[0] for seed, name in enumerate(archive.train)}
    files |= {name: records(TEST, archive.label_bytes, 100)[0] for name in archive.test}
    return files | {archive.classes: b"\n".join(b"class_%d" % label for label in range(CLASSES)) + b"\n\n"}


def packed(files: dict[str, bytes], folder: str = "some-folder") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@dataclass
class Server:
    """What the server serves, how it misbehaves, and what it was asked."""

    url: str
    content: bytes = b""
    ranges: bool = True
    stops_after: int | None = None
    status: int = 200
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            if state.status != 200:
                self.send_error(state.status)
                return
            start = int(asked[6:-1]) if asked and state.ranges else 0
            if start >= len(state.content):
                self.send_error(416)
                return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.stops_after])

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        state = Server(f"http://127.0.0.1:{http.server_port}/small.tar.gz")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


def served(server: Server, archive: CifarArchive = CIFAR10) -> CifarArchive:
    server.content = packed(members(archive))
    return replace(archive, url=server.url, md5=hashlib.md5(server.content).hexdigest())


@pytest.mark.parametrize("official", [CIFAR10, CIFAR100], ids=["cifar10", "cifar100"])
def test_an_archive_becomes_a_data_set(server: Server, tmp_path: Path, official: CifarArchive) -> None:
    archive, heard = served(server, official), []
    data = open_cifar(archive, None, tmp_path, lambda *said: heard.append(said))
    assert data.name == official.name
    assert data.classes == tuple(f"class_{label}" for label in range(CLASSES))
    total = TRAIN * len(official.train)
    assert len(data.val) == pytest.approx(total / 10, abs=CLASSES / 2)
    assert len(data.train) + len(data.val) == total
    _, images, labels = records(TEST, official.label_bytes, 100)
    np.testing.assert_array_equal(data.test.images, images)
    np.testing.assert_array_equal(data.test.labels, labels)
    stored = {
        image.tobytes(): label for s in (data.train, data.val) for image, label in zip(s.images, s.labels, strict=True)
    }
    for seed in range(len(official.train)):
        _, images, labels = records(TRAIN, official.label_bytes, seed)
        assert [stored[image.tobytes()] for image in images] == list(labels)
    assert heard[-1] == (len(server.content), len(server.content), "downloading small.tar.gz")


def test_the_second_time_it_needs_neither_server_nor_archive(server: Server, tmp_path: Path) -> None:
    archive = served(server)
    first = open_cifar(archive, 32, tmp_path, no_progress)
    (tmp_path / "downloads" / "small.tar.gz").unlink()
    assert open_cifar(archive, None, tmp_path, no_progress).fingerprint == first.fingerprint
    assert len(server.asked) == 1


def test_an_archive_put_in_place_by_hand_is_used(server: Server, tmp_path: Path) -> None:
    archive = served(server)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "small.tar.gz").write_bytes(server.content)
    open_cifar(archive, None, tmp_path, no_progress)
    assert server.asked == []


@pytest.mark.fault("downloads that fail")
def test_a_broken_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    archive, path = served(server), tmp_path / "small.tar.gz"
    server.stops_after = 1000
    with pytest.raises(InputError, match=r"ended after 1,000 of .* bytes.*run again"):
        fetch(archive, path, no_progress)
    assert not path.exists()
    server.stops_after = None
    assert fetch(archive, path, no_progress).read_bytes() == server.content
    assert server.asked == [None, "bytes=1000-"]
    assert [file.name for file in tmp_path.iterdir()] == ["small.tar.gz"]


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    archive, path = served(server), tmp_path / "small.tar.gz"
    (tmp_path / "small.tar.gz.part").write_bytes(server.content[:500])
    server.ranges = False
    assert fetch(archive, path, no_progress).read_bytes() == server.content


@pytest.mark.fault("downloads that fail")
@pytest.mark.parametrize("extra", [0, 7], ids=["complete", "too long"])
def test_a_part_as_long_as_the_file(server: Server, tmp_path: Path, extra: int) -> None:
    archive, path = served(server), tmp_path / "small.tar.gz"
    (tmp_path / "small.tar.gz.part").write_bytes(server.content + bytes(extra))
    assert fetch(archive, path, no_progress).read_bytes() == server.content
    assert len(server.asked) == (2 if extra else 0)


@pytest.mark.fault("downloads that fail")
def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    archive = replace(served(server), md5="0" * 32)
    with pytest.raises(InputError, match="what came has not the md5 0000"):
        fetch(archive, tmp_path / "small.tar.gz", no_progress)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("downloads that fail")
def test_a_wrong_file_in_place_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "small.tar.gz").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"small\.tar\.gz' has not the md5 .*delete it"):
        fetch(served(server), tmp_path / "small.tar.gz", no_progress)


@pytest.mark.fault("downloads that fail")
def test_a_missing_file_says_what_to_do(server: Server, tmp_path: Path) -> None:
    archive, server.status = served(server), 404
    with pytest.raises(InputError) as caught:
        open_cifar(archive, None, tmp_path, no_progress)
    said = str(caught.value)
    for part in (
        "404",
        server.url,
        str(tmp_path / "downloads" / "small.tar.gz"),
        "--data PATH",
        "--data shapes",
    ):
        assert part in said
    assert "\n" not in said
    assert not list((tmp_path / "downloads").iterdir())
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.fault("downloads that fail")
def test_no_network_says_what_to_do(server: Server, tmp_path: Path) -> None:
    archive = replace(served(server), url="http://127.0.0.1:9/small.tar.gz")
    with pytest.raises(InputError, match=r"could not be downloaded.*--data shapes"):
        fetch(archive, tmp_path / "small.tar.gz", no_progress)


def written(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "a.tar.gz").write_bytes(content)
    return tmp_path / "a.tar.gz"


@pytest.mark.fault("hostile archives")
def test_members_never_reach_the_disk(tmp_path: Path) -> None:
    path = written(tmp_path, packed(members(CIFAR10), folder="../../escape"))
    assert len(read(path, CIFAR10).test) == TEST
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.fault("hostile archives")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"data_batch_3.bin": None}, r"has no data_batch_3\.bin"),
        ({"test_batch.bin": b"123"}, "3 bytes of records, which is no multiple of 3,073"),
        ({"test_batch.bin": b""}, "0 bytes of records"),
        ({"test_batch.bin": bytes([200]) + bytes(3072)}, "has label 200, but names 4 classes"),
    ],
)
def test_an_archive_that_is_something_else_is_refused(
    tmp_path: Path, change: dict[str, bytes | None], match: str
) -> None:
    files = {name: content for name, content in (members(CIFAR10) | change).items() if content is not None}
    with pytest.raises(InputError, match=match):
        read(written(tmp_path, packed(files)), CIFAR10)


@pytest.mark.fault("hostile archives")
@pytest.mark.parametrize("content", [b"no archive", packed(members(CIFAR10))[:2000]], ids=["text", "cut"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match=r"is not a readable tar\.gz archive"):
        read(written(tmp_path, content), CIFAR10)


def test_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="size is 64, but cifar10 has pictures of 32 pixels"):
        open_cifar(CIFAR10, 64, tmp_path, no_progress)


def test_the_official_archives() -> None:
    for archive in (CIFAR10, CIFAR100):
        assert re.fullmatch(r"https://www\.cs\.toronto\.edu/~kriz/cifar-100?-binary\.tar\.gz", archive.url)
        assert re.fullmatch("[0-9a-f]{32}", archive.md5)
