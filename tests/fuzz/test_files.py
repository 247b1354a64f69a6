"""Files that were changed anywhere are read, or refused with a sentence; nothing else comes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.targets import Edit, Target, mutated, targets

NAMES = (
    "picture", "archive", "packed archive", "checkpoint", "checkpoint's manifest", "weights", "description",
    "configuration", "metrics", "history", "gallery", "table of pictures", "data store's manifest",
    "data store's train_images.npy", "data store's train_labels.npy", "data store's val_sums.npy", "answers",
    "knowledge store's manifest",
)  # fmt: skip

edits: st.SearchStrategy[Edit] = st.tuples(
    st.sampled_from(["flip", "flip", "put", "cut", "double"]), st.floats(0, 1), st.binary(max_size=5)
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Target]:
    return targets(tmp_path_factory.mktemp("fuzz"))


def test_all_are_named(found: Mapping[str, Target]) -> None:
    assert sorted(found) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_file_is_read(found: Mapping[str, Target], name: str) -> None:
    for seed in found[name].seeds:
        found[name].read(seed)


@pytest.mark.fault("a file of another kind")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"<html>404</html>", b"[" * 100_000, b'"\\ud800"', b"\xff\xfe"])
def test_what_is_no_such_file_is_refused(found: Mapping[str, Target], name: str, content: bytes) -> None:
    found[name](content)


@pytest.mark.fault("a file changed anywhere, in 60 ways")
@pytest.mark.parametrize("name", NAMES)
def test_a_changed_file_is_read_or_refused(found: Mapping[str, Target], name: str) -> None:
    @settings(max_examples=60)
    @given(st.sampled_from(found[name].seeds), st.lists(edits, min_size=1, max_size=4))
    def holds(seed: bytes, changes: Sequence[Edit]) -> None:
        found[name](mutated(seed, changes))

    holds()
