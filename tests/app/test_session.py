from __future__ import annotations

import copy
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.app.tiny import NAMES, READ_OUTS, make_picture, make_service, save_checkpoint, save_pixels
from tests.training.tiny import ENCODER
from tw_seg.app.session import LONGEST_SIDE, RULES, Service, Session
from tw_seg.app.strokes import Stroke
from tw_seg.data.layouts.folder import FolderDataset
from tw_seg.data.layouts.pictures import Pictures
from tw_seg.errors import DataError, InputError, TwSegError
from tw_seg.explain.reliability.score import ReliabilityScore, Term, rate_batch
from tw_seg.lrp import HeatmapDecoder
from tw_seg.resize import resize_maps

CAT = [Stroke(1, 0.05, ((0.4, 0.5), (0.6, 0.5))), Stroke(0, 0.03, ((0.1, 0.1),))]


@pytest.fixture
def session(tmp_path) -> Session:
    session = Session(make_service(tmp_path / "out"))
    session.open_picture(save_pixels(tmp_path / "red.png", make_picture()))
    return session


def test_a_picture_is_seen_as_predict_sees_it(session, tmp_path):
    """Probabilities, mask and trust are those of the task's own prediction of the same file."""
    service = session.service
    service.score = ReliabilityScore(0.7, {"max_probability": Term(0.5, 0.1, 1.0)}, 0.2, ())
    service.task.rate = lambda images, output: rate_batch(service.score, service.task.model, images, output)
    data = service.data
    data.show_pictures(Pictures({"red": tmp_path / "red.png"}, NAMES), data.make_view("resize"))
    with torch.inference_mode():
        expected = service.task.predict_step(next(iter(data.predict_dataloader())), 0)
    view = session.look()
    np.testing.assert_array_equal(view.mask, expected.masks[0])
    assert view.probabilities == pytest.approx(expected.probabilities[0].tolist())
    assert view.trust == pytest.approx(float(expected.trust)) and view.mask.shape == (48, 64)


@pytest.mark.parametrize(("rule", "read_out"), [("epsilon_plus", 0.5), (None, "layer2"), ("epsilon_flat", 0.0)])
def test_heatmaps_are_those_of_a_decoder_made_for_it(session, rule, read_out):
    session.service.task.model.decoder.decoder_weights["layer3/0/conv1/weight"].data.mul_(1.5)
    classifier = copy.deepcopy(session.service.task.model.classifier)
    own = session.service.task.model.decoder
    with torch.no_grad():  # an untied decoder is one of a tied classifier with its weights: they differ in one layer
        decoder = HeatmapDecoder(classifier, rule or "epsilon", read_out=read_out, tie_weights=False)
        decoder.decoder_weights["layer3/0/conv1/weight"].copy_(own.decoder_weights["layer3/0/conv1/weight"])
        image = session.service.data.eval_transform(make_picture(), None)[0][None]
        expected = resize_maps(decoder(image, classes=[2]).heatmaps, (48, 64))[0, 0]
    found = session.explain(2, rule=rule, read_out=read_out)
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(expected.abs().max()))


def test_its_own_rule_at_its_own_depth_is_what_the_mask_is_made_of(session):
    for label in range(3):
        own = session.explain(label)
        anew = session.explain(label, rule="epsilon")
        np.testing.assert_allclose(anew, own, atol=1e-5 * np.abs(own).max())
        assert not np.allclose(session.explain(label, rule="epsilon_plus"), own, rtol=0, atol=1e-4 * np.abs(own).max())


def test_a_constant_background_has_no_heatmap_and_its_objects_have(tmp_path):
    model_kwargs = {"background": "constant", **READ_OUTS}
    from tw_seg.training.task import SegmentationTask

    service = make_service(tmp_path)
    service.task = SegmentationTask("heatmap", model_kwargs, class_names=NAMES, **ENCODER).eval()
    session = Session(service)
    session.open_picture(save_pixels(tmp_path / "red.png", make_picture()))
    assert not session.explain(0, read_out=0.5).any()
    own = session.explain(2)
    np.testing.assert_allclose(session.explain(2, rule="epsilon"), own, atol=1e-5 * np.abs(own).max())


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_that_is_offered_can_be_read(session, rule):
    assert np.isfinite(session.explain(1, rule=rule, read_out=0.5)).all()


