from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file

from tests.models.contract import ENCODER, ModelContract
from tw_seg.models.classifier import ImageClassifier


class TestImageClassifier(ModelContract):
    model_class = ImageClassifier
    arguments = ENCODER
    exports = compiles = True


def test_its_classifier_is_the_warm_start_file(tmp_path):
    model = ImageClassifier(**ENCODER).eval()
    save_file(model.classifier.state_dict(), tmp_path / "classifier.safetensors")
    images = torch.randn(2, 3, 32, 32)
    by_state = ImageClassifier(**ENCODER).eval()
    by_state.load_classifier_state(load_file(tmp_path / "classifier.safetensors"))
    by_name = ImageClassifier(encoder_weights=str(tmp_path / "classifier.safetensors"), **ENCODER).eval()
    assert torch.equal(by_state(images).logits, model(images).logits)
    assert torch.equal(by_name(images).logits, model(images).logits)
