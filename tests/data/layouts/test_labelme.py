from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.data.layouts.drawn import CLASSES, NAMES, make_masks, save_image
from tw_seg.data.layouts.labelme import LabelmeDataset
from tw_seg.errors import DataError

SIZE = (20, 30)
CORNERS = [[3.2, 2.0], [15.7, 2.5], [15.0, 10.9]]


def shape(kind: str, points: list[list[float]], label: str = CLASSES[1], **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}


def encode(mask: np.ndarray) -> str:
    data = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).convert("1").save(data, format="PNG")
    return base64.b64encode(data.getvalue()).decode()


def write(root: Path, name: str, *shapes: dict[str, Any], size: tuple[int, int] | None = SIZE, **more: Any) -> Path:
    image = root / name
    save_image(image, size or SIZE)
    sides = {"imageHeight": size[0], "imageWidth": size[1]} if size else {}
    path = image.with_suffix(".json")
    content = {"version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": image.name, "imageData": None}
    path.write_text(json.dumps(content | sides | more), encoding="utf-8")
    return path


def test_masks_come_back_pixel_for_pixel(tmp_path):
    masks = make_masks(3)
    names = [Path(name).name for name in NAMES]
    for name, mask in zip(names, masks, strict=True):
        shapes = []
        for class_id in (1, 2):
            rows, columns = np.nonzero(mask == class_id)
            if len(rows):
                top, left, bottom, right = rows.min(), columns.min(), rows.max(), columns.max()
                code = encode((mask == class_id)[top : bottom + 1, left : right + 1])
                points = [[float(left), float(top)], [float(right), float(bottom)]]
                shapes.append(shape("mask", points, CLASSES[class_id], mask=code))
        write(tmp_path, name, *shapes, size=mask.shape)
    save_image(tmp_path / "alone.png")
    data = LabelmeDataset(tmp_path)
    assert data.classes == CLASSES
    found = dict(zip(data.names, data, strict=True))
    assert found.keys() == {"a b", "caf\u00e9", "c;,|.1", "alone"}
    for name, mask in zip(("a b", "caf\u00e9", "c;,|.1"), masks, strict=True):
        np.testing.assert_array_equal(found[name].mask, mask)
    assert found["alone"].mask is None
    np.testing.assert_array_equal(found["alone"].labels, [1, np.nan, np.nan])


def test_shapes_are_drawn_by_pillow_with_their_outline(tmp_path):
    """As labelme's own shape_to_mask does."""
    write(tmp_path, "a.png", shape("polygon", CORNERS), shape("circle", [[20.0, 12.0], [23.0, 12.5]], CLASSES[2]))
    expected = Image.new("L", SIZE[::-1])
    draw = ImageDraw.Draw(expected)
    draw.polygon([tuple(corner) for corner in CORNERS], outline=1, fill=1)
    radius = np.hypot(3.0, 0.5)
    draw.ellipse([20 - radius, 12 - radius, 20 + radius, 12 + radius], outline=2, fill=2)
    np.testing.assert_array_equal(LabelmeDataset(tmp_path)[0].mask, np.array(expected))


def test_rectangles_flags_and_ignored_classes(tmp_path):
    write(
        tmp_path,
        "a.png",
        shape("rectangle", [[12.0, 9.0], [4.5, 2.0]]),
        shape("polygon", [[20, 10], [28, 10], [28, 18], [20, 18]], "__ignore__"),
        flags={CLASSES[2]: True, "blurred": False},
        size=None,
    )
    data = LabelmeDataset(tmp_path)
    sample = data[0]
    assert data.classes == CLASSES and sample.labels.tolist() == [1, 1, 1]
    expected = np.zeros(SIZE, dtype=np.uint8)
    expected[2:9, 4:12] = 3
    expected[10:19, 20:29] = 255
    np.testing.assert_array_equal(sample.mask, expected)


def test_images_in_another_folder_and_windows_paths(tmp_path):
    path = write(tmp_path / "images", "a.png", shape("polygon", CORNERS))
    (tmp_path / "json").mkdir()
    content = json.loads(path.read_text()) | {"imagePath": "..\\images\\a.png"}
    (tmp_path / "json" / "a.json").write_text(json.dumps(content))
    path.unlink()
    data = LabelmeDataset(tmp_path, annotations="json")
    assert data.names == ("a",) and data[0].mask.any()


def test_a_folder_for_each_split(tmp_path):
    write(tmp_path / "train", "a.png", shape("polygon", CORNERS))
    write(tmp_path / "val", "b.png", shape("polygon", CORNERS))
    names = [LabelmeDataset(tmp_path, split, annotations="{split}").names for split in ("train", "val")]
    assert names == [("train/a",), ("val/b",)]
    with pytest.raises(DataError, match="nothing says which images belong to the split 'train'"):
        LabelmeDataset(tmp_path / "train", "train")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (shape("line", [[1, 2], [3, 4]]), r"shapes\[0\]: expected a shape that is one of polygon, .*, found 'line'"),
        (shape("polygon", [[1, 2], [3, 4]]), r"x and y of at least 3 points of a polygon"),
        (shape("polygon", [[1, 2, 3]] * 3), r"x and y of at least 3 points"),
        (shape("circle", [[1, 2]]), r"expected x and y of 2 points of a circle"),
        (shape("polygon", [[1, 2], [3, 1e9], [3, 4]]), r"the point \(3, 1e\+09\) is far outside"),
        (shape("circle", [[1e6, 2], [3, 4]]), r"the point \(1e\+06, 2\) is far outside"),
        (shape("mask", [[1, 2], [3, 4]]), r"expected 'mask', found"),
        (shape("mask", [[1, 2], [3, 4]], mask="#"), r"a mask is no picture in base64"),
        (shape("mask", [[1, 2], [3, 4]], mask="aaaa"), r"a mask is no picture in base64"),
        (shape("mask", [[28, 2], [31, 4]], mask=encode(np.ones((3, 4)))), r"a mask at \(28, 2\) reaches beyond"),
        ({"points": CORNERS}, r"expected 'label', found 'points'"),
        (3, r"shapes\[0\]: expected a mapping, found 3"),
    ],
)
def test_broken_shapes(tmp_path, broken, message):
    write(tmp_path, "a.png", broken)
    with pytest.raises(DataError, match=rf"a.json.*{message}"):
        LabelmeDataset(tmp_path)[0]


def test_broken_files(tmp_path):
    path = write(tmp_path, "a.png", shape("polygon", CORNERS), size=(21, 30))
    save_image(tmp_path / "a.png", SIZE)
    with pytest.raises(DataError, match=r"a.json.*for 21x30 pixels .* its image has 20x30"):
        LabelmeDataset(tmp_path)[0]
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"a.png: .*a.json names this image, but there is no such file"):
        LabelmeDataset(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"there is no image in it"):
        LabelmeDataset(tmp_path)
    with pytest.raises(DataError, match=r"cannot list the folder"):
        LabelmeDataset(tmp_path / "nothing")
