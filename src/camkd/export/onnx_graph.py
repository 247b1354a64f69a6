"""Export of a network as one ONNX graph: ``image (N, 3, H, W)`` to ``logits (N, K)`` and ``cam (N, K, h, w)``.

The input is RGB in 0..1; normalization is part of the graph. Both outputs come from one forward pass. If the head is
linear, the logits are computed from the maps: ``logits = mean_xy(cam) + bias``. The maps are then an intermediate
result of the prediction.
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
from camkd.export.sessions import CAM, IMAGE, LOGITS, suppress_output
from camkd.models.example_images import example_images
from camkd.models.io import ModelInfo
from camkd.types import InputError

if TYPE_CHECKING:
    import onnx


class WithCam(nn.Module):
    """Wrapper that returns the logits and the class activation maps of a model. For inference only.

    Args:
        model: A classifier with exact maps.
        x: Example images ``(N, 3, H, W)``, to detect the head of the model.

    Shape:
        - Input: ``(N, 3, H, W)``.
        - Outputs: logits ``(N, K)`` and maps ``(N, K, h, w)``.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.model = model
        head_bias = bias(model, x)
        self.bias = None if head_bias is None else head_bias.detach().clone()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        prediction = predict(self.model, image)
        cams = prediction.cams
        assert cams is not None
        logits = prediction.logits if self.bias is None else cams.mean((2, 3)) + self.bias
        return logits, cams


def write_onnx(model: nn.Module, info: ModelInfo, path: Path, *, cam: bool = True, any_size: bool = False) -> None:
    """Write a model as ONNX, for batches of any size.

    Args:
        model: Classifier ``(N, 3, H, W) -> (N, K)``, RGB in 0..1.
        info: Description of the model, for the image size and the metadata of the file.
        path: The ONNX file, to be written.
        cam: Whether the class activation maps are an output too.
        any_size: Whether height and width of the images are dynamic. This is valid only if no layer depends on the
            image size, which the caller must check.

    Raises:
        InputError: If ``cam`` is True and the maps are gradient-based, or if the network cannot be traced.

    Example:
        >>> model = camkd.load("cam-net-cifar10")                              # doctest: +SKIP
        >>> write_onnx(model, model.info, Path("model.onnx"))                  # doctest: +SKIP
    """
    import onnx

    x = example_images(info.size)
    if cam and form(model, x) != "exact":
        raise InputError(
            f"the network must have exact maps, got {info.architecture} with gradient-based maps, which no single "
            "forward pass returns. Export a network with a linear head, such as its student."
        )
    graph = _trace(WithCam(model, x) if cam else model, x, [LOGITS, CAM] if cam else [LOGITS])
    _remove_source_locations(graph)
    if any_size:
        _make_sides_dynamic(graph)
    for key, value in metadata(info).items():
        graph.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)


def metadata(info: ModelInfo) -> dict[str, str]:
    """Return the metadata of an exported file.

    Args:
        info: Description of the model.

    Returns:
        The fields of ``info`` without paths and empty values, the checksum of the weights, the preprocessing of images,
        the format of input and output, the formula of contrast maps, and the version of camkd. Values that are not
        strings are JSON.
    """
    fields = {key: value for key, value in asdict(info.portable()).items() if value is not None and key != "sha256"}
    return {
        **{
            key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in fields.items()
        },
        "weights_sha256": info.sha256,
        "input": f"{IMAGE} (N, 3, {info.size}, {info.size}) float32, RGB in 0..1; normalization is inside",
        "preprocessing": info.preprocessing.description,
        "output": f"{LOGITS} (N, K); {CAM} (N, K, h, w), logits = mean of cam over (h, w) + bias",
        "contrast": f"{CAM}[:, c] - gamma * mean of {CAM}[:, d] over other classes d: evidence for c vs. d; "
        "gamma is 1 by default, and the mean of the map is then the difference of the logits without their biases",
        "camkd": version("camkd"),
    }


def _trace(model: nn.Module, x: Tensor, outputs: list[str]) -> onnx.ModelProto:
    """Convert a network to ONNX with the named outputs."""
    with torch.no_grad(), suppress_output():
        model.eval()(x)  # initialization at the first call must not be traced
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
        except Exception as error:  # forward() of a foreign network may raise anything when it is traced
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"the network must be traceable to ONNX, got: {reason}. Export another network."
            ) from error
    assert program is not None
    return program.model_proto


def _remove_source_locations(model: onnx.ModelProto) -> None:
    """Remove the source files and lines of the operations, which contain paths of this machine."""
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, model.graph):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    del model.graph.value_info[:]
    del model.metadata_props[:]


def _make_sides_dynamic(model: onnx.ModelProto) -> None:
    """Replace height and width of the input and of the maps by symbolic dimensions."""
    for value, names in ((model.graph.input[0], ("height", "width")), (model.graph.output[-1], ("rows", "columns"))):
        for axis, name in zip((2, 3), names, strict=True):
            value.type.tensor_type.shape.dim[axis].dim_param = name
