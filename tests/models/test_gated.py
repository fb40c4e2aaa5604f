from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor
from torchmetrics.functional.classification import multiclass_jaccard_index

from tests.models.contract import ENCODER, randomise
from tw_seg.errors import InputError
from tw_seg.lrp import HeatmapDecoder
from tw_seg.metrics import predict_masks
from tw_seg.models.factory import create_model
from tw_seg.models.gated import (
    GATES,
    GatedSegmenter,
    GateReport,
    calibrate_gate,
    count_confusions,
    get_rejected_logit,
    select_classes,
)
from tw_seg.models.segmenter import HeatmapSegmenter
from tw_seg.types import IGNORE_INDEX, Batch

K = 4
KINDS: list[dict[str, Any]] = [
    {},
    {"compress": 0.5, "decoder_kwargs": {"read_out": ["layer3", "input"], "tie_weights": False}},
    {"background": "constant", "decoder_kwargs": {"read_out": "layer2", "composite": "epsilon_plus"}},
    {"decoder_kwargs": {"schedule": {"chunk_size": 2, "recompute": True}, "seed": "contrastive"}},
    {"decoder_kwargs": {"schedule": {"memory_budget": 1e-4, "gradient_threshold": 0.0}}},
]


def create(**kwargs: Any) -> HeatmapSegmenter:
    model = randomise(HeatmapSegmenter(**{**ENCODER, **kwargs})).double().eval()
    head = model.classifier.get_submodule("fc")
    with torch.no_grad():
        head.weight.mul_(5)  # spreads the probabilities of random weights
        model.offset.copy_(torch.linspace(-1, 1, K))
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, 33, 47, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def middle_gate(model: HeatmapSegmenter, images: Tensor) -> float:
    """A gate that some classes pass and some do not."""
    return model(images).logits[:, 1:].sigmoid().median().item() + 1e-6


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class Pairs:
    """Counts the pairs that a decoder is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[list[tuple[int, int]]] = []
        whole = HeatmapDecoder.decode_pairs

        def counted(decoder: HeatmapDecoder, tape: Any, samples: Tensor, classes: Tensor) -> Any:
            self.calls.append(list(zip(samples.tolist(), classes.tolist(), strict=True)))
            return whole(decoder, tape, samples, classes)

        monkeypatch.setattr(HeatmapDecoder, "decode_pairs", counted)


# ------------------------------------------------------------------------------------------------ the masks


@pytest.mark.parametrize("kwargs", KINDS)
def test_at_gate_0_it_is_the_full_decode(images: Tensor, kwargs: dict[str, Any]) -> None:
    model = create(**kwargs)
    found, expected = GatedSegmenter(model, 0)(images), model(images)
    assert torch.equal(found.logits, expected.logits)
    close(found.mask_logits, expected.mask_logits)
    assert found.aux == () and not found.mask_logits.requires_grad


@pytest.mark.parametrize("kwargs", KINDS)
def test_classes_that_pass_are_decoded_and_no_others(
    images: Tensor, kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pairs = create(**kwargs), Pairs(monkeypatch)
    expected, gate = model(images), middle_gate(model, images)
    passes = expected.logits.sigmoid() >= gate
    passes[:, 0] = True
    assert 0 < passes[:, 1:].sum() < passes[:, 1:].numel()
    assert len(set(passes.sum(1).tolist())) > 1  # images with different numbers of classes

    found = GatedSegmenter(model, gate)(images)
    close(found.mask_logits[passes], expected.mask_logits[passes])
    assert (found.mask_logits[~passes] == torch.finfo(torch.float64).min / 2).all()
    first = int(model.background == "constant")
    assert pairs.calls == [[(s, k - first) for s, k in passes.nonzero().tolist() if k >= first]]


@pytest.mark.parametrize("size", [(33, 47), (64, 64), (16, 100), (7, 9)])
def test_no_argmax_takes_a_class_behind_the_gate(images: Tensor, size: tuple[int, int]) -> None:
    """At the native size too: there minus infinity would become NaN, which an argmax takes."""
    model = create()
    gate = middle_gate(model, images)
    output = GatedSegmenter(model, gate)(images)
    masks = predict_masks(output.mask_logits, [size] * 5)
    for mask, row in zip(masks, select_classes(output.logits, gate), strict=True):
        assert mask.shape == size
        assert row[mask.unique()].all()
    only = torch.where(select_classes(output.logits, gate)[:, :, None, None], model(images).mask_logits, -1e9)
    assert all(torch.equal(a, b) for a, b in zip(masks, predict_masks(only, [size] * 5), strict=True))
    assert output.mask_logits.isfinite().all()
    behind = ~select_classes(output.logits, gate)
    assert not output.mask_logits.softmax(1)[behind].any()


@pytest.mark.parametrize("background", ["class", "constant"])
def test_an_image_where_nothing_passes_is_background(
    images: Tensor, background: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pairs = create(background=background), Pairs(monkeypatch)
    output = GatedSegmenter(model, 1.0)(images)
    assert not output.mask_logits.argmax(1).any()
    close(output.mask_logits[:, 0], model(images, [0]).mask_logits[:, 0])
    assert pairs.calls == [[] if background == "constant" else [(s, 0) for s in range(5)]]


@pytest.mark.parametrize("background", ["class", "constant"])
def test_pairs_in_any_order(images: Tensor, background: str) -> None:
    model = create(background=background, decoder_kwargs={"read_out": ["layer3", "layer1"]}, class_prior=0.5)
    samples, classes = torch.tensor([4, 0, 4, 2, 0]), torch.tensor([0, 3, 1, 0, 3])
    tape, logits = model.record(images)
    expected = model(images)
    close(logits, expected.logits)
    found = model.decode_pairs(tape, samples, classes)
    close(found.logits, expected.logits)
    for one, other in zip((found.mask_logits, *found.aux), (expected.mask_logits, *expected.aux), strict=True):
        close(one, other[samples, classes][:, None])
    none = torch.empty(0, dtype=torch.int64)
    nothing = model.decode_pairs(tape, none, none)
    assert [one.shape for one in (nothing.mask_logits, *nothing.aux)] == [(0, 1, 33, 47)] * 3
    with pytest.raises(InputError, match=r"\[4\] are outside 0..3"):
        model.decode_pairs(tape, torch.tensor([0]), torch.tensor([4]))
    with pytest.raises(InputError, match=f"samples.* < {len(tape.images)}, the number of images, found 9"):
        model.decode_pairs(tape, torch.tensor([9]), torch.tensor([1]))


def test_pairs_carry_the_gradient_of_the_full_decode(images: Tensor) -> None:
    model = create(decoder_kwargs={"read_out": "layer2"})
    samples, classes = torch.tensor([1, 1, 3]), torch.tensor([0, 2, 2])
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights = torch.randn(3, 33, 47, dtype=torch.float64)

    def gradients(maps: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((maps * weights).sum(), parameters, materialize_grads=True))

    found = gradients(model.decode_pairs(model.record(images)[0], samples, classes).mask_logits[:, 0])
    for one, other in zip(found, gradients(model(images).mask_logits[samples, classes]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite(images: Tensor, dtype: torch.dtype) -> None:
    model = create(decoder_kwargs={"read_out": "layer3"}).to(dtype)
    output = GatedSegmenter(model, 0.5)(images.to(dtype))
    assert output.mask_logits.isfinite().all()
    assert output.mask_logits.argmax(1).max() < K


def test_autocast_and_inference_mode(images: Tensor) -> None:
    model = create(decoder_kwargs={"read_out": "layer3"})
    gate = middle_gate(model, images)
    exact = GatedSegmenter(model, gate)(images)
    with torch.inference_mode():
        close(GatedSegmenter(model, gate)(images).mask_logits, exact.mask_logits)
    single = copy.deepcopy(model).float()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        output, full = GatedSegmenter(single, gate)(images.float()), single(images.float())
    passes = select_classes(output.logits, gate)
    torch.testing.assert_close(output.mask_logits[passes], full.mask_logits[passes], rtol=0.1, atol=0.1)
    assert output.mask_logits.isfinite().all()
    assert (output.mask_logits[~passes] < -1e30).all()


def test_the_model_is_left_as_it_was(images: Tensor) -> None:
    model = create()
    before = copy.deepcopy(model.state_dict())
    gated = GatedSegmenter(model, 0.5)
    gated(images)
    assert gated.model is model and not model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


# ---------------------------------------------------------------------------------------------- refusals


def test_without_a_gate_it_refuses(images: Tensor) -> None:
    gated = GatedSegmenter(create())
    with pytest.raises(InputError, match=r"not calibrated.*calibrate\(loader\)"):
        gated(images)


def test_in_training_mode_it_refuses(images: Tensor) -> None:
    model = create().train()
    with pytest.raises(InputError, match=r"model.eval\(\)"):
        GatedSegmenter(model, 0.5)(images)
    with pytest.raises(InputError, match=r"model.eval\(\)"):
        calibrate_gate(model, [])


@pytest.mark.parametrize("gate", [-0.1, 1.1, math.nan])
def test_a_gate_is_a_probability(gate: float) -> None:
    with pytest.raises(InputError, match="probability in"):
        GatedSegmenter(create(), gate)


def test_other_models_have_no_gate() -> None:
    with pytest.raises(InputError, match="HeatmapSegmenter.*ImageClassifier"):
        GatedSegmenter(create_model("classifier", **ENCODER), 0.5)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- calibration


def batches(model: HeatmapSegmenter, *, count: int = 2) -> list[Batch]:
    """Batches of 4 images, 3 of them with masks: what the model sees without a gate, half of it wrong or ignored.

    Each mask has a native size of its own.
    """
    generator = torch.Generator().manual_seed(5)
    found = []
    for _ in range(count):
        images = torch.randn(4, 3, 33, 47, generator=generator)
        labelled = torch.tensor([0, 2, 3])
        masks = predict_masks(model(images.double(), samples=labelled).mask_logits, [(20, 30), (33, 47), (50, 41)])
        for mask in masks:
            mask[: len(mask) // 4] = torch.randint(0, K, mask[: len(mask) // 4].shape, generator=generator)
            mask[-len(mask) // 4 :] = IGNORE_INDEX
        found.append(
            Batch(
                images=images,
                labels=torch.ones(4, K),
                labelled=labelled,
                masks=torch.full((3, 33, 47), IGNORE_INDEX),
                native_masks=tuple(masks),
                names=tuple("abcd"),
            )
        )
    return found


def brute_force(model: HeatmapSegmenter, data: Sequence[Batch], gate: float) -> tuple[float, float]:
    """mIoU and mean number of classes: one gated run, torchmetrics on all pixels."""
    predicted, true, decoded = [], [], []
    for batch in data:
        output = GatedSegmenter(model, gate)(batch.images.double()[batch.labelled])
        predicted += [m.flatten() for m in predict_masks(output.mask_logits, batch.native_masks)]
        true += [m.flatten() for m in batch.native_masks]
        decoded += [1 + int((row[1:].sigmoid() >= gate).sum()) for row in output.logits]
    miou = multiclass_jaccard_index(
        torch.cat(predicted), torch.cat(true), K, average="macro", ignore_index=IGNORE_INDEX
    )
    return float(miou), sum(decoded) / len(decoded)


def test_calibration_finds_what_brute_force_finds() -> None:
    model = create(decoder_kwargs={"read_out": "layer3"})
    data = batches(model)
    scores = [brute_force(model, data, gate) for gate in GATES]
    changes = [abs(miou - scores[0][0]) for miou, _ in scores]
    assert max(changes) > 0.05  # these gates matter
    chosen = set()
    for tolerance in (0.0, 0.001, max(changes) / 2, 1.0):
        report = calibrate_gate(model, data, tolerance)
        index = GATES.index(report.gate)
        assert all(change <= tolerance + 1e-9 for change in changes[: index + 1])
        assert index == len(GATES) - 1 or changes[index + 1] > tolerance - 1e-9
        assert report.miou == pytest.approx(scores[0][0], abs=1e-6)
        assert report.gated_miou == pytest.approx(scores[index][0], abs=1e-6)
        assert report.decoded == pytest.approx(scores[index][1])
        assert (report.tolerance, report.num_classes, report.images) == (tolerance, K, 6)
        chosen.add(report.gate)
    assert len(chosen) > 1 and GATES[-1] in chosen


def test_the_gate_is_set_and_said(caplog: pytest.LogCaptureFixture) -> None:
    gated = GatedSegmenter(create(decoder_kwargs={"read_out": "layer3"}))
    data = batches(gated.model)
    with caplog.at_level(logging.INFO, logger="tw_seg"):
        report = gated.calibrate(iter(data), tolerance=0.01)
    assert gated.gate == report.gate
    assert [record.getMessage() for record in caplog.records] == [str(report)]
    assert f"gate={report.gate}" in repr(gated)
    gated(data[0].images.double())


def test_a_gate_may_not_improve_the_masks_behind_ones_back() -> None:
    """A change is a change: a wrong class removed too."""
    model = create(decoder_kwargs={"read_out": "layer3"})
    data = [
        batch._replace(native_masks=tuple(torch.zeros_like(m) for m in batch.native_masks)) for batch in batches(model)
    ]
    report = calibrate_gate(model, data, 0.0)
    assert report.miou < 1
    assert report.gated_miou == report.miou
    assert calibrate_gate(model, data, 1.0).gated_miou > report.miou


def test_confusions_of_an_image_are_those_of_sklearn(images: Tensor) -> None:
    model = create(decoder_kwargs={"read_out": "layer3"})
    output = model(images)
    gates = output.logits[0].detach().sigmoid().sort().values
    gates = torch.cat([gates - 1e-9, gates, gates + 1e-9, torch.tensor([0.0, 1.0])])
    mask = torch.randint(0, K, (25, 60))
    mask[0] = IGNORE_INDEX
    passes = select_classes(output.logits[0], gates[:, None])
    found = count_confusions(output.mask_logits[0], mask, output.logits[0], passes)
    for gate, confusion in zip(gates.tolist(), found, strict=True):
        gated = GatedSegmenter(model, min(max(gate, 0), 1))(images[:1])
        predicted = predict_masks(gated.mask_logits, [mask])[0]
        kept = mask != IGNORE_INDEX
        expected = confusion_matrix(mask[kept], predicted[kept], labels=range(K))
        assert confusion.tolist() == expected.tolist()


def test_of_equal_scores_the_first_class_wins() -> None:
    scores = torch.zeros(3, 2, 2)  # an image without relevance: all classes are equal
    logits = torch.tensor([0.0, 1.0, 2.0])  # class 2 comes in before class 1
    passes = torch.tensor([[True, True, True], [True, False, True]])
    found = count_confusions(scores, torch.ones(2, 2, dtype=torch.int64), logits, passes)
    assert found[:, 1, 0].tolist() == [4, 4]
    scores[1:] += 1
    found = count_confusions(scores, torch.ones(2, 2, dtype=torch.int64), logits, passes)
    assert found[0, 1].tolist() == [0, 4, 0] and found[1, 1].tolist() == [0, 0, 4]


def test_a_probability_that_is_no_number_leaves_nothing_out() -> None:
    assert select_classes(torch.tensor([torch.nan, torch.nan, -5.0]), 0.5).tolist() == [True, True, False]


def unlabelled(batch: Batch) -> Batch:
    return batch._replace(labelled=batch.labelled[:0], masks=batch.masks[:0], native_masks=())


def test_batches_without_masks_count_for_nothing() -> None:
    model = create(decoder_kwargs={"read_out": "layer3"})
    data = batches(model)
    assert calibrate_gate(model, [unlabelled(data[1]), *data]) == calibrate_gate(model, data)


@pytest.mark.parametrize("kind", ["empty", "unlabelled", "ignored"])
def test_without_labelled_pixels_there_is_no_gate(kind: str) -> None:
    gated = GatedSegmenter(create(decoder_kwargs={"read_out": "layer3"}))
    (batch,) = batches(gated.model, count=1)
    ignored = batch._replace(native_masks=tuple(torch.full_like(m, IGNORE_INDEX) for m in batch.native_masks))
    data = {"empty": [], "unlabelled": [unlabelled(batch)], "ignored": [ignored]}[kind]
    with pytest.raises(InputError, match="labelled pixels"):
        gated.calibrate(data)
    assert gated.gate is None


def test_wrong_calibration_data_is_named() -> None:
    model = create(decoder_kwargs={"read_out": "layer3"})
    (batch,) = batches(model, count=1)
    with pytest.raises(InputError, match=r"class ids 0..3.*9"):
        calibrate_gate(model, [batch._replace(native_masks=tuple(m.clamp_min(9) for m in batch.native_masks))])
    with pytest.raises(InputError, match="0 native masks"):
        calibrate_gate(model, [batch._replace(native_masks=())])
    for tolerance in (-0.1, math.nan):
        with pytest.raises(InputError, match="tolerance"):
            calibrate_gate(model, [batch], tolerance)


def test_the_report_in_words_and_as_json() -> None:
    report = GateReport(0.018, 0.001, miou=0.5432, gated_miou=0.5431, decoded=2.46, num_classes=21, images=100)
    assert str(report) == (
        "gate 0.018: mIoU 0.5432 without and 0.5431 with it on 100 images (tolerance 0.001), 2.46 of 21 classes "
        "decoded for each"
    )
    assert GateReport(**json.loads(report.to_json())) == report


def test_candidates_begin_with_no_gate_and_rise() -> None:
    assert GATES[0] == 0 and list(GATES) == sorted(set(GATES)) and GATES[-1] < 1
    assert all(math.isfinite(get_rejected_logit(dtype)) for dtype in (torch.float16, torch.bfloat16, torch.float64))
