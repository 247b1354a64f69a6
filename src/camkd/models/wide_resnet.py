"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv 1605.07146)."""

from __future__ import annotations

from torch import Tensor, nn

from camkd.models.base import ImageClassifier


class WideBlock(nn.Module):
    """Normalise, rectify, convolve, twice; the shortcut leaves after the first rectifier where it projects."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        projects = inputs != outputs or stride != 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if projects else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return self.conv2(self.relu(self.bn2(self.conv1(y)))) + shortcut  # type: ignore[no-any-return]


class WideResNet(ImageClassifier):
    """``depth`` layers (6n + 4) of ``widen`` times 16, 32 and 64 channels; a 32x32 picture has an 8x8 map."""

    def __init__(self, depth: int, widen: int, classes: int) -> None:
        super().__init__()
        blocks, channels = (depth - 4) // 6, 16
        self.conv1 = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        stages = []
        for number, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
            stage = []
            for index in range(blocks):
                stage.append(WideBlock(channels, width, 2 if number and index == 0 else 1))
                channels = width
            stages.append(nn.Sequential(*stage))
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
