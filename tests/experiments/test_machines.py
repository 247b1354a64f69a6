"""The commands of docs/machines.md, run as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from support.processes import free_port, loss_curve, wait_for

PAGE = Path(__file__).parents[2] / "docs" / "machines.md"


def commands(title: str) -> list[str]:
    """The lines of the first block of code under a heading of the page."""
    found = re.search(rf"## {title}\n.*?```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert found is not None
    return found[1].splitlines()


def start_processes(
    lines: list[str], prefixes: list[list[str]], changes: dict[str, str]
) -> list[subprocess.Popen[str]]:
    """Each line in a shell, after its prefix and with the same changes."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    processes = []
    for line, prefix in zip(lines, prefixes, strict=True):
        for old, new in changes.items():
            assert old in line
            line = line.replace(old, new)
        processes.append(
            subprocess.Popen(
                [*prefix, "bash", "-c", line],
                env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def taught(distill_arguments: list[str], folder: Path) -> str:
    """What stands for the dots of a command."""
    return shlex.join([*distill_arguments[1:], "--out", str(folder)])


def as_alone(processes: list[subprocess.Popen[str]], folder: Path, reference_run: Path) -> None:
    """They end well, and the loss curve is that of one process."""
    found = wait_for(processes)
    assert [status for status, _, _ in found] == [0] * len(found), found
    for ours, theirs in zip(loss_curve(folder), loss_curve(reference_run), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-5)


def test_one_machine(distill_arguments: list[str], reference_run: Path, tmp_path: Path) -> None:
    changes = {
        "--nproc-per-node 2": f"--nproc-per-node 2 --master-port {free_port()}",
        "--data cifar10 --teacher resnet11 --out runs/student": taught(distill_arguments, tmp_path / "run"),
    }
    as_alone(start_processes(commands("One machine"), [[]], changes), tmp_path / "run", reference_run)


@contextmanager
def networks() -> Iterator[tuple[list[list[str]], dict[str, str]]]:
    """Two network namespaces joined by a cable: what runs a command in each, and changes to it; skips without."""
    names = [f"camkd-{os.getpid()}-{number}" for number in (1, 2)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.0.0.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [["ip", "netns", "exec", name] for name in names], {}
    except FileNotFoundError:
        pytest.skip("two hosts need the program ip (Debian: iproute2)")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"two hosts need network namespaces, which cannot be made here: {error.stderr.strip()}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@contextmanager
def loopback() -> Iterator[tuple[list[list[str]], dict[str, str]]]:
    """Two groups of processes on this machine, for where there can be no second host."""
    yield [[], []], {"10.0.0.1": "127.0.0.1", "29500": str(free_port()), "=eth0": "=lo"}


@pytest.mark.parametrize("hosts", [networks, loopback])
def test_two_machines(
    hosts: Callable[[], AbstractContextManager[tuple[list[list[str]], dict[str, str]]]],
    distill_arguments: list[str],
    reference_run: Path,
    tmp_path: Path,
) -> None:
    """With one process on each."""
    changes = {"--nproc-per-node 4": "--nproc-per-node 1", "...": taught(distill_arguments, tmp_path / "run")}
    with hosts() as (prefixes, others):
        processes = start_processes(commands("Two machines"), prefixes, {**others, **changes})
        as_alone(processes, tmp_path / "run", reference_run)
