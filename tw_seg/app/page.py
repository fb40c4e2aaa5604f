"""The page, made of gradio's components. The one file that imports gradio: all else works without it."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tw_seg.app.learn import MOST_STEPS
from tw_seg.app.session import RULES, Service, Session
from tw_seg.app.shown import choose_class, describe_lesson, describe_trust, encode_picture, rank_classes, tint_picture
from tw_seg.app.strokes import read_strokes
from tw_seg.data.layouts.file_names import IMAGE_SUFFIXES
from tw_seg.errors import InputError, TwSegError
from tw_seg.pictures import draw_overlay, make_palette

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it is read when gradio is imported
logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio asks its own server whether it is there

try:
    import gradio as gr
except ImportError as error:
    raise InputError("tw-seg app needs gradio: pip install tw_seg[app]") from error

LARGEST_FILE = "100mb"
TITLE = "tw_seg: what does the model see?"
OWN = "as in the mask"
DEPTHS: dict[str, float | None] = {
    OWN: None,
    "the pixels": 0.0,
    "early layers": 0.25,
    "middle layers": 0.5,
    "late layers": 0.75,
    "the last layer": 1.0,
}
"""Where heatmaps can be read, in words: shares of the depth."""

_SCRIPT = (Path(__file__).parent / "canvas.js").read_text(encoding="utf-8")
_BODY = """
<div class="chips" role="group" aria-label="what is it?"><span>I draw</span></div>
<canvas width="640" height="420"></canvas>
<div class="tools">
  <label>brush <input class="brush" type="range" min="2" max="40" value="10"></label>
  <label><input class="overlaid" type="checkbox" checked> show the mask</label>
  <button type="button" class="undo">undo</button>
  <button type="button" class="clear">clear</button>
</div>
"""
_STYLE = """
&.empty { display: none; }
canvas { width: 100%; max-height: 62vh; object-fit: contain; display: block; cursor: crosshair; touch-action: none;
  border-radius: 8px; background: var(--background-fill-secondary); }
.chips, .tools { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; margin: 8px 0; }
.tools label { display: inline-flex; gap: 6px; align-items: center; margin-right: 12px; }
button { display: inline-flex; gap: 6px; align-items: center; padding: 2px 10px; border-radius: 999px;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary);
  color: var(--body-text-color); cursor: pointer; }
button[aria-pressed="true"] { outline: 2px solid var(--color-accent); font-weight: 600; }
input[type="checkbox"] { appearance: auto; accent-color: var(--color-accent); }
.dot { width: 12px; height: 12px; border-radius: 50%; border: 1px solid #8888; }
"""
_PAGE_STYLE = """
.gradio-container { max-width: 1280px !important; margin: 0 auto; }
#message { position: sticky; top: 0; z-index: 10; min-height: 48px; }
#message:has(p) { padding: 8px 12px; border-radius: 8px; border-left: 4px solid var(--color-accent);
  background: var(--background-fill-primary); box-shadow: var(--shadow-drop-lg); }
