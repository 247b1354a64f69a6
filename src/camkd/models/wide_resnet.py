"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv 1605.07146)."""

from __future__ import annotations

from torch import Tensor, nn

from camkd.models.base import ImageClassifier


class WideBlock(nn.Module):
    """Pre-activation residual block: batch normalization, ReLU, 3x3 convolution, twice.

    A 1x1 convolution in the shortcut takes its input after the first ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        needs_projection = in_channels != out_channels or stride != 1
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if needs_projection else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return self.conv2(self.relu(self.bn2(self.conv1(y)))) + shortcut  # type: ignore[no-any-return]


class WideResNet(ImageClassifier):
    """Wide ResNet with stages of 16, 32 and 64 channels times a width factor. A 32x32 image has an 8x8 map.

    Args:
        depth: number of layers, ``6 n + 4`` for ``n`` blocks per stage.
        widen: width factor.
        classes: number of classes.
    """

    def __init__(self, depth: int, widen: int, classes: int) -> None:
        super().__init__()
        blocks_per_stage = (depth - 4) // 6
        channels = 16
        self.conv1 = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        stages = []
        for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
            blocks = []
            for index in range(blocks_per_stage):
                blocks.append(WideBlock(channels, width, 2 if stage and index == 0 else 1))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.layers = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.layers(self.conv1(self.normalize(x)))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]
