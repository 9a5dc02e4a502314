"""The screens. All that they show is read from files, so every browser sees the same and nothing is lost."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from personalar.config.compose import conf_dir, group_options
from personalar.core.files import plain_name
from personalar.core.png import read_png_metadata
from personalar.data.prompts import SUBJECT_TOKEN
from personalar.runs.web import markup
from personalar.runs.web.jobs import Jobs, pairs, run_command, sample_command
from personalar.runs.web.photo_sets import PhotoSets, crops, examples, layout_of

EVERY = 1.0
"""Seconds between two looks at a run."""
PROMPTS = f"a photo of {SUBJECT_TOKEN} cat\na {SUBJECT_TOKEN} cat on the beach"
QUICK, NORMAL = "quick: see that it works", "normal"


def answered(work: Callable[..., Any]) -> Callable[..., Any]:
    """Return `work` with a mistake shown as a message on the page."""

    @functools.wraps(work)
    def called(*given: Any) -> Any:
        try:
            return work(*given)
        except (ValueError, OSError) as error:
            raise gr.Error(escape(str(error)), duration=None, print_exception=False) from None

    return called


class Screens:
    """The parts of the page that several screens use."""

    def __init__(self, jobs: Jobs) -> None:
        """Make the selection of the run, above all screens."""
        self.jobs, self.sets = jobs, PhotoSets(jobs.own / "photos")
        self.run = gr.Dropdown(
            jobs.runs(), value=None, label="Run", info="Train, Result and Draw show this one"
        )
        self.seen = gr.State("")

    def subjects(self) -> list[str]:
        """Return all that can be learned."""
        return [*self.sets.names(), *examples()]

    def choose_run(self, name: str | None = None) -> Any:
        """Return the selection of the run, with those there are now; None: one at work, else the newest."""
        found = self.jobs.runs()
        active = [one for one in found if self.jobs.process(self.jobs.folder(one)) is not None]
        return gr.Dropdown(found, value=name or next(iter([*active, *found]), None))

    def pictures_folder(self, name: str) -> Path:
        """Return where new pictures of a run's subject go."""
        return self.jobs.own / "pictures" / self.jobs.folder(name).relative_to(self.jobs.outputs)


def photos_screen(screens: Screens) -> tuple[gr.Dropdown, gr.Dropdown]:
    """Make the screen Photos; return the base, and the subject to learn on the screen Train."""
    sets = screens.sets
    with gr.Row():
        with gr.Column(min_width=280):
            files = gr.File(label="Drop 3 to 6 photos of one thing", file_count="multiple", height=180)
            noun = gr.Textbox("", label="What is it?", placeholder="dog", max_length=60)
            name = gr.Textbox("", label="Name", placeholder="as the word above", max_length=60)
            base = gr.Dropdown(group_options(conf_dir(), "model"), value="nano", label="Base",
                               info="it decides how photos are cropped")  # fmt: skip
            check = gr.Button("Check the photos", variant="primary")
            empty = gr.Button("Delete this set of photos", size="sm")
        with gr.Column(scale=2, min_width=280):
            subject = gr.Dropdown(screens.subjects(), value=None, label="Subject to learn",
                                  info="your photos, or an example")  # fmt: skip
            table = gr.HTML('<p class="soft">Nothing is loaded yet: the photos are checked first.</p>')
            preview = gr.Gallery(
                label="As the base is shown them", columns=5, height="auto", interactive=False
            )

    def look(chosen: str | None, model: str) -> tuple[str, list[Any]]:
        if not chosen:
            return "", []
        layout = layout_of(model)
        photos = sets.photos(chosen, layout)
        return markup.verdict_table(photos), crops(photos, layout)

    def add(paths: list[str] | None, word: str, own: str) -> tuple[Any, None]:
        if not paths:
            raise ValueError("no files yet: drop some photos first")
        added = sets.add(own, word, [Path(path) for path in paths])
        return gr.Dropdown(screens.subjects(), value=added), None

    def delete(chosen: str | None) -> Any:
        if chosen in sets.names():
            sets.clear(chosen)
        return gr.Dropdown(screens.subjects(), value=None)

    check.click(answered(add), [files, noun, name], [subject, files])
    empty.click(answered(delete), subject, subject)
    gr.on([subject.change, base.change], answered(look), [subject, base], [table, preview])
    return base, subject


