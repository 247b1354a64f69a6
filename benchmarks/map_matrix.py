"""Maps of model families by map method, compared with pytorch-grad-cam.

    python benchmarks/map_matrix.py            # writes docs/maps.md and benchmarks/results/*-map-matrix.json

The networks of timm and torchvision have random weights in float64, two images and three classes. Each map is compared
with that of pytorch-grad-cam, before clipping and rescaling, at the layer that camkd detects. Its Grad-CAM++ adds 1e-6
to a denominator, so for this method the logits of both libraries are multiplied by 1e5.

The deviation of two maps is the largest absolute difference divided by the largest absolute value. For exact maps the
table also has the deviation from the identity, |logits - mean(cams) - bias| divided by the largest logit. The script
needs requirements-extras.txt.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peers import peer
from torch import Tensor, nn

import camkd
from camkd.cams import MAP_METHODS, bias, form
from camkd.cams.head_detection import detect_head
from camkd.runs.folder import collect_environment
from camkd.utils.files import write_json, write_text

CLASSES = 3
CLASS_ID = 1
"""The class whose maps are compared."""
LOGIT_SCALE = 1e5
"""Factor of the logits for Grad-CAM++."""
SIZE = 64
"""Side of the images in pixels."""
SIZES = {"timm:vit_small_patch14_reg4_dinov2": 56}
"""Other sides, by network."""
NETWORKS = {
    "ResNet": ["timm:resnet18", "timm:resnet26d", "timm:seresnet18", "torchvision:resnet18"],
    "ResNeXt": ["timm:resnext26ts"],
    "RegNet": ["timm:regnetx_002", "timm:regnety_002", "torchvision:regnet_y_400mf"],
    "EfficientNet": ["timm:efficientnet_b0", "timm:tf_efficientnetv2_b0", "torchvision:efficientnet_b0"],
    "MobileNet": [
        "timm:mobilenetv2_050",
        "timm:mobilenetv3_small_050",
        "timm:mobilenetv4_conv_small_035",
        "torchvision:mobilenet_v2",
    ],
    "MNASNet": ["torchvision:mnasnet0_5"],
    "ShuffleNet": ["torchvision:shufflenet_v2_x0_5"],
    "GhostNet": ["timm:ghostnet_050"],
    "DenseNet": ["timm:densenet121", "torchvision:densenet121"],
    "GoogLeNet": ["torchvision:googlenet"],
    "RepVGG": ["timm:repvgg_a0"],
    "NFNet": ["timm:nfnet_l0"],
    "SqueezeNet": ["torchvision:squeezenet1_0"],
    "AlexNet": ["torchvision:alexnet"],
    "VGG": ["torchvision:vgg11"],
    "ConvNeXt": ["timm:convnext_atto", "timm:convnextv2_atto", "torchvision:convnext_tiny"],
    "PoolFormer": ["timm:poolformer_s12"],
    "PVT": ["timm:pvt_v2_b0"],
    "Swin": ["timm:swin_tiny_patch4_window7_224", "torchvision:swin_t"],
    "ViT": ["timm:vit_tiny_patch16_224", "timm:vit_base_patch16_gap_224", "torchvision:vit_b_32"],
    "DeiT": ["timm:deit_tiny_patch16_224", "timm:deit_tiny_distilled_patch16_224"],
    "DINOv2": ["timm:vit_small_patch14_reg4_dinov2"],
    "BEiT": ["timm:beit_base_patch16_224"],
    "Mixer": ["timm:mixer_s32_224"],
}
"""Networks by family."""
GRAD_CAM_CLASSES = {
    "cam": "HiResCAM",
    "gradcam": "GradCAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "gradcam++": "GradCAMPlusPlus",
}
"""The class of pytorch-grad-cam for each map method."""


class ScaledLogits(nn.Module):
    """A network with its logits multiplied by a factor."""

    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__()
        self.net = net
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.factor  # type: ignore[no-any-return]


def randomize_parameters(model: nn.Module) -> nn.Module:
    """Change parameters that are initialized to zero or one, among them the heads of some networks."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 1 or not value.any():
                value += 0.2 * torch.rand(value.shape, generator=generator).to(value)
    return model


