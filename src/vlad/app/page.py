"""The page, by Gradio: nothing is loaded from elsewhere, nothing is sent anywhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlad.app.bench import Bench, Choice, Scored, decide, slider_range
from vlad.datamodules.image_files import IMAGE_SUFFIXES
from vlad.errors import VladError

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["build"]

_CSS = """
footer {display: none !important}
#told p, #counts p {margin: 0}
#heading h1 {margin: 0}
#maps .grid-wrap {max-height: none !important; height: auto !important}
"""
_HEADERS = ["image", "score", "decision"]


def build(bench: Bench, methods: Sequence[str], *, class_name: str = "", folder: str) -> FastAPI:
    """Returns the application.

    Args:
        bench: What does the work.
        methods: What can be chosen, the first one chosen.
        class_name: What the field of the class name begins with.
        folder: Where files that are dropped lie until the page is stopped.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    os.environ["GRADIO_TEMP_DIR"] = folder
    import gradio as gr
    from fastapi import FastAPI

    def files(label: str, name: str) -> Any:
        return gr.File(file_count="multiple", file_types=sorted(IMAGE_SUFFIXES), label=label, elem_id=name, height=150)

    def score(given: Any, method: str, words: str, references: Any, good: Any, rate: float) -> Any:
        """Scores what was dropped; what is wrong is told in the line below the button."""
        choice = Choice(method, words or "", tuple(references or ()), tuple(good or ()), float(rate))
        try:
            found = bench.score(given or [], choice)
        except VladError as error:
            return [f"⚠ {_plain(error)}", [], *_shown([]), gr.Slider(interactive=False)]
        low, high, value, step = slider_range(found.images, found.threshold)
        slider = gr.Slider(low, high, value=value, step=step, interactive=True)
        return [found.told, found.images, *_shown(found.images), slider]

    def move(images: list[Scored], threshold: float) -> Any:
        """Decides anew."""
        decided = decide(images, threshold)
        return ["The threshold was moved by hand: no rate of false alarms is promised.", decided, *_shown(decided)]

    with gr.Blocks(title="vlad", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        scored = gr.State([])
        gr.Markdown("# vlad\nDrop images, choose a method, and see where they are anomalous.", elem_id="heading")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                given = files("Images", "images")
                method = gr.Dropdown(list(methods), value=methods[0], label="Method", elem_id="method")
                words = gr.Textbox(
                    value=class_name, label="What is in them", placeholder="metal nut", elem_id="class-name"
                )
                button = gr.Button("Score", variant="primary", elem_id="score")
                with gr.Accordion("Good parts", open=False, elem_id="good-parts"):
                    references = files("References: compared with", "references")
                    good = files("Calibration: the threshold is made by", "calibration")
                    rate = gr.Slider(0.01, 0.5, value=0.05, step=0.01, label="False alarms allowed", elem_id="rate")
            with gr.Column(scale=2, min_width=320):
                told = gr.Markdown("", elem_id="told")
                threshold = gr.Slider(
                    0, 1, value=1, label="Threshold: anomalous from this score on", interactive=False,
                    elem_id="threshold", buttons=[],
                )  # fmt: skip
                counts = gr.Markdown("", elem_id="counts")
                maps = gr.Gallery(
                    label="Maps", columns=3, height="auto", object_fit="contain", elem_id="maps", interactive=False,
                    buttons=["fullscreen"],
                )  # fmt: skip
                table = gr.Dataframe(headers=_HEADERS, interactive=False, elem_id="table", buttons=[])
        shown = [counts, maps, table]
        button.click(
            score,
            [given, method, words, references, good, rate],
            [told, scored, *shown, threshold],
            api_visibility="private",
        )
        threshold.input(
            move,
            [scored, threshold],
            [told, scored, *shown],
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        footer_links=[],
        ssr_mode=False,
        show_error=True,
        max_file_size="100mb",
        enable_monitoring=False,
        pwa=False,
        css=_CSS,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )


def _plain(error: VladError) -> str:
    """Returns an error as a line of Markdown that is text and nothing else."""
    from vlad.cli.messages import one_line

    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()<>#+!|$" else letter for letter in one_line(error))


def _shown(images: Sequence[Scored]) -> list[Any]:
    """Returns the counts, the gallery and the table of images."""
    counts = [sum(one.decision == word for one in images) for word in ("anomalous", "normal")]
    line = f"**{counts[0]} anomalous, {counts[1]} normal**" if any(counts) else ""
    gallery = [(one.overlay, _caption(one)) for one in images if one.overlay is not None]
    rows = [[one.name, _number(one.score), one.decision or one.error or "-"] for one in images]
    return [line, gallery, rows]


def _caption(one: Scored) -> str:
    return " · ".join(filter(None, (_number(one.score), one.decision, one.name)))


def _number(score: float | None) -> str:
    return "" if score is None else f"{score:.4f}"
