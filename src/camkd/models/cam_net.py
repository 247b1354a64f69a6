"""CAM-Net, the student: a map of a quarter of the picture's pixels, and a head that is its own heatmap.

Its blocks follow those that https://github.com/xvel/cifar10-tiniest describes, at half the picture's resolution: some
channels see their neighbours, some a 5x5 field, some nearly all of a small picture, and a gated layer mixes them. The
head is a 1x1 convolution and then the global average, so the class activation maps are the head's own output. What it
was chosen from: docs/evidence.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.models.base import ImageClassifier


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each place (Ba et al. 2016, arXiv 1607.06450)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2).to(x.dtype)


class PooledDepthwiseConv(nn.Conv2d):
    """Depthwise 7x7 over means of 2x2, each value for its four places: what is up to seven places away."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 7, padding=3, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(super().forward(F.avg_pool2d(x, 2, ceil_mode=True)), scale_factor=2.0)
        return y[:, :, : x.shape[2], : x.shape[3]]


class GatedBlock(nn.Module):
    """``keep x + narrow(silu(gate(seen)) value(seen))``: ``(N, C, h, w)`` to the same (Shazeer 2020, arXiv 2002.05202).

    ``seen`` is, normalised, a quarter of the channels as they are, one through a depthwise 3x3, one through 5x5, one
    through `Far`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        part = channels // 4
        self.near = nn.Conv2d(part, part, 3, padding=1, groups=part)
        self.mid = nn.Conv2d(part, part, 5, padding=2, groups=part)
        self.far = PooledDepthwiseConv(part)
        self.norm = ChannelNorm(channels)
        self.gate = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.narrow = nn.Conv2d(channels, channels, 1)
        self.keep = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        own, near, mid, far = x.chunk(4, 1)
        seen = self.norm(torch.cat([own, self.near(near), self.mid(mid), self.far(far)], 1))
        # the stream stays in the format of the products: in fp32 half of a bf16 step's time is casts
        y: Tensor = self.narrow(F.silu(self.gate(seen)) * self.value(seen)) + self.keep.to(x.dtype).view(-1, 1, 1) * x
        return y


class CamNet(ImageClassifier):
    """Stem to half the picture's resolution, gated blocks, 1x1 convolution, global average.

    A 32x32 picture has a 16x16 map. ``logits = head(body(x)).mean_xy``. The plan without ``lite`` has at most 96,000
    parameters for ten classes; ``lite`` has at most 12.5 million multiply-adds for a picture of 32 pixels, as many as
    the ResNet-8 of MLPerf Tiny, and a map of 8x8.
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