def grad_cam_maps(model: nn.Module, x: Tensor, method: str, class_id: int) -> Tensor:
    """Compute the maps of a class by pytorch-grad-cam at the layer that camkd detects, before clipping and rescaling.

    Args:
        model: The classifier.
        x: Images ``(N, 3, H, W)``.
        method: Name of the map method in camkd.
        class_id: The class.

    Returns:
        Maps ``(N, h, w)``.
    """
    library = peer("pytorch_grad_cam")
    feature_call = detect_head(model, x).feature_call
    extractor_class = getattr(library, GRAD_CAM_CLASSES[method])
    extractor = extractor_class(model, [feature_call.layer], reshape_transform=feature_call.layout.spatial)
    target = library.utils.model_targets.ClassifierOutputTarget(class_id)
    recorder = extractor.activations_and_grads
    outputs = recorder(x.clone().requires_grad_())
    sum(target(output) for output in outputs).backward(retain_graph=True)
    features = recorder.activations[feature_call.call_index].numpy()
    gradients = recorder.gradients[feature_call.call_index].numpy()
    maps = extractor.get_cam_image(x, feature_call.layer, [target] * len(x), features, gradients, False)
    recorder.release()
    return torch.from_numpy(maps)


def deviation(maps: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference, divided by the largest absolute value of ``expected``."""
    return float((maps - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def compare(name: str) -> dict[str, Any]:
    """Compare the maps of a network.

    Args:
        name: Name of the network in `camkd.build`.

    Returns:
        A row of the table: image size, form, map size, layer, deviation from the identity, deviation by method.
    """
    size = SIZES.get(name, SIZE)
    model = randomize_parameters(camkd.build(name, CLASSES, size, seed=0)).double().eval().requires_grad_(False)
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)).double()
    feature_call = detect_head(model, x).feature_call
    h, w = feature_call.layout.grid
    row: dict[str, Any] = {"size": size, "form": form(model, x), "map": [h, w]}
    row["layer"] = next(n for n, m in model.named_modules() if m is feature_call.layer).removeprefix("net.")
    if row["form"] == "exact":
        with torch.no_grad():
            logits, cams, *_ = camkd.predict(model, x)
        row["identity"] = float((logits - cams.mean((2, 3)) - bias(model, x)).abs().max() / logits.abs().max())
    for method in MAP_METHODS:
        compared = ScaledLogits(model, LOGIT_SCALE) if method == "gradcam++" else model
        with torch.no_grad():
            classes = torch.full((len(x), 1), CLASS_ID)
            maps = camkd.predict(compared, x, method=method, classes=classes).cams[:, 0]
        expected = grad_cam_maps(compared, x, method, CLASS_ID)
        expected = expected * (h * w) if method == "cam" else expected
        expected = expected.clamp_min(0) if method in ("gradcam", "layercam", "gradcam++") else expected
        row[method] = deviation(maps, expected)
    return row


def table_lines(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the Markdown table.

    Args:
        rows: Results of `compare` by network.
    """
    methods = " | ".join(f"`{method}`" for method in MAP_METHODS)
    yield f"| family | network | form of `cam` | layer | cells | identity | {methods} |"
    yield "|---" * (6 + len(MAP_METHODS)) + "|"
    for family, names in NETWORKS.items():
        for name in names:
            row = rows.get(name)
            if row is None:
                continue
            identity = f"{row['identity']:.0e}" if "identity" in row else ""
            cells = "x".join(map(str, row["map"]))
            deviations = " | ".join(f"{row[method]:.0e}" for method in MAP_METHODS)
            yield f"| {family} | `{name}` | {row['form']} | `{row['layer']}` | {cells} | {identity} | {deviations} |"


def write_results(rows: dict[str, dict[str, Any]]) -> None:
    """Write the results file and the table of docs/maps.md.

    It is called after each network, so that an interrupted run keeps its results.

    Args:
        rows: Results of `compare` by network.
    """
    root = Path(__file__).parents[1]
    result = root / "benchmarks" / "results" / "2026-11-23-map-matrix.json"
    write_json(result, {"networks": rows, "environment": collect_environment()})
    page = root / "docs" / "maps.md"
    text, marker, _ = page.read_text(encoding="utf-8").partition("<!-- the table of benchmarks/map_matrix.py -->\n")
    write_text(page, text + marker + "\n" + "\n".join(table_lines(rows)) + "\n")


def main() -> None:
    """Compare all networks, or those selected by ``--only``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", default=[], help="networks whose name contains one of these strings; writes no files"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if any(peer(library) is None for library in ("torchvision", "timm", "pytorch_grad_cam")):
        raise SystemExit("map_matrix.py needs torchvision, timm and pytorch-grad-cam. Install requirements-extras.txt.")
    rows = {}
    for name in [name for names in NETWORKS.values() for name in names]:
        if options.only and not any(part in name for part in options.only):
            continue
        started = time.perf_counter()
        rows[name] = compare(name)
        print(json.dumps({name: rows[name]}), f"{time.perf_counter() - started:.1f} s", flush=True)
        if not options.only:
            write_results(rows)


if __name__ == "__main__":
    main()