def train_screen(screens: Screens, base: gr.Dropdown, subject: gr.Dropdown) -> None:
    """Make the screen Train."""
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
    command = gr.Textbox(label="Command", interactive=False, lines=3, buttons=["copy"], elem_id="command")
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
            raise ValueError("no subject yet: choose one on the screen Photos")
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
            return markup.status_panel("", jobs.state(jobs.outputs)), "", "", ""
        state, panel = jobs.state(jobs.folder(run)), markup.watch_panel(jobs, jobs.folder(run))
        shown = f"{run} {hash(panel)}"
        return markup.status_panel(run, state), state.log, gr.skip() if shown == seen else panel, shown

    settings = [subject, base, method, length, more, name]
    gr.on([each.change for each in settings], show, settings, command, show_progress="hidden")
    start.click(answered(begin), settings, screens.run)
    stop.click(answered(lambda run: jobs.stop(jobs.folder(run or ""))), screens.run, None)
    resume.click(answered(lambda run: jobs.resume(jobs.folder(run or ""))), screens.run, None)
    gr.Timer(EVERY).tick(look, [screens.run, screens.seen], [status, log, watch, screens.seen],
                         show_progress="hidden", concurrency_limit=None)  # fmt: skip


def result_screen(screens: Screens, tab: gr.Tab) -> None:
    """Make the screen Result, which is read anew when its `tab` is opened."""
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
        except (OSError, ValueError):  # it has only begun
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
    """Make the screen Draw."""
    jobs = screens.jobs
    with gr.Row():
        with gr.Column(scale=3, min_width=280):
            prompts = gr.Textbox(PROMPTS, label="Prompts, one a line", lines=6, max_length=20000,
                                 info=f"{SUBJECT_TOKEN} before the noun is the subject")  # fmt: skip
        with gr.Column(min_width=200):
            seeds = gr.Textbox("0 1", label="Seeds", info="every prompt is drawn with each")
            guidance = gr.Textbox("", label="Guidance", placeholder="that of the base")
    with gr.Row():
        draw, stop = gr.Button("Draw", variant="primary", min_width=90), gr.Button("Stop", min_width=90)
    status = gr.HTML(elem_id="draw-status")
    gallery = gr.Gallery(label="Pictures", columns=4, height="auto", object_fit="contain", interactive=False)
    facts = gr.JSON(label="Metadata of the selected picture")
    seen = gr.State("")

    def found(run: str) -> list[Path]:
        pictures = screens.pictures_folder(run).glob("*.png")
        return sorted(pictures, key=lambda path: path.stat().st_mtime, reverse=True)

    def begin(run: str | None, lines: str, numbers: str, scale: str) -> None:
        if not run:
            raise ValueError("no run yet: learn a subject on the screen Train")
        wanted = [line.strip() for line in lines.splitlines() if line.strip()]
        which = re.split(r"[\s,]+", numbers.strip())
        if not wanted or len(wanted) * len(which) > 400 or not all(one.isdecimal() for one in which):
            raise ValueError(
                "write at least one prompt, seeds as whole numbers (0 1 2), 400 pictures at most"
            )
        out, cfg = screens.pictures_folder(run), float(scale) if scale.strip() else None
        which = [int(one) for one in which]
        jobs.start(out, sample_command(jobs.folder(run), out, prompts=wanted, seeds=which, guidance=cfg))

    def look(run: str | None, before: str) -> tuple[Any, ...]:
        if not run:
            return "", [], ""
        pictures, state = found(run), jobs.state(screens.pictures_folder(run))
        shown = " ".join([run, *(path.name for path in pictures)])
        lines = (
            escape("\n".join(state.log.splitlines()[-8:])) if state.status in ("failed", "starting") else ""
        )
        words = {"starting": "drawing", "": ""}.get(state.status, state.status)
        panel = f'<div data-status="{state.status}"><b>{words}</b><pre class="scrolled">{lines}</pre></div>'
        return panel, gr.skip() if shown == before else list(map(str, pictures)), shown

    def metadata(run: str, event: gr.SelectData) -> dict[str, Any]:
        path = found(run)[event.index]
        return {"file": str(path), **read_png_metadata(path)}

    draw.click(answered(begin), [screens.run, prompts, seeds, guidance], None)
    stop.click(answered(lambda run: jobs.stop(screens.pictures_folder(run or ""))), screens.run, None)
    gallery.select(metadata, screens.run, facts)
    gr.Timer(EVERY).tick(look, [screens.run, seen], [status, gallery, seen],
                         show_progress="hidden", concurrency_limit=None)  # fmt: skip


def concepts_screen(screens: Screens, tab: gr.Tab) -> None:
    """Make the screen Concepts, which is read anew when its `tab` is opened."""
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
        from personalar.reports.comparison import verdicts
        from personalar.reports.comparison_page import compare_folders

        out = jobs.own / "comparisons" / plain_name("_".join(names), longest=120)
        records = compare_folders([jobs.folder(name) for name in names], out)
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
            base, subject = photos_screen(screens)
        with gr.Tab("Train"):
            train_screen(screens, base, subject)
        with gr.Tab("Result") as tab:
            result_screen(screens, tab)
        with gr.Tab("Draw"):
            draw_screen(screens)
        with gr.Tab("Concepts") as tab:
            concepts_screen(screens, tab)
        page.load(screens.choose_run, None, screens.run)
        page.load(lambda: gr.Dropdown(screens.subjects()), None, subject)
    return page
