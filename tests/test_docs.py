"""Run the documentation: its commands, its Python code and its example patches."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentError
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from jsonargparse import ArgumentParser
from PIL import Image

from camkd.cams import MAP_METHODS
from camkd.cli.commands import COMMANDS, Command, Group
from camkd.cli.listing import list_items
from camkd.cli.main import _build_parser, _select_command, main
from camkd.cli.recipes import expand_recipe
from camkd.cli.thresholds import parse_thresholds
from camkd.config import AUTO
from camkd.distill.objective import parse_objective
from camkd.experiments.compare.plan import parse_methods
from camkd.models import model_factory
from camkd.report.comparison_stats import METRIC_KEYS
from camkd.types import InputError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PATCHES = sorted((ROOT / "docs" / "diffs").glob("*.diff"))


def indented_commands(text: str) -> list[list[str]]:
    """Return the arguments of every ``camkd`` command in the indented blocks of a page."""
    text = re.sub(r"\\\n\s*", "", text)
    lines = re.findall(r"^    ((?:camkd|torchrun .* -m camkd) .*)$", text, re.MULTILINE)
    parts = [part for line in lines for part in re.split(r"\s+&&\s+", re.sub(r"\s{2,}#.*|\s+# .*", "", line))]
    return [shlex.split(re.sub(r"^torchrun .* -m ", "", part))[1:] for part in parts]


def fenced_and_inline_commands(text: str) -> list[list[str]]:
    r"""Return the arguments of every ``camkd`` command in fenced blocks and in backticks.

    Commands shortened by ``...`` are left out. An option in brackets, ``[--data D]``, is included. ``list\|verify``
    stands for two commands.
    """
    text = re.sub(r"\\\n\s*", "", text)
    fence = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    fenced = [line for kind, block in fence.findall(text) if kind != "python" for line in block.splitlines()]
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", fence.sub("", text))]
    matches = [re.match(r"(?:.*(?:torchrun|srun) .*)?\bcamkd (.*)", line) for line in fenced + inline]
    lines = [re.sub(r"[\[\]]|(?<=[A-Z])\.\.\.", "", match[1]) for match in matches if match]
    choices = [[word.split(r"\|") for word in line.split()] for line in lines if "..." not in line]
    return [list(arguments) for words in choices for arguments in product(*words)]


def page_commands(page: Path) -> list[list[str]]:
    text = page.read_text(encoding="utf-8")
    return [*indented_commands(text), *fenced_and_inline_commands(text)]


ALL_COMMANDS = {tuple(arguments): page.name for page in PAGES for arguments in page_commands(page)}
"""Every command of the documentation, once, with the last page that contains the command."""


def test_commands_are_extracted_from_every_kind_of_markup() -> None:
    text = r"""
    camkd train --data D \
        --out RUN          # a comment
    camkd export RUN && camkd web DIR

| `camkd cache list\|verify` | `camkd evaluate RUN [--data D]` | `camkd compare ...` |

