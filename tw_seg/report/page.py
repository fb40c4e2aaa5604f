"""The report as one HTML page that needs no other file: tables, drawings and pictures are inside it.

Everything that is put into the page is escaped: names of classes and files may hold anything.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image

from tw_seg.metrics.confidence import BINS, calibration_error
from tw_seg.pictures import make_palette
from tw_seg.report.evaluation import Evaluation, Results, Score

SIDE = 220
"""Largest height and width of the pictures in the page."""

LABELS = {
    "miou": ("mIoU", "mean over the classes of intersection over union of their pixels"),
    "dice": ("Dice", "mean over the classes of 2 · intersection / (pixels of both)"),
    "pixel_acc": ("pixel accuracy", "share of the labelled pixels whose class is right"),
    "boundary_f": ("boundary F", "how well outlines are met, within 0.75 % of the diagonal"),
    "calibration_error": ("calibration error", "mean difference of confidence and accuracy of pixels; less is better"),
    "map": ("image-level mAP", "mean over the classes of the average precision of their probabilities"),
}
"""Name and meaning of the scores of all classes together."""
CLASS_LABELS = {
    "iou": "IoU",
    "dice": "Dice",
    "precision": "precision",
    "recall": "recall",
    "boundary_f": "boundary F",
    "ap": "average precision",
}
"""Names of the scores of each class."""

_MOST_CONFUSED = 8
_SMALL_ENOUGH = 24  # classes of a confusion matrix that is drawn whole


class Shown(NamedTuple):
    """An image in small, as data URIs.

    Attributes:
        image: The image.
        mask: Its mask in colours.
        predicted: The predicted mask.
        ratio: Width divided by height.
    """

    image: str
    mask: str
    predicted: str
    ratio: float


def show_image(image: np.ndarray, mask: np.ndarray, predicted: np.ndarray) -> Shown:
    """Encode an image with its masks for the page.

    Args:
        image: RGB, uint8, (H, W, 3), of any size.
        mask: Ids 0..255, (h, w), of the native size.
        predicted: The same.
    """
    height, width = mask.shape
    step = math.ceil(max(height, width) / SIDE)
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE))
    masks = []
    for ids in (mask, predicted):
        small = Image.fromarray(np.ascontiguousarray(ids[::step, ::step]).astype(np.uint8), mode="P")
        small.putpalette(make_palette().tobytes())
        masks.append(_encode(small, "PNG"))
    return Shown(_encode(picture, "JPEG"), masks[0], masks[1], width / height)


def render_page(
    evaluation: Evaluation,
    results: Results,
    *,
    title: str,
    facts: Mapping[str, object],
    shown: Mapping[str, Shown],
    show: int,
) -> str:
    """Render the report.

    Args:
        evaluation: What was counted.
        results: Its scores.
        title: Heading of the page.
        facts: What was tested with what, by name.
        shown: Images in small, by name.
        show: Number of images in each row of pictures.

    Returns:
        The page, HTML.
    """
    environment = Environment(
        loader=PackageLoader("tw_seg.report", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["score"] = format_score
    names = [evaluation.names[row] for row in evaluation.masked]
    return environment.get_template("report.html").render(
        title=title,
        facts=facts,
        overall=[(*LABELS[key], score) for key, score in results.overall.items()],
        has_intervals=not math.isnan(next((s.low for s in results.overall.values() if s.low == s.low), math.nan)),
        class_labels=CLASS_LABELS,
        rows=_make_rows(evaluation.classes, results),
        confusion=_make_confusion(evaluation.classes, results.confusion),
        confused=_list_confused(evaluation.classes, results.confusion),
        calibration=_make_calibration(results.confidences),
        pictures=_choose_pictures(names, results, shown, show),
    )


def format_score(value: float) -> str:
    """A score with three digits, or a dash.

    Examples:
        >>> format_score(0.25), format_score(float("nan"))
        ('0.250', '–')
    """
    return "–" if math.isnan(value) else f"{value:.3f}"


def _make_rows(classes: Sequence[str], results: Results) -> list[dict[str, Any]]:
    """A row for each class: its name, colour, scores, and which share of the lost mIoU it makes up."""
    palette, ious = make_palette(), results.per_class["iou"]
    lost = np.nan_to_num([1 - score.value for score in ious])
    total = max(float(lost.sum()), 1e-12)
    return [
        {
            "name": name,
            "color": "#{:02x}{:02x}{:02x}".format(*palette[k]),
            "scores": [results.per_class[key][k] for key in CLASS_LABELS],
            "iou": _clean(ious[k]),
            "lost": float(lost[k]) / total,
            "pixels": int(results.confusion[k].sum()),
        }
        for k, name in enumerate(classes)
    ]


def _make_confusion(classes: Sequence[str], confusion: np.ndarray) -> list[dict[str, Any]] | None:
    """Rows of shares of the true class's pixels; ``None`` of too many classes to draw."""
    if len(classes) > _SMALL_ENOUGH:
        return None
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    return [
        {"name": name, "shares": [float(share) for share in row]} for name, row in zip(classes, shares, strict=True)
    ]


def _list_confused(classes: Sequence[str], confusion: np.ndarray) -> list[dict[str, Any]]:
    """The pairs of classes that hold the most wrong pixels."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSED]
    pairs = [divmod(int(index), len(classes)) for index in order]
    total = max(int(wrong.sum()), 1)
    return [
        {"true": classes[t], "predicted": classes[p], "pixels": int(wrong[t, p]), "share": wrong[t, p] / total}
        for t, p in pairs
        if wrong[t, p]
    ]


def _make_calibration(counts: np.ndarray) -> dict[str, Any] | None:
    """Points of the curve of accuracy over confidence."""
    if not counts.size or not counts[:, 0].sum():
        return None
    pixels, right, sure = counts.T
    bins = [
        {"confidence": sure[i] / pixels[i], "accuracy": right[i] / pixels[i], "share": pixels[i] / pixels.sum()}
        for i in range(BINS)
        if pixels[i]
    ]
    return {"bins": bins, "error": float(calibration_error(counts))}


def _choose_pictures(
    names: Sequence[str], results: Results, shown: Mapping[str, Shown], show: int
) -> list[dict[str, Any]]:
    """Rows of pictures: the best, the worst, and those that cost the data set most."""
    scored = [i for i in np.argsort(results.image_miou, kind="stable") if not np.isnan(results.image_miou[i])]
    costly = np.argsort(-results.lost_miou, kind="stable")

    def describe(rows: Sequence[int], text: str, values: np.ndarray) -> list[dict[str, Any]]:
        return [{"name": names[i], "shown": shown[names[i]], "text": text.format(values[i])} for i in rows[:show]]

    lost = results.lost_miou
    return [
        {
            "title": "Masks that would help most",
            "text": "These images cost the mIoU most: the sum over all images of what each costs is 1 − mIoU. Masks of "
            "training images that look like them, and of their classes, would help most.",
            "images": describe([int(i) for i in costly], "costs {:.4f}", lost),
        },
        {
            "title": "Worst images",
            "text": "By the mean IoU of the image alone.",
            "images": describe(scored, "mIoU {:.3f}", results.image_miou),
        },
        {
            "title": "Best images",
            "text": "By the mean IoU of the image alone.",
            "images": describe(scored[::-1], "mIoU {:.3f}", results.image_miou),
        },
    ]


def _clean(score: Score) -> Score | None:
    return None if math.isnan(score.value) else score


def _encode(picture: Image.Image, kind: str) -> str:
    """A picture as a data URI."""
    file = io.BytesIO()
    picture.save(file, kind, **({"quality": 85} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
