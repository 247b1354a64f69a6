"""CAM-Net, the student network. Its head computes the class activation maps directly.

The head is a 1x1 convolution followed by global average pooling. The output of the convolution, without the bias, is
the class activation maps. The layers before the head depend on the size of the images and on the variant:

- Below `MIN_PHOTO_SIZE` pixels, default and lite variants: gated blocks at half the image's resolution; in the lite
  variant, the last two at a quarter. The blocks follow https://github.com/xvel/cifar10-tiniest.
- From `MIN_PHOTO_SIZE` pixels, and in the large variant at every size: strided convolutions with residual blocks, then
  gated blocks with 3x3 kernels. From `MIN_PHOTO_SIZE` pixels, the strided convolutions leave a map of 8 to 14 cells per
  side, so the cost is bounded.

A gated block splits the channels into four groups: one is unchanged, and the others have a small, a medium and a nearly
global receptive field. A gated linear unit mixes the groups. docs/evidence.md lists the candidates from which the
layers for small images were chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.models.base import ImageClassifier
from camkd.models.resnet import BasicBlock
from camkd.models.resnet11 import conv_bn_relu

Variant = Literal["default", "lite", "large"]

MIN_PHOTO_SIZE = 48
"""Side in pixels of the smallest images for which all variants follow a `Plan`. Below, only the large variant does."""

MIN_CELLS = 8
"""Minimum number of cells per side of the map, from `MIN_PHOTO_SIZE` pixels."""


@dataclass(frozen=True)
class Plan:
    """Channels and blocks of CAM-Net for images of `MIN_PHOTO_SIZE` pixels or more, and of the large variant.

    Args:
        residual: Channels and number of the residual blocks of each stage. A stage has twice the resolution of the next
            stage, and the last stage twice the resolution of the map.
        gated: Channels, a multiple of 4, and number of the gated blocks, at the resolution of the map.
    """

    residual: tuple[tuple[int, int], ...]
    gated: tuple[int, int]


PLANS: dict[Variant, Plan] = {
    "lite": Plan(residual=((16, 0), (24, 1)), gated=(64, 2)),
    "default": Plan(residual=((16, 1), (24, 1)), gated=(76, 3)),
    "large": Plan(residual=((32, 1), (64, 2)), gated=(144, 4)),
}
"""Plans by variant."""


class ChannelNorm(nn.Module):
    """Layer normalization over the channels at each location (Ba et al. 2016, arXiv 1607.06450).

    Args:
        channels: Number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2).to(x.dtype)


class PooledDepthwiseConv(nn.Conv2d):
    """Depthwise convolution at lower resolution: average pooling, convolution, nearest-neighbor upsampling.

    Args:
        channels: Number of channels.
        kernel_size: Side of the kernel, odd. With ``factor`` 2 and kernel 7, an output location depends on the input up
            to six or seven locations away in each direction.
        factor: Factor between the resolutions.
    """

    def __init__(self, channels: int, kernel_size: int, factor: int) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(F.avg_pool2d(x, self.factor, ceil_mode=True))
        y = F.interpolate(y, scale_factor=float(self.factor))
        return y[:, :, : x.shape[2], : x.shape[3]]


class GatedBlock(nn.Module):
    """Residual block with a gated linear unit: ``keep * x + narrow(silu(gate(z)) * value(z))``.

    ``z`` is the normalized concatenation of four groups of ``C / 4`` channels: the first is unchanged, ``near`` is a
    depthwise 3x3 convolution, and ``mid`` and ``far`` are depthwise convolutions with larger receptive fields.
    ``gate``, ``value`` and ``narrow`` are 1x1 convolutions from ``C`` to ``C`` channels. Together they are SwiGLU
    (Shazeer 2020, arXiv 2002.05202) with a hidden width of ``C``, and ``narrow`` is its output projection. ``keep`` is
    a learned factor per channel of the skip connection, initially 1. Input and output are ``(N, C, h, w)``.

    Args:
        channels: Number of channels ``C``, a multiple of 4.
        pyramid: Whether ``mid`` and ``far`` are 3x3 convolutions of means over 2x2 and 4x4 locations. The gradients of
            3x3 kernels are fast on a CPU. Otherwise ``mid`` is a 5x5 convolution, and ``far`` a 7x7 convolution of
            means over 2x2 locations.
    """

    def __init__(self, channels: int, *, pyramid: bool = False) -> None:
        super().__init__()
        quarter = channels // 4
        self.near = nn.Conv2d(quarter, quarter, 3, padding=1, groups=quarter)
        self.mid: nn.Conv2d
        if pyramid:
            self.mid = PooledDepthwiseConv(quarter, 3, 2)
            self.far = PooledDepthwiseConv(quarter, 3, 4)
        else:
            self.mid = nn.Conv2d(quarter, quarter, 5, padding=2, groups=quarter)
            self.far = PooledDepthwiseConv(quarter, 7, 2)
        self.norm = ChannelNorm(channels)
        self.gate = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.narrow = nn.Conv2d(channels, channels, 1)
        self.keep = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        identity, near, mid, far = x.chunk(4, 1)
        z = self.norm(torch.cat([identity, self.near(near), self.mid(mid), self.far(far)], 1))
        # Under autocast `x` is bf16 and `keep` fp32, so their product would be fp32 and each later layer would cast its
        # input. These casts took half the time of a bf16 step. With `keep` cast to x.dtype, the block stays in bf16.
        y: Tensor = self.narrow(F.silu(self.gate(z)) * self.value(z)) + self.keep.to(x.dtype).view(-1, 1, 1) * x
        return y


