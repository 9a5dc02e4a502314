"""The screens Result, Draw and Concepts, and the page with all five screens."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from personalar.core.files import plain_name
from personalar.core.png import read_png_metadata
from personalar.data.prompts import SUBJECT_TOKEN
from personalar.runs.web import markup
from personalar.runs.web.jobs import Jobs, pairs, sample_command
from personalar.runs.web.learning_screens import (
    EVERY,
    OWN_BUTTONS,
    Screens,
    answered,
    photos_screen,
    train_screen,
)

PROMPTS = f"a photo of {SUBJECT_TOKEN} cat\na {SUBJECT_TOKEN} cat on the beach"


def result_screen(screens: Screens, tab: gr.Tab) -> None:
    """Create the screen Result, which is updated when its `tab` is opened."""
    jobs = screens.jobs
    prompt = gr.Dropdown([], label="Prompt", interactive=True)
    slider = gr.ImageSlider(label="Base | learned", type="filepath", interactive=False, max_height=520)
    scores = gr.HTML()

    def look(run: str | None) -> tuple[Any, ...]:
        if not run:
            return gr.Dropdown([], value=None), None, markup.result_panel(jobs, jobs.outputs)
        folder = jobs.folder(run)
        try:
            found = pairs(folder)
        except (OSError, ValueError):  # a run that has just started
            found = {}
        first = next(iter(found), None)
        return (
            gr.Dropdown(list(found), value=first),
            found.get(first or ""),
            markup.result_panel(jobs, folder),
        )

    def compare(run: str | None, title: str | None) -> Any:
        return pairs(jobs.folder(run)).get(title or "") if run else None

    gr.on([screens.run.change, tab.select], look, screens.run, [prompt, slider, scores])
    prompt.input(answered(compare), [screens.run, prompt], slider)


def draw_screen(screens: Screens) -> None:
    """Create the screen Draw."""
    jobs = screens.jobs
    with gr.Row():
        with gr.Column(scale=3, min_width=280):
            prompts = gr.Textbox(PROMPTS, label="Prompts, one a line", lines=6, max_length=20000,
                                 info=f"{SUBJECT_TOKEN} before the noun is the subject")  # fmt: skip
        with gr.Column(min_width=200):
            seeds = gr.Textbox("0 1", label="Seeds", info="every prompt is drawn with each")
            guidance = gr.Textbox(
                "", label="Guidance", placeholder="that of the base", info="several values draw a grid"
            )
    with gr.Row():
        draw, stop = gr.Button("Draw", variant="primary", min_width=90), gr.Button("Stop", min_width=90)
    status = gr.HTML(elem_id="draw-status")
    gallery = gr.Gallery(label="Pictures", columns=4, height="auto", interactive=False, buttons=OWN_BUTTONS)
    facts = gr.JSON(label="Metadata of the selected picture")
    seen = gr.State("")

    def found(run: str) -> list[Path]:
        pictures = jobs.pictures(run).glob("*.png")
        return sorted(pictures, key=lambda path: path.stat().st_mtime, reverse=True)

    def begin(run: str | None, *given: str) -> None:
        if not run:
            raise ValueError("no run yet: learn a subject on the screen Train")
        words = dict(zip(("prompts", "seeds", "guidance"), given, strict=True))
        out = jobs.pictures(run)
        jobs.start(out, sample_command(jobs.folder(run), out, **words))

    def look(run: str | None, before: str) -> tuple[Any, ...]:
        if not run:
            return "", [], ""
        pictures, state = found(run), jobs.state(jobs.pictures(run))
        shown = " ".join([run, *(path.name for path in pictures)])
        lines = (
            escape("\n".join(state.log.splitlines()[-8:])) if state.status in ("failed", "starting") else ""
        )
        words = {"starting": "drawing", "": ""}.get(state.status, state.status)
        panel = f'<div data-status="{state.status}"><b>{words}</b><pre class="scrolled">{lines}</pre></div>'
        return panel, gr.skip() if shown == before else list(map(str, pictures)), shown

    def metadata(run: str, event: gr.SelectData) -> dict[str, Any]:
        # Only the name: the event comes from the browser.
        path = jobs.pictures(run) / Path(event.value["image"]["orig_name"]).name
        return {"file": str(path), **read_png_metadata(path)}

    draw.click(answered(begin), [screens.run, prompts, seeds, guidance], None)
    stop.click(answered(lambda run: jobs.stop(jobs.pictures(run or ""))), screens.run, None)
    gallery.select(metadata, screens.run, facts)
    gr.Timer(EVERY).tick(look, [screens.run, seen], [status, gallery, seen],
                         show_progress="hidden", concurrency_limit=None)  # fmt: skip


def concepts_screen(screens: Screens, tab: gr.Tab) -> None:
    """Create the screen Concepts, which is updated when its `tab` is opened."""
    jobs = screens.jobs
    table = gr.HTML()
    chosen = gr.CheckboxGroup([], label="Compare")
    compare = gr.Button("Compare", variant="primary")
    result = gr.HTML()

    def look() -> tuple[Any, ...]:
        return markup.concepts_table(jobs), gr.CheckboxGroup(jobs.runs())

    def put_side_by_side(names: list[str]) -> str:
        if len(names) < 2:
            raise ValueError("choose at least two runs")
        from personalar.reports.comparison import rows_of_runs
        from personalar.reports.comparison_page import write_comparison
        from personalar.reports.comparison_table import verdicts

        out = jobs.own / "comparisons" / plain_name("_".join(names), longest=120)
        rows = rows_of_runs([jobs.folder(name) for name in names], jobs.outputs)
        records = write_comparison(rows, out)
        sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in verdicts(records))
        return sentences + markup.link(jobs, out / "comparison.html", "the comparison")

    tab.select(look, None, [table, chosen])
    compare.click(answered(put_side_by_side), chosen, result)


def make_page(jobs: Jobs) -> gr.Blocks:
    """Return the page."""
    with gr.Blocks(title="personalar", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown("# personalar")
        screens = Screens(jobs)
        with gr.Tab("Photos"):
            photos_screen(screens)
        with gr.Tab("Train"):
            train_screen(screens)
        with gr.Tab("Result") as tab:
            result_screen(screens, tab)
        with gr.Tab("Draw"):
            draw_screen(screens)
        with gr.Tab("Concepts") as tab:
            concepts_screen(screens, tab)
        page.load(screens.choose_run, None, screens.run)
        page.load(lambda: gr.Dropdown(screens.subjects()), None, screens.subject)
    return page
