"""What the documentation shows is run: its commands, its Python, its worked changes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentError
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camkd.cams import MAP_METHODS as MAPS
from camkd.cli.commands import COMMANDS, Group
from camkd.cli.main import _chosen, _parser, main
from camkd.cli.recipes import expand_recipe
from camkd.cli.thresholds import parse_thresholds
from camkd.distill.objective import parse_objective
from camkd.experiments.compare.plan import methods_of
from camkd.models import model_factory
from camkd.report.comparison_stats import FIGURES
from camkd.types import InputError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DIFFS = sorted((ROOT / "docs" / "diffs").glob("*.diff"))


def commands(page: Path) -> list[list[str]]:
    """The words of every ``camkd`` command in the page's indented blocks."""
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    lines = re.findall(r"^    ((?:camkd|torchrun .* -m camkd) .*)$", text, re.MULTILINE)
    parts = [part for line in lines for part in re.split(r"\s+&&\s+", re.sub(r"\s{2,}#.*|\s+# .*", "", line))]
    return [shlex.split(re.sub(r"^torchrun .* -m ", "", part))[1:] for part in parts]


def mentioned(page: Path) -> list[list[str]]:
    """The words of every ``camkd`` command in fenced blocks and between backticks, but for those shortened by ``...``.

    ``[--data D]`` counts as given, and of ``list\\|fill`` each one.
    """
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    fence = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
    fenced = [line for kind, block in fence.findall(text) if kind != "python" for line in block.splitlines()]
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", fence.sub("", text))]
    found = [
        match[1] for line in fenced + inline if (match := re.match(r"(?:.*(?:torchrun|srun) .*)?\bcamkd (.*)", line))
    ]
    plain = [re.sub(r"[\[\]]|(?<=[A-Z])\.\.\.", "", line) for line in found]
    choices = [[word.split(r"\|") for word in line.split()] for line in plain if "..." not in line]
    return [list(words) for each in choices for words in product(*each)]


EVERY = [(page, words) for page in PAGES for words in [*commands(page), *mentioned(page)]]


def test_there_are_commands() -> None:
    """In blocks of both kinds, in tables and in sentences."""
    assert len(EVERY) > 80
    for name, said in {
        "machines.md": "distill --data cifar10 --teacher resnet11 --out runs/student --resume",
        "pictures.md": "train --data FOLDER --size 128 --teacher runs/teacher --out runs/tuned",
        "README.md": "compare --data D --teacher T --methods plain,kd,cam-kd --seeds 5 --out DIR",
        "scale.md": "cache prune --keep 20GB",
    }.items():
        assert said.split() in [words for page, words in EVERY if page.name == name]


def check(words: list[str]) -> None:
    """Raise where a command is none; one that is only named needs none of its options.

    Names of networks, methods and figures are looked up, but for ``M`` and its like, which stand for any.
    """
    named, rest = COMMANDS, words
    while rest and isinstance(group := named[rest[0]], Group):
        named, rest = group.commands, rest[1:]
    if len(rest) == 1 and rest[0] in named:
        return
    _, options = _chosen(_parser().parse_args(expand_recipe(words)), COMMANDS)
    said = {name: value for name, value in options.items() if isinstance(value, str) and not value.isupper()}
    for network in (said[name] for name in ("model", "student", "teacher") if name in said):
        library, colon, _ = network.partition(":")
        if "/" not in network and (not colon or find_spec(library)):  # no run, and no library that is not here
            model_factory(network, pretrained=False)
    if "method" in said:
        assert said["method"] in MAPS if words[0] == "explain" else parse_objective(said["method"])
    if "methods" in said:
        methods_of(said["methods"])
    for name in ("fail_under", "fail_over"):
        if name in said:
            assert parse_thresholds(said[name], name).keys() <= set(FIGURES)
    if words[0] == "list":
        assert main(words) == 0


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
def test_what_is_no_command_is_found(line: str) -> None:
    with pytest.raises((InputError, ArgumentError, AssertionError, KeyError)):
        check(line.split())


@pytest.mark.parametrize(("page", "words"), EVERY, ids=[f"{page.name}-{' '.join(words)[:60]}" for page, words in EVERY])
def test_every_command_is_one(page: Path, words: list[str]) -> None:
    check(words)


