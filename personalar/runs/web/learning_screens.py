"""The screens Photos and Train.

Screens show only data from files, so all browsers show the same, and nothing is lost when one is closed.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from personalar.config.compose import conf_dir, group_options
from personalar.core.files import plain_name
from personalar.runs.web import markup
from personalar.runs.web.jobs import Jobs
from personalar.runs.web.page_commands import run_command
from personalar.runs.web.photo_sets import PhotoSets, crops, examples, layout_of

EVERY = 1.0
"""Seconds between two updates of a run's state."""
OWN_BUTTONS = ["download", "fullscreen"]
"""Buttons of a gallery, without those that upload pictures to other services."""
QUICK, NORMAL = "quick: see that it works", "normal"
NO_SUBJECT = "no subject yet: choose one above"


def answered(work: Callable[..., Any]) -> Callable[..., Any]:
    """Return `work` with its user errors shown as a message on the page."""

    @functools.wraps(work)
    def called(*given: Any) -> Any:
        try:
            return work(*given)
        except (ValueError, OSError) as error:
            # Escaped, because Gradio shows the text of an error as HTML.
            raise gr.Error(escape(str(error)), duration=None, print_exception=False) from None

    return called


class Screens:
    """The fields above all screens: subject, base and run."""

    def __init__(self, jobs: Jobs) -> None:
        """Create the fields."""
        self.jobs, self.sets = jobs, PhotoSets(jobs.own / "photos")
        bases = group_options(conf_dir(), "model")
        with gr.Row():
            self.subject = gr.Dropdown(
                self.subjects(), value=None, label="Subject", info="your photos, or an example", min_width=140
            )
            self.base = gr.Dropdown(bases, value="nano", label="Base", info="that learns it", min_width=140)
            self.run = gr.Dropdown(
                jobs.runs(), value=None, label="Run", info="on Train, Result and Draw", min_width=140
            )
        self.seen = gr.State("")

    def subjects(self) -> list[str]:
        """Return the names of all subjects: uploaded sets and examples."""
        return [*self.sets.names(), *examples()]

    def choose_run(self, name: str | None = None) -> Any:
        """Return the updated field of runs, with `name`, an active run, or the newest run selected."""
        found = self.jobs.runs()
        active = [one for one in found if self.jobs.process(self.jobs.folder(one)) is not None]
        return gr.Dropdown(found, value=name or next(iter([*active, *found]), None))


def photos_screen(screens: Screens) -> None:
    """Create the screen Photos."""
    sets, subject, base = screens.sets, screens.subject, screens.base
    with gr.Row():
        with gr.Column(min_width=280):
            files = gr.File(label="Drop 3 to 6 photos of one thing", file_count="multiple", height=180)
            noun = gr.Textbox("", label="What is it?", placeholder="dog, or style", max_length=60)
            name = gr.Textbox("", label="Name", placeholder="as the word above", max_length=60)
            check = gr.Button("Check the photos", variant="primary")
            empty = gr.Button("Delete this set of photos", size="sm")
        with gr.Column(scale=2, min_width=280):
            table = gr.HTML('<p class="soft">Drop photos, or choose a subject above.</p>')
            preview = gr.Gallery(
                label="As the base is shown them",
                columns=5,
                height=200,
                interactive=False,
                buttons=OWN_BUTTONS,
            )

    def look(chosen: str | None, model: str) -> tuple[str, list[Any]]:
        if not chosen:
            return "", []
        layout = layout_of(model)
        photos = sets.photos(chosen, layout)
        noun = sets.noun(chosen) if chosen in sets.names() else ""
        return markup.verdict_table(photos, noun), crops(photos, layout)

    def add(paths: list[str] | None, word: str, own: str) -> tuple[Any, None]:
        if not paths:
            raise ValueError("no files yet: drop some photos first")
        added = sets.add(own, word, [Path(path) for path in paths])
        return gr.Dropdown(screens.subjects(), value=added), None

    def delete(chosen: str | None) -> Any:
        if chosen in sets.names():
            sets.clear(chosen)
        return gr.Dropdown(screens.subjects(), value=None)

    added = check.click(answered(add), [files, noun, name], [subject, files])
    added.success(answered(look), [subject, base], [table, preview])
    empty.click(answered(delete), subject, subject)
    gr.on([subject.change, base.change], answered(look), [subject, base], [table, preview])


def train_screen(screens: Screens) -> None:
    """Create the screen Train."""
    jobs = screens.jobs
    with gr.Row():
        method = gr.Dropdown(
            group_options(conf_dir(), "method"), value="paper", label="Method", min_width=140
        )
        length = gr.Radio([NORMAL, QUICK], value=NORMAL, label="Length", min_width=140)
    with gr.Accordion("Advanced", open=False):
        more = gr.Textbox("", label="More settings", placeholder="seed=1 samples.grid_every_steps=20",
                          info="as on the command line; docs/configuration.md lists them")  # fmt: skip
        name = gr.Textbox("", label="Name of the run", placeholder="as the subject")
    command = gr.Textbox(
        NO_SUBJECT, label="Command", interactive=False, lines=3, buttons=["copy"], elem_id="command"
    )
    with gr.Row():
        start = gr.Button("Start", variant="primary", min_width=90)
        stop = gr.Button("Stop", min_width=90)
        resume = gr.Button("Resume", min_width=90)
    status, watch = gr.HTML(elem_id="status"), gr.HTML()
    with gr.Accordion("Log", open=False):
        log = gr.Textbox(show_label=False, lines=12, max_lines=12, interactive=False, elem_id="log")

    def order(chosen: str | None, *given: str) -> tuple[str, list[str]]:
        model, how, pace, words, own = given
        if not chosen:
            raise ValueError(NO_SUBJECT)
        parts = [chosen, *([how] if how != "paper" else []), *(["quick"] if pace == QUICK else [])]
        run = f"{model}/{plain_name(own.strip() or '-'.join(parts), longest=60)}"
        quick = pace == QUICK
        settings = screens.sets.settings(chosen)
        return run, run_command(settings, jobs.folder(run), model=model, method=how, quick=quick, more=words)

    def show(*given: str) -> str:
        try:
            return shlex.join(order(*given)[1])
        except ValueError as error:
            return str(error)

    def begin(*given: str) -> Any:
        run, words = order(*given)
        jobs.start(jobs.folder(run), words)
        return screens.choose_run(run)

    def look(run: str | None, seen: str) -> tuple[Any, ...]:
        if not run:
            return '<p class="soft">No run yet: choose a subject and press Start.</p>', "", "", ""
        state, panel = jobs.state(jobs.folder(run)), markup.watch_panel(jobs, jobs.folder(run))
        # An unchanged panel is not sent again, otherwise pictures flicker every second.
        shown = f"{run} {hash(panel)}"
        return markup.status_panel(run, state), state.log, gr.skip() if shown == seen else panel, shown

    settings = [screens.subject, screens.base, method, length, more, name]
    gr.on([each.change for each in settings], show, settings, command, show_progress="hidden")
    start.click(answered(begin), settings, screens.run)
    stop.click(answered(lambda run: jobs.stop(jobs.folder(run or ""))), screens.run, None)
    resume.click(answered(lambda run: jobs.resume(jobs.folder(run or ""))), screens.run, None)
    gr.Timer(EVERY).tick(look, [screens.run, screens.seen], [status, log, watch, screens.seen],
                         show_progress="hidden", concurrency_limit=None)  # fmt: skip
