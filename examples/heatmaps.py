# %% [markdown]
# Heatmaps, cell by cell: open this file in an editor that runs `# %%` cells, or run it whole with
# `python examples/heatmaps.py`.

# %%
from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

import camkd
from camkd.data.sources import open_data
from camkd.explain.plots import overlay

# %% A trained student, and pictures that are at hand (it knows none of these shapes: take your own)
model = camkd.load("cam-net-cifar10")
pictures = open_data("shapes", limit=100).test.images[:4]
x = torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float() / 255  # (4, 3, 32, 32), RGB in 0..1

# %% One forward pass answers with logits and with a map of every class
with torch.no_grad():
    answer = camkd.predict(model, x)
assert answer.cams is not None
print("logits", tuple(answer.logits.shape), "maps", tuple(answer.cams.shape))

# %% The maps are not a guess about the network: their average *is* the logit, but for the bias
bias = (answer.logits - answer.cams.mean((2, 3)))[0]
assert torch.allclose(answer.cams.mean((2, 3)) + bias, answer.logits, atol=1e-4)

# %% The same of any network, by the published methods
found = camkd.predict(model, x, method="gradcam++", classes=answer.logits.argmax(1, keepdim=True))
print("gradcam++ of the predicted class", found.cams is not None and tuple(found.cams.shape))

# %% Draw the predicted class's map over each picture
out = Path("runs/examples/heatmaps")
out.mkdir(parents=True, exist_ok=True)
classes = camkd.runs.folder.describe("cam-net-cifar10").classes
for number, label in enumerate(answer.logits.argmax(1).tolist()):
    drawn = overlay(pictures[number], answer.cams[number, label].numpy(), (256, 256))
    Image.fromarray(drawn).save(out / f"{number}-{classes[label]}.png")
    print(out / f"{number}-{classes[label]}.png")
