"""CAM-Net, the student network. Its head computes the class activation maps directly.

The maps have half the resolution of the image; in the lite variant, a quarter of the resolution. The blocks follow
https://github.com/xvel/cifar10-tiniest, but start at half the image's resolution. Each block splits the channels into
four groups: one is unchanged, and the others have a 3x3, a 5x5 and, on a small image, a nearly global receptive field.
A gated linear unit mixes the groups. The head is a 1x1 convolution followed by global average pooling, so the output of
the convolution, without the bias, is the class activation maps. docs/evidence.md lists the candidates that CAM-Net was
chosen from.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.models.base import ImageClassifier


class ChannelNorm(nn.Module):
    """Layer normalization over the channels at each location (Ba et al. 2016, arXiv 1607.06450)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2).to(x.dtype)


class PooledDepthwiseConv(nn.Conv2d):
    """Depthwise 7x7 convolution at half resolution: 2x2 average pooling, convolution, nearest-neighbor upsampling.

    An output location depends on the input up to six or seven locations away in each direction.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 7, padding=3, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(super().forward(F.avg_pool2d(x, 2, ceil_mode=True)), scale_factor=2.0)
        return y[:, :, : x.shape[2], : x.shape[3]]


class GatedBlock(nn.Module):
    """Residual block with a gated linear unit: ``keep * x + narrow(silu(gate(z)) * value(z))``.

    ``z`` is the normalized concatenation of four groups of ``C / 4`` channels: the first is unchanged, ``near`` is a
    depthwise 3x3 convolution, ``mid`` a depthwise 5x5 convolution, and ``far`` a `PooledDepthwiseConv`. ``gate``,
    ``value`` and ``narrow`` are 1x1 convolutions from ``C`` to ``C`` channels. Together they are SwiGLU (Shazeer 2020,
    arXiv 2002.05202) with a hidden width of ``C``, and ``narrow`` is its output projection. ``keep`` is a learned
    factor per channel of the skip connection, initially 1. Input and output are ``(N, C, h, w)``.

    Args:
        channels: Number of channels ``C``, a multiple of 4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = channels // 4
        self.near = nn.Conv2d(quarter, quarter, 3, padding=1, groups=quarter)
        self.mid = nn.Conv2d(quarter, quarter, 5, padding=2, groups=quarter)
        self.far = PooledDepthwiseConv(quarter)
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
    """Stem to half the resolution, gated blocks, 1x1 convolution, global average pooling.

    ``logits = head(body(normalize(x))).mean((2, 3))``. Both variants were designed for at most 96,000 parameters with
    ten classes. The default variant has 86,858, and a 16x16 map for a 32x32 image. The lite variant has 93,578, and
    halves the resolution again before its last two blocks. For a 32x32 image it has an 8x8 map and 11.6 million
    multiply-accumulates, fewer than the 12.5 million of ``resnet8``.

    Args:
        num_classes: Number of classes.
        lite: Whether to build the lite variant.
    """

    default_optimizer = "adamw"

    def __init__(self, num_classes: int, *, lite: bool = False) -> None:
        super().__init__()
        stem_channels, channels = (48, 80) if lite else (64, 64)
        stem = [nn.Conv2d(3, stem_channels, 3, stride=2, padding=1), ChannelNorm(stem_channels)]
        blocks: list[nn.Module] = [GatedBlock(stem_channels) for _ in range(4 if lite else 6)]
        if lite:
            blocks += [nn.Conv2d(stem_channels, channels, 2, stride=2), ChannelNorm(channels)]
            blocks += [GatedBlock(channels), GatedBlock(channels)]
        self.body = nn.Sequential(*stem, *blocks)
        self.head = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.normalize(x))).mean((2, 3))
        return logits