class CamNet(ImageClassifier):
    """Body, 1x1 convolution, global average pooling: ``logits = head(body(normalize(x))).mean((2, 3))``.

    The default and lite variants have at most 96,000 parameters with ten classes, the large variant about 0.5 million.
    For a 32x32 image the default variant has a 16x16 map, and the lite variant an 8x8 map and 11.6 million
    multiply-accumulates, fewer than the 12.5 million of ``resnet8``. From `MIN_PHOTO_SIZE` pixels, the map has 8 to 14
    cells per side.

    Args:
        num_classes: Number of classes.
        image_size: Side of the images in pixels; it selects the layers.
        variant: ``default``, ``lite`` for fewer multiply-accumulates, or ``large`` for more parameters.
    """

    default_optimizer = "adamw"

    def __init__(self, num_classes: int, image_size: int, *, variant: Variant = "default") -> None:
        super().__init__()
        if image_size >= MIN_PHOTO_SIZE or variant == "large":
            self.body, channels = _photo_body(PLANS[variant], image_size)
        else:
            self.body, channels = _small_image_body(lite=variant == "lite")
        self.head = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.normalize(x))).mean((2, 3))
        return logits


def _small_image_body(lite: bool) -> tuple[nn.Sequential, int]:
    """Build the layers for images below `MIN_PHOTO_SIZE` pixels. Return them with their number of output channels."""
    stem_channels, channels = (48, 80) if lite else (64, 64)
    layers: list[nn.Module] = [nn.Conv2d(3, stem_channels, 3, stride=2, padding=1), ChannelNorm(stem_channels)]
    layers += [GatedBlock(stem_channels) for _ in range(4 if lite else 6)]
    if lite:
        layers += [nn.Conv2d(stem_channels, channels, 2, stride=2), ChannelNorm(channels)]
        layers += [GatedBlock(channels), GatedBlock(channels)]
    return nn.Sequential(*layers), channels


def _photo_body(plan: Plan, image_size: int) -> tuple[nn.Sequential, int]:
    """Build the layers of a plan. Return them with their number of output channels.

    The last strided convolutions before the gated blocks belong to the residual stages. Large images have further
    strided convolutions before the stages, and the smallest images have only the last stage.
    """
    strided_convs = num_halvings(image_size) - 1
    stages = plan.residual[-strided_convs:]
    first = stages[0][0]
    stages = tuple((first >> shift, 0) for shift in range(strided_convs - len(stages), 0, -1)) + stages
    layers: list[nn.Module] = []
    channels = 3
    for width, blocks in stages:
        layers.append(conv_bn_relu(channels, width, stride=2))
        layers += [BasicBlock(width, width, 1) for _ in range(blocks)]
        channels = width
    width, blocks = plan.gated
    layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), ChannelNorm(width)]
    layers += [GatedBlock(width, pyramid=True) for _ in range(blocks)]
    return nn.Sequential(*layers), width


def num_halvings(image_size: int) -> int:
    """Return how often the resolution is halved between the image and the map.

    Args:
        image_size: Side of the image in pixels.

    Returns:
        The number of halvings, for a map of `MIN_CELLS` or more cells per side.

    Example:
        >>> [num_halvings(size) for size in (48, 64, 112, 113, 224)]
        [2, 3, 3, 4, 4]
    """
    halvings = 2
    while image_size > (MIN_CELLS - 1) * 2 ** (halvings + 1):
        halvings += 1
    return halvings
