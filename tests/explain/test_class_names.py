"""Sentences about the classes of a model and of contrast maps."""

from __future__ import annotations

from camkd.explain.class_names import describe_classes, describe_contrast, describe_map
from support.unusual_names import UNUSUAL_NAMES


def test_every_class_is_named_in_order() -> None:
    names = [f"class {index}" for index in range(20)]
    assert describe_classes(names) == (
        "The model predicts one of these 20 classes for every image, even for an image of another class: "
        f"{', '.join(names)}."
    )


def test_classes_beyond_twenty_are_counted() -> None:
    names = [f"class {index}" for index in range(1000)]
    sentence = describe_classes(names)
    assert sentence.startswith("The model predicts one of these 1,000 classes for every image")
    assert sentence.endswith(f": {', '.join(names[:20])}, and 980 more.")
    assert "class 20" not in sentence


def test_unusual_names_stay_on_one_line_of_limited_width() -> None:
    sentence = describe_classes(UNUSUAL_NAMES)
    assert sentence.isprintable()
    assert all(name in sentence for name in ("$x_1$", "日本の猫", "<script>&\"'", "🦉"))
    assert len(sentence) < 60 + 40 * len(UNUSUAL_NAMES) + 60


def test_map_is_named_by_its_class_and_the_contrast() -> None:
    assert describe_map("bird", []) == "bird"
    assert describe_map("bird", ["cat"]) == "bird vs. cat"


def test_contrast_with_one_and_with_many_classes() -> None:
    assert describe_contrast(["cat"]).endswith(": the evidence for its class minus the evidence for cat.")
    sentence = describe_contrast([f"class {index}" for index in range(1000)])
    assert "the mean evidence for these 1,000 classes: class 0, " in sentence
    assert sentence.endswith("class 19, and 980 more.")
