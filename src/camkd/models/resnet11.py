"""ResNet-11, a teacher that trains quickly on a CPU: few layers at full resolution, pooling instead of strides.

The design follows David Page's ResNet-9, an entry of DAWNBench in 2018 (https://github.com/davidcpage/cifar10-fast).
ResNet-11 has narrower layers, and residual blocks after 64, 192 and 256 channels; there is none at full resolution. The
last two stages are not separated by pooling, so the map of a 32x32 image has 8x8 cells. ResNet-11 has half the
multiply-accumulates of WRN-16-4 and trains 1.8 times as fast on two cores (LOG.md, 2026-11-23).
"""

from __future__ import annotations

from torch import Tensor, nn

from camkd.models.base import ImageClassifier


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> nn.Sequential:
    """Build a sequence of convolution, batch normalization and ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class ResidualBlock(nn.Module):
    """Residual block of two sequences of `conv_bn_relu`: ``x + conv_bn_relu(conv_bn_relu(x))``.

    Args:
        channels: Number of input and output channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn_relu(channels, channels), conv_bn_relu(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


class ResNet11(ImageClassifier):
    """ResNet with 32, 64, 192 and 256 channels. A 32x32 image has an 8x8 map.

    Args:
        num_classes: Number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn_relu(3, 32),
            conv_bn_relu(32, 64),
            nn.MaxPool2d(2),
            ResidualBlock(64),
            conv_bn_relu(64, 192),
            nn.MaxPool2d(2),
            ResidualBlock(192),
            conv_bn_relu(192, 256),
            ResidualBlock(256),
            nn.ReLU(inplace=True),
        )
        self.fc = nn.Linear(256, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(self.normalize(x)).mean((2, 3)))
        return logits
