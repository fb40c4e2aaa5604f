from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from sklearn import metrics as sk

from tw_seg.errors import DataError
from tw_seg.metrics.boundary import boundary_f, count_boundaries
from tw_seg.metrics.confidence import calibration_error, count_confidences
from tw_seg.report.evaluation import Evaluation, share_losses

CLASSES = ("background", "cat", "dog", "never")


def make_images(count: int, seed: int = 0) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    images = []
    for index in range(count):
        mask = torch.randint(0, 3, (6, 8), generator=generator)
        mask[0] = 255
        logits = 2 * torch.randn(4, 6, 8, generator=generator)
        logits += 2.0 * torch.nn.functional.one_hot(mask.clamp(max=3), 4).permute(2, 0, 1)
        logits[3] -= 20
        labels = torch.tensor([1.0, *(float(bool((mask == k).any()) and index % 3 > 0) for k in (1, 2)), 0.0])
        images.append(
            {
                "name": f"i{index}",
                "logits": torch.randn(4, generator=generator) + 2 * labels,
                "labels": labels,
                "mask_logits": logits,
                "mask": mask if index % 4 else None,
            }
        )
    return images


def evaluate(images: list[dict]) -> Evaluation:
    evaluation = Evaluation(CLASSES)
    for image in images:
        evaluation.add(**image)
    return evaluation


def score_by_scikit_learn(images: list[dict]) -> dict[str, object]:
    masked = [image for image in images if image["mask"] is not None]
    truth = np.concatenate([image["mask"].numpy().ravel() for image in masked])
    found = np.concatenate([image["mask_logits"].argmax(0).numpy().ravel() for image in masked])
    found, truth = found[truth != 255], truth[truth != 255]
    each = {"labels": range(4), "average": None, "zero_division": np.nan}
    scores: dict[str, object] = {
        "iou": sk.jaccard_score(truth, found, **{**each, "zero_division": 0}),
        "dice": sk.f1_score(truth, found, **each),
        "precision": sk.precision_score(truth, found, **each),
        "recall": sk.recall_score(truth, found, **each),
        "pixel_acc": sk.accuracy_score(truth, found),
    }
    labels = np.array([image["labels"].numpy() for image in images])
    likely = np.array([image["logits"].numpy() for image in images])
    scores["ap"] = [np.nan, *(sk.average_precision_score(labels[:, k], likely[:, k]) for k in (1, 2)), np.nan]
    return scores


def test_scores_are_those_of_scikit_learn_and_of_the_pure_functions():
    images = make_images(12)
    results = evaluate(images).compute(resamples=0)
    expected = score_by_scikit_learn(images)
    expected["iou"][3] = np.nan  # a class that is nowhere
    for name in ("iou", "dice", "precision", "recall", "ap"):
        found = [score.value for score in results.per_class[name]]
        np.testing.assert_allclose(found, expected[name], rtol=1e-6, err_msg=name)
    assert results.overall["miou"].value == pytest.approx(np.nanmean(expected["iou"]))
    assert results.overall["dice"].value == pytest.approx(np.nanmean(expected["dice"]))
    assert results.overall["pixel_acc"].value == pytest.approx(expected["pixel_acc"])
    assert results.overall["map"].value == pytest.approx(np.nanmean(expected["ap"]))
    masked = [image for image in images if image["mask"] is not None]
    counts = sum(count_boundaries(i["mask"].numpy(), i["mask_logits"].argmax(0).numpy(), 4) for i in masked)
    np.testing.assert_allclose([score.value for score in results.per_class["boundary_f"]], boundary_f(counts))
    sure = sum(count_confidences(i["mask_logits"].softmax(0), i["mask"]) for i in masked)
    assert results.overall["calibration_error"].value == pytest.approx(calibration_error(sure))
    assert all(np.isnan([score.low, score.high]).all() for score in results.overall.values())


def test_intervals_are_those_of_a_bootstrap_written_out():
    """The same draws, each scored anew with scikit-learn."""
    images = make_images(9)
    groups = {image["name"]: f"g{i // 2}" for i, image in enumerate(images)}
    found = evaluate(images).compute(groups, resamples=200, seed=1).overall["miou"]
    random = np.random.default_rng(5)
    values = []
    for _ in range(200):
        drawn = random.integers(0, 5, 5)
        sample = [image for g in drawn for i, image in enumerate(images) if i // 2 == g]
        values.append(np.nanmean(score_by_scikit_learn(sample)["iou"][:3]))
    low, high = np.percentile(values, [2.5, 97.5])
    assert found.low < found.value < found.high
    assert found.low == pytest.approx(low, abs=0.02) and found.high == pytest.approx(high, abs=0.02)


def test_what_belongs_together_is_drawn_together():
    """Ten copies of each image are worth no more than one where they are of one group."""
    images = [{**image, "name": f"{image['name']}-{copy}"} for image in make_images(6) for copy in range(10)]
    evaluation = evaluate(images)
    apart = evaluation.compute(resamples=200).overall["miou"]
    together = evaluation.compute({i["name"]: i["name"].split("-")[0] for i in images}, resamples=200).overall["miou"]
    assert together.high - together.low > 2 * (apart.high - apart.low)
    one = evaluation.compute(dict.fromkeys(evaluation.names, "all"), resamples=200).overall["miou"]
    assert np.isnan([one.low, one.high]).all() and one.value == apart.value
    with pytest.raises(DataError, match="60 test images have no group, 'i0-0' first"):
        evaluation.compute({"other": "a"})


def test_what_is_lost_is_shared_out():
    evaluation = evaluate(make_images(12))
    results = evaluation.compute(resamples=0)
    assert results.lost_miou.sum() == pytest.approx(1 - results.overall["miou"].value)
    assert len(results.lost_miou) == len(results.image_miou) == len(evaluation.masked) == 9
    assert (results.lost_miou >= 0).all()
    perfect = np.array([[[5, 0], [0, 3]], [[5, 0], [4, 0]]])
    np.testing.assert_allclose(share_losses(perfect), [0, (4 / 7 + 4 / 14) / 2])


def test_unknown_labels_are_left_out_of_the_ranking():
    images = make_images(12)
    known = [image for i, image in enumerate(images) if i % 2]
    for i, image in enumerate(images):
        if not i % 2:
            image["labels"] = torch.tensor([1.0, np.nan, np.nan, np.nan])
    found, expected = (evaluate(one).compute(resamples=0).overall["map"].value for one in (images, known))
    assert found == pytest.approx(expected)


def test_without_masks_there_are_image_level_scores_only():
    images = [{**image, "mask": None, "mask_logits": None} for image in make_images(6)]
    results = evaluate(images).compute(resamples=20)
    assert np.isnan(results.overall["miou"].value) and 0 < results.overall["map"].value <= 1
    assert results.overall["map"].low <= results.overall["map"].value


def test_iou_of_a_class_is_that_of_pycocotools():
    """Of one image and of two beside each other; pycocotools knows no ignored pixels, so there are none."""
    images = [{**image, "mask": image["mask"].where(image["mask"] < 255, 0)} for image in make_images(4)[1:3]]
    for chosen in (images[:1], images):
        masks = torch.cat([image["mask"] for image in chosen], 1).numpy()
        found = torch.cat([image["mask_logits"].argmax(0) for image in chosen], 1).numpy()
        ious = [score.value for score in evaluate(chosen).compute(resamples=0).per_class["iou"]]
        for k in range(3):
            coded = [coco.encode(np.asfortranarray(ids == k, dtype=np.uint8)) for ids in (found, masks)]
            assert ious[k] == pytest.approx(coco.iou(coded[:1], coded[1:], [0])[0, 0])
