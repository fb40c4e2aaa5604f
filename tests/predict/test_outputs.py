from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tw_seg.errors import InputError
from tw_seg.pictures import make_palette
from tw_seg.predict.blend import Strip
from tw_seg.predict.outputs import OUTPUTS, PictureFiles, check_outputs

CLASSES = ("background", "cat", "dog")


def write(folder, logits, outputs=tuple(OUTPUTS), thumbnail=None):
    """Files of a picture whose logits come in two strips; its row."""
    size = tuple(logits.shape[1:])
    files = PictureFiles(folder, "a/b", size=size, outputs=outputs, classes=CLASSES)
    for top, part in ((0, logits[:, :2]), (2, logits[:, 2:])):
        files.add(Strip(top, part))
    return files.write([0.5, 0.25, 1 / 3], thumbnail)


def test_files_hold_what_the_logits_say(tmp_path):
    logits = 3 * torch.randn(3, 5, 4)
    logits[0, 0, 0] = 1e9
    thumbnail = np.full((5, 4, 3), 100, dtype=np.uint8)
    row = write(tmp_path, logits, thumbnail=thumbnail)
    mask = logits.argmax(0).numpy()
    with Image.open(tmp_path / "masks" / "a__b.png") as picture:
        assert picture.mode == "P" and np.array_equal(np.array(picture), mask)
        assert np.array_equal(np.array(picture.convert("RGB")), make_palette()[mask])
    heatmaps = np.load(tmp_path / "heatmaps" / "a__b.npy")
    assert heatmaps.dtype == np.float16 and heatmaps[0, 0, 0] == np.finfo(np.float16).max
    np.testing.assert_allclose(heatmaps.reshape(3, -1)[:, 1:], logits.reshape(3, -1)[:, 1:], rtol=1e-3)
    probabilities = np.load(tmp_path / "probabilities" / "a__b.npy")
    assert probabilities.dtype == np.float16
    np.testing.assert_allclose(probabilities, logits.softmax(0), atol=1e-3)
    with Image.open(tmp_path / "overlays" / "a__b.png") as picture:
        expected = np.where((mask > 0)[..., None], (100 + make_palette()[mask].astype(float)) / 2, 100)
        assert np.array_equal(np.array(picture), expected.astype(np.uint8))
    assert row == {
        "image": "a/b",
        "height": 5,
        "width": 4,
        "probability/background": 0.5,
        "probability/cat": 0.25,
        "probability/dog": 0.333333,
        **{f"pixels/{name}": int((mask == k).sum()) for k, name in enumerate(CLASSES)},
    }
    assert not list(tmp_path.rglob("*.tmp"))


def test_only_what_is_asked_for_is_written_and_an_overlay_may_be_smaller(tmp_path):
    logits = torch.randn(3, 9, 6)
    write(tmp_path, logits, ("overlays",), np.zeros((5, 3, 1), dtype=np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["overlays"]
    with Image.open(tmp_path / "overlays" / "a__b.png") as picture:
        small = logits.argmax(0).numpy()[::2, ::2]
        assert np.array_equal(np.array(picture), make_palette()[small] // 2)


def test_what_is_discarded_leaves_nothing(tmp_path):
    files = PictureFiles(tmp_path, "a", size=(2, 2), outputs=("heatmaps",), classes=CLASSES)
    files.add(Strip(0, torch.randn(3, 1, 2)))
    files.discard()
    assert not list(tmp_path.rglob("*.*"))


def test_outputs_by_name():
    assert check_outputs(["overlays", "masks", "masks"]) == ("masks", "overlays")
    with pytest.raises(
        InputError, match="outputs must be some of masks, overlays, heatmaps, probabilities, got 'mask'"
    ):
        check_outputs(["mask"])
    with pytest.raises(InputError, match="got none"):
        check_outputs([])
