from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.models.contract import randomise
from tests.training.tiny import make_task
from tw_seg.errors import InputError
from tw_seg.losses import SegmentationLoss
from tw_seg.lrp import HeatmapDecoder
from tw_seg.training.sampled_classes import compute_inclusion, draw_classes, find_classes, segment_sampled_classes
from tw_seg.training.task import SegmentationTask
from tw_seg.training.teacher import Teacher
from tw_seg.types import IGNORE_INDEX, Batch

K = 6
NAMES = ["background", *"abcde"]
DEEP: dict[str, Any] = {
    "decoder_kwargs": {"read_out": ["layer3", "layer1"], "tie_weights": False},
    "compress": 0.5,
    "refine": 4,
}
KINDS = [DEEP, {"decoder_kwargs": {"read_out": "layer2"}, "background": "constant", "class_prior": 0.3}]


def create_task(model_kwargs: dict[str, Any] = DEEP, **kwargs: Any) -> SegmentationTask:
    torch.manual_seed(0)
    task = make_task("heatmap", model_kwargs=model_kwargs, class_names=NAMES, **kwargs).double()
    randomise(task.model)
    with torch.no_grad():
        task.model.offset.copy_(torch.linspace(-1, 1, K))
        for net in task.model.refine:
            net.last.weight.normal_(std=0.1)
    task.log = task.log_dict = lambda *args, **kwargs: None
    task.eval()  # the model: a batch's statistics would hide what flows where
    return task


def make_batch(*, annotated: bool = False) -> Batch:
    """Two images with masks of two classes each, and two without."""
    generator = torch.Generator().manual_seed(1)
    masks = torch.randint(0, 2, (2, 24, 32), generator=generator) * torch.tensor([1, 3])[:, None, None]
    masks[:, :3] = IGNORE_INDEX
    labels = torch.zeros(4, K, dtype=torch.float64)
    labels[:, 0] = 1
    labels[[0, 1, 1, 2, 3], [1, 3, 4, 2, 5]] = 1
    seen = torch.tensor([[True] * 4 + [False] * 2] * 2) if annotated else None
    images = torch.randn(4, 3, 24, 32, dtype=torch.float64, generator=generator)
    return Batch(images, labels, torch.arange(2), masks, (), tuple("abcd"), annotated=seen)


def train(task: SegmentationTask, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    loss = task.training_step(batch, 0)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in task.model.named_parameters() if p.grad is not None}


def list_draws(inclusion: Tensor) -> list[tuple[float, float]]:
    """Every draw that there is: a position in the middle of where it happens, and its probability."""
    ends = [0.0, 1.0]
    for row in inclusion.numpy():
        ends += (np.cumsum(row[row < 1]) % 1).tolist()
    edges = np.unique(np.round(ends, 12))
    return [((a + b) / 2, b - a) for a, b in zip(edges[:-1], edges[1:], strict=True)]


# ------------------------------------------------------------------------------------------------- the draws


@pytest.mark.parametrize("negatives", [1, 2, 4])
def test_inclusion_is_the_weights_share_without_excess(negatives):
    """Against the plain loop: while one is above 1, it is certain, and the others share what is left."""
    generator = torch.Generator().manual_seed(negatives)
    logits = 6 * torch.randn(20, 9, generator=generator)
    needed = torch.rand(20, 9, generator=generator) < 0.3
    found = compute_inclusion(logits, needed, negatives)
    capped = 0
    for row in range(20):
        others = [k for k in range(1, 9) if not needed[row, k]]
        p = 1 / (1 + np.exp(-logits[row, others].double().numpy()))
        weights = p / p.sum() + 1 / len(others)
        expected = np.ones(len(others))
        free = np.arange(len(others)) if len(others) > negatives else np.array([], int)
        while len(free):
            shares = weights[free] * (negatives - (len(others) - len(free))) / weights[free].sum()
            if (shares < 1).all():
                expected[free] = shares
                break
            free, capped = free[shares < 1], capped + 1
        np.testing.assert_allclose(found[row, others].numpy(), expected, rtol=1e-12)
        assert (np.delete(found[row].numpy(), others) == 1).all()
        assert min(1.0, negatives / (2 * len(others))) <= expected.min() + 1e-12
    assert capped or negatives == 1


