"""The page, served by the command in another process: asked by gradio's client, and used in a real browser."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.app.tiny import NAMES, make_picture, make_service, save_checkpoint, save_pixels
from tw_seg.data.layouts.folder import FolderDataset

pytest.importorskip("gradio", reason="the extra [app] is not installed")
gradio_client = pytest.importorskip("gradio_client")

pytestmark = pytest.mark.slow

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
OWN = "as in the mask"
CAT = json.dumps([{"label": 1, "radius": 0.05, "points": [[0.4, 0.5], [0.6, 0.5]]}])
WAIT = 120  # seconds; only a machine with much else to do takes as long


class Server(NamedTuple):
    """The command that serves: its address, its files and its process."""

    url: str
    folder: Path
    process: subprocess.Popen[str]


def run_command(*arguments: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GRADIO")}
    command = [sys.executable, "-m", "tw_seg", "app", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("app")
    checkpoint = save_checkpoint(folder / "best.ckpt", make_service(folder, lr=0.1))  # the app takes a tenth
    save_pixels(folder / "red.png", make_picture())
    process = run_command(str(checkpoint), "--out", str(folder / "out"))
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], WAIT)[0], "the app did not start"
        line = process.stdout.readline()
        assert line.startswith("open http://127.0.0.1:"), line + process.stdout.read()
        yield Server(line.split()[1], folder, process)
        assert process.poll() is None, process.stdout.read()
    finally:
        process.terminate()  # SIGINT is ignored where the tests run in the background of a shell
        try:
            output, _ = process.communicate(timeout=WAIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
    # A browser that leaves in the middle of an answer is a traceback of the server's, not one of ours.
    assert not [part for part in output.split("Traceback")[1:] if "/tw_seg/" in part], output


def make_client(server: Server) -> Any:
    return gradio_client.Client(server.url, verbose=False, analytics_enabled=False)


def open_picture(client: Any, path: Path, marks: str = "[]") -> tuple[Any, ...]:
    file = gradio_client.handle_file(str(path))
    return client.predict(file, marks, 1, OWN, OWN, api_name="/open_picture")


def test_bad_pictures_get_a_message(server, tmp_path):
    (tmp_path / "text.jpg").write_text("I am a text.")
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.new("1", (15_000, 13_000)).save(tmp_path / "huge.png")
    client = make_client(server)
    for name, told in [
        ("text.jpg", "no image file"),
        ("empty.png", "no image file"),
        ("deep.png", "8-bit"),
        ("huge.png", "more pixels"),
    ]:
        message = open_picture(client, tmp_path / name)[0]
        assert message.startswith(f"**That did not work.** {name}: ") and told in message and "/" not in message
    pixels = np.full((20, 20, 4), 200, dtype=np.uint8)
    pixels[:10, :, 3] = 0
    message, *_, seen, _, heatmap, class_id = open_picture(client, save_pixels(tmp_path / "clear.png", pixels))
    assert "transparent pixels" in message and Path(heatmap).is_file()
    assert seen["label"] == NAMES[class_id]


def test_what_needs_a_picture_says_so(server):
    client = make_client(server)
    for name, arguments in [
        ("/show_heatmap", (1, OWN, OWN)),
        ("/learn_marks", (CAT, 1, 1, OWN, OWN)),
        ("/save_pictures", (CAT, False)),
    ]:
        found = client.predict(*arguments, api_name=name)
        message = found if isinstance(found, str) else found[0]
        assert message == "**That did not work.** there is no picture yet: drop a photograph first"


def test_two_users_do_not_mix(server, tmp_path):
    """One learns and saves; for the other, the model stays that of the checkpoint, and the pictures are its own."""
    first, second = make_client(server), make_client(server)
    before = open_picture(second, server.folder / "red.png")
    assert open_picture(first, save_pixels(tmp_path / "mine.png", make_picture(seed=4)))[0] == ""
    message = first.predict(CAT, 5, 1, OWN, OWN, api_name="/learn_marks")[0]
    assert message.startswith("Learned from this picture")
    folder = Path(first.predict(CAT, True, api_name="/save_pictures").split("`")[1])
    assert FolderDataset(folder).names == ("mine",)
    after = open_picture(second, server.folder / "red.png")
    assert after[2] == before[2]  # probabilities
    other = Path(second.predict(CAT, False, api_name="/save_pictures").split("`")[1])
    assert FolderDataset(other).names == ("red",) and other != folder


def test_a_taken_port_is_an_error(server):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = run_command(str(server.folder / "best.ckpt"), "--port", str(port))
        output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 2 and f"tw-seg: error: --port {port}: cannot be used" in output


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"there is no browser at {CHROMIUM} (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright().start()
    found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
    yield found
    found.close()
    playwright.stop()


class Visitor:
    """Somebody at the page, with a browser of their own.

    Attributes:
        page: What they see.
        hosts: All that their browser asked.
        errors: What went wrong in its scripts.
    """

    def __init__(self, browser: Any, url: str) -> None:
        self.page = browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2] or request.url[:20]))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.set_default_timeout(WAIT * 1000)
        self.page.goto(url)

    def open(self, path: Path) -> None:
        self.page.set_input_files("#photograph input[type=file]", str(path))

    def wait_for(self, text: str) -> str:
        """The message, as soon as it has a text."""
        self.page.locator("#message", has_text=text).wait_for()
        return self.page.locator("#message").inner_text()

    def draw(self, label: int, *places: tuple[float, float]) -> None:
        """Draw with the mouse through places, given as shares of the picture."""
        self.page.locator(f"#canvas button[data-label='{label}']").click()
        box = self.page.locator("#canvas canvas").bounding_box()
        for number, (x, y) in enumerate(places):
            self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            if number == 0:
                self.page.mouse.down()
        self.page.mouse.up()

    def read_colors(self) -> np.ndarray:
        """The colours of the picture as it is drawn: of each pixel in its middle, as a small picture is enlarged."""
        code = """c => {
          const all = c.getContext("2d").getImageData(0, 0, c.width, c.height).data, found = [];
          for (let y = 6; y < c.height; y += 12)
            for (let x = 6; x < c.width; x += 12) found.push(...all.subarray((y * c.width + x) * 4).subarray(0, 3));
          return [c.height, c.width, ...found];
        }"""
        height, width, *values = self.page.locator("#canvas canvas").evaluate(code)
        assert (height, width) == (12 * 48, 12 * 64)
        return np.array(values, dtype=np.uint8).reshape(48, 64, 3)


@pytest.fixture
def visitor(browser: Any, server: Server) -> Iterator[Visitor]:
    found = Visitor(browser, server.url)
    yield found
    found.page.context.close()
    assert found.errors == []
    assert {host for host in found.hosts if "data:" not in host and "blob:" not in host} == {
        server.url.removeprefix("http://").strip("/")
    }


def test_look_correct_learn_and_save(visitor, server):
    page = visitor.page
    page.locator("#photograph").wait_for()
    assert not page.locator("#canvas canvas").is_visible()
    visitor.open(server.folder / "red.png")
    page.locator("#heatmap img").wait_for()
    page.locator("#canvas canvas").wait_for()
    page.locator("#canvas .overlaid").uncheck()
    page.locator("#canvas .brush").fill("40")
    np.testing.assert_array_equal(visitor.read_colors(), make_picture())

    visitor.draw(1, (0.4, 0.5), (0.5, 0.5), (0.6, 0.5))
    visitor.draw(0, (0.1, 0.1))
    colors = visitor.read_colors()
    assert colors[24, 32].tolist() == [128, 0, 0] and colors[4, 6].tolist() == [0, 0, 0]  # of class 1 and background
    visitor.draw(2, (0.9, 0.9))
    page.locator("#canvas .undo").click()
    np.testing.assert_array_equal(visitor.read_colors(), colors)

    page.locator("#learn").click()
    assert "Learned from this picture" in visitor.wait_for("Learned")
    page.locator("#compared img").first.wait_for()
    np.testing.assert_array_equal(visitor.read_colors(), colors)  # the marks are still there
    page.locator("#save").click()
    folder = Path(visitor.wait_for("saved in").partition("saved in ")[2].rstrip("."))
    data = FolderDataset(folder)
    mask = data[0].mask
    assert data.names == ("red",) and mask[24, 32] == 1 and mask[4, 6] == 0 and set(np.unique(mask)) == {0, 1, 255}
    page.locator("#forget").click()
    assert "as it was in its file" in visitor.wait_for("as it was")
    page.locator("#canvas .clear").click()
    np.testing.assert_array_equal(visitor.read_colors(), make_picture())


def test_a_bad_picture_is_told_and_the_page_goes_on(visitor, server, tmp_path):
    (tmp_path / "text.jpg").write_text("I am a text.")
    visitor.open(tmp_path / "text.jpg")
    assert "That did not work. text.jpg: cannot read the image" in visitor.wait_for("did not work")
    visitor.page.locator("#photograph button[aria-label='Clear']").click()
    visitor.open(server.folder / "red.png")
    visitor.page.locator("#canvas canvas").wait_for()


def test_heatmaps_follow_the_choices(visitor, server):
    page = visitor.page
    visitor.open(server.folder / "red.png")
    image = page.locator("#heatmap img")
    image.wait_for()
    other = {"cat": "dog", "dog": "cat"}[page.locator("#class input").input_value()]
    seen = [image.get_attribute("src")]
    for chosen, name in [("#class", other), ("#depth", "the pixels"), ("#rule", "epsilon_plus")]:
        page.locator(f"{chosen} input").click()
        page.get_by_role("option", name=name, exact=True).click()
        page.wait_for_function(
            "old => document.querySelector('#heatmap img').getAttribute('src') !== old", arg=seen[-1]
        )
        seen.append(image.get_attribute("src"))
    assert len(set(seen)) == 4


def test_two_browsers_do_not_mix(browser, server):
    first, second = Visitor(browser, server.url), Visitor(browser, server.url)
    for one in (first, second):
        one.open(server.folder / "red.png")
        one.page.locator("#canvas canvas").wait_for()
        one.page.locator("#canvas .overlaid").uncheck()
    first.draw(1, (0.5, 0.5))
    first.page.locator("#learn").click()
    first.wait_for("Learned")
    second.page.locator("#learn").click()
    assert "nothing is marked yet" in second.wait_for("did not work")
    np.testing.assert_array_equal(second.read_colors(), make_picture())
    for one in (first, second):
        one.page.context.close()