TINY = ["--epochs", "12", "--batch-size", "24", "--precision", "fp32", "--figure-every", "0"]
QUICK = {
    "train": ["--teacher", "resnet8", "--student", "resnet8", *TINY],
    "compare": ["--student", "resnet8", *TINY, "--epochs", "1", "--seeds", "1", "--processes", "1"],
    "evaluate": ["--data", "FOLDER"],
    "export": ["--force"],
    "bench-device": ["--rounds", "1"],
}
"""What a test adds to a command of the docs, so that it ends soon."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages take for granted: pictures in class folders called FOLDER, and picture.jpg."""
    desk, rng = tmp_path_factory.mktemp("desk"), np.random.default_rng(0)
    for label, name in enumerate(("robin", "wren", "tit")):
        (desk / "FOLDER" / name).mkdir(parents=True)
        for number in range(60):
            pixels = rng.integers(0, 90, (16, 16, 3))
            pixels[:, :, label] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(desk / "FOLDER" / name / f"{number}.png")
    Image.fromarray(pixels.astype(np.uint8)).save(desk / "picture.jpg")
    return desk


@pytest.mark.parametrize("page", ["start", "pictures"])
def test_a_page_from_top_to_bottom(page: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    for words in commands(ROOT / "docs" / f"{page}.md"):
        if words[0] != "web":
            said = [*words, *QUICK.get(words[0], [])]
            said = ["FOLDER" if word == "shapes" else word for word in said]
            assert main(said) == 0, said


STANDS_FOR = {"RUN": "runs/mine/teacher", "holiday/": "FOLDER/robin", "cat.jpg": "picture.jpg", "resnet50": "resnet8"}


@pytest.mark.parametrize("page", ["methods", "maps", "device", "scale"])
def test_a_page_about_what_is_trained(page: str, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)
    for number, words in enumerate(commands(ROOT / "docs" / f"{page}.md")):
        if words[0] != "web":
            said = [STANDS_FOR.get(word, word) for word in [*words, *QUICK.get(words[0], [])]]
            said += ["--out", f"runs/{page}-{number}"] if words[0] in ("train", "compare") else []
            assert main(said) == 0, said


ELSEWHERE = {"machines.md": "tests_extras/test_ray.py", "maps.md": "tests_extras/test_pages.py"}
"""Pages whose Python needs an extra, and which test runs it."""


def blocks(page: Path) -> list[str]:
    """The page's Python that is meant to be run; without sending anything to a hub."""
    found = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [re.sub(r".*push_to_hub.*\n", "", code) for code in found if "@dataclass" not in code]


@pytest.fixture(scope="module")
def workshop(desk: Path) -> Path:
    """The desk with what a page's Python takes for granted, too: a finished run and its exported model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        if not Path("runs/mine/report.html").exists():
            assert main(["train", "--data", "FOLDER", "--out", "runs/mine", *QUICK["train"]]) == 0
        shutil.copy(export("runs/mine"), desk)
    return desk


def export(run: str) -> Path:
    """The path of its model.onnx."""
    assert main(["export", run, "--out", "exported"]) == 0
    return Path("exported") / "model.onnx"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page) and page.name not in ELSEWHERE], ids=lambda page: page.name
)
def test_python_runs(page: Path, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)
    names = {"picture": np.random.default_rng(0).random((1, 3, 16, 16), dtype=np.float32)}
    for code in blocks(page):
        exec(compile(code, page.name, "exec"), names)


def test_what_runs_elsewhere_does() -> None:
    assert all(blocks(ROOT / "docs" / name) and name in (ROOT / test).read_text() for name, test in ELSEWHERE.items())


@pytest.mark.parametrize("path", DIFFS, ids=lambda path: path.stem)
def test_a_worked_change(path: Path, tmp_path: Path) -> None:
    """It fits the source as it is, and the tests that it brings pass on the result."""
    for name in ("src", "tests", "pyproject.toml", "docs"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    subprocess.run(["patch", "-p1", "--fuzz=0", "--quiet", "-i", str(path)], cwd=tmp_path, check=True)
    brought = re.findall(r"^\+\+\+ b/(tests/.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert brought
    environment = {"PYTHONPATH": str(tmp_path / "src"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *brought],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
