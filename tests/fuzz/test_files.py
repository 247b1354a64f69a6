"""Mutated files are read, or rejected with an InputError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.targets import Edit, Target, apply_edits, make_targets

NAMES = (
    "image", "archive", "compressed archive", "checkpoint", "checkpoint manifest", "weights", "model info",
    "configuration", "metrics", "history", "gallery", "per-image table", "dataset manifest",
    "dataset train_images.npy", "dataset train_labels.npy", "dataset val_sums.npy", "teacher outputs",
    "teacher cache manifest",
)  # fmt: skip

edits: st.SearchStrategy[Edit] = st.tuples(
    st.sampled_from(["flip", "flip", "insert", "cut", "double"]), st.floats(0, 1), st.binary(max_size=5)
)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Target]:
    return make_targets(tmp_path_factory.mktemp("fuzz"))


def test_names_are_complete(targets: Mapping[str, Target]) -> None:
    assert sorted(targets) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_valid_file_is_read(targets: Mapping[str, Target], name: str) -> None:
    for seed in targets[name].seeds:
        targets[name].read(seed)


@pytest.mark.fault("file of another type")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"<html>404</html>", b"[" * 100_000, b'"\\ud800"', b"\xff\xfe"])
def test_file_of_another_type_is_rejected(targets: Mapping[str, Target], name: str, content: bytes) -> None:
    targets[name](content)


@pytest.mark.fault("file with 60 random mutations")
@pytest.mark.parametrize("name", NAMES)
def test_mutated_file_is_read_or_rejected(targets: Mapping[str, Target], name: str) -> None:
    @settings(max_examples=60)
    @given(st.sampled_from(targets[name].seeds), st.lists(edits, min_size=1, max_size=4))
    def check(seed: bytes, changes: Sequence[Edit]) -> None:
        targets[name](apply_edits(seed, changes))

    check()
