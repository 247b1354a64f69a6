"""Maps out of the weights of a linear head: no gradient, and next to no cost."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camkd.cams.choice import Choice, chosen
from camkd.cams.heads import Head
from camkd.cams.hooks import outputs_of
from camkd.types import Prediction


def exact(model: nn.Module, head: Head, x: Tensor, classes: Choice) -> Prediction:
    """``cam[k] = sum_c W[k, c] A[c]`` of all classes or of ``classes``; its features are the averaged layer alone."""
    place, classifier = head.place, head.classifier
    assert classifier is not None
    with outputs_of([place.layer]) as seen:
        logits = model(x)
    _, output, features = seen[place.call]
    shown = chosen(classes, logits)
    if place.before:  # the map is there already, with the bias on every cell
        maps, features = place.layout.spatial(output), place.layout.spatial(features)
        cams = maps if classifier.bias is None else maps - classifier.bias.view(-1, 1, 1)
        if shown is not None:
            cams = cams.gather(1, shown[:, :, None, None].expand(-1, -1, *cams.shape[2:]))
        return Prediction(logits, cams, (features,), shown)
    features = place.layout.spatial(output)
    weight = classifier.weight.to(output.dtype).flatten(1)
    if shown is None:
        cams = F.conv2d(features, weight[:, :, None, None])
    else:
        cams = torch.einsum("nkc,nchw->nkhw", weight[shown], features)
    return Prediction(logits, cams, (features,), shown)
