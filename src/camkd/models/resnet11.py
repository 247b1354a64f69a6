"""ResNet-11, a teacher that trains quickly on a CPU: few layers at full resolution, pooling instead of strides.

The design follows Page's ResNet-9 (2018, "How to train your ResNet", the DAWNBench entry). ResNet-11 has a residual
pair at every resolution and narrower layers. There is no pooling after the last stage, so the map has 8x8 cells. It has
half the multiply-adds of WRN-16-4 and trains 1.8 times as fast on two cores (LOG.md, 2026-11-23).
"""

from __future__ import annotations

from torch import Tensor, nn

from camkd.models.base import ImageClassifier


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> nn.Sequential:
    """Build convolution, batch normalization and ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class ResidualPair(nn.Module):
    """Residual block of two units of convolution, batch normalization and ReLU: ``x + unit(unit(x))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn_relu(channels, channels), conv_bn_relu(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


class ResNet11(ImageClassifier):
    """ResNet of 32, 64, 192 and 256 channels. A 32x32 image has an 8x8 map.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn_relu(3, 32),
            conv_bn_relu(32, 64),
            nn.MaxPool2d(2),
            ResidualPair(64),
            conv_bn_relu(64, 192),
            nn.MaxPool2d(2),
            ResidualPair(192),
            conv_bn_relu(192, 256),
            ResidualPair(256),
            nn.ReLU(inplace=True),
        )
        self.fc = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(self.normalize(x)).mean((2, 3)))
        return logits
