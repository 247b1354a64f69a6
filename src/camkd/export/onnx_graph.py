"""A trained network as one ONNX graph: ``image (N, 3, H, W)`` in, ``logits (N, K)`` and ``cam (N, K, h, w)`` out.

What goes in is RGB in 0..1: normalisation is in the graph. Both outputs come from one forward pass. Where the head is
linear the logits are computed from the map, ``logits = mean_xy(cam) + bias``, so that the map is what the prediction
passes through and costs nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from camkd.cams import bias, form, predict
from camkd.export.sessions import CAM, IMAGE, LOGITS, quietly
from camkd.models.io import ModelInfo
from camkd.types import InputError

if TYPE_CHECKING:
    import onnx


class WithCam(nn.Module):
    """``model`` with its map as a second output; in inference alone, for pictures shaped like ``x``."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.model = model
        offset = bias(model, x)
        self.offset = None if offset is None else offset.detach().clone()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        answer = predict(self.model, image)
        assert answer.cams is not None
        return answer.logits if self.offset is None else answer.cams.mean((2, 3)) + self.offset, answer.cams


def write_graph(model: nn.Module, said: ModelInfo, path: Path, *, cam: bool = True, any_size: bool = False) -> None:
    """Write ``model`` as ONNX to ``path``, for batches of any size, without its map where not ``cam``.

    ``any_size`` leaves the sides of the pictures open, which works where no layer depends on them: to be checked.
    Raises ``InputError`` where the network's maps are gradient-based or it cannot be traced.
    """
    import onnx

    x = torch.rand(2, 3, said.size, said.size, generator=torch.Generator().manual_seed(0))
    if cam and form(model, x) != "exact":
        raise InputError(
            f"the maps of {said.architecture} are gradient-based, so no single forward pass returns them: "
            "export a network with a linear head, such as its student."
        )
    traced = _trace(WithCam(model, x) if cam else model, x, [LOGITS, CAM] if cam else [LOGITS])
    _without_traces(traced)
    if any_size:
        _open_sides(traced)
    for name, value in provenance(said).items():
        traced.metadata_props.add(key=name, value=value)
    onnx.checker.check_model(traced, full_check=True)
    onnx.save(traced, path)


def provenance(said: ModelInfo) -> dict[str, str]:
    """What an exported file says of itself: class names, and everything of the description but paths."""
    own = {name: value for name, value in asdict(said.portable()).items() if value is not None}
    words = {name: json.dumps(value, ensure_ascii=False) for name, value in own.items() if name != "sha256"}
    return {
        **{name: json.loads(value) if value.startswith('"') else value for name, value in words.items()},
        "weights_sha256": said.sha256,
        "input": f"{IMAGE} (N, 3, {said.size}, {said.size}) float32, RGB in 0..1; normalisation is inside",
        "output": f"{LOGITS} (N, K); {CAM} (N, K, h, w), logits = mean of cam over (h, w) + bias",
        "camkd": version("camkd"),
    }


def _trace(model: nn.Module, x: Tensor, outputs: list[str]) -> onnx.ModelProto:
    with torch.no_grad(), quietly():
        model.eval()(x)  # what a network finds out about itself it finds out now, not while it is traced
        try:
            program = torch.onnx.export(
                model,
                (x,),
                dynamo=True,
                input_names=[IMAGE],
                output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        except Exception as error:  # whatever a stranger's forward() raises when it is traced
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"this network cannot be written as ONNX ({reason}): export another one.") from error
    assert program is not None
    return program.model_proto


def _without_traces(model: onnx.ModelProto) -> None:
    """Remove where in which source file each operation came from."""
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, model.graph):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    del model.graph.value_info[:]
    del model.metadata_props[:]


def _open_sides(model: onnx.ModelProto) -> None:
    for value, names in ((model.graph.input[0], ("height", "width")), (model.graph.output[-1], ("rows", "columns"))):
        for place, name in zip((2, 3), names, strict=True):
            value.type.tensor_type.shape.dim[place].dim_param = name
