"""Figures of merit: how often a classifier is right, how sure it is, and how alike two stacks of maps are.

Pure functions on tensors. Maps are ``(N, h, w)``: one map a picture, of one class the caller chose (the
teacher's answer). Three views of likeness, because each one alone can be fooled:

- `cosine` compares the *evidence for* the class, the maps after ReLU, which is what a heatmap shows;
- `pearson` compares the whole raw map, evidence against the class included, free of offset and scale;
- `iou_top` compares where the strongest fifth lies and nothing else.

Maps of natural pictures resemble each other before anybody learns anything, so `map_agreement` puts two
chance levels beside each figure.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from camkd.cams import centre_prior, resize


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of pictures whose largest logit is the label's, 0 to 1; ``logits (N,K)``, ``labels (N,)``.

    Raises ValueError without pictures or when the shapes do not fit.

    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
    0.5
    """
    _check(logits, labels)
    return (logits.argmax(1) == labels).double().mean().item()


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Counts ``(K,K)`` int64 of true class (row) against predicted class (column); both inputs ``(N,)``.

    Raises ValueError for a class outside ``0..classes-1`` or shapes that differ.

    >>> confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    if predicted.shape != labels.shape or predicted.ndim != 1:
        raise ValueError(f"predicted {tuple(predicted.shape)} and labels {tuple(labels.shape)} must both be (N,)")
    both = torch.cat([predicted, labels])
    if both.numel() and not 0 <= int(both.min()) <= int(both.max()) < classes:
        raise ValueError(f"classes must lie in 0..{classes - 1}, found {int(both.min())}..{int(both.max())}")
    pairs = labels.long() * classes + predicted.long()
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def nll(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood in nats, ``-mean(log softmax(logits)[label])``; 0 is perfect.

    ``logits (N,K)``, ``labels (N,)``. Raises ValueError without pictures or when the shapes do not fit.

    >>> round(nll(torch.zeros(1, 2), torch.tensor([0])), 4)
    0.6931
    """
    _check(logits, labels)
    return F.cross_entropy(logits.float(), labels).item()


def ece(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error, 0 to 1: by how much confidence misses accuracy on average.

    ``sum_b |B_b|/N * |accuracy(B_b) - confidence(B_b)|`` over ``bins`` bins ``((b-1)/bins, b/bins]`` of the
    largest softmax probability (Guo et al. 2017, arXiv 1706.04599, equation 3). ``logits (N,K)``,
    ``labels (N,)``. Raises ValueError without pictures or when the shapes do not fit.

    >>> ece(torch.tensor([[50.0, 0.0], [50.0, 0.0]]), torch.tensor([0, 1]))  # sure, half right
    0.5
    """
    _check(logits, labels)
    confidence, predicted = logits.float().softmax(1).max(1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = (predicted == labels).float() - confidence
    return (torch.zeros(bins, device=gap.device).index_add_(0, place, gap).abs().sum() / len(labels)).item()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between two maps' positive parts, 0 to 1: ``(N,h,w), (N,h,w) -> (N,)``.

    ``<relu(a), relu(b)> / (|relu(a)| |relu(b)|)``: the evidence for the class, as a heatmap shows it. It
    does not change with either map's scale. A map without positive evidence scores 0 against any map.
    Raises ValueError when the shapes differ.

    >>> cosine(torch.tensor([[[3.0, -9.0]]]), torch.tensor([[[4.0, 3.0]]])).tolist()
    [0.800000011920929]
    """
    _check_maps(a, b)
    return (_unit(_flat(a).relu()) * _unit(_flat(b).relu())).sum(1).clamp(0, 1)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of two raw maps over their cells, -1 to 1: ``(N,h,w), (N,h,w) -> (N,)``.

    Evidence against the class counts too. It does not change with either map's offset or scale. A map
    that is constant up to rounding scores 0 against any map. Raises ValueError when the shapes differ.

    >>> pearson(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[6.0, 4.0, 2.0]]])).round().tolist()
    [-1.0]
    """
    _check_maps(a, b)
    return (_unit(_centred(_flat(a))) * _unit(_centred(_flat(b)))).sum(1).clamp(-1, 1)


def iou_top(a: Tensor, b: Tensor, fraction: float = 0.2) -> Tensor:
    """Intersection over union of two maps' strongest cells, 0 to 1: ``(N,h,w), (N,h,w) -> (N,)``.

    Exactly ``k = max(1, floor(fraction * h * w + 1/2))`` cells of each raw map count. Of equal cells the
    first in reading order (row by row) counts first, so ``k`` holds and the answer never depends on the
    machine. Raises ValueError when the shapes differ or ``fraction`` is outside ``(0, 1]``.

    >>> iou_top(torch.tensor([[[9.0, 8.0, 0.0, 0.0]]]), torch.tensor([[[0.0, 7.0, 6.0, 0.0]]]), 0.5).tolist()
    [0.3333333432674408]
    """
    _check_maps(a, b)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], not {fraction}")
    cells = a[0].numel() if len(a) else 1
    k = max(1, int(fraction * cells + 0.5))
    shared = (_top(_flat(a), k) & _top(_flat(b), k)).sum(1)
    return shared / (2 * k - shared)


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of a map's positive evidence that lies on the object, 0 to 1: ``(N,h,w), (N,H,W) bool -> (N,)``.

    ``sum relu(map) mask / sum relu(map)``, each cell with the share of it that the object covers. The energy-based
    pointing game of Wang et al. 2020, arXiv 1910.01279. Chance is the object's share of the picture. A map without
    positive evidence scores 0.

    >>> energy_inside(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]])).tolist()
    [0.75]
    """
    evidence = _flat(maps).relu()
    covered = F.adaptive_avg_pool2d(masks.float()[:, None], (maps.shape[1], maps.shape[2]))
    return (evidence * _flat(covered.squeeze(1))).sum(1) / evidence.sum(1).clamp_min(torch.finfo(torch.float32).tiny)


def shuffled(n: int, seed: int = 0) -> Tensor:
    """Another picture for each of ``n``: a permutation ``(n,)`` that leaves nothing in place.

    One cycle through all pictures in random order; the same for the same ``n`` and ``seed``. Raises
    ValueError for fewer than two pictures.

    >>> sorted(shuffled(4).tolist()), bool((shuffled(4) == torch.arange(4)).any())
    ([0, 1, 2, 3], False)
    """
    if n < 2:
        raise ValueError(f"another picture needs at least 2 pictures, there are {n}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return other


def map_agreement(student_maps: Tensor, teacher_maps: Tensor) -> dict[str, float]:
    """Mean `cosine`, `pearson` and `iou_top` of student and teacher, with two chance levels beside each.

    ``(N,h,w)`` and ``(N,H,W)``, one class a picture; both are brought to the larger grid first. Keys:
    ``cam_cosine``, ``cam_pearson``, ``cam_iou``; each ``*_shuffled`` (the student's map against the
    teacher's map of another picture, `shuffled`) and ``*_centre`` (the student's map against
    `centre_prior`). A single picture has no other, so it gets no ``*_shuffled``. Raises ValueError
    without pictures or when their numbers differ.

    >>> sorted(map_agreement(torch.rand(1, 4, 4), torch.rand(1, 8, 8)))[:2]
    ['cam_cosine', 'cam_cosine_centre']
    """
    if len(student_maps) != len(teacher_maps) or not len(student_maps):
        raise ValueError(
            f"{len(student_maps)} student maps and {len(teacher_maps)} teacher maps: give one pair a picture"
        )
    h, w = (max(student_maps.shape[i], teacher_maps.shape[i]) for i in (1, 2))
    student, teacher = resize(student_maps, (h, w)), resize(teacher_maps, (h, w))
    against = {"": teacher, "_centre": centre_prior(h, w).to(teacher).expand_as(teacher)}
    if len(teacher) > 1:
        against["_shuffled"] = teacher[shuffled(len(teacher)).to(teacher.device)]
    figures = {"cam_cosine": cosine, "cam_pearson": pearson, "cam_iou": iou_top}
    return {
        name + suffix: figure(student, other).double().mean().item()
        for name, figure in figures.items()
        for suffix, other in against.items()
    }


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        shapes = f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        raise ValueError(f"{shapes} must be (N, K) and (N,), with at least one picture")


def _check_maps(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.ndim != 3:
        raise ValueError(f"maps {tuple(a.shape)} and {tuple(b.shape)} must both be (N, h, w); see resize")


def _flat(maps: Tensor) -> Tensor:
    return maps.flatten(1).to(torch.promote_types(maps.dtype, torch.float32))


def _unit(vectors: Tensor) -> Tensor:
    """Length 1, zero vectors left zero; divided by the maximum first, so that no square overflows."""
    largest = vectors.abs().amax(1, keepdim=True)
    scaled = vectors / largest.where(largest > 0, 1)
    return F.normalize(scaled, dim=1, eps=1)


def _centred(vectors: Tensor) -> Tensor:
    """Minus the mean; exactly zero where only rounding is left."""
    rest = vectors - vectors.mean(1, keepdim=True)
    rounding = 8 * torch.finfo(vectors.dtype).eps * vectors.abs().amax(1, keepdim=True)
    return rest.where(rest.abs().amax(1, keepdim=True) > rounding, 0)


def _top(vectors: Tensor, k: int) -> Tensor:
    """True on the ``k`` largest cells of each row, the earlier of equal ones."""
    best = vectors.argsort(dim=1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(vectors, dtype=torch.bool).scatter_(1, best, True)
