"""CAM-Net, the student: a map of a quarter of the picture's pixels, and a head that is its own heatmap.

Its blocks are those that https://github.com/xvel/cifar10-tiniest describes, at half the picture's resolution: some
channels see their neighbours, some a 7x7 field, some nearly all of a small picture, and a gated layer mixes them. The
head is a 1x1 convolution and then the global average, so the class activation maps are the head's own output. What it
was chosen from: docs/evidence.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.models.normalise import Normalised


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each place (Ba et al. 2016, arXiv 1607.06450)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2)


class Far(nn.Conv2d):
    """Depthwise 7x7 with dilation 3 over means of 3x3: what is up to ten places away.

    In training it is computed as nine plain convolutions of every third row and column, the same sum: three times as
    fast on a processor, where the dilated one's gradient is besides wrong in bf16 (`models.modes`).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 7, 1, 9, 3, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 3, 1, 1)
        return self._in_ninths(x) if self.training else super().forward(x)

    def _in_ninths(self, x: Tensor) -> Tensor:
        (n, c, h, w), (rows, columns) = x.shape, (-(-side // 3) for side in x.shape[2:])
        x = F.pad(x, (0, 3 * columns - w, 0, 3 * rows - h)).view(n, c, rows, 3, columns, 3)
        x = x.permute(3, 5, 0, 1, 2, 4).reshape(9 * n, c, rows, columns)
        x = F.conv2d(x.contiguous(memory_format=torch.channels_last), self.weight, self.bias, padding=3, groups=c)
        x = x.view(3, 3, n, c, rows, columns).permute(2, 3, 4, 0, 5, 1)
        return x.reshape(n, c, 3 * rows, 3 * columns)[:, :, :h, :w]


class GatedBlock(nn.Module):
    """``keep x + narrow(g tanh(exp(g)) v)`` with ``g, v = widen(norm(seen))``: ``(N, C, h, w)`` to the same.

    ``seen`` is a quarter of the channels as they are, one through a depthwise 3x3, one through 7x7, one through `Far`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        part = channels // 4
        self.near = nn.Conv2d(part, part, 3, 1, 1, groups=part)
        self.mid = nn.Conv2d(part, part, 7, 1, 3, groups=part)
        self.far = Far(part)
        self.norm = ChannelNorm(channels)
        self.widen = nn.Conv2d(channels, 2 * channels, 1)
        self.narrow = nn.Conv2d(channels, channels, 1)
        self.keep = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        own, near, mid, far = x.chunk(4, 1)
        seen = self.norm(torch.cat([own, self.near(near), self.mid(mid), self.far(far)], 1))
        gate, value = self.widen(seen).chunk(2, 1)
        return self.narrow(tanh_exp(gate) * value) + self.keep * x  # type: ignore[no-any-return]


def tanh_exp(x: Tensor) -> Tensor:
    """``x tanh(exp(x))`` (Liu and Di 2020, arXiv 2003.09855); from 20 on it is ``x`` to every bit, and its slope 1."""
    return x * x.clamp(max=20).exp().tanh()


class CamNet(Normalised):
    """Stem to half the picture's resolution, gated blocks, 1x1 convolution, global average.

    A 32x32 picture has a 16x16 map. ``logits = head(body(x)).mean_xy``. The plan without ``lite`` has at most 96,000
    parameters for ten classes; ``lite`` has at most 12.5 million multiply-adds for a picture of 32 pixels, as many as
    the ResNet-8 of MLPerf Tiny, and a map of 8x8.
    """

    def __init__(self, classes: int, *, lite: bool = False) -> None:
        super().__init__()
        if lite:
            later = [nn.Conv2d(48, 80, 2, 2), ChannelNorm(80), GatedBlock(80), GatedBlock(80)]
            self.body = nn.Sequential(
                nn.Conv2d(3, 48, 3, 2, 1), ChannelNorm(48), *(GatedBlock(48) for _ in range(3)), *later
            )
        else:
            self.body = nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1), ChannelNorm(64), *(GatedBlock(64) for _ in range(6)))
        self.head = nn.Conv2d(80 if lite else 64, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.normalise(x))).mean((2, 3))
        return logits