def test_inclusion_of_probabilities_that_underflow():
    needed = torch.zeros(2, 4, dtype=torch.bool)
    logits = torch.tensor([[0.0, -800.0, -800.0, -800.0], [0.0, 800.0, -800.0, 800.0]])
    found = compute_inclusion(logits, needed, 1)
    torch.testing.assert_close(found[0], torch.tensor([1, 1 / 3, 1 / 3, 1 / 3], dtype=torch.float64))
    torch.testing.assert_close(found[1], torch.tensor([1, 5 / 12, 1 / 6, 5 / 12], dtype=torch.float64))


@pytest.mark.parametrize("negatives", [1, 2, 3])
def test_each_class_is_drawn_with_its_probability(negatives):
    logits = 3 * torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    inclusion = compute_inclusion(logits, logits > 2, negatives)
    found = torch.zeros_like(inclusion)
    for position, probability in list_draws(inclusion):
        drawn = draw_classes(inclusion, torch.full((5,), position, dtype=torch.float64))
        assert torch.equal(drawn.sum(1), inclusion.sum(1).round().long())  # always as many
        found += probability * drawn
    torch.testing.assert_close(found, inclusion)


def test_classes_of_masks():
    masks = torch.tensor([[[0, 2, IGNORE_INDEX]], [[IGNORE_INDEX] * 3]])
    assert find_classes(masks, 3).tolist() == [[True, False, True], [False] * 3]


# --------------------------------------------------------------------------------------------- the estimate


