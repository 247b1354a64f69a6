"""Model family x map method: exact or gradient, and how far from an independent implementation.

    python benchmarks/map_matrix.py            # writes docs/maps.md and benchmarks/results/*-map-matrix.json

Networks of timm and torchvision with drawn weights, in doubles, two pictures, three classes. Beside each map of ours
stands that of pytorch-grad-cam (before it is clipped and rescaled) at the layer that camkd found. Its Grad-CAM++ adds
1e-6 to a denominator, so logits are multiplied by 1e5 for that method, for both. A deviation is the
largest absolute difference over the largest absolute value. Where the form is exact there is also the deviation
|logits - mean(cams) - bias| over the largest logit. Needs requirements-extras.txt.
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

CLASSES, SHOWN, LOUDER = 3, 1, 1e5
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
SIDES = {"timm:vit_small_patch14_reg4_dinov2": 56}
SIDE = 64
THEIRS = {
    "cam": "HiResCAM",
    "gradcam": "GradCAM",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "gradcam++": "GradCAMPlusPlus",
}


class Louder(nn.Module):
    """The same network, its logits times a number."""

    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.factor  # type: ignore[no-any-return]


def shaken(model: nn.Module) -> nn.Module:
    """Give what starts at nought or one, heads too, values that are nobody's default."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 1 or not value.any():
                value += 0.2 * torch.rand(value.shape, generator=generator).to(value)
    return model


def theirs(model: nn.Module, x: Tensor, method: str, k: int) -> Tensor:
    """Raw maps of class ``k`` by pytorch-grad-cam, of the layer camkd found."""
    library = peer("pytorch_grad_cam")
    place = detect_head(model, x).place
    draw = getattr(library, THEIRS[method])(model, [place.layer], reshape_transform=place.layout.spatial)
    target = library.utils.model_targets.ClassifierOutputTarget(k)
    outputs = draw.activations_and_grads(x.clone().requires_grad_())
    sum(target(output) for output in outputs).backward(retain_graph=True)
    seen = draw.activations_and_grads
    features, slopes = (part[place.call].numpy() for part in (seen.activations, seen.gradients))
    maps = torch.from_numpy(draw.get_cam_image(x, place.layer, [target] * len(x), features, slopes, False))
    seen.release()
    return maps


def deviation(ours: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((ours - other).abs().max() / other.abs().max().clamp_min(1e-30))


def compare(name: str) -> dict[str, Any]:
    """A network's row: its layer, its form, and the deviation of every method."""
    side = SIDES.get(name, SIDE)
    model = shaken(camkd.build(name, CLASSES, side, seed=0)).double().eval().requires_grad_(False)
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)).double()
    place = detect_head(model, x).place
    h, w = place.layout.grid
    row: dict[str, Any] = {"size": side, "form": form(model, x), "map": [h, w]}
    row["layer"] = next(n for n, m in model.named_modules() if m is place.layer).removeprefix("net.")
    if row["form"] == "exact":
        with torch.no_grad():
            logits, cams, *_ = camkd.predict(model, x)
        row["identity"] = float((logits - cams.mean((2, 3)) - bias(model, x)).abs().max() / logits.abs().max())
    for method in MAP_METHODS:
        asked = Louder(model, LOUDER) if method == "gradcam++" else model
        with torch.no_grad():
            ours = camkd.predict(asked, x, method=method, classes=torch.full((len(x), 1), SHOWN)).cams[:, 0]
        other = theirs(asked, x, method, SHOWN)
        other = other * (h * w) if method == "cam" else other
        other = other.clamp_min(0) if method in ("gradcam", "layercam", "gradcam++") else other
        row[method] = deviation(ours, other)
    return row


def table(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the page's table."""
    yield (
        "| family | network | `cam` is | of layer | cells | identity | "
        + " | ".join(f"`{m}`" for m in MAP_METHODS)
        + " |"
    )
    yield "|---" * (6 + len(MAP_METHODS)) + "|"
    for family, names in NETWORKS.items():
        for name in names:
            row = found.get(name)
            if row is None:
                continue
            identity = f"{row['identity']:.0e}" if "identity" in row else ""
            cells = "x".join(map(str, row["map"]))
            figures = " | ".join(f"{row[method]:.0e}" for method in MAP_METHODS)
            yield f"| {family} | `{name}` | {row['form']} | `{row['layer']}` | {cells} | {identity} | {figures} |"


def write(found: dict[str, dict[str, Any]]) -> None:
    """Into the docs and the results, after each network: an interrupted run leaves what it has."""
    root = Path(__file__).parents[1]
    result = root / "benchmarks" / "results" / "2026-11-23-map-matrix.json"
    write_json(result, {"networks": found, "environment": collect_environment()})
    page = root / "docs" / "maps.md"
    head, mark, _ = page.read_text(encoding="utf-8").partition("<!-- the table of benchmarks/map_matrix.py -->\n")
    write_text(page, head + mark + "\n" + "\n".join(table(found)) + "\n")


def main() -> None:
    """Go through all networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", default=[], help="networks whose name contains one of these; writes nothing"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if any(peer(library) is None for library in ("torchvision", "timm", "pytorch_grad_cam")):
        raise SystemExit("install requirements-extras.txt")
    found = {}
    for name in [name for names in NETWORKS.values() for name in names]:
        if options.only and not any(part in name for part in options.only):
            continue
        started = time.perf_counter()
        found[name] = compare(name)
        print(json.dumps({name: found[name]}), f"{time.perf_counter() - started:.1f} s", flush=True)
        if not options.only:
            write(found)


if __name__ == "__main__":
    main()