"""


class Page:
    """The page of a checkpoint; each visitor has a :class:`tw_seg.app.session.Session`.

    Args:
        service: The checkpoint.

    Attributes:
        blocks: What gradio serves.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as self.blocks:
            self._lay_out()
            self._connect()

    def launch(self, port: int | None, *, open_browser: bool = False) -> str:
        """Serve it to this computer alone, in other threads; returns its address.

        Raises:
            InputError: The port is taken.
        """
        try:
            _, url, _ = self.blocks.launch(
                server_name="127.0.0.1",
                server_port=port,
                share=False,
                inbrowser=open_browser,
                prevent_thread_lock=True,
                quiet=True,
                max_file_size=LARGEST_FILE,
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                footer_links=[],
                css=_PAGE_STYLE,
                theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            )
        except OSError as error:
            raise InputError(f"--port {port}: cannot be used ({error}); give another") from error
        return str(url)

    def wait(self) -> None:
        """Serve until the process is interrupted."""
        self.blocks.block_thread()

    def close(self) -> None:
        """Stop serving."""
        self.blocks.close(verbose=False)

    # ------------------------------------------------------------------------------------------- layout

    def _lay_out(self) -> None:
        names = self.service.class_names
        self._state = gr.State(None)
        gr.Markdown(
            "# What does the model see?\n"
            "Drop a photograph. Where the model is wrong, choose what is there, draw on it, and let it learn from "
            "that. Nothing leaves this computer, and the model's file stays as it is."
        )
        with gr.Row():
            with gr.Column(scale=5, min_width=420):
                self._file = gr.File(
                    label="A photograph", file_types=sorted(IMAGE_SUFFIXES), height=150, elem_id="photograph"
                )
                self._message = gr.Markdown("", elem_id="message")
                self._canvas = gr.HTML(
                    "[]",
                    html_template=_BODY,
                    css_template=_STYLE,
                    js_on_load=_SCRIPT,
                    picture="",
                    overlay="",
                    classes=list(names),
                    apply_default_css=False,
                    colors=["#{:02x}{:02x}{:02x}".format(*color) for color in make_palette()[: len(names)].tolist()],
                    elem_id="canvas",
                )
                with gr.Row():
                    self._learn = gr.Button("Learn from this", variant="primary", elem_id="learn")
                    self._forget = gr.Button("Forget what was learned", elem_id="forget")
                self._steps = gr.Slider(1, MOST_STEPS, 30, step=1, label="Steps of learning, at most")
                self._whole = gr.Radio(
                    [("only what I marked", False), ("whole masks, with my marks", True)], value=False, label="To save"
                )
                self._save = gr.Button("Save as a data set", elem_id="save")
            with gr.Column(scale=4, min_width=320):
                self._seen = gr.Label(label="What is in the picture", num_top_classes=5, elem_id="seen")
                self._trust = gr.Markdown("", elem_id="trust")
                self._class = gr.Dropdown(
                    [(name, k) for k, name in enumerate(names)],
                    value=min(1, len(names) - 1),
                    label="What speaks for ...",
                    elem_id="class",
                )
                self._heatmap = gr.Image(
                    label="Red speaks for it, blue against it",
                    interactive=False,
                    height=300,
                    buttons=[],
                    elem_id="heatmap",
                )
                with gr.Row(visible=self.service.can_explain):
                    self._depth = gr.Dropdown(list(DEPTHS), value=OWN, label="Read at", elem_id="depth")
                    self._rule = gr.Dropdown([OWN, *RULES], value=OWN, label="Relevance rule", elem_id="rule")
                self._compared = gr.ImageSlider(
                    label="Before and after: drag the line",
                    visible=False,
                    interactive=False,
                    max_height=360,
                    elem_id="compared",
                )

    def _connect(self) -> None:
        looked = [self._state, self._message, self._canvas, self._seen, self._trust, self._heatmap]
        explained = [self._class, self._depth, self._rule]
        marked = [self._state, self._canvas]
        self._on(self._file.upload, self._open_picture, [self._file, *marked, *explained], [*looked, self._class])
        for choice in explained:
            self._on(choice.input, self._show_heatmap, [self._state, *explained], [self._message, self._heatmap])
        learned = [*looked, self._compared]
        self._on(self._learn.click, self._learn_marks, [*marked, self._steps, *explained], learned)
        self._on(self._forget.click, self._forget_learned, [*marked, *explained], learned)
        self._on(self._save.click, self._save_pictures, [*marked, self._whole], [self._message])

    def _on(self, event: Any, handle: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
        """Handle an event, one at a time of all users; an error of ours is told on the page."""

        @functools.wraps(handle)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return handle(*args, **kwargs)
            except TwSegError as error:
                return {self._message: f"**That did not work.** {error}"}

        event(
            guarded,
            inputs,
            outputs,
            concurrency_limit=1,
            concurrency_id="model",
            show_progress_on=self._message,
            api_name=handle.__name__[1:],
        )

    # ------------------------------------------------------------------------------------------- events

    def _open_picture(
        self, file: str, session: Session | None, marks: str, class_id: int, depth: str, rule: str
    ) -> dict[Any, Any]:
        if session is None:
            session = Session(self.service)
        elif session.pictures:
            session.mark(read_strokes(marks, len(self.service.class_names)))
        notes = session.open_picture(Path(file))
        class_id = choose_class(session.look().probabilities)
        return {
            **self._look(session, class_id, depth, rule, picture=True),
            self._state: session,
            self._class: class_id,
            self._message: " ".join(notes),
        }

    def _show_heatmap(self, session: Session | None, class_id: int, depth: str, rule: str) -> dict[Any, Any]:
        session = _check(session)
        return {self._message: "", self._heatmap: self._explain(session, class_id, depth, rule)}

    def _learn_marks(
        self,
        session: Session | None,
        marks: str,
        steps: float,
        class_id: int,
        depth: str,
        rule: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # gradio looks for this default
    ) -> dict[Any, Any]:
        session = _check(session)
        session.mark(read_strokes(marks, len(self.service.class_names)))
        steps = int(steps)
        learned = session.learn(steps, lambda step: progress(step / steps, desc=f"step {step} of {steps}"))
        shown = session.picture.shown
        before, after = (draw_overlay(shown, mask) for mask in (learned.before, learned.after))
        return {
            **self._look(session, class_id, depth, rule),
            self._compared: gr.ImageSlider((before, after), visible=True),
            self._message: describe_lesson(learned, asked=steps),
        }

    def _forget_learned(
        self, session: Session | None, marks: str, class_id: int, depth: str, rule: str
    ) -> dict[Any, Any]:
        session = _check(session)
        session.mark(read_strokes(marks, len(self.service.class_names)))
        session.forget()
        return {
            **self._look(session, class_id, depth, rule),
            self._compared: gr.ImageSlider(visible=False),
            self._message: "The model is as it was in its file. Your marks are still there.",
        }

    def _save_pictures(self, session: Session | None, marks: str, whole: bool) -> dict[Any, Any]:
        session = _check(session)
        session.mark(read_strokes(marks, len(self.service.class_names)))
        folder, count = session.save(whole=whole)
        return {self._message: f"{count} {'picture' if count == 1 else 'pictures'} saved in `{folder.absolute()}`."}

    def _look(self, session: Session, class_id: int, depth: str, rule: str, *, picture: bool = False) -> dict[Any, Any]:
        """What there is to see of the open picture, itself included if it is a new one."""
        view, shown, score = session.look(), session.picture.shown, self.service.score
        props: dict[str, Any] = {"overlay": encode_picture(draw_overlay(shown, view.mask))}
        if picture:
            strokes = [stroke._asdict() for stroke in session.picture.strokes]
            props |= {"picture": encode_picture(shown), "value": json.dumps(strokes)}
        return {
            self._canvas: gr.HTML(**props),
            self._seen: rank_classes(self.service.class_names, view.probabilities),
            self._trust: "" if score is None else describe_trust(view.trust, score.min_dice),
            self._heatmap: self._explain(session, class_id, depth, rule),
        }

    def _explain(self, session: Session, class_id: int, depth: str, rule: str) -> np.ndarray:
        heatmap = session.explain(class_id, rule=None if rule == OWN else rule, read_out=DEPTHS[depth])
        return tint_picture(session.picture.shown, heatmap)


def _check(session: Session | None) -> Session:
    if session is None:
        raise InputError("there is no picture yet: drop a photograph first")
    return session
