"""Static int8 quantization of exported files: weights per channel, activations per tensor, in QDQ format.

Scheme of Jacob et al. 2017 (arXiv 1712.05877): ``real = scale * (integer - zero_point)``. The range of each activation
is calibrated on training images. Batch normalization is folded into the convolutions first. Weights have 7 bits,
because sums of 8-bit products overflow on processors without VNNI. The normalization of the input and the head stay in
fp32: their share of the computation is negligible, and the maps are outputs at every location.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camkd.data.dataset import Split, balanced_subset
from camkd.export.sessions import IMAGE, LOG_ERRORS_ONLY, suppress_output, to_input

NUM_CALIBRATION_IMAGES = 512
"""Number of training images that calibrate the ranges of the activations."""

QUANTIZED_OPS = ["Conv", "Gemm", "MatMul", "Relu", "Clip"]
"""Quantized operators. Relu and Clip become the output range of the preceding convolution or matrix product.

Residual additions, normalizations and gates stay in fp32, because integers do not make them faster (LOG.md).
"""


def write_int8(source: Path, target: Path, train: Split) -> None:
    """Quantize an exported file.

    Args:
        source: ONNX file in fp32, from `camkd.export.onnx_graph.write_onnx`.
        target: ONNX file in int8, to be written.
        train: Training split. `NUM_CALIBRATION_IMAGES` of its images, balanced over the classes, are used for
            calibration.

    Example:
        >>> write_int8(Path("model.onnx"), Path("model.int8.onnx"), dataset.train)            # doctest: +SKIP
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with TemporaryDirectory() as folder, suppress_output():
        folded = Path(folder, "folded.onnx")
        _fold_batchnorm(source, folded)
        quantize_static(
            folded,
            target,
            _CalibrationReader(train.images[balanced_subset(train.labels, NUM_CALIBRATION_IMAGES)]),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED_OPS,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_head_nodes(folded),
            calibrate_method=CalibrationMethod.MinMax,
        )
    _copy_metadata(source, target)


class _CalibrationReader:
    """Calibration data reader of ONNX Runtime: one image per call."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images: Iterator[Any] = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self.images, None)
        return None if image is None else {IMAGE: to_input(image[None])}


def _fold_batchnorm(source: Path, target: Path) -> None:
    """Apply ONNX Runtime's basic optimizations, which fold batch normalization into convolutions."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = LOG_ERRORS_ONLY
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def _head_nodes(path: Path) -> list[str]:
    """Return the names of the head's nodes, from the last output back to its convolution or matrix product.

    The last output is the maps, or the logits of a file without maps.
    """
    import onnx

    graph = onnx.load(path).graph
    producers = {output: node for node in graph.node for output in node.output}
    nodes = [producers[graph.output[-1].name]]
    while nodes[-1].op_type not in ("Conv", "Gemm", "MatMul"):
        nodes.append(producers[nodes[-1].input[0]])
    return [node.name for node in nodes]


def _copy_metadata(source: Path, target: Path) -> None:
    """Copy the metadata of the fp32 file to the int8 file, and add the precision."""
    import onnx

    original = onnx.load(source)
    quantized = onnx.load(target)
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(original.metadata_props)
    quantized.metadata_props.add(key="precision", value=f"int8, calibrated on {NUM_CALIBRATION_IMAGES} training images")
    onnx.checker.check_model(quantized, full_check=True)
    onnx.save(quantized, target)