```
torchrun --nproc-per-node 2 -m camkd distill --resume
```
"""
    assert indented_commands(text) == [["train", "--data", "D", "--out", "RUN"], ["export", "RUN"], ["web", "DIR"]]
    assert fenced_and_inline_commands(text) == [
        ["distill", "--resume"],
        ["cache", "list"],
        ["cache", "verify"],
        ["evaluate", "RUN", "--data", "D"],
    ]
    assert len(ALL_COMMANDS) > 60


@lru_cache(maxsize=1)
def parser() -> ArgumentParser:
    return _build_parser()


def check_command(arguments: list[str]) -> None:
    """Raise an error if a command is invalid. The name of a command by itself is valid, with and without ``--help``.

    The names of networks, methods and metrics are looked up, except for placeholders in capitals.
    """
    commands: Mapping[str, Command | Group] = COMMANDS
    rest = [word for word in arguments if word != "--help"]
    while rest and isinstance(group := commands[rest[0]], Group):
        commands = group.commands
        rest = rest[1:]
    if not rest or (len(rest) == 1 and rest[0] in commands):
        return
    _, options = _select_command(parser().parse_args(expand_recipe(arguments)), COMMANDS)
    values = {name: value for name, value in options.items() if isinstance(value, str) and not value.isupper()}
    for network in (
        values[name] for name in ("model", "student", "teacher") if name in values and values[name] != AUTO
    ):
        library, colon, _ = network.partition(":")
        if "/" not in network and (not colon or find_spec(library)):  # not a run, and the library is installed
            model_factory(network, pretrained=False)
    if "method" in values:
        assert values["method"] in MAP_METHODS if arguments[0] == "explain" else parse_objective(values["method"])
    if "methods" in values:
        parse_methods(values["methods"])
    for name in ("fail_under", "fail_over"):
        if name in values:
            keys = {key for key in parse_thresholds(values[name], name) if not key.startswith("recall:")}
            assert keys <= set(METRIC_KEYS)
    if arguments[0] == "list":
        list_items(rest[1], 32, 10)


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "train --nonsense 1",
        "train --terms rubbish",
        "train --student nonsense",
        "train --recipe nonsense",
        "compare --teacher runs/t --methods nonsense",
        "compare --teacher runs/t --methods ce=1,kd=1",
        "evaluate RUN --fail-under accuracy",
        "evaluate RUN --fail-under nonsense=1",
        "explain RUN a.jpg --out a.png --method nonsense",
        "list nonsense",
    ],
)
def test_check_command_rejects_invalid_commands(line: str) -> None:
    with pytest.raises((InputError, ArgumentError, AssertionError, KeyError)):
        check_command(line.split())


@pytest.mark.parametrize("arguments", ALL_COMMANDS, ids=lambda words: f"{ALL_COMMANDS[words]}-{' '.join(words)[:60]}")
def test_command_of_the_docs_is_valid(arguments: tuple[str, ...]) -> None:
    check_command(list(arguments))


TINY = ["--batch-size", "24", "--precision", "fp32", "--figure-every", "0"]
SHORT = ["--student", "resnet8", "--limit", "30", "--epochs", "1", *TINY]
TINY_SETTINGS = {
    "train": ["--teacher", "runs/mine/teacher", *SHORT],
    "compare": ["--seeds", "1", "--processes", "1", *SHORT],
    "export": ["--force"],
    "bench-device": ["--rounds", "1"],
}
"""Options that are added to commands of the pages, so that the commands end soon."""
REPLACEMENTS = {
    "shapes": "FOLDER",
    "RUN": "runs/mine/teacher",
    "NEW": "FOLDER",
    "holiday/": "holiday",
    "PILE": "holiday",
    "cat.jpg": "image.jpg",
    "resnet50": "resnet8",
}
"""Names in the pages that stand for a dataset, a run, an image or a smaller network of the tests."""


def command_kind(arguments: list[str]) -> tuple[str, ...]:
    """Return the command, the names of its options and the type of its output file. One command of each kind is run."""
    name = arguments[:2] if arguments[0] == "cache" else arguments[:1]
    options = {word for word in arguments if word.startswith("--")} - {"--out"}
    output_types = [Path(value).suffix for option, value in pairwise(arguments) if option == "--out"]
    return (*name, *sorted(options), "".join(output_types))


class Workspace:
    """A folder in which the commands of the pages are run.

    Args:
        folder: Contains images in class folders (``FOLDER``), a folder ``holiday`` with an image, and ``image.jpg``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kinds: set[tuple[str, ...]] = set()

    def run(self, arguments: list[str], settings: list[str] | None = None) -> None:
        """Run a command with tiny settings, unless a command of the same kind ran before."""
        kind = command_kind(arguments)
        if kind in self.kinds:
            return
        self.kinds.add(kind)
        arguments = [REPLACEMENTS.get(word, word) for word in arguments]
        arguments += TINY_SETTINGS.get(arguments[0], []) if settings is None else settings
        if arguments[0] in ("train", "compare") and "--out" not in arguments:
            arguments += ["--out", f"runs/{len(self.kinds)}"]
        assert main(arguments) == 0, arguments


