"""Maps of model families by map method, compared with pytorch-grad-cam.

    python benchmarks/map_matrix.py            # writes docs/maps.md and benchmarks/results/*-map-matrix.json

The networks of timm and torchvision have random weights in float64, two images and three classes. Each map is compared
with that of pytorch-grad-cam, before clipping and rescaling, at the layer that camkd detects. Its Grad-CAM++ adds 1e-6
to a denominator, so for this method the logits of both libraries are multiplied by 1e5.

The deviation of two maps is the largest absolute difference divided by the largest absolute value. For exact maps the
table also has the deviation from the identity, |logits - mean(cams) - bias| divided by the largest logit. The script
needs requirements-extras.txt.

The column "train mode" belongs to the same network in training mode after 20 steps of SGD. For exact maps it is the
deviation from the identity. For other maps it is the Pearson correlation with the maps from each image's own gradient,
computed image by image in a copy whose batch normalization has the statistics of the batch as constants.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from optional_imports import import_optional
from torch import Tensor, nn
from torch.nn import functional as F

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
    "RepViT": ["timm:repvit_m0_9"],
    "EfficientViT": ["timm:efficientvit_m0"],
    "SHViT": ["timm:shvit_s1"],
    "ViT": [
        "timm:vit_tiny_patch16_224",
        "timm:vit_base_patch16_gap_224",
        "torchvision:vit_b_32",
        "transformers:ViT",
    ],
    "SigLIP (attention pooling)": ["timm:vit_base_patch16_siglip_224"],
    "CaiT (class attention)": ["timm:cait_xxs24_224"],
    "XCiT (class attention)": ["timm:xcit_nano_12_p16_224"],
    "DeiT": ["timm:deit_tiny_patch16_224", "timm:deit_tiny_distilled_patch16_224"],
    "DINOv2": ["timm:vit_small_patch14_reg4_dinov2"],
    "BEiT": ["timm:beit_base_patch16_224", "transformers:Beit"],
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


SIZES |= dict.fromkeys(["timm:repvit_m0_9", "timm:efficientvit_m0", "timm:shvit_s1"], 128)
SIZES["timm:vit_base_patch16_siglip_224"] = 224
SGD_STEPS = 20
NUM_TRAINING_IMAGES = 4


class HuggingFaceNet(nn.Module):
    """A small image classifier of transformers with random weights, which returns only the logits.

    Args:
        family: Prefix of the class names, for example ``ViT``.
        size: Side of the images in pixels.
    """

    def __init__(self, family: str, size: int) -> None:
        super().__init__()
        library = import_optional("transformers")
        config = getattr(library, f"{family}Config")(
            image_size=size,
            patch_size=16,
            hidden_size=48,
            num_hidden_layers=4,
            num_attention_heads=3,
            intermediate_size=96,
            num_labels=CLASSES,
        )
        torch.manual_seed(0)
        self.net = getattr(library, f"{family}ForImageClassification")(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(pixel_values=x).logits


def build(name: str, size: int) -> nn.Module:
    """Build a network with random weights in float64."""
    library, _, family = name.partition(":")
    model = HuggingFaceNet(family, size) if library == "transformers" else camkd.build(name, CLASSES, size, seed=0)
    return randomize_parameters(model).double()


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
    library = import_optional("pytorch_grad_cam")
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
    model = build(name, size).eval().requires_grad_(False)
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
    return {**row, **compare_in_training(build(name, size), size)}


def compare_in_training(model: nn.Module, size: int) -> dict[str, Any]:
    """Train a network for some steps, and compare its maps in training mode.

    Args:
        model: The network.
        size: Side of the images in pixels.

    Returns:
        The form of the maps, and ``train_identity`` for exact maps or ``train_pearson`` for others.
    """
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(NUM_TRAINING_IMAGES, 3, size, size, generator=generator).double()
    labels = torch.arange(NUM_TRAINING_IMAGES) % CLASSES
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(SGD_STEPS):
        torch.manual_seed(step)
        optimizer.zero_grad()
        F.cross_entropy(model.train()(x), labels).backward()
        optimizer.step()
    reference = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.no_grad():
        logits, cams, *_ = camkd.predict(model, x)
    row: dict[str, Any] = {"train_form": form(model, x)}
    if row["train_form"] == "exact":
        row["train_identity"] = float((logits - cams.mean((2, 3)) - bias(model, x)).abs().max() / logits.abs().max())
        return row
    call = detect_head(model, x).feature_call
    layer = reference.get_submodule(next(n for n, m in model.named_modules() if m is call.layer))
    freeze_batch_statistics(reference, x)
    outputs: list[Tensor] = []
    layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    torch.manual_seed(0)
    logits = reference(x)
    maps = torch.zeros_like(cams)
    for n in range(len(x)):
        for k in range(CLASSES):
            (gradient,) = torch.autograd.grad(logits[n, k], outputs[call.call_index], retain_graph=True)
            maps[n, k] = (call.layout.spatial(gradient) * call.layout.spatial(outputs[call.call_index]))[n].sum(0)
    row["train_pearson"] = float(torch.corrcoef(torch.stack([cams.flatten(), maps.flatten()]))[0, 1])
    return row


def freeze_batch_statistics(model: nn.Module, x: Tensor) -> None:
    """Give batch normalization the statistics of its input in a forward pass, as constants."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]

    def freeze(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        dims = [0, *range(2, inputs[0].ndim)]
        module.running_mean, module.running_var = inputs[0].mean(dims), inputs[0].var(dims, correction=0)
        module.eval()

    hooks = [norm.register_forward_pre_hook(freeze) for norm in norms]
    torch.manual_seed(0)
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()


def table_lines(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the Markdown table.

    Args:
        rows: Results of `compare` by network.
    """
    methods = " | ".join(f"`{method}`" for method in MAP_METHODS)
    yield f"| family | network | form of `cam` | layer | cells | identity | train mode | {methods} |"
    yield "|---" * (7 + len(MAP_METHODS)) + "|"
    for family, names in NETWORKS.items():
        for name in names:
            row = rows.get(name)
            if row is None:
                continue
            identity = f"{row['identity']:.0e}" if "identity" in row else ""
            cells = "x".join(map(str, row["map"]))
            deviations = " | ".join(f"{row[method]:.0e}" for method in MAP_METHODS)
            train = f"{row['train_identity']:.0e}" if "train_identity" in row else f"r = {row['train_pearson']:.6f}"
            train = train if row["train_form"] == row["form"] else f"{row['train_form']}, {train}"
            start = f"| {family} | `{name}` | {row['form']} | `{row['layer']}` | {cells} | {identity} | {train} |"
            yield f"{start} {deviations} |"


def write_results(rows: dict[str, dict[str, Any]]) -> None:
    """Write the results file and the table of docs/maps.md.

    It is called after each network, so that an interrupted run keeps its results.

    Args:
        rows: Results of `compare` by network.
    """
    root = Path(__file__).parents[1]
    result = root / "benchmarks" / "results" / "2026-11-28-map-matrix.json"
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
    if any(import_optional(library) is None for library in ("torchvision", "timm", "pytorch_grad_cam", "transformers")):
        raise SystemExit(
            "map_matrix.py needs torchvision, timm, transformers and pytorch-grad-cam. Install requirements-extras.txt."
        )
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
