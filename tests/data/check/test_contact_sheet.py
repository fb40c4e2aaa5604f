from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.check.messy import picture, write_good, write_messy
from tw_seg.data.check import contact_sheet
from tw_seg.data.check.contact_sheet import _draw_overlay, choose_tiles, draw_contact_sheet
from tw_seg.data.check.findings import KINDS
from tw_seg.data.check.report import check_data
from tw_seg.pictures import make_palette
from tw_seg.types import Sample


def test_the_worst_is_shown_first_and_every_kind_with_an_image(tmp_path):
    write_messy(tmp_path)
    result = check_data(tmp_path, "folder")
    tiles = choose_tiles(result)
    with_images = [finding.kind for finding in result.report.findings if finding.images]
    kinds = [next(f.kind for f in result.report.findings if tile.image in f.images) for tile in tiles if tile.text]
    assert set(kinds) == set(with_images)
    assert kinds == sorted(kinds, key=list(KINDS).index)
    assert [tile.image for tile in tiles[:2]] == [("train", "broken"), ("train", "empty")]
    assert not any(tile.text for tile in tiles[len(kinds) :])  # then examples


def test_examples_show_every_class_and_no_image_twice(tmp_path):
    write_good(tmp_path)
    result = check_data(tmp_path, "folder")
    tiles = choose_tiles(result)
    assert len({tile.image for tile in tiles}) == len(tiles) == 9  # all that show an object
    assert not any(tile.text for tile in tiles)


def test_many_findings_of_one_kind_leave_room_for_others(tmp_path):
    write_good(tmp_path)
    for index in range(60):
        Image.fromarray(picture(index % 56)).save(tmp_path / "images" / f"more{index}.png")
        (tmp_path / "masks" / f"more{index}.png").write_bytes(b"")
    with (tmp_path / "image_labels.csv").open("a") as table:
        table.writelines(f"more{index},{'val' if index < 12 else 'train'},q{index},1,0\n" for index in range(60))
    result = check_data(tmp_path, "folder")
    texts = [tile.text for tile in choose_tiles(result)]
    assert len(texts) == 30
    assert any("near-duplicates" in text for text in texts) and "" in texts


@pytest.mark.parametrize("write", [write_good, write_messy])
def test_the_picture_is_written_whole(tmp_path, write):
    write(tmp_path / "data")
    path = tmp_path / "new" / "sheet.png"
    draw_contact_sheet(check_data(tmp_path / "data", "folder"), path)
    with Image.open(path) as picture:
        assert picture.width > 800 and np.asarray(picture.convert("L")).std() > 20
    assert [file.name for file in Path(path.parent).iterdir()] == ["sheet.png"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_the_overlay_has_the_colours_of_the_mask_and_leaves_the_background(dtype):
    scale = {np.uint8: 1, np.uint16: 257, np.float32: 1 / 255}[dtype]
    levels = np.linspace(0, 255, 320).astype(np.uint8)
    image = (np.tile(levels, (320, 1))[..., None].repeat(3, axis=2) * dtype(scale)).astype(dtype)
    mask = np.zeros((320, 320), dtype=np.uint8)
    mask[:160] = 2
    drawn = _draw_overlay(Sample(image, mask, np.zeros(3), "a")).astype(int)
    assert abs(drawn[200] - levels[:, None]).max() <= 1
    colour = make_palette()[2].astype(int)
    assert (abs(drawn[100] - colour).sum(axis=1) < abs(drawn[200] - colour).sum(axis=1)).mean() > 0.9


def test_pixels_that_may_be_of_several_classes_are_one_colour_with_a_name(tmp_path, monkeypatch):
    write_good(tmp_path / "data")
    seen = []
    monkeypatch.setattr(contact_sheet.Figure, "savefig", lambda figure, *args, **kwargs: seen.append(figure))
    monkeypatch.setattr(contact_sheet, "write_whole", lambda path, write: write(path))
    draw_contact_sheet(check_data(tmp_path / "data", "folder"), tmp_path / "sheet.png")
    (tmp_path / "data" / "boxes.csv").write_text("image,class,x_min,y_min,x_max,y_max\nim0,cat,5,5,40,40\n")
    (tmp_path / "data" / "masks" / "im0.png").unlink()
    draw_contact_sheet(check_data(tmp_path / "data", "folder"), tmp_path / "sheet.png")
    before, after = ([text.get_text() for text in figure.legends[0].get_texts()] for figure in seen)
    assert after == [*before, "one of several classes"]


def test_names_are_drawn_as_they_are(tmp_path, monkeypatch):
    """No formula of TeX, no control character."""
    write_good(tmp_path / "data")
    table = tmp_path / "data" / "image_labels.csv"
    names = {"im0": "$\\frac{$ <b>", "im1": "a\x1b[31mb", "im2": "$x^2$"}
    text = table.read_text()
    for old, new in names.items():
        text = text.replace(f"{old},", f"{new},")
        for folder in ("images", "masks"):
            for path in (tmp_path / "data" / folder).glob(f"{old}.png"):
                path.rename(path.with_name(f"{new}.png"))
    table.write_text(text)
    seen = []
    monkeypatch.setattr(contact_sheet.Figure, "savefig", lambda figure, *args, **kwargs: seen.append(figure))
    monkeypatch.setattr(contact_sheet, "write_whole", lambda path, write: write(path))
    draw_contact_sheet(check_data(tmp_path / "data", "folder"), tmp_path / "sheet.png")
    titles = [axes.title for axes in seen[0].axes] + [axes._left_title for axes in seen[0].axes]
    shown = {title.get_text().partition("/")[2] for title in titles}
    assert {"$\\frac{$ <b>", "a\\x1b[31mb", "$x^2$"} <= shown
    assert not any(title.get_parse_math() for title in titles if title.get_text())


def test_the_text_of_a_check_holds_no_control_character(tmp_path):
    write_good(tmp_path / "data")
    for name in ("a\x1b[31mred", "b\nerror: forged"):
        (tmp_path / "data" / "images" / f"{name}.png").write_bytes(b"broken")
        with (tmp_path / "data" / "image_labels.csv").open("a", newline="") as table:
            csv.writer(table).writerow([name, "train", "p1", 1, 0])
    text = check_data(tmp_path / "data", "folder").report.format_text()
    assert "a\\x1b[31mred.png" in text and "\x1b" not in text
