"""CAM-Net, the student network. Its map has half the image's resolution, and its head computes the map directly.

The blocks follow https://github.com/xvel/cifar10-tiniest at half the image's resolution: groups of channels have a
local, a 5x5 or a nearly global receptive field on a small image, and a gated layer mixes them. The head is a 1x1
convolution followed by global average pooling, so the class activation maps are the output of that convolution. The
candidates that CAM-Net was chosen from are in docs/evidence.md.
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

    The receptive field reaches up to seven locations in each direction.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 7, padding=3, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(super().forward(F.avg_pool2d(x, 2, ceil_mode=True)), scale_factor=2.0)
        return y[:, :, : x.shape[2], : x.shape[3]]


class GatedBlock(nn.Module):
    """Residual block with a gated linear unit: ``keep x + narrow(silu(gate(z)) value(z))``.

    ``z`` is the normalized concatenation of four quarters of the channels: unchanged, after a depthwise 3x3
    convolution, after a depthwise 5x5 convolution, and after `PooledDepthwiseConv`. The gate is SwiGLU (Shazeer 2020,
    arXiv 2002.05202). Input and output are ``(N, C, h, w)``.
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
        own, near, mid, far = x.chunk(4, 1)
        z = self.norm(torch.cat([own, self.near(near), self.mid(mid), self.far(far)], 1))
        # `keep` is cast to x.dtype: with a residual stream in fp32, half the time of a bf16 step is spent in casts
        y: Tensor = self.narrow(F.silu(self.gate(z)) * self.value(z)) + self.keep.to(x.dtype).view(-1, 1, 1) * x
        return y


class CamNet(ImageClassifier):
    """Stem to half the resolution, gated blocks, 1x1 convolution, global average pooling.

    ``logits = head(body(x)).mean_xy``. A 32x32 image has a 16x16 map. The default variant has at most 96,000 parameters
    for ten classes. The lite variant has at most 12.5 million multiply-adds for a 32x32 image, as many as the ResNet-8
    of MLPerf Tiny, and an 8x8 map.

    Args:
        classes: number of classes.
        lite: build the lite variant.
    """

    default_optimizer = "adamw"

    def __init__(self, classes: int, *, lite: bool = False) -> None:
        super().__init__()
        first, last = (48, 80) if lite else (64, 64)
        stem = [nn.Conv2d(3, first, 3, stride=2, padding=1), ChannelNorm(first)]
        blocks: list[nn.Module] = [GatedBlock(first) for _ in range(4 if lite else 6)]
        if lite:
            blocks += [nn.Conv2d(first, last, 2, stride=2), ChannelNorm(last), GatedBlock(last), GatedBlock(last)]
        self.body = nn.Sequential(*stem, *blocks)
        self.head = nn.Conv2d(last, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.normalize(x))).mean((2, 3))
        return logits
