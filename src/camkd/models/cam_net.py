"""CAM-Net, the student: much computation from few weights, and a head that is its own heatmap.

Residual blocks of two 3x3 convolutions run several times with the same weights, each time with batch normalisation of
its own (Liao and Poggio 2016, arXiv 1604.03640). The head is a 1x1 convolution and then the global average, so the
class activation maps are the head's own output. The candidates it was chosen from: docs/evidence.md.
"""

from __future__ import annotations

from torch import Tensor, nn

from camkd.models.normalise import Normalised


def unit(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, rectifier."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Recurrent(nn.Module):
    """A residual block ``x + norm(conv2(relu(norm(conv1(x)))))`` that runs ``times`` times with the same kernels."""

    def __init__(self, channels: int, times: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norms1 = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(times))
        self.norms2 = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(times))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        for norm1, norm2 in zip(self.norms1, self.norms2, strict=True):
            x = self.relu(x + norm2(self.conv2(self.relu(norm1(self.conv1(x))))))
        return x


class CamNet(Normalised):
    """Stem at full resolution, recurrent blocks at a half and a quarter of it, 1x1 convolution, global average.

    A 32x32 picture has an 8x8 map. 95,306 parameters for ten classes, 49 more for each further one.
    ``logits = head(body(x)).mean_xy``.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            unit(3, 16), unit(16, 40, stride=2), Recurrent(40, 3), unit(40, 48, stride=2), Recurrent(48, 2)
        )
        self.head = nn.Conv2d(48, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.normalise(x))).mean((2, 3))
        return logits
