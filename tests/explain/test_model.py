from __future__ import annotations

import pytest
import torch
from torch import nn

from tw_seg.errors import InputError
from tw_seg.explain.model import ExplainedModel, predict_class, probabilities
from tw_seg.types import SegOutput


def test_every_kind_of_output_is_read_and_resized():
    images = torch.rand(2, 3, 9, 7)
    logits = torch.rand(2, 4, 3, 3)
    kinds = [logits, SegOutput(torch.rand(2, 4), logits), {"out": logits, "aux": 0}, {"logits": logits}]
    found = [ExplainedModel(lambda _, kind=kind: kind)(images) for kind in kinds]
    assert found[0].shape == (2, 4, 9, 7)
    assert all(torch.equal(one, found[0]) for one in found)


def test_batches_are_counted_and_make_no_difference():
    net = nn.Conv2d(3, 2, 3, padding=1)
    images = torch.rand(5, 3, 8, 8)
    model = ExplainedModel(net, batch_size=2)
    assert torch.allclose(model.run(images), net(images), atol=1e-6)
    assert (model.calls, model.images) == (3, 5)
    assert not model.run(images).requires_grad


def test_modes_come_back_one_by_one_and_after_an_error():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.BatchNorm2d(3).eval())
    modes = [module.training for module in net.modules()]
    with pytest.raises(RuntimeError), ExplainedModel(net).evaluating():
        assert not any(module.training for module in net.modules())
        raise RuntimeError
    assert [module.training for module in net.modules()] == modes


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(2, 5), r"it returned \(2, 5\)"),
        (torch.zeros(1, 5, 4, 4), r"N = 2, it returned \(1, 5, 4, 4\)"),
        ({"masks": 0}, "it returned NoneType: pass a function"),
        (torch.tensor([0.0, torch.nan]).view(2, 1, 1, 1), "1 of 2 images are not finite, first of image 1"),
    ],
)
def test_bad_outputs(output, message):
    with pytest.raises(InputError, match=message):
        ExplainedModel(lambda _: output)(torch.rand(2, 3, 4, 4))


def test_bad_arguments():
    with pytest.raises(InputError, match="must be a function .* got str"):
        ExplainedModel("unet")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch_size"):
        ExplainedModel(nn.Identity(), batch_size=0)
    with pytest.raises(InputError, match="images must have the shape"):
        ExplainedModel(nn.Identity()).run(torch.rand(3, 4, 4))


def test_one_class_is_predicted_by_its_sign_and_several_by_the_largest():
    logits = torch.randn(3, 4, 5, 6)
    classes = torch.tensor([0, 3, 3])
    assert torch.equal(predict_class(logits, classes), (probabilities(logits).argmax(1) == classes[:, None, None]))
    assert torch.equal(predict_class(logits[:, :1], classes), probabilities(logits[:, :1])[:, 0] > 0.5)
