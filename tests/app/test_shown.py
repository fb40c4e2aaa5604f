from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from tests.app.tiny import make_picture
from tw_seg.app.session import Learned
from tw_seg.app.shown import choose_class, describe_lesson, describe_trust, encode_picture, rank_classes, tint_picture


def test_a_data_url_holds_the_picture():
    picture = make_picture()
    head, _, content = encode_picture(picture).partition(",")
    assert head == "data:image/png;base64"
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(base64.b64decode(content)))), picture)


def test_a_heatmap_tints_by_sign_and_strength():
    picture = np.full((1, 4, 3), 100, dtype=np.uint8)
    picture[0, 3] = (250, 40, 10)
    none, strong, weak, against = tint_picture(picture, np.array([[0.0, 4.0, 1.0, -4.0]]))[0].astype(int)
    assert none.tolist() == [100] * 3
    assert strong[0] > weak[0] > 100 and strong[1] < weak[1] < 100 and strong[1] == strong[2]
    assert against[2] > against[0] == against[1]  # blue, whatever the colour was
    np.testing.assert_array_equal(tint_picture(picture, np.zeros((1, 4)))[0, 3], [100] * 3)


def test_the_background_is_not_ranked():
    assert rank_classes(["background", "a", "b"], [1.0, 0.2, 0.7]) == {"a": 0.2, "b": 0.7}
    assert choose_class([1.0, 0.2, 0.7]) == 2 and choose_class([1.0]) == 0
    assert rank_classes(["background"], [0.5]) == {"background": 0.5}
    assert describe_trust(None, 0.7) == ""


def test_a_lesson_in_words():
    before, after = np.zeros((2, 5)), np.eye(2, 5)
    assert describe_lesson(Learned(before, before, 1, 0), asked=9).startswith("The model agrees")
    text = describe_lesson(Learned(before, after, 1, 1), asked=9)
    assert text == "Learned from this picture in 1 step; 20.0 % of this mask changed."
    assert "3 pictures in 9 steps" in (text := describe_lesson(Learned(before, after, 3, 9), asked=9))
    assert text.endswith("learn once more, or mark more.")
