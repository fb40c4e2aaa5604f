from __future__ import annotations

import base64
import csv
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.report.test_evaluation import evaluate, make_images
from tw_seg.pictures import make_palette
from tw_seg.report.evaluation import Evaluation
from tw_seg.report.files import write_report
from tw_seg.report.page import format_score, render_page, show_image

VOID = {"meta", "img", "br", "link", "input", "hr"}
EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=y>"


class Page(HTMLParser):
    """Reads a page: its elements, its text, and whether elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def make_evaluation(classes=None, names=None) -> Evaluation:
    images = make_images(12)
    for image, name in zip(images, names or [], strict=False):
        image["name"] = name
    evaluation = evaluate(images)
    evaluation.classes = tuple(classes or evaluation.classes)
    return evaluation


def show_all(evaluation: Evaluation) -> dict:
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (300, 500, 3), dtype=np.uint8)
    mask, predicted = random.integers(0, 3, (2, 600, 1000), dtype=np.uint8)
    return dict.fromkeys(evaluation.names, show_image(picture, mask, predicted))


def render(evaluation: Evaluation, resamples: int = 50, **facts) -> str:
    return render_page(
        evaluation,
        evaluation.compute(resamples=resamples),
        title="Test of run",
        facts=facts,
        shown=show_all(evaluation),
        show=3,
    )


def test_the_page_needs_no_other_file_and_says_what_was_computed():
    evaluation = make_evaluation()
    page = Page(render(evaluation, checkpoint="best.ckpt"))
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    results = evaluation.compute(resamples=50)
    for score in (*results.overall.values(), *results.per_class["iou"][:3]):
        assert f"{score.value:.3f}" in page.text
        assert f"{score.low:.3f} to {score.high:.3f}" in page.text
    for name in (*evaluation.classes, "best.ckpt", "Masks that would help most", "Worst images", "Best images"):
        assert name in page.text
    worst = [evaluation.names[evaluation.masked[i]] for i in np.argsort(results.image_miou)[:3]]
    order = [page.text.index(f"{name}: mIoU") for name in worst]
    assert order == sorted(order)
    assert sum(tag == "img" for tag, _ in page.elements) == 3 * 3 * 3
    rectangles = [a for tag, a in page.elements if tag == "rect"]
    bars = [float(a["width"]) for a in rectangles if a.get("fill") == "#3b6ea5"]
    np.testing.assert_allclose(bars, [420 * score.value for score in results.per_class["iou"][:3]])
    assert len(page.open) == 0 and "nan" not in page.text


def test_names_of_classes_and_files_are_escaped():
    classes = ["background", EVIL, "a" * 300, 'x" onload="y']
    evaluation = make_evaluation(classes, [f"{EVIL}{i}" for i in range(12)])
    text = render(evaluation, **{EVIL: EVIL})
    page = Page(text)
    assert "<script" not in text and "onerror" in text
    allowed = {"class", "style", "src", "alt", "content", "name", "charset", "lang"}
    for tag, attributes in page.elements:
        if tag in ("img", "figure", "table", "td", "th", "p"):
            assert set(attributes) <= allowed
        assert not {"onerror", "onload"} & set(attributes)
    assert EVIL in page.text and 'x" onload="y' in page.text


def test_pictures_are_small_and_masks_have_their_colours():
    mask = np.zeros((600, 1000), dtype=np.uint8)
    mask[:, 500:] = 2
    shown = show_image(np.full((40, 60, 3), 7, dtype=np.uint8), mask, mask.T.copy().T)
    assert shown.ratio == pytest.approx(1000 / 600)

    def decode(uri: str) -> Image.Image:
        head, _, data = uri.partition(",")
        assert head in ("data:image/png;base64", "data:image/jpeg;base64")
        return Image.open(io.BytesIO(base64.b64decode(data)))

    picture, small = decode(shown.image), decode(shown.mask)
    assert picture.size == (60, 40) and max(small.size) <= 220
    assert np.array_equal(np.array(small.convert("RGB"))[0, -1], make_palette()[2])


def test_without_masks_or_intervals_the_page_says_so_by_dashes():
    images = [{**image, "mask": None, "mask_logits": None} for image in make_images(6)]
    page = Page(render(evaluate(images), resamples=0))
    assert "–" in page.text and "95 % interval" not in page.text and "Worst images" not in page.text
    assert format_score(float("nan")) == "–"


def test_many_classes_are_not_drawn_as_a_matrix():
    evaluation = Evaluation([f"class {k}" for k in range(40)])
    for image in make_images(3):
        maps = image["mask_logits"].new_full((40, 6, 8), -50.0)
        maps[:4] = image["mask_logits"]
        labels = image["labels"].new_zeros(40)
        evaluation.add(image["name"], labels, labels, mask_logits=maps, mask=image["mask"])
    page = Page(render(evaluation, resamples=0))
    assert not any(a.get("aria-label") == "confusion matrix" for _, a in page.elements)
    assert "predicted as" in page.text


def test_csv_and_json_hold_the_same_numbers(tmp_path):
    evaluation = make_evaluation(["background", "a,b", 'say "x"', "never"])
    results = evaluation.compute(resamples=50)
    shown = show_all(evaluation)
    write_report(tmp_path, evaluation, results, title="t", facts={"images": 12}, shown=shown, show=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "classes.csv",
        "images.csv",
        "report.html",
        "report.json",
    ]
    with open(tmp_path / "classes.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    content = json.loads((tmp_path / "report.json").read_text())
    assert [row["class"] for row in rows] == content["classes"] == list(evaluation.classes)
    for name, scores in results.per_class.items():
        for row, score, plain in zip(rows, scores, content["per_class"][name], strict=True):
            values = [score.value, score.low, score.high]
            written = [float(row[f"{name}{end}"] or "nan") for end in ("", "_low", "_high")]
            assert written == pytest.approx(values, abs=1e-6, nan_ok=True)
            known = [np.nan if value is None else value for value in plain.values()]
            assert known == pytest.approx(values, nan_ok=True)
    assert content["overall"]["miou"]["value"] == results.overall["miou"].value
    assert content["confusion"] == results.confusion.tolist()
    with open(tmp_path / "images.csv", encoding="utf-8") as file:
        images = list(csv.DictReader(file))
    assert sum(float(row["lost_miou"]) for row in images) == pytest.approx(1 - results.overall["miou"].value, abs=1e-5)