def test_wrong_choices_are_errors(session):
    for arguments, message in [((3,), "no class 3"), ((1, "nothing"), "no rule 'nothing'"), ((1, None, "x.y"), "x.y")]:
        with pytest.raises(TwSegError, match=message):
            session.explain(arguments[0], **dict(zip(("rule", "read_out"), arguments[1:], strict=False)))
    with pytest.raises(InputError, match="drop a photograph first"):
        Session(session.service).look()


def test_another_model_shows_its_mask_logits_and_nothing_else(tmp_path):
    session = Session(make_service(tmp_path, "unet"))
    session.open_picture(save_pixels(tmp_path / "red.png", make_picture()))
    assert not session.service.can_explain
    image = session.service.data.eval_transform(make_picture(), None)[0][None]
    with torch.no_grad():
        logits = resize_maps(session.service.task.model(image).mask_logits, (48, 64))[0, 1]
    np.testing.assert_allclose(session.explain(1), logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="no other depth"):
        session.explain(1, rule="epsilon")


def test_learning_changes_a_copy_and_can_be_forgotten(session):
    before = {name: value.clone() for name, value in session.service.task.state_dict().items()}
    view, told = session.look(), []
    session.mark(CAT)
    learned = session.learn(100, told.append)
    assert told == list(range(1, learned.steps + 1)) and learned.pictures == 1
    assert 0 < session.steps_learned == learned.steps < 100  # it ended as all marks were right
    np.testing.assert_array_equal(learned.before, view.mask)
    np.testing.assert_array_equal(learned.after, session.look().mask)
    assert learned.after[24, 32] == 1 and learned.after[5, 6] == 0  # where the marks are
    assert all(torch.equal(value, before[name]) for name, value in session.service.task.state_dict().items())
    assert session.learn(5).steps == 0
    session.forget()
    np.testing.assert_array_equal(session.look().mask, view.mask)
    assert session.look().probabilities == view.probabilities and session.picture.strokes == CAT


