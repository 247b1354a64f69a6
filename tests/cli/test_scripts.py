"""The scripts ``train.py``, ``train_teacher.py`` and ``distill.py`` without internet access."""

from __future__ import annotations

import runpy
import sys
import urllib.request
from pathlib import Path

import pytest

from camkd.data.cifar import CIFAR10

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and a proxy that refuses connections."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "_opener", None)  # a cached opener keeps the proxies of its first use
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("script", "arguments", "messages"),
    [
        (
            "train_teacher.py",
            "--dataset cifar10 --model resnet50",
            [f"cannot download {CIFAR10.name} from {CIFAR10.url}", "--data PATH"],
        ),
        ("train.py", "", [f"cannot download {CIFAR10.name} from {CIFAR10.url}"]),
        ("train.py", "--dataset nowhere", ["got 'nowhere'"]),
        (
            "distill.py",
            "--dataset cifar10 --teacher resnet50 --student cam-net",
            ["camkd teacher --data cifar10 --model resnet50"],
        ),
    ],
)
def test_failure_is_reported_in_one_line(
    script: str,
    arguments: str,
    messages: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", [script, *arguments.split()])
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert error.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("camkd: ")
    assert all(message in captured.err for message in messages)
    assert not Path("runs").exists()