@pytest.mark.parametrize("kwargs", KINDS)
def test_the_sum_of_exponentials_has_the_right_expectation(kwargs, monkeypatch):
    """At every pixel and every read-out, over all draws that there are."""
    model, batch = create_task(kwargs).model, make_batch()
    needed = batch.labels[:2] > 0
    with torch.no_grad():
        exact = model(batch.images, samples=batch.labelled)
        inclusion = compute_inclusion(exact.logits[:2], needed, 2)
        assert (inclusion < 1).any(1).all()
        sums = [torch.zeros_like(maps[:, 0]) for maps in (exact.mask_logits, *exact.aux)]
        for position, probability in list_draws(inclusion):
            monkeypatch.setattr(torch, "rand", lambda n, at=position, **kwargs: torch.full((n,), at, **kwargs))
            found = segment_sampled_classes(model, batch.images, batch.labelled, needed, negatives=2)
            for total, maps in zip(sums, (found.mask_logits, *found.aux), strict=True):
                total += probability * maps.exp().sum(1)
    for total, maps in zip(sums, (exact.mask_logits, *exact.aux), strict=True):
        torch.testing.assert_close(total, maps.exp().sum(1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("kwargs", KINDS)
@pytest.mark.parametrize("annotated", [False, True])
def test_with_all_negatives_a_step_is_the_exact_one(kwargs, annotated):
    batch = make_batch(annotated=annotated)
    pseudo = {"images": 2, "start": 0, "confidence": 0.1}
    tasks = [create_task(kwargs, pseudo_masks=pseudo, sampled_classes=how) for how in (None, {"negatives": K})]
    for task in tasks:
        task._teacher = Teacher(task.model, task._teaching)
    (exact, expected), (loss, gradients) = (train(task, batch) for task in tasks)
    torch.testing.assert_close(loss, exact, rtol=1e-10, atol=0)
    assert gradients.keys() == expected.keys()
    scale = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-10 * scale.item())


@pytest.mark.parametrize("kwargs", KINDS)
def test_what_is_decoded_and_that_nothing_flows_elsewhere(kwargs, monkeypatch):
    asked = []

    def note(name: str) -> Any:
        whole = getattr(HeatmapDecoder, name)

        def decode(decoder: Any, tape: Any, samples: Tensor, classes: Tensor) -> Any:
            asked.append(list(zip(samples.tolist(), classes.tolist(), strict=True)))
            return whole(decoder, tape, samples, classes)

        return decode

    for name in ("decode_pairs", "project_pairs"):  # with a refining net the second
        monkeypatch.setattr(HeatmapDecoder, name, note(name))
    task, batch = create_task(kwargs, sampled_classes={"negatives": 1}), make_batch(annotated=True)
    torch.manual_seed(3)
    output = task._segment_rows(batch, batch.labelled)
    SegmentationLoss(bce=0.0)(output, batch)[0].backward()
    for maps in (output.mask_logits, *output.aux):
        probabilities = maps.softmax(1).amax((2, 3))
        pairs = [(s, k) for s, k in (probabilities > 0).nonzero().tolist()]
        assert {(0, 0), (0, 1), (1, 0), (1, 3), (1, 4)} < set(pairs) and len(pairs) == 7
    shift = int(kwargs.get("background") == "constant")  # then the background has no heatmap
    assert asked == [[(s, k - shift) for s, k in pairs if k >= shift]]
    decoded = {k for _, k in pairs}
    assert 0 < len(decoded) < K
    gradients = {"offset": task.model.offset.grad}
    if kwargs is DEEP:  # the seed's row of the head; tied, the classifier's head would get nothing else without bce
        gradients |= {n: p.grad for n, p in task.model.named_parameters() if "decoder_weights" in n and len(p) == K}
        assert len(gradients) > 1
    for gradient in gradients.values():
        rows = gradient.flatten(1) if gradient.ndim > 1 else gradient[:, None]
        assert {k for k in range(K) if rows[k].any()} == decoded


@pytest.mark.parametrize("kwargs", KINDS)
@pytest.mark.parametrize("annotated", [False, True])
def test_classes_that_nobody_knows_of_and_those_of_sets_are_decoded(kwargs, annotated):
    """With the labels unknown, or all classes in sets, the step is the exact one, however few are drawn."""
    batch = make_batch(annotated=annotated)
    unknown = batch.labels.clone()
    unknown[:, 1:] = torch.nan
    masks = torch.where(batch.masks == 0, K, batch.masks)
    masks[:, 10:12] = K + 1
    regions = torch.tensor([[True, True, False, True, False, False], [True, False, True, False, True, True]])
    batches = [batch._replace(labels=unknown), batch._replace(masks=masks, regions=regions.expand(2, -1, -1))]
    tasks = [create_task(kwargs, sampled_classes=how, guidance={"energy": 1.0}) for how in (None, {"negatives": 1})]
    for one in batches:
        (exact, expected), (loss, gradients) = (train(task, one) for task in tasks)
        torch.testing.assert_close(loss, exact, rtol=1e-10, atol=0)
        scale = max(gradient.abs().max() for gradient in expected.values())
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-10 * scale.item())


def test_a_step_without_masks_is_finite():
    task, batch = create_task(sampled_classes={}), make_batch()
    loss, gradients = train(task, batch._replace(labelled=batch.labelled[:0], masks=batch.masks[:0]))
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients.values())


def test_draws_follow_the_seed():
    task, batch = create_task(sampled_classes={"negatives": 1}), make_batch()

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return task._segment_rows(batch, batch.labelled).mask_logits

    first = draw(0)
    assert torch.equal(draw(0), first)
    assert any(not torch.equal(draw(seed), first) for seed in range(1, 6))


def test_only_training_is_sampled():
    task, batch = create_task(sampled_classes={"negatives": 1}), make_batch()
    exact = task(batch.images, samples=batch.labelled)
    assert torch.equal(task._evaluate("val", batch._replace(native_masks=tuple(batch.masks)))["mask_logits"], exact[1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"negative": 3}, "sampled_classes knows negatives, not negative"),
        ({"negatives": None}, "negatives must be a finite number"),
        (3, "sampled_classes must be a mapping such as .*negatives.*, got 3"),
        ({"negatives": 0}, "negatives must be a whole number >= 1, got 0"),
    ],
)
def test_wrong_options_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        create_task(sampled_classes=given)


@pytest.mark.usefixtures("stub")
def test_a_model_that_decodes_all_classes_at_once_is_refused():
    with pytest.raises(InputError, match=r"needs a model that decodes class by class.*Stub: leave sampled_classes out"):
        make_task(sampled_classes={})
