# %% [markdown]
# Class activation maps of a trained model. Run the `# %%` cells in an editor, or the whole file with
# `python examples/heatmaps.py`.

# %%
from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

import camkd
from camkd.data.sources import open_data
from camkd.explain.plots import overlay

# %% Load a trained student, and images. The student was trained on CIFAR-10, not on these shapes: use your own images.
model = camkd.load("cam-net-cifar10")
images = open_data("shapes", limit=100).test.images[:4]
x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255  # (4, 3, 32, 32), RGB in 0..1

# %% Compute logits and the maps of all classes in one forward pass
with torch.no_grad():
    prediction = camkd.predict(model, x)
assert prediction.cams is not None
print("logits", tuple(prediction.logits.shape), "maps", tuple(prediction.cams.shape))

# %% The maps are exact: the mean of a map plus the bias of its class is the logit
logits_without_bias = prediction.cams.mean((2, 3))
bias = (prediction.logits - logits_without_bias)[0]
assert torch.allclose(logits_without_bias + bias, prediction.logits, atol=1e-4)

# %% Other map methods work for any network
predicted = prediction.logits.argmax(1)
gradcam = camkd.predict(model, x, method="gradcam++", classes=predicted[:, None])
assert gradcam.cams is not None
print("Grad-CAM++ of the predicted class", tuple(gradcam.cams.shape))

# %% Draw the map of the predicted class over each image
folder = Path("runs/examples/heatmaps")
folder.mkdir(parents=True, exist_ok=True)
assert model.info is not None
for index, class_id in enumerate(predicted.tolist()):
    path = folder / f"{index}-{model.info.classes[class_id]}.png"
    Image.fromarray(overlay(images[index], prediction.cams[index, class_id].numpy(), (256, 256))).save(path)
    print(path)
