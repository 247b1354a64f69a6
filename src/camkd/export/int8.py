"""Eight-bit integers for weights and activations: static, one scale a channel of each kernel, as QDQ nodes.

The recipe of Jacob et al. 2017 (arXiv 1712.05877): ``real = scale (integer - zero)``. Activations get one range each,
found on training pictures; batch normalisation is folded into the convolutions first. Weights have 7 bits, as sums of
products of 8 overflow on processors without VNNI. What makes the pictures input (the normalisation) and what makes the
maps (the head) stay in fp32: they are next to nothing of the work, and a map is read cell by cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camkd.data.dataset import Split, balanced_subset
from camkd.export.sessions import ERRORS_ALONE, IMAGE, as_input, quietly

CALIBRATION = 512
"""Training pictures that decide the activations' ranges."""

QUANTISED = ["Conv", "Gemm", "MatMul", "Relu", "Clip"]
"""Sums of products compute in integers, whatever the network; the last two become the range of the sum before them.

Sums of a stream, normalisations and gates stay in fp32: in integers they gain no time (LOG.md).
"""


def write_int8(source: Path, target: Path, train: Split) -> None:
    """Quantise the exported file ``source`` into ``target``, calibrated on pictures of ``train``."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with TemporaryDirectory() as folder, quietly():
        folded = Path(folder, "folded.onnx")
        _fold(source, folded)
        quantize_static(
            folded,
            target,
            _Pictures(train.images[balanced_subset(train.labels, CALIBRATION)]),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_head(folded),
            calibrate_method=CalibrationMethod.MinMax,
        )
    _say_what_it_is(source, target)


class _Pictures:
    """What ONNX Runtime calls a calibration data reader: one picture after the other."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.rows: Iterator[Any] = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self.rows, None)
        return None if image is None else {IMAGE: as_input(image[None])}


def _fold(source: Path, target: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = ERRORS_ALONE
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def _head(path: Path) -> list[str]:
    """The layer that makes the map (or the logits, where there is no map), and what comes after it."""
    import onnx

    graph = onnx.load(path).graph
    makers = {output: node for node in graph.node for output in node.output}
    after = [makers[graph.output[-1].name]]
    while after[-1].op_type not in ("Conv", "Gemm", "MatMul"):
        after.append(makers[after[-1].input[0]])
    return [node.name for node in after]


def _say_what_it_is(source: Path, target: Path) -> None:
    import onnx

    model, original = onnx.load(target), onnx.load(source)
    del model.metadata_props[:]
    model.metadata_props.extend(original.metadata_props)
    model.metadata_props.add(key="precision", value=f"int8, calibrated on {CALIBRATION} training pictures")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, target)
