"""Draw the figures of concepts.md with the shipped student and real pictures.

python docs/figures.py data/cifar10-jpeg
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import camkd
from camkd.data.augment import Views
from camkd.data.sources import open_data
from camkd.explain.explain import example_rows, predict_images
from camkd.explain.plots import overlay
from camkd.runs.load_model import read_model_info
from camkd.utils.plot_style import save_png, style_context

HERE = Path(__file__).parent / "images"
SIDE = 256


def identity(pictures: np.ndarray, path: Path) -> None:
    """One picture, the maps of its three likeliest classes as numbers, and the sums that they come to."""
    model, classes = camkd.load("cam-net-cifar10"), read_model_info("cam-net-cifar10").classes
    answer = predict_images(model, pictures[:1])
    assert answer.cams is not None
    likeliest = answer.logits[0].topk(3).indices.tolist()
    bias = (answer.logits - answer.cams.mean((2, 3)))[0]
    with style_context():
        figure = Figure((9, 2.9), layout="constrained")
        axes = figure.subplots(1, 4)
        axes[0].imshow(pictures[0])
        axes[0].set_title("the picture")
        bound = float(answer.cams[0, likeliest].abs().max())
        for place, label in zip(axes[1:], likeliest, strict=True):
            cam, logit = answer.cams[0, label], float(answer.logits[0, label])
            place.imshow(cam, cmap="PuOr_r", vmin=-bound, vmax=bound)
            place.set_title(classes[label])
            place.set_xlabel(f"mean {float(cam.mean()):+.2f}  bias {float(bias[label]):+.2f}\nlogit {logit:+.2f}")
        for place in axes:
            place.set_xticks([])
            place.set_yticks([])
        save_png(figure, path)


def views(data: camkd.data.dataset.Dataset, rows: np.ndarray, path: Path) -> None:
    """Two pictures as they are seen in four epochs, with the map of each view."""
    model = camkd.load("cam-net-cifar10")
    seen = Views(data.train, len(data.classes), "light", 0, torch.device("cpu"))
    with style_context():
        figure = Figure((9, 4.6), layout="constrained")
        axes = figure.subplots(2, 4)
        for epoch, place in enumerate(axes.T):
            x = seen[epoch, torch.as_tensor(rows[:1])].x
            image = (x[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            answer = predict_images(model, image[None])
            assert answer.cams is not None
            label = int(answer.logits.argmax())
            place[0].imshow(image)
            place[0].set_title(f"epoch {epoch + 1}")
            place[1].imshow(overlay(image, answer.cams[0, label].numpy(), (SIDE, SIDE)))
            for part in place:
                part.set_xticks([])
                part.set_yticks([])
        axes[0, 0].set_ylabel("the view")
        axes[1, 0].set_ylabel("its map, kept")
        save_png(figure, path)


def main(folder: str) -> None:
    """Write both."""
    data = open_data(folder)
    identity(data.test.images[example_rows(data.test)[7:8]], HERE / "identity.png")
    views(data, example_rows(data.train)[7:8], HERE / "views.png")


if __name__ == "__main__":
    main(sys.argv[1])
