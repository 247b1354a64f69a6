"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv 1605.07146)."""

from __future__ import annotations

from torch import Tensor, nn

from camkd.models.base import ImageClassifier


class WideBlock(nn.Module):
    """Pre-activation residual block: two sequences of batch normalization, ReLU and 3x3 convolution.

    If the number of channels or the resolution changes, the shortcut is a 1x1 convolution of the first ReLU's output.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        stride: Stride of the first convolution.
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
    """Wide ResNet with three stages. A 32x32 image has an 8x8 map.

    The stages have ``16 * widen``, ``32 * widen`` and ``64 * widen`` channels.

    Args:
        depth: Number of layers, ``6 * n + 4`` for ``n`` blocks per stage.
        widen: Factor of the number of channels.
        num_classes: Number of classes.
    """

    def __init__(self, depth: int, widen: int, num_classes: int) -> None:
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
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.layers(self.conv1(self.normalize(x)))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]
