"""The commands of docs/machines.md for one and two machines give the loss curve of one process."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.processes import free_port, loss_curve, wait_for

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "machines.md"


def documented_commands(title: str) -> list[str]:
    """Return the lines of the first code block under a heading of the page."""
    block = re.search(rf"## {title}\n.*?```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert block is not None
    return block[1].splitlines()


def start_commands(
    commands: Sequence[str], prefixes: Sequence[Sequence[str]], replacements: Mapping[str, str]
) -> list[subprocess.Popen[str]]:
    """Start each command in a shell, after its prefix, with the same text replacements."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    processes = []
    for command, prefix in zip(commands, prefixes, strict=True):
        for old, new in replacements.items():
            assert old in command
            command = command.replace(old, new)
        processes.append(
            subprocess.Popen(
                [*prefix, "bash", "-c", command],
                env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def options(distill_arguments: Sequence[str], folder: Path) -> str:
    """Return the options that replace those of a documented command."""
    return shlex.join([*distill_arguments[1:], "--out", str(folder)])


def assert_equals_reference(processes: Sequence[subprocess.Popen[str]], folder: Path, reference_run: Path) -> None:
    """Wait for the processes and compare the loss curve with that of one process."""
    results = wait_for(processes)
    assert [status for status, _, _ in results] == [0] * len(results), results
    for values, expected in zip(loss_curve(folder), loss_curve(reference_run), strict=True):
        assert values == pytest.approx(expected, rel=2e-3, abs=1e-5)


def test_one_machine(distill_arguments: list[str], reference_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    replacements = {
        "--nproc-per-node 2": f"--nproc-per-node 2 --master-port {free_port()}",
        "--data cifar10 --teacher resnet11 --out runs/student": options(distill_arguments, folder),
    }
    processes = start_commands(documented_commands("One machine"), [[]], replacements)
    assert_equals_reference(processes, folder, reference_run)


@contextmanager
def network_namespaces() -> Iterator[list[list[str]]]:
    """Create two network namespaces joined by a virtual cable, and yield the prefix of a command in each.

    Raises:
        FileNotFoundError: If the program ip is missing (Debian: iproute2).
        subprocess.CalledProcessError: If this user or kernel cannot create namespaces.
    """
    names = [f"camkd-{os.getpid()}-{number}" for number in (1, 2)]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.0.0.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def start_two_machines(
    prefixes: Sequence[Sequence[str]], replacements: Mapping[str, str]
) -> list[subprocess.Popen[str]]:
    """Start the documented commands, with one process on each machine."""
    one_process = {"--nproc-per-node 4": "--nproc-per-node 1"}
    return start_commands(documented_commands("Two machines"), prefixes, {**one_process, **replacements})


@pytest.fixture(scope="module")
def has_network_namespaces() -> bool:
    try:
        with network_namespaces():
            return True
    except (FileNotFoundError, subprocess.CalledProcessError):
        return False


def test_two_machines_as_network_namespaces(
    has_network_namespaces: bool, distill_arguments: list[str], reference_run: Path, tmp_path: Path
) -> None:
    if not has_network_namespaces:
        pytest.skip("no network namespaces: they need the program ip (Debian: iproute2) and the rights to create them")
    folder = tmp_path / "run"
    with network_namespaces() as prefixes:
        processes = start_two_machines(prefixes, {"...": options(distill_arguments, folder)})
        assert_equals_reference(processes, folder, reference_run)


def test_two_machines_on_loopback(
    has_network_namespaces: bool, distill_arguments: list[str], reference_run: Path, tmp_path: Path
) -> None:
    """Two groups of processes on this machine, where network namespaces are not available."""
    if has_network_namespaces:
        pytest.skip("tested with network namespaces")
    folder = tmp_path / "run"
    loopback = {"10.0.0.1": "127.0.0.1", "29500": str(free_port()), "=eth0": "=lo"}
    processes = start_two_machines([[], []], {**loopback, "...": options(distill_arguments, folder)})
    assert_equals_reference(processes, folder, reference_run)