@pytest.fixture(scope="module")
def images_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 60 images of 16x16 pixels that differ in color, a folder ``holiday`` and ``image.jpg``."""
    folder = tmp_path_factory.mktemp("workspace")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("robin", "wren", "tit")):
        (folder / "FOLDER" / name).mkdir(parents=True)
        for number in range(60):
            pixels = rng.integers(0, 90, (16, 16, 3))
            pixels[:, :, label] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "FOLDER" / name / f"{number}.png")
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "image.jpg")
    (folder / "holiday").mkdir()
    shutil.copy(folder / "image.jpg", folder / "holiday")
    return folder


@pytest.fixture(scope="module")
def shared_workspace(images_folder: Path) -> Workspace:
    """A workspace in which ``camkd train`` of data.md has made ``runs/mine``, the folder of three runs."""
    workspace = Workspace(images_folder)
    commands = indented_commands((ROOT / "docs" / "data.md").read_text(encoding="utf-8"))
    train = next(arguments for arguments in commands if arguments[0] == "train" and "runs/mine" in arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(images_folder)
        workspace.run(train, ["--teacher", "resnet8", "--student", "resnet8", "--epochs", "12", *TINY])
    return workspace


@pytest.fixture
def workspace(shared_workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.chdir(shared_workspace.folder)
    return shared_workspace


@pytest.mark.slow
@pytest.mark.parametrize("page", ["start", "data", "methods", "maps", "device", "scale"])
def test_commands_of_a_page_run(page: str, workspace: Workspace) -> None:
    for arguments in indented_commands((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")):
        if arguments[0] != "web":  # serves until it is interrupted
            workspace.run(arguments)


TESTED_ELSEWHERE = {"machines.md": "tests_extras/test_ray.py", "maps.md": "tests_extras/test_pages.py"}
"""Pages whose Python code needs an extra, and the test that runs it."""


CODE_REPLACEMENTS = {
    'DataConfig("FOLDER")': 'DataConfig("FOLDER", limit=30)',
    "TrainConfig(epochs=20)": 'TrainConfig(epochs=1, batch_size=24, precision="fp32", figure_every=0)',
    'teacher="resnet8"': 'teacher="runs/mine/teacher"',
    'model="cam-net"': 'model="resnet8"',
}
"""Settings in the Python code of the pages, and their replacements, with which a test ends soon."""


def python_blocks(page: Path) -> list[str]:
    """Return the Python code blocks of a page with `CODE_REPLACEMENTS`, without uploads to a hub."""
    text = page.read_text(encoding="utf-8")
    for setting, tiny in CODE_REPLACEMENTS.items():
        text = text.replace(setting, tiny)
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(r".*push_to_hub.*\n", "", code) for code in blocks]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if python_blocks(page) and page.name not in TESTED_ELSEWHERE],
    ids=lambda page: page.name,
)
def test_python_of_a_page_runs(page: Path, workspace: Workspace) -> None:
    if "model.onnx" in page.read_text(encoding="utf-8") and not Path("model.onnx").exists():
        workspace.run(["export", "runs/mine", "--int8"])
        shutil.copy("runs/mine/export/model.onnx", "model.onnx")
    names = {"image": np.random.default_rng(0).random((1, 3, 16, 16), dtype=np.float32)}
    for code in python_blocks(page):
        exec(compile(code, page.name, "exec"), names)


def test_python_with_extras_is_tested_elsewhere() -> None:
    for name, test in TESTED_ELSEWHERE.items():
        assert python_blocks(ROOT / "docs" / name)
        assert name in (ROOT / test).read_text(encoding="utf-8")


def apply_patch(path: Path, folder: Path, *options: str) -> None:
    subprocess.run(
        ["patch", "-p1", "--fuzz=0", "--quiet", "--force", *options, "-i", str(path)], cwd=folder, check=True
    )


@pytest.mark.parametrize("path", PATCHES, ids=lambda path: path.stem)
def test_example_patch_applies_to_the_source(path: Path) -> None:
    apply_patch(path, ROOT, "--dry-run")


@pytest.mark.slow
def test_example_patches_pass_their_tests(tmp_path: Path) -> None:
    """Apply all example patches to a copy of the source and run the tests that they add."""
    for name in ("src", "tests", "pyproject.toml", "docs"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    added_tests = []
    for path in PATCHES:
        apply_patch(path, tmp_path)
        tests = re.findall(r"^\+\+\+ b/(tests/.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert tests, path
        added_tests += tests
    environment = {"PYTHONPATH": str(tmp_path / "src"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *added_tests],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
