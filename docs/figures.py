"""Draw the figures of concepts.md with the shipped student and CIFAR-10 images.

Usage: python docs/figures.py data/cifar10-jpeg
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

import camkd
from camkd.data.dataset import Dataset
from camkd.data.sources import open_data
from camkd.data.views import Views
from camkd.explain.explain import example_rows, predict_images
from camkd.explain.plots import overlay
from camkd.runs.loading import read_model_info
from camkd.utils.plot_style import save_png, style_context

IMAGES = Path(__file__).parent / "images"
SIDE = 256


def draw_identity(images: NDArray[np.uint8], path: Path) -> None:
    """Draw one image and the maps of its three most probable classes, with mean, bias and logit."""
    model = camkd.load("cam-net-cifar10")
    classes = read_model_info("cam-net-cifar10").classes
    prediction = predict_images(model, images[:1])
    assert prediction.cams is not None
    top_classes = prediction.logits[0].topk(3).indices.tolist()
    bias = (prediction.logits - prediction.cams.mean((2, 3)))[0]
    with style_context():
        figure = Figure((9, 2.9), layout="constrained")
        axes = figure.subplots(1, 4)
        axes[0].imshow(images[0])
        axes[0].set_title("image")
        bound = float(prediction.cams[0, top_classes].abs().max())
        for axis, label in zip(axes[1:], top_classes, strict=True):
            cam = prediction.cams[0, label]
            logit = float(prediction.logits[0, label])
            axis.imshow(cam, cmap="PuOr_r", vmin=-bound, vmax=bound)
            axis.set_title(classes[label])
            axis.set_xlabel(f"mean {float(cam.mean()):+.2f}  bias {float(bias[label]):+.2f}\nlogit {logit:+.2f}")
        for axis in axes:
            axis.set_xticks([])
            axis.set_yticks([])
        save_png(figure, path)


def draw_views(data: Dataset, rows: NDArray[np.int64], path: Path) -> None:
    """Draw one training image as augmented in four epochs, with the map of each view."""
    model = camkd.load("cam-net-cifar10")
    views = Views(data.train, len(data.classes), "light", 0, torch.device("cpu"))
    with style_context():
        figure = Figure((9, 4.6), layout="constrained")
        axes = figure.subplots(2, 4)
        for epoch, column in enumerate(axes.T):
            x = views[epoch, torch.as_tensor(rows[:1])].x
            image = (x[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            prediction = predict_images(model, image[None])
            assert prediction.cams is not None
            label = int(prediction.logits.argmax())
            column[0].imshow(image)
            column[0].set_title(f"epoch {epoch + 1}")
            column[1].imshow(overlay(image, prediction.cams[0, label].numpy(), (SIDE, SIDE)))
            for axis in column:
                axis.set_xticks([])
                axis.set_yticks([])
        axes[0, 0].set_ylabel("augmented view")
        axes[1, 0].set_ylabel("map of the view")
        save_png(figure, path)


def main(folder: str) -> None:
    """Draw both figures with the images in ``folder``."""
    data = open_data(folder)
    draw_identity(data.test.images[example_rows(data.test)[7:8]], IMAGES / "identity.png")
    draw_views(data, example_rows(data.train)[7:8], IMAGES / "views.png")


if __name__ == "__main__":
    main(sys.argv[1])
