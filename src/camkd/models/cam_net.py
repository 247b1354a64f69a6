"""CAM-Net, the student: much computation from few weights, and a head that is its own heatmap.

Residual blocks run several times with the same kernels, each time with batch normalisation of its own (Liao and Poggio
2016, arXiv 1604.03640): dense ones at a half of the picture's resolution, inverted ones (Sandler et al. 2018, arXiv
1801.04381) at a quarter. The head is a 1x1 convolution and then the global average, so the class activation maps are
the head's own output. The candidates it was chosen from: docs/evidence.md.
"""

from __future__ import annotations

from torch import Tensor, nn

from camkd.models.normalise import Normalised


def unit(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, rectifier."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _norms(channels: int, times: int) -> nn.ModuleList:
    return nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(times))


class Recurrent(nn.Module):
    """A residual block ``x + norm(conv2(relu(norm(conv1(x)))))`` that runs ``times`` times with the same kernels."""

    def __init__(self, channels: int, times: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norms1, self.norms2 = _norms(channels, times), _norms(channels, times)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        for norm1, norm2 in zip(self.norms1, self.norms2, strict=True):
            x = self.relu(x + norm2(self.conv2(self.relu(norm1(self.conv1(x))))))
        return x


class RecurrentInverted(nn.Module):
    """An inverted residual ``x + norm(narrow(relu(norm(depthwise(relu(norm(widen(x))))))))`` that runs ``times`` times.

    ``widen`` and ``narrow`` are 1x1 convolutions to ``wide`` channels and back, ``depthwise`` is 3x3.
    """

    def __init__(self, channels: int, wide: int, times: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, wide, 1, bias=False)
        self.depthwise = nn.Conv2d(wide, wide, 3, 1, 1, groups=wide, bias=False)
        self.narrow = nn.Conv2d(wide, channels, 1, bias=False)
        self.norms1, self.norms2, self.norms3 = _norms(wide, times), _norms(wide, times), _norms(channels, times)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        for norm1, norm2, norm3 in zip(self.norms1, self.norms2, self.norms3, strict=True):
            y = self.relu(norm1(self.widen(x)))
            x = x + norm3(self.narrow(self.relu(norm2(self.depthwise(y)))))
        return x


class CamNet(Normalised):
    """Stem at full resolution, blocks at a half and a quarter of it, 1x1 convolution, global average.

    A 32x32 picture has an 8x8 map. ``logits = head(body(x)).mean_xy``. The plan without ``lite`` has at most 96,000
    parameters for ten classes; ``lite`` has at most 12.5 million multiply-adds for a picture of 32 pixels, as many as
    the ResNet-8 of MLPerf Tiny.
    """

    def __init__(self, classes: int, *, lite: bool = False) -> None:
        super().__init__()
        stem = [unit(3, 16)] if lite else [unit(3, 16), unit(16, 16)]
        last = [(144, 3), (96, 1)] if lite else [(160, 3), (176, 2)]
        self.body = nn.Sequential(
            *stem,
            unit(16, 32, stride=2),
            Recurrent(32, 1 if lite else 2),
            unit(32, 64, stride=2),
            *(RecurrentInverted(64, wide, times) for wide, times in last),
        )
        self.head = nn.Conv2d(64, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.normalise(x))).mean((2, 3))
        return logits
