"""Every text that camkd parses is accepted, or rejected with a one-line message; formatting is the inverse."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from camkd.cams import predict
from camkd.cli.main import main
from camkd.cli.thresholds import parse_thresholds, violations
from camkd.data.dataset import Split
from camkd.data.store import SplitArrays, build_or_open
from camkd.distill.cache import Manifest, Store
from camkd.distill.losses.registry import TERMS
from camkd.distill.objective import SCHEDULES, format_objective, parse_objective
from camkd.experiments.compare.plan import parse_methods, slug
from camkd.models import build
from camkd.runs.checkpoints import Checkpoints
from camkd.runs.resume import ACCEPTABLE, parse_accept
from camkd.types import InputError
from camkd.utils.files import dump_checksummed
from camkd.utils.units import parse_quantity

TOKENS = (
    *TERMS, *SCHEDULES, "schedule", "T", "pool", "classes", "norm", "all", "l2", "top-1", "kd", "plain", "=", "=", "=",
    ",", ",", "+", ":", ":", " ", "-", "1", "0", "0.5", "1e3", "1e-7", "0.12345678901", "nan", "inf", "1e999", "4GB",
    "9" * 400, "_", "\n", "\0", "é", "\ud800", "cam_cosine", "lr", "epochs",
)  # fmt: skip
texts = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(TOKENS), max_size=9).map("".join))
weights = st.floats(0, 1e6, allow_nan=False).filter(lambda value: value == 0 or value > 1e-9)
terms = st.builds(
    lambda name, weight, schedule: f"{name}={weight!r}{schedule}",
    st.sampled_from(sorted(TERMS)),
    weights,
    st.sampled_from(["", *(f":schedule={name}" for name in SCHEDULES)]),
)
sums = st.lists(terms, min_size=1, max_size=4).map("+".join)


def parse_or_none(parse: Callable[[str], Any], text: str) -> Any:
    """Parse ``text``. Return None if it is rejected, and assert that the message is one line."""
    try:
        return parse(text)
    except InputError as error:
        message = str(error)
    assert message
    assert "\n" not in message
    return None


# --- short texts


@settings(max_examples=300)
@given(st.one_of(texts, sums))
@example("ce=0.1234567+kd=1")
def test_objectives(text: str) -> None:
    objective = parse_or_none(parse_objective, text)
    if objective is not None:
        assert parse_objective(format_objective(objective)) == objective
        assert all(math.isfinite(term.weight) and term.weight >= 0 for term in objective.terms.values())
        for progress in (0.0, 0.3, 1.0):
            assert all(0 <= term.weight_at(progress) <= term.weight for term in objective.terms.values())


@settings(max_examples=200)
@given(st.one_of(texts, st.lists(st.one_of(sums, st.sampled_from(["plain", "kd"])), max_size=3).map(", ".join)))
def test_lists_of_methods(text: str) -> None:
    methods = parse_or_none(parse_methods, text)
    if methods is not None:
        assert parse_methods(",".join(methods)) == methods
        assert len(set(map(slug, methods))) == len(methods)
        assert all("/" not in slug(method) and slug(method) not in (".", "..") for method in methods)


@given(texts)
@example("9" * 400)
@example("1e5")
def test_quantities(text: str) -> None:
    quantity = parse_or_none(lambda text: parse_quantity(text, "cache_budget", "B"), text)
    assert quantity is None or (isinstance(quantity, int) and quantity >= 0)


@given(texts)
def test_thresholds(text: str) -> None:
    thresholds = parse_or_none(lambda text: parse_thresholds(text, "--fail-under"), text)
    if thresholds is not None:
        assert all(name and math.isfinite(value) for name, value in thresholds.items())
        assert violations(dict(thresholds), thresholds, thresholds) is None


@given(texts)
def test_settings_accepted_on_resume(text: str) -> None:
    accepted = parse_or_none(parse_accept, text)
    assert accepted is None or set(accepted) <= set(ACCEPTABLE)


@settings(max_examples=40)
@given(st.one_of(texts, st.sampled_from(["stem", "stages.0", "stages.0.0.conv1", "head", "", ".", "stages..0"])))
def test_layer_names(text: str) -> None:
    model = build("resnet8", 3, 16)
    x = torch.rand(1, 3, 16, 16)
    prediction = parse_or_none(lambda text: predict(model, x, layer=text), text)
    assert prediction is None or prediction.cams.isfinite().all()


# --- command line and configuration files

FLAGS = (
    "--epochs", "--batch-size", "--lr", "--augment", "--method", "--seed", "--cache-budget", "--accept",
    "--precision", "--device", "--student", "--optimizer", "--on-nan", "--limit", "--augment-epochs", "--config",
)  # fmt: skip


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FLAGS), texts)
@pytest.mark.slow
def test_flags(capsys: pytest.CaptureFixture[str], flag: str, text: str) -> None:
    """Valid values lead to the error about the missing folder of images."""
    assert main(["distill", "--data", "/nowhere", "--teacher", "cam-net-cifar10", f"{flag}={text}"]) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("camkd: ")
    assert "Traceback" not in stderr


yaml_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)
config_keys = st.sampled_from(["epochs", "lr", "method", "augment", "size", "out", "resume", "student"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        texts,
        yaml_values.map(yaml.safe_dump),
        st.dictionaries(config_keys, yaml_values, max_size=3).map(yaml.safe_dump),
    )
)
@pytest.mark.slow
def test_configuration_files(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_bytes(text.encode("utf-8", "replace"))
    command = ["distill", "--config", str(tmp_path / "a.yaml"), "--data", "/nowhere", "--teacher", "cam-net-cifar10"]
    assert main(command) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.fault("YAML tags that execute code")
@pytest.mark.parametrize(
    "text",
    [
        "lr: !!python/object/apply:pathlib.Path.touch [{path}]",
        "!!python/object/new:pathlib.Path [{path}]",
        "lr: !!python/name:os.system",
        "lr: !include /etc/passwd",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]",
    ],
)
def test_yaml_tags_execute_nothing(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "executed"
    config = tmp_path / "a.yaml"
    config.write_text(text.replace("{path}", str(marker)))
    command = ["distill", "--config", str(config), "--data", "/nowhere", "--teacher", "cam-net-cifar10"]
    assert main(command) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not marker.exists()


# --- manifests with arbitrary content and a valid checksum

KEYS = (
    "last", "best", "name", "bytes", "sha256", "classes", "names", "sha256_of", "fingerprint", "notes", "train", "val",
    "test", "version", "record_format", "bias", "height", "width", "num_samples", "teacher", "architecture", "data",
    "augment", "augment_seed", "precision",
)  # fmt: skip
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 1 << 70), st.floats(allow_nan=False, allow_infinity=False),
              st.sampled_from(["", "../../etc/passwd", "/etc/passwd", "train_labels.npy", "\0"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=6)
    ),
    max_leaves=12,
)  # fmt: skip
manifests = st.dictionaries(st.sampled_from(KEYS), json_values, max_size=9)


def build_arrays(folder: Path) -> SplitArrays:
    split = Split(np.zeros((2, 2, 2, 3), np.uint8), np.arange(2))
    return SplitArrays(("a", "b"), split, split, split)


@settings(max_examples=100)
@given(manifests)
@pytest.mark.slow
def test_manifests_with_arbitrary_content(tmp_path_factory: pytest.TempPathFactory, values: Mapping[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("manifests")
    (folder / "last-00000001.json").write_text(dump_checksummed(values))
    parse_or_none(lambda _: Checkpoints(folder).load(), "")
    build_or_open("easy", "key", folder, build_arrays)
    (dataset_folder,) = (folder / "data").iterdir()
    (dataset_folder / "dataset.json").write_text(dump_checksummed(values))
    parse_or_none(lambda _: build_or_open("easy", "key", folder, build_arrays), "")


sizes = st.one_of(st.sampled_from([3, 4]), st.integers(-3, 1 << 70), st.none(), st.booleans(), st.just("4"))


@given(sizes, sizes, sizes, sizes, st.one_of(st.none(), sizes, st.lists(sizes, max_size=4)))
def test_teacher_cache_manifests_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, num_samples: Any, classes: Any, height: Any, width: Any, bias: Any
) -> None:
    """Valid sizes have a positive number of bytes per epoch."""
    folder = tmp_path_factory.mktemp("store")
    values = dict.fromkeys(("teacher", "architecture", "data", "augment", "precision"), "x") | {
        "augment_seed": 0,
        "num_samples": num_samples,
        "record_format": {"classes": classes, "height": height, "width": width, "bias": bias},
    }
    (folder / "store.json").write_text(dump_checksummed(values))
    epoch_bytes = parse_or_none(lambda _: Store(folder, Manifest.read(folder)).epoch_bytes, "")
    assert epoch_bytes is None or epoch_bytes > 0
