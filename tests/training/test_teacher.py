from __future__ import annotations

import pytest
import torch

from tests.training.tiny import NAMES, Stub, TinyData, make_batch, make_task, make_trainer
from tw_seg.errors import InputError
from tw_seg.losses import cross_entropy, dice
from tw_seg.training.teacher import Teacher, read_pseudo_masks
from tw_seg.types import IGNORE_INDEX

pytestmark = pytest.mark.usefixtures("stub")


@pytest.fixture
def model() -> Stub:
    torch.manual_seed(0)
    return Stub("stub", classes=len(NAMES))


def test_the_teacher_is_the_moving_average_of_the_model(model):
    teacher = Teacher(model, read_pseudo_masks({"decay": 0.9}))
    start = {k: v.clone() for k, v in model.state_dict().items()}
    expected = {k: v.double() for k, v in start.items()}
    for step in range(4):
        with torch.no_grad():
            for value in (*model.parameters(), *model.buffers()):
                if value.is_floating_point():
                    value.add_(torch.randn_like(value))
        teacher.update(model)
        decay = 0.9 if step else 0.0  # the first is a copy
        expected = {k: decay * expected[k] + (1 - decay) * v.double() for k, v in model.state_dict().items()}
    found = {k.removeprefix("module."): v for k, v in teacher.state_dict().items() if k.startswith("module.")}
    assert found.keys() == expected.keys()
    for key, value in found.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-5)
    assert not any(p.grad is not None for p in model.parameters())


def test_masks_hold_probable_classes_that_the_labels_allow(model):
    teacher = Teacher(model, read_pseudo_masks({"confidence": 0.5}))
    images = 3 * torch.randn(4, 3, 6, 7)
    labels = torch.tensor([[1.0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]])
    masks = teacher.make_masks(images, labels)
    logits = model.eval()(images).mask_logits
    seen = set()
    for image in range(4):
        allowed = [0] + [k for k in (1, 2) if labels[image, k]]
        p = logits[image, allowed].softmax(0)
        expected = torch.where(p.max(0).values >= 0.5, torch.tensor(allowed)[p.argmax(0)], IGNORE_INDEX)
        assert torch.equal(masks[image], expected)
        seen |= set(expected.unique().tolist())
    assert seen == {0, 1, 2, IGNORE_INDEX}
    assert set(masks[3].unique().tolist()) == {0}  # nothing but background


@pytest.mark.parametrize("energy", [0.0, 0.5])
def test_a_step_adds_the_weighted_loss_of_the_first_unlabelled_images(energy):
    options = {"bce": 2.0, "aux": 0.0, "guidance": {"energy": energy} if energy else None}
    task = make_task(pseudo_masks={"images": 2, "start": 0, "weight": 0.25, "confidence": 0.4}, **options)
    batch = make_batch(1, total=5)
    task._teacher = Teacher(task.model, task._teaching)
    task.log = task.log_dict = lambda *args, **kwargs: None
    task.eval()
    loss = task.training_step(batch, 0)
    plain = make_task(**options)
    plain.load_state_dict(task.state_dict())
    plain.log = plain.log_dict = task.log
    expected = plain.eval().training_step(batch, 0)
    masks = task._teacher.make_masks(batch.images[1:3], batch.labels[1:3])
    logits = task.model(batch.images[1:3]).mask_logits
    # Energy by its definition: the share of positive mask logits of a class of the pseudo-mask that is outside of it.
    outside = [
        1
        - logits[row, k][masks[row] == k].clamp(min=0).sum()
        / logits[row, k][masks[row] != IGNORE_INDEX].clamp(min=0).sum()
        for row in range(2)
        for k in set(masks[row].unique().tolist()) - {0, IGNORE_INDEX}
    ]
    assert outside
    guiding = energy * torch.stack(outside).mean()
    expected = expected + 0.25 * (cross_entropy(logits, masks) + dice(logits, masks) + guiding)
    torch.testing.assert_close(loss, expected)
    assert task.model.decoded[0] == [0, 1, 2] or [0, 1, 2] in task.model.decoded


def test_a_class_that_nobody_knows_of_may_be_in_a_pseudo_mask():
    model = make_task().model
    teacher = Teacher(model, read_pseudo_masks({"confidence": 0.0}))
    images = make_batch(0, seed=3).images
    unknown, all_there, none = (torch.tensor([[1.0, x, x]]).expand(4, -1) for x in (torch.nan, 1.0, 0.0))
    assert torch.equal(teacher.make_masks(images, unknown), teacher.make_masks(images, all_there))
    assert not teacher.make_masks(images, none).any() and teacher.make_masks(images, unknown).any()


def test_pseudo_masks_begin_at_their_step_and_are_logged(tmp_path):
    seen = []
    task = make_task(pseudo_masks={"images": 1, "start": 2, "confidence": 0.0})
    log = task.log
    task.log = lambda name, *args, **kwargs: (seen.append((name, task.global_step)), log(name, *args, **kwargs))
    make_trainer(tmp_path).fit(task, TinyData([make_batch(2, seed=seed) for seed in range(4)]))
    assert [step for name, step in seen if name == "train/pseudo/share"] == [2, 3]
    rows = [d for d in task.model.decoded if d is not None and len(d) == 3]
    assert rows == [[0, 1, 2]] * 2


def test_a_batch_without_unlabelled_images_has_none(tmp_path):
    task = make_task(pseudo_masks={"start": 0})
    trainer = make_trainer(tmp_path)
    trainer.fit(task, TinyData([make_batch(4)]))
    assert trainer.logged_metrics["train/pseudo/loss"] == trainer.logged_metrics["train/pseudo/share"] == 0


def test_the_teacher_travels_with_the_checkpoint(tmp_path):
    task = make_task(pseudo_masks={"start": 0, "images": 1})
    trainer = make_trainer(tmp_path)
    trainer.fit(task, TinyData())
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    content = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert content["teacher"]["n_averaged"] == trainer.global_step
    other = make_task(pseudo_masks={"start": 0, "images": 1})
    more = make_trainer(tmp_path, max_epochs=2)
    more.fit(other, TinyData(), ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    assert other._teacher.state_dict()["n_averaged"] == more.global_step == 2 * trainer.global_step


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "pseudo_masks must be a mapping such as .*images.*, got 3"),
        ({"start": None}, "start must be a finite number"),
        ({"image": 3}, "pseudo_masks knows images, start, weight, confidence, decay, not image"),
        ({"images": 0}, "images must be a whole number >= 1, got 0"),
        ({"start": -1}, "start must be a whole number >= 0, got -1"),
        ({"weight": -1}, "weight must be a number of at least 0, got -1"),
        ({"confidence": 1.0}, "confidence must be a number of at least 0 and below 1, got 1.0"),
        ({"decay": "slow"}, "decay must be a number of at least 0 and below 1, got 'slow'"),
    ],
)
def test_wrong_options_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        make_task(pseudo_masks=given)
