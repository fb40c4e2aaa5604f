from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from tests.app.tiny import make_service
from tw_seg.app.learn import MOST_STEPS, Learning, find_kept, learn_corrections, make_batch
from tw_seg.errors import InputError
from tw_seg.losses.pixels import cross_entropy
from tw_seg.types import SegOutput


@pytest.fixture
def service(tmp_path):
    return make_service(tmp_path)


def make_images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 24, 32, generator=torch.Generator().manual_seed(1))


def make_marks(count: int = 2) -> Tensor:
    marks = torch.full((count, 24, 32), 255)
    marks[:, 8:16, 10:20], marks[:, :3] = 2, 0
    return marks


@pytest.mark.parametrize("name", ["heatmap", "unet"])
def test_marks_are_learned_and_statistics_stay(tmp_path, name):
    service = make_service(tmp_path, name)
    model, images, marks = service.task.model, make_images(), make_marks()
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    before = float(cross_entropy(model(images).mask_logits, marks).detach())
    losses = list(learn_corrections(model, service.task.loss, images, marks, steps=10, learning=Learning(0.003, 0.0)))
    assert 0 < len(losses) <= 10 and losses[-1] < losses[0]
    assert float(cross_entropy(model(images).mask_logits, marks).detach()) < before
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers()) and not model.training


def test_a_step_is_one_of_adamw_on_the_loss_of_the_run_and_of_what_is_kept(service):
    """Against the same by hand: no decay, one learning rate, each pixel counted once."""
    model, images, marks = service.task.model, make_images(), make_marks()
    mine = copy.deepcopy(model)
    kept = find_kept(mine, images, marks)
    output = mine(images)
    value, _ = service.task.loss(output, make_batch(images, marks, 3))
    value = value + 0.5 * cross_entropy(output.mask_logits, kept)
    optimizer = torch.optim.AdamW([one for one in mine.parameters() if one.requires_grad], lr=0.01, weight_decay=0.0)
    value.backward()
    optimizer.step()
    (loss,) = learn_corrections(model, service.task.loss, images, marks, steps=1, learning=Learning(0.01, 0.5))
    assert loss == pytest.approx(float(value.detach()), rel=1e-6)
    for found, expected in zip(model.parameters(), mine.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


def test_pictures_take_turns(service, monkeypatch):
    seen: list[Tensor] = []
    model, images = service.task.model, make_images(3)
    service.task.loss.register_forward_pre_hook(lambda module, args: seen.append(args[1].images))
    learning = Learning(0.01, batch_size=2)
    list(learn_corrections(model, service.task.loss, images, make_marks(3), steps=3, learning=learning))
    rows = [[int((images == one).flatten(1).all(1).nonzero()) for one in batch] for batch in seen]
    assert rows == [[0, 1], [0, 2], [1, 2]]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_it_ends_as_soon_as_all_marks_are_right(service, batch_size):
    model, images, marks = service.task.model, make_images(), make_marks()
    learning = Learning(0.01, 0.0, batch_size)
    seen = []
    for _ in learn_corrections(model, service.task.loss, images, marks, steps=200, learning=learning):
        with torch.no_grad():
            seen.append(bool((model(images).mask_logits.argmax(1) == marks)[marks != 255].all()))
    assert len(seen) < 200
    if batch_size > 1:  # all pictures are in every step
        assert seen[-1] and not any(seen[:-1])


def test_only_marked_classes_are_known():
    batch = make_batch(make_images(), make_marks(), 4)
    assert batch.labels.nan_to_num(-1).tolist() == [[1, -1, 1, -1]] * 2
    assert batch.labelled.tolist() == [0, 1] and batch.annotated is None


class Fixed(torch.nn.Module):
    """A model whose mask is always the same."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, images: Tensor) -> SegOutput:
        maps = torch.nn.functional.one_hot(self.mask, 3).movedim(-1, 0)[None].float()
        return SegOutput(maps.amax((2, 3)), maps)


def test_a_part_that_a_mark_contradicts_is_open():
    mask = torch.tensor([[1, 1, 0, 1, 1, 0, 2, 2]])
    marks = torch.tensor([[[0, 255, 255, 1, 255, 1, 255, 255]]])
    # The first part of class 1 is open; the second was confirmed; of the background the marked pixel alone is open.
    assert find_kept(Fixed(mask), torch.zeros(1, 3, 1, 8), marks).tolist() == [[[255, 255, 0, 255, 1, 255, 2, 2]]]


@pytest.mark.parametrize("name", ["cam", "lrp_mask"])
def test_a_model_without_weights_to_train_says_so(tmp_path, name):
    from tw_seg.training.task import SegmentationTask

    task = SegmentationTask(name, class_names=["background", "a", "b"], encoder_name="timm/resnet10t")
    for parameter in task.model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(InputError, match="nothing to train"):
        next(learn_corrections(task.model, task.loss, make_images(), make_marks(), steps=1, learning=Learning(0.01)))


def test_wrong_arguments(service):
    def run(marks: Tensor | None = None, steps: int = 1) -> None:
        marks = make_marks() if marks is None else marks
        next(learn_corrections(service.task.model, service.task.loss, make_images(), marks, steps=steps, learning=LR))

    with pytest.raises(InputError, match="nothing is marked yet"):
        run(torch.full((2, 24, 32), 255))
    with pytest.raises(InputError, match=f"at most {MOST_STEPS}, got {MOST_STEPS + 1}"):
        run(steps=MOST_STEPS + 1)
    with pytest.raises(InputError, match="steps"):
        run(steps=0)
    service.task.model.log_scale.data.fill_(torch.nan)
    with pytest.raises(InputError, match="no longer a finite number"):
        run()


LR = Learning(0.01)