def test_a_failed_lesson_leaves_the_model_as_it_was(session):
    view = session.look()
    with pytest.raises(InputError, match="nothing is marked yet"):
        session.learn(2)
    session.mark(CAT)

    def stop(step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.learn(2, stop)
    assert session.look().probabilities == view.probabilities and session.steps_learned == 0


def test_two_users_at_once_do_not_mix(tmp_path):
    """What each has at the end is what one who is alone has."""

    def work(session: Session, picture: Path, strokes: list[Stroke]) -> None:
        session.open_picture(picture)
        session.mark(strokes)
        session.learn(3)
        session.save(whole=True)

    users = [
        (save_pixels(tmp_path / "a.png", make_picture(seed=1)), CAT),
        (save_pixels(tmp_path / "b.png", make_picture(seed=2)), [Stroke(2, 0.1, ((0.5, 0.5),))]),
    ]
    service = make_service(tmp_path / "both")
    sessions = [Session(service), Session(service)]
    threads = [threading.Thread(target=work, args=(one, *user)) for one, user in zip(sessions, users, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, user in enumerate(users):
        alone = Session(make_service(tmp_path / f"alone-{number}"))
        work(alone, *user)
        assert list(sessions[number].pictures) == [user[0].stem]
        assert sessions[number].look().probabilities == alone.look().probabilities
        np.testing.assert_array_equal(sessions[number].look().mask, alone.look().mask)
    saved = [FolderDataset(tmp_path / name) for name in ("both", "both-2")]
    assert sorted(data.names for data in saved) == [("a",), ("b",)]


def test_all_marked_pictures_are_learned_and_saved(session, tmp_path):
    session.mark(CAT)
    session.open_picture(save_pixels(tmp_path / "other.png", make_picture(seed=5)))
    session.mark([Stroke(2, 0.1, ((0.5, 0.5),))])
    session.open_picture(save_pixels(tmp_path / "plain.png", make_picture(seed=6)))
    assert session.learn(1).pictures == 2
    folder, count = session.save(whole=False)
    data = FolderDataset(folder)
    assert (count, data.names, folder) == (2, ("red", "other"), tmp_path / "out")
    assert set(np.unique(data[0].mask)) == {0, 1, 255} and set(np.unique(data[1].mask)) == {2, 255}
    assert session.save(whole=True) == (folder, 3)
    data = FolderDataset(folder)
    masks = {name: data[row].mask for row, name in enumerate(data.names)}
    assert masks["red"][24, 32] == 1 and masks["other"][24, 32] == 2
    np.testing.assert_array_equal(masks["plain"], session.look().mask)


def test_nothing_is_saved_without_marks(session, tmp_path):
    with pytest.raises(InputError, match="nothing is marked"):
        session.save(whole=False)
    assert not (tmp_path / "out").exists()


def test_a_picture_has_its_marks_still_when_it_is_opened_again(session, tmp_path):
    session.mark(CAT)
    (tmp_path / "other").mkdir()
    session.open_picture(save_pixels(tmp_path / "other" / "red.png", make_picture(seed=3)))
    assert session.name == "red-2" and session.picture.strokes == []
    session.open_picture(tmp_path / "red.png")
    assert session.name == "red" and session.picture.strokes == CAT


@pytest.mark.parametrize(
    ("name", "stem"),
    [("..hidden.png", "hidden"), ("a.b,c.png", "a_b_c"), ("Kühe 1.png", "Kühe 1"), ("§.png", "picture")],
)
def test_names_are_such_as_files_may_have(session, tmp_path, name, stem):
    session.open_picture(save_pixels(tmp_path / name, make_picture(seed=9)))
    assert session.name == stem


def test_a_large_picture_is_shown_in_small(session, tmp_path):
    session.open_picture(save_pixels(tmp_path / "large.png", np.zeros((1500, 3000, 3), dtype=np.uint8)))
    assert session.picture.size == (LONGEST_SIDE // 2, LONGEST_SIDE) == session.look().mask.shape


def test_what_is_no_picture_gets_a_message_without_its_folder(session, tmp_path, monkeypatch):
    (tmp_path / "text.jpg").write_text("I am a text.")
    (tmp_path / "empty.png").touch()
    (tmp_path / "half.png").write_bytes((tmp_path / "red.png").read_bytes()[:200])
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(tmp_path / "deep.png")
    save_pixels(tmp_path / "huge.png", np.zeros((40, 40, 3), dtype=np.uint8))
    messages = {
        "text.jpg": "it is no image file",
        "empty.png": "it is no image file",
        "half.png": "truncated",
        "deep.png": "expected an 8-bit image",
        "missing.png": "the image file is missing",
    }
    for name, message in messages.items():
        with pytest.raises(DataError, match=message) as error:
            session.open_picture(tmp_path / name)
        assert str(error.value).startswith(f"{name}: ") and str(tmp_path) not in str(error.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="more pixels than Pillow reads"):
        session.open_picture(tmp_path / "huge.png")
    assert session.name == "red"  # what was open still is


def test_transparency_is_told(session, tmp_path):
    pixels = np.full((20, 20, 4), 200, dtype=np.uint8)
    pixels[:10, :, 3] = 0
    (note,) = session.open_picture(save_pixels(tmp_path / "clear.png", pixels))
    assert note.startswith("clear.png: the image has transparent pixels")
    assert session.picture.shown.shape == (20, 20, 3)


def test_what_the_app_cannot_serve_is_refused(tmp_path):
    for kwargs, message in [
        ({"model": "classifier"}, "makes no masks"),
        ({"model": "gradcam"}, "training-free"),
        ({"data_kwargs": {"value_range": (0, 65535)}}, r"the value range \(0, 65535\)"),
    ]:
        with pytest.raises(InputError, match=message):
            make_service(tmp_path, **kwargs)


def test_a_grey_model_gets_grey_pictures(tmp_path):
    service = make_service(tmp_path / "out", in_channels=1, data_kwargs={"channels": 1, "mean": (0.5,), "std": (0.5,)})
    session = Session(service)
    session.open_picture(save_pixels(tmp_path / "grey.png", make_picture()[..., 0]))
    assert session.picture.shown.shape == (48, 64, 3) and session.look().mask.shape == (48, 64)
    folder, _ = session.save(whole=True)
    np.testing.assert_array_equal(FolderDataset(folder)[0].image, session.picture.shown)


def test_a_checkpoint_is_served_as_it_is(session, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "best.ckpt", session.service)
    score = ReliabilityScore(0.7, {"max_probability": Term(0.5, 0.1, 1.0)}, 0.2, ())
    score.save(tmp_path / "reliability.json")
    service = Service.load(checkpoint, out=tmp_path / "x", trust=tmp_path / "reliability.json")
    other = Session(service)
    other.open_picture(tmp_path / "red.png")
    assert service.class_names == tuple(NAMES) and service.score == score
    assert other.look().probabilities == pytest.approx(session.look().probabilities)
    assert service.learning.lr == service.task.hparams["lr"] / 10
