"""The command ``list``: tables and JSON."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.cli import camkd


@pytest.mark.parametrize("kind", ["models", "methods", "recipes", "data"])
def test_table_has_every_item(kind: str) -> None:
    items = camkd("list", kind, "--json").json
    assert items
    table = camkd("list", kind).out
    assert all(name in table for name in items)


def test_models_at_another_size(keep_models: Callable[..., None]) -> None:
    keep_models("cam-net", "resnet8")
    models = camkd("list", "models", "--size", "16", "--classes", "3", "--json").json
    assert set(models) == {"cam-net", "resnet8"}
    assert models["cam-net"]["map_size"] == [8, 8]
