"""A task that begins as a trained one: the same outputs for the same classes, by name, and new ones beside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.contract import randomise
from tests.training.tiny import ENCODER
from tw_seg.errors import InputError
from tw_seg.training.extend import extend_task
from tw_seg.training.task import SegmentationTask

OLD = ["background", "cat", "dog", "cow"]
MODELS: dict[str, dict[str, Any]] = {
    "tied": {"model_kwargs": {"decoder_kwargs": {"read_out": "layer2"}}},
    "untied": {"model_kwargs": {"decoder_kwargs": {"read_out": ["layer1", "layer3"], "tie_weights": False}}},
    "refined": {"model_kwargs": {"decoder_kwargs": {"tie_weights": False}, "refine": 4, "share_offset": True}},
    "constant background": {"model_kwargs": {"background": "constant", "class_prior": 1.0, "compress": 2.0}},
    "multitask_unet": {"model": "multitask_unet", "model_kwargs": {"decoder_channels": [16, 8, 8, 8, 8]}},
    "deeplabv3plus": {"model": "deeplabv3plus", "model_kwargs": {"decoder_channels": 8}},
    "classifier": {"model": "classifier"},
}
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def make(names: list[str], **kwargs: Any) -> SegmentationTask:
    task = SegmentationTask(class_names=names, **{**ENCODER, **kwargs})
    randomise(task.model)
    return task.eval().double()


def outputs(task: SegmentationTask, names: list[str]) -> list[torch.Tensor]:
    """Logits and mask logits for the named classes."""
    with torch.no_grad():
        logits, mask_logits, aux = task(IMAGES)
    columns = [task.class_names.index(name) for name in names]
    return [one[:, columns] for one in (logits, mask_logits, *aux)]


@pytest.mark.parametrize("kwargs", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize(
    "names",
    [OLD, ["background", "cow", "cat", "dog"], [*OLD, "sheep", "car"], ["background", "sheep", "dog", "cat"]],
    ids=["same", "another order", "more", "one for another"],
)
def test_classes_of_the_same_name_are_what_they_were(kwargs, names) -> None:
    trained, task = make(OLD, **kwargs), make(names, **kwargs)
    shared = [name for name in names if name in OLD]
    different = zip(outputs(task, shared), outputs(trained, shared), strict=True)
    assert not all(torch.allclose(one, other) for one, other in different)
    extend_task(task, trained)
    for one, other in zip(outputs(task, shared), outputs(trained, shared), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_new_class_keeps_its_random_head_and_gets_the_mean_offset() -> None:
    kwargs = MODELS["untied"]
    trained, task = make(OLD, **kwargs), make([*OLD, "sheep"], **kwargs)
    before = task.model.classifier.get_submodule("fc").weight.detach().clone()
    extend_task(task, trained)
    after = task.model.classifier.get_submodule("fc").weight
    torch.testing.assert_close(after[4], before[4], rtol=0, atol=0)
    torch.testing.assert_close(after[:4], trained.model.classifier.get_submodule("fc").weight, rtol=0, atol=0)
    torch.testing.assert_close(task.model.offset[4], trained.model.offset[1:].mean())
    torch.testing.assert_close(task.model.offset[:4], trained.model.offset)


def test_making_the_twin_draws_no_random_number() -> None:
    trained, task = make(OLD), make(OLD)
    state = torch.get_rng_state()
    extend_task(task, trained)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("names", "kwargs", "message"),
    [
        (OLD, {"model": "multitask_unet"}, "the trained run has model='heatmap', this one 'multitask_unet'"),
        (OLD, {"in_channels": 1}, "in_channels=3, this one 1"),
        (OLD, {"model_kwargs": {"decoder_kwargs": {"tie_weights": False}}}, "other weights .*the same model_kwargs"),
        (["background", "car", "sheep"], {}, "no object class has the same name"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(names, kwargs, message) -> None:
    trained, task = make(OLD), make(names, **kwargs)
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        extend_task(task, trained)
    assert all(torch.equal(before[key], value) for key, value in task.model.state_dict().items())
