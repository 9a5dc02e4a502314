"""The screens Result and Concepts, and the page with all five screens."""

from __future__ import annotations

import shlex
from html import escape
from typing import Any

import gradio as gr

from personalar.core.files import plain_name
from personalar.runs.web import markup
from personalar.runs.web.draw_screen import draw_screen
from personalar.runs.web.jobs import Jobs, pairs
from personalar.runs.web.learning_screens import EVERY, Screens, answered, photos_screen, train_screen
from personalar.runs.web.page_commands import push_command


def result_screen(screens: Screens, tab: gr.Tab) -> None:
    """Create the screen Result, which is updated when its `tab` is opened."""
    jobs = screens.jobs
    prompt = gr.Dropdown([], label="Prompt", interactive=True)
    slider = gr.ImageSlider(label="Base | learned", type="filepath", interactive=False, max_height=520)
    scores = gr.HTML()
    push_panel(screens)

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


def push_panel(screens: Screens) -> None:
    """Create the part of the screen Result that uploads the concept to the Hugging Face hub."""
    jobs = screens.jobs
    with gr.Accordion("Push to the Hugging Face hub", open=False):
        with gr.Row():
            repo = gr.Textbox("", label="Repository", placeholder="me/my-cat", max_length=200, min_width=180)
            private = gr.Checkbox(True, label="Private", info="otherwise everybody can see it", min_width=140)
        with gr.Row():
            check = gr.Button("Show what would be uploaded", variant="primary", min_width=180)
            upload, stop = gr.Button("Upload", min_width=90), gr.Button("Stop", min_width=90)
        output = gr.HTML(elem_id="push")
    seen = gr.State("")

    def begin(run: str | None, repo: str, private: bool, *, dry_run: bool) -> None:
        if not run:
            raise ValueError("no run yet: learn a subject on the screen Train")
        shown, sent = (
            push_command(jobs.folder(run), repo, private=private, dry_run=dry) for dry in (True, False)
        )
        last, _ = jobs.output(jobs.pushes(run))
        if not dry_run and last not in (shlex.join(shown), shlex.join(sent)):
            raise ValueError('press "Show what would be uploaded" first: it was not shown for these settings')
        jobs.start(jobs.pushes(run), shown if dry_run else sent)

    def look(run: str | None, before: str) -> tuple[Any, str]:
        if not run:
            return "", ""
        folder = jobs.pushes(run)
        panel = markup.output_panel(jobs.state(folder), jobs.output(folder)[1], working="at work")
        return gr.skip() if panel == before else panel, panel

    given = [screens.run, repo, private]
    check.click(answered(lambda *given: begin(*given, dry_run=True)), given, None)
    upload.click(answered(lambda *given: begin(*given, dry_run=False)), given, None)
    stop.click(answered(lambda run: jobs.stop(jobs.pushes(run or ""))), screens.run, None)
    gr.Timer(EVERY).tick(
        look, [screens.run, seen], [output, seen], show_progress="hidden", concurrency_limit=None
    )


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
        with gr.Tab("Draw") as tab:
            draw_screen(screens, tab)
        with gr.Tab("Concepts") as tab:
            concepts_screen(screens, tab)
        page.load(screens.choose_run, None, screens.run)
        page.load(lambda: gr.Dropdown(screens.subjects()), None, screens.subject)
    return page
