"""The teacher cache of a run: its key, record format and manifest, and outputs equal to those of the teacher."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from camkd.cams import predict
from camkd.config import DataConfig, DistillConfig, RunConfig, TrainConfig
from camkd.data import augment
from camkd.data.augment import Policy, get_policy
from camkd.data.dataset import Dataset, Split
from camkd.data.files import VERSION as DECODING_VERSION
from camkd.data.views import Views
from camkd.distill import keys
from camkd.distill.cache import Manifest, RecordFormat, TeacherCache, build, cache_key
from camkd.distill.cache.build import build_teacher_cache, make_teacher_fn
from camkd.distill.keys import key_inputs
from camkd.distill.teacher import Teacher, load_teacher
from camkd.models import MODELS
from camkd.models.architecture import architecture_key
from camkd.models.resnet import BasicBlock, ResNet
from camkd.types import Prediction
from support.untrained import save_untrained

pytestmark = pytest.mark.slow

TRAIN = TrainConfig(epochs=2, batch_size=24, precision="fp32", device="cpu")
CPU = torch.device("cpu")


def run_config(train: TrainConfig = TRAIN, **distill_settings: Any) -> RunConfig:
    return RunConfig(DataConfig("easy"), train, DistillConfig(**distill_settings))


@pytest.fixture(scope="module")
def teacher_folder(easy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("teacher") / "resnet8", "resnet8", easy, random_batchnorm=True)


@pytest.fixture(scope="module")
def teacher(easy: Dataset, teacher_folder: Path) -> Teacher:
    return load_teacher(teacher_folder, easy, "cpu")


@pytest.fixture(scope="module")
def mlp_teacher(easy: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Teacher]:
    """A teacher with a hidden layer in its head, whose maps are gradient-based."""

    def make(num_classes: int, image_size: int) -> ResNet:
        return ResNet(BasicBlock, (8, 16), (1, 1), num_classes, image_size, hidden_features=6)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny-mlp", make)
        folder = tmp_path_factory.mktemp("teacher") / "tiny-mlp"
        yield load_teacher(save_untrained(folder, "tiny-mlp", easy, random_batchnorm=True), easy, "cpu")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test."""
    monkeypatch.setenv("CAMKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def store_folder_of(teacher: Teacher, data: Dataset, config: RunConfig | None = None) -> Path:
    store = build_teacher_cache(replace(teacher, student_data=data), config or run_config()).store
    assert store is not None
    return store.folder


# --- the key


def test_settings_without_influence_on_outputs_share_a_store(
    teacher: Teacher, easy: Dataset, teacher_folder: Path
) -> None:
    folder = store_folder_of(teacher, easy)
    configs = [
        run_config(replace(TRAIN, seed=5, lr=0.7, epochs=9, label_smoothing=0.1, figure_every=1, ema_decay=0.5)),
        run_config(replace(TRAIN, batch_size=7, augment_epochs=1)),
        run_config(method="kd"),
        run_config(teacher="elsewhere"),
        run_config(cache_budget="1kB"),
        run_config(cache_map_size=4),
        run_config(cache_map_size=99),
    ]
    assert {store_folder_of(teacher, easy, config) for config in configs} == {folder}
    assert store_folder_of(load_teacher(teacher_folder, easy, "cpu"), easy) == folder
    assert store_folder_of(teacher, replace(easy, name="another name", notes=("note",))) == folder
    assert folder.parent == Path(os.environ["CAMKD_CACHE"]) / "teacher"
    assert not folder.exists(), "the first write creates it"


@pytest.mark.parametrize(
    "changes", [{"augment": "none"}, {"augment": "strong"}, {"augment_seed": 1}, {"precision": "bf16"}], ids=str
)
def test_other_augmentation_or_precision_has_another_store(
    teacher: Teacher, easy: Dataset, changes: dict[str, Any]
) -> None:
    assert store_folder_of(teacher, easy, run_config(replace(TRAIN, **changes))) != store_folder_of(teacher, easy)


def test_each_map_size_has_its_store(teacher: Teacher, easy: Dataset) -> None:
    folders = {store_folder_of(teacher, easy, run_config(cache_map_size=side)) for side in (1, 2, 3, 4)}
    assert len(folders) == 4


def test_other_images_have_another_store(teacher: Teacher, easy: Dataset) -> None:
    folder = store_folder_of(teacher, easy)
    assert store_folder_of(teacher, replace(easy, source_fingerprint="e" * 64)) != folder
    assert store_folder_of(teacher, easy.limited(12, ("train",))) != folder
    assert store_folder_of(teacher, replace(easy, fit="pad")) != folder
    assert store_folder_of(teacher, replace(easy, interpolation="bilinear")) != folder


@pytest.mark.parametrize("name", ["layer2.0.conv1.weight", "layer3.0.bn2.running_var", "fc.bias", "std"])
def test_one_changed_bit_of_a_weight_has_another_store(teacher: Teacher, easy: Dataset, name: str) -> None:
    folder = store_folder_of(teacher, easy)
    tensor = teacher.model.state_dict()[name]
    first = (0,) * tensor.ndim
    original = tensor[first].clone()
    tensor[first] = torch.nextafter(original, torch.tensor(9.0))
    try:
        assert store_folder_of(teacher, easy) != folder
    finally:
        tensor[first] = original
    assert store_folder_of(teacher, easy) == folder


@pytest.mark.parametrize(
    ("module", "version"), [(keys, "OUTPUT_VERSION"), (keys, "DECODING_VERSION"), (build, "RECORD_VERSION")]
)
def test_other_version_has_another_store(
    teacher: Teacher, easy: Dataset, module: ModuleType, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store_folder_of(teacher, easy)
    monkeypatch.setattr(module, version, getattr(module, version) + 1)
    assert store_folder_of(teacher, easy) != folder


def test_changed_augmentation_policy_has_another_store(
    teacher: Teacher, easy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store_folder_of(teacher, easy)
    monkeypatch.setitem(augment.POLICIES, "light", Policy(crop=True))
    assert store_folder_of(teacher, easy) != folder


def test_other_version_of_torch_has_another_store(
    teacher: Teacher, easy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store_folder_of(teacher, easy)
    monkeypatch.setattr("camkd.models.architecture.version", lambda library: f"{library} 99")
    assert store_folder_of(teacher, easy) != folder


def test_other_architecture_key_has_another_store(
    teacher: Teacher, easy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An example is ``global_pool`` of a vision transformer, which is not a parameter."""
    folder = store_folder_of(teacher, easy)
    monkeypatch.setattr(teacher.model.fc, "scale", 2.0, raising=False)
    assert store_folder_of(teacher, easy) != folder


def test_other_image_size_has_another_store(teacher: Teacher, easy: Dataset, tmp_path: Path) -> None:
    def enlarge(split: Split) -> Split:
        return replace(split, images=split.images.repeat(2, 1).repeat(2, 2))

    large = replace(easy, **{name: enlarge(split) for name, split in easy.splits.items()})  # with the same fingerprints
    large_teacher = load_teacher(save_untrained(tmp_path / "large", "resnet8", easy, 32), large, "cpu")
    large_teacher.model.load_state_dict(teacher.model.state_dict())
    assert store_folder_of(large_teacher, large) != store_folder_of(teacher, easy)


@pytest.fixture
def recorded_inputs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The inputs of each key that is computed."""
    inputs: list[dict[str, Any]] = []

    def record(model: nn.Module, values: dict[str, Any]) -> str:
        inputs.append(values)
        return cache_key(model, values)

    monkeypatch.setattr(build, "cache_key", record)
    return inputs


def test_inputs_of_the_key_have_explicit_names(
    teacher: Teacher, recorded_inputs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of a name or value in this test makes every existing cache useless."""
    monkeypatch.setattr("camkd.models.architecture.version", lambda library: "2.6.0")
    data = replace(teacher.student_data, source_fingerprint="abc")
    store = build_teacher_cache(replace(teacher, student_data=data), run_config(replace(TRAIN, augment_seed=7))).store
    assert store is not None
    bias = teacher.model.state_dict()["fc.bias"].tolist()
    assert recorded_inputs == [
        {
            "architecture": "resnet8",
            "layers": architecture_key(teacher.model),
            "libraries": {"torch": "2.6.0"},
            "images": {
                "source": "abc",
                "decoding": DECODING_VERSION,
                "size": 16,
                "fit": None,
                "interpolation": None,
                "value_range": None,
            },
            "augmentation": get_policy("light").key(),
            "augmentation_seed": 7,
            "frame": 16,
            "records": {"version": 2, "classes": 3, "map": [4, 4], "bias": bias},
            "outputs": 1,
            "device": "cpu",
            "precision": "fp32",
        }
    ]


def test_path_of_the_teacher_and_name_of_the_data_are_not_inputs_of_the_key(teacher: Teacher, tmp_path: Path) -> None:
    data = replace(teacher.student_data, name="renamed")
    moved = replace(teacher, folder=tmp_path / "moved", student_data=data)
    assert store_folder_of(moved, data) == store_folder_of(teacher, teacher.student_data)
    renamed = replace(teacher, architecture="cam-net")
    assert store_folder_of(renamed, data) != store_folder_of(teacher, data)


def test_kind_of_device_is_an_input_of_the_key(teacher: Teacher) -> None:
    devices = [torch.device(name) for name in ("cpu", "cuda", "cuda:1", "mps")]
    kinds = [
        key_inputs(teacher.model, "resnet8", teacher.student_data, 16, "bicubic", device)["device"]
        for device in devices
    ]
    assert kinds == ["cpu", "cuda", "cuda", "mps"]


# --- manifest and record format


def test_manifest_describes_the_store(teacher: Teacher, easy: Dataset, teacher_folder: Path) -> None:
    train = replace(TRAIN, augment="strong", augment_seed=4)
    store = build_teacher_cache(teacher, run_config(train, cache_map_size=2)).store
    assert store is not None
    bias = tuple(teacher.model.state_dict()["fc.bias"].tolist())
    assert store.manifest == Manifest(
        teacher=str(teacher_folder.resolve()),
        architecture="resnet8",
        data="easy",
        augment="strong",
        augment_seed=4,
        precision="fp32",
        num_samples=96,
        record_format=RecordFormat(3, 2, 2, bias),
    )
    samples = np.array([0])
    store.write(0, samples, store.record_format.encode(Prediction(torch.rand(1, 3), torch.rand(1, 3, 2, 2))))
    assert Manifest.read(store.folder) == store.manifest


@pytest.mark.parametrize(
    ("map_size", "side", "logits_follow"),
    [(None, 4, True), (8, 4, True), (4, 4, True), (3, 3, False), (2, 2, True), (1, 1, True)],
)
def test_logits_are_stored_unless_they_follow_from_the_maps(
    teacher: Teacher, easy: Dataset, map_size: int | None, side: int, logits_follow: bool
) -> None:
    cache = build_teacher_cache(teacher, run_config(cache_map_size=map_size))
    assert cache.record_format is not None
    assert (cache.record_format.height, cache.record_format.width) == (side, side)
    assert (cache.record_format.bias is not None) == logits_follow
    samples = torch.arange(5)
    x = make_views(easy, "light")[0, samples].x
    with torch.no_grad():
        exact = predict(teacher.model, x)
    outputs = cache.compute(0, samples, x)
    assert exact.cams is not None
    assert_rounded(outputs.logits, exact.logits, exact.cams.abs().mean((2, 3)) + exact.logits.abs())


def test_features_are_returned_but_not_cached(teacher: Teacher, easy: Dataset, empty_cache: Path) -> None:
    cache = build_teacher_cache(teacher, run_config(method="at"), features=True)
    assert cache.store is None
    x = torch.rand(3, 3, 16, 16)
    outputs = cache.compute(0, torch.arange(3), x)
    assert cache.get(0, torch.arange(3)) is None
    assert outputs.features is not None
    with torch.no_grad():
        expected = predict(teacher.model, x, features=True).features
    assert expected is not None
    assert [stage.shape[1:] for stage in outputs.features] == [(16, 16, 16), (32, 8, 8), (64, 4, 4)]
    torch.testing.assert_close(outputs.features, expected, rtol=1e-4, atol=1e-4)
    stages = cache.compute(0, torch.arange(40), torch.rand(40, 3, 16, 16)).features  # more than one chunk
    assert stages is not None
    assert all(len(stage) == 40 and stage.dtype == torch.float32 for stage in stages)
    assert not empty_cache.exists()


# --- outputs


def make_views(data: Dataset, policy: str) -> Views:
    return Views(data.train, 3, policy, TRAIN.augment_seed, CPU)


def assert_rounded(values: Tensor, exact: Tensor, magnitude: Tensor) -> None:
    """Compare up to rounding of ``magnitude`` to float16, and the effect of folding in fp32."""
    assert values.shape == exact.shape
    excess = (values - exact).abs() - 2.0**-11 * magnitude - 2e-5 * exact.abs().max()
    assert excess.max() <= 0, float(excess.max())


def fill(cache: TeacherCache, views: Views, batch_size: int) -> None:
    """Get or compute the outputs of two epochs, in a random order of samples."""
    order = torch.randperm(96).split(batch_size)
    for epoch in range(2):
        for samples in order:
            if cache.get(epoch, samples) is None:
                cache.compute(epoch, samples, views[epoch, samples].x)


@pytest.mark.parametrize("fixture", ["teacher", "mlp_teacher"])
@pytest.mark.parametrize("policy", ["none", "light", "strong"])
def test_cached_outputs_are_those_of_the_teacher(
    easy: Dataset, policy: str, fixture: str, request: pytest.FixtureRequest
) -> None:
    teacher = request.getfixturevalue(fixture)
    config = run_config(replace(TRAIN, augment=policy))
    views = make_views(easy, policy)
    samples = torch.arange(96)
    runs = []
    for batch_size, num_computed in ((24, 2 * 96), (17, 0)):
        cache = build_teacher_cache(teacher, config)
        fill(cache, views, batch_size)
        assert cache.num_computed == num_computed
        runs.append([cache.get(epoch, samples) for epoch in range(2)])
    for epoch, (first, second) in enumerate(zip(*runs, strict=True)):
        assert first is not None
        assert second is not None
        assert second.cams is not None
        assert torch.equal(first.logits, second.logits)
        assert torch.equal(first.cams, second.cams)  # type: ignore[arg-type]
        with torch.no_grad():
            exact = predict(teacher.model, views[epoch, samples].x)
        assert exact.cams is not None
        assert_rounded(second.cams, exact.cams, exact.cams.abs())
        assert_rounded(second.logits, exact.logits, exact.cams.abs().mean((2, 3)) + exact.logits.abs())
    if policy == "strong":
        num_mixed = int(((views[0, samples].labels > 0).sum(1) > 1).sum())
        assert 20 < num_mixed < 70
    elif policy == "light":
        epochs = runs[0]
        assert not torch.equal(epochs[0].logits, epochs[1].logits)  # type: ignore[union-attr]


def test_outputs_in_bf16(teacher: Teacher, easy: Dataset) -> None:
    cache = build_teacher_cache(teacher, run_config(replace(TRAIN, precision="bf16")))
    samples = torch.arange(96)
    x = make_views(easy, "light")[0, samples].x
    uncached = cache.teacher_fn(x)
    outputs = cache.compute(0, samples, x)
    assert outputs.cams is not None
    assert uncached.cams is not None
    assert torch.equal(uncached.cams, uncached.cams.bfloat16().float()), "computed in bf16"
    assert torch.equal(outputs.cams, torch.from_numpy(uncached.cams.numpy().astype("<f2").astype("<f4")))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        in_bf16 = predict(teacher.model, x).float()
    with torch.no_grad():
        in_fp32 = predict(teacher.model, x)
    for expected in (in_bf16, in_fp32):
        assert expected.cams is not None
        for values, reference in ((outputs.cams, expected.cams), (outputs.logits, expected.logits)):
            scale = reference.std()
            assert (values - reference).square().mean().sqrt() < 0.03 * scale
            assert (values - reference).abs().max() < 0.15 * scale


def test_chunks_do_not_change_outputs(teacher: Teacher, easy: Dataset) -> None:
    x = make_views(easy, "strong")[0, torch.arange(96)].x
    teacher_fn = make_teacher_fn(teacher.model, 16, TRAIN)
    outputs = teacher_fn(x)
    assert outputs.cams is not None
    for part in (slice(0, 1), slice(3, 40), slice(31, 96)):
        part_outputs = teacher_fn(x[part])
        torch.testing.assert_close(part_outputs.logits, outputs.logits[part], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(part_outputs.cams, outputs.cams[part], rtol=1e-5, atol=1e-5)
    assert not outputs.logits.requires_grad
