"""Draw a grid of pictures with titles; usually columns are the models compared and rows are prompts.

`write_grid` writes the grid of `personalar.sample`, whose axes are sampling settings.
"""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from personalar.core.png import read_png, save_png
from personalar.core.types import Sample
from personalar.generation.sample_files import free_path

INK = (28, 30, 36)
FAINT = (122, 128, 140)
EMPTY = (238, 239, 242)
PAPER = (255, 255, 255)
LARGEST_CELL = 320
"""Pixels of a picture in the grid of `personalar.sample`; smaller pictures keep their size."""


def _letters(width_px: int, font_px: int) -> int:
    """Return about how many letters fit into a line: most are half as wide as the font is high."""
    return 2 * width_px // font_px


def _shorten(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def draw_grid(
    rows: Sequence[Sequence[Image.Image | None]],
    *,
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    title: str = "",
    cell_px: int = 160,
    gap_px: int = 6,
) -> Image.Image:
    """Return an RGB picture with a grid of pictures.

    Args:
        rows: pictures of any size; None leaves a cell empty.
        column_titles: one per column, or none at all.
        row_titles: one per row, or none at all; drawn on the left and wrapped to three lines.
        title: drawn above the grid.
        cell_px, gap_px: side of the square cells, and the distance between them, in pixels.
    """
    columns = len(rows[0])
    font_px = max(11, cell_px // 11)  # grows with the cells, but stays readable
    font = ImageFont.load_default(font_px)
    title_font = ImageFont.load_default(font_px + 5)
    label_px = round(cell_px * 1.05) if row_titles else 0
    title_px = font_px + 5 + 3 * gap_px if title else 0
    header_px = font_px + 2 * gap_px if column_titles else 0
    step = cell_px + gap_px
    size = (label_px + columns * step + gap_px, title_px + header_px + len(rows) * step + gap_px)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    if title:
        shown = _shorten(title, _letters(size[0] - 2 * gap_px, font_px + 5))
        draw.text((gap_px + 2, gap_px), shown, INK, title_font)
    for column, text in enumerate(column_titles):
        middle = label_px + gap_px + column * step + cell_px // 2
        shown = _shorten(text, _letters(cell_px, font_px))
        draw.text((middle, title_px + gap_px), shown, FAINT, font, anchor="ma")
    for index, row in enumerate(rows):
        top = title_px + header_px + gap_px + index * step
        if row_titles:
            letters = _letters(label_px - 3 * gap_px, font_px)
            lines = textwrap.wrap(row_titles[index], letters, max_lines=3, placeholder=" …")
            left = (2 * gap_px, top + cell_px // 2)
            draw.multiline_text(left, "\n".join(lines), INK, font, anchor="lm", spacing=3)
        for column, picture in enumerate(row):
            cell = Image.new("RGB", (cell_px, cell_px), EMPTY)
            if picture is not None:
                # Keep the aspect ratio; the rest of the square cell stays grey.
                fitted = ImageOps.contain(picture.convert("RGB"), cell.size, Image.Resampling.BICUBIC)
                cell.paste(fitted, ((cell_px - fitted.width) // 2, (cell_px - fitted.height) // 2))
            canvas.paste(cell, (label_px + gap_px + column * step, top))
    return canvas


def grid_picture(
    samples: list[Sample], base: Mapping[tuple[str, int], Image.Image], *, label: str, title: str
) -> Image.Image:
    """Return a grid with the pictures of `samples` and, above them, the base's pictures of the same prompts.

    Args:
        samples: one per column.
        base: the base's pictures by (prompt template, seed); may be empty.
        label: title of the row of `samples`.
        title: title of the grid.
    """
    columns = [sample.prompt for sample in samples]
    before = [base.get((sample.spec.text, sample.seed)) for sample in samples]
    rows: list[Sequence[Image.Image | None]] = [[sample.image for sample in samples]]
    names = [label]
    if any(before):
        rows, names = [before, *rows], ["before", *names]
    return draw_grid(rows, column_titles=columns, row_titles=names, title=title)


def base_pictures(samples: Iterable[Sample]) -> dict[tuple[str, int], Image.Image]:
    """Return the base's pictures of kind "subject" by (prompt template, seed), for `grid_picture`."""
    return {(s.spec.text, s.seed): s.image for s in samples if s.kind == "subject" and s.stage == "base"}


def axis_titles(name: str, values: Iterable[Any]) -> list[str]:
    """Return the titles of the rows or columns that vary the setting `name`."""
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return texts if name == "prompt" else [f"{name.replace('_', ' ')} {text}" for text in texts]


def write_grid(paths: Sequence[Path], varied: Mapping[str, Sequence[Any]], out: Path) -> Path:
    """Write pictures whose settings are varied as one picture; return its path.

    Args:
        paths: PNG files of `personalar.sample`, row by row.
        varied: one or two settings with their values; the last one varies along a row.
        out: target folder.
    """
    titles = [axis_titles(name, values) for name, values in varied.items()]
    columns, rows = titles[-1], titles[0] if len(titles) > 1 else []
    pictures = [read_png(path) for path in paths]
    every = range(0, len(paths), len(columns))
    lines = [[image for image, _ in pictures[start : start + len(columns)]] for start in every]
    prompts = {facts["prompt"] for _, facts in pictures}
    title = prompts.pop() if len(prompts) == 1 else " and ".join(varied)
    cell = min(LARGEST_CELL, max(160, *pictures[0][0].size))
    grid = draw_grid(lines, column_titles=columns, row_titles=rows, title=title, cell_px=cell)
    made_of = {"grid": json.dumps(dict(varied)), "files": json.dumps([path.name for path in paths])}
    digest = hashlib.sha256(repr(made_of).encode()).hexdigest()[:8]
    path, _ = free_path(out, f"grid_{'_'.join(varied)}_{digest}.png", made_of)
    save_png(grid, path, made_of)
    return path
