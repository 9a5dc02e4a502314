"""The web page as a person uses it: a real browser, a real run of the small base."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import Page, open_browser
from hub_server import TOKEN, Hub
from PIL import Image
from processes import free_port

import personalar
from personalar.nano.world import subjects

pytestmark = pytest.mark.slow
TABS = ("Photos", "Train", "Result", "Draw", "Concepts")
FIELD = (
    "[...document.querySelectorAll('label, .block')].find(found => found.querySelector('[data-testid="
    "\"block-info\"]')?.textContent.trim() === {label})?.querySelector('input, textarea')"
)


@pytest.fixture(autouse=True)
def gradio() -> None:
    """Skip where the extra is not installed."""
    pytest.importorskip("gradio", minversion="6", reason="pip install -e '.[web]'")


class Screen:
    """A browser with the page open."""

    def __init__(self, page: Page, url: str, width: int = 1280) -> None:
        self.page = page
        page.open(url, width=width, height=1400)
        self.wait("document.querySelectorAll('[role=tab]').length > 4")

    def wait(self, condition: str, seconds: float = 240) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < end, f"{condition}\n{self.page.evaluate('document.body.innerText')}"
            time.sleep(0.1)

    def press(self, selector: str, text: str) -> None:
        """Click the visible element with that text."""
        found = f"[...document.querySelectorAll({selector!r})].find(one => one.innerText.trim() === {text!r})"
        self.wait(found, 20)
        self.page.evaluate(f"{found}.click()")

    def write(self, label: str, text: str) -> None:
        """Write into the field with that label."""
        field = FIELD.format(label=json.dumps(label))
        self.wait(field, 20)
        kind = self.page.evaluate(f"{field}.constructor.name")
        setter = f"Object.getOwnPropertyDescriptor({kind}.prototype, 'value').set"
        event = "new Event('input', {bubbles: true})"
        time.sleep(0.5)  # a field that has just appeared does not listen yet
        self.page.evaluate(f"{setter}.call({field}, {json.dumps(text)}), {field}.dispatchEvent({event})")

    def upload(self, *files: Path) -> None:
        """Give files to the first upload field, and wait until the server has them."""
        self.wait("document.querySelector('input[type=file]')", 20)
        time.sleep(0.5)  # the page may still replace it
        field = self.page.call("Runtime.evaluate", expression="document.querySelector('input[type=file]')")
        self.page.call(
            "DOM.setFileInputFiles", objectId=field["result"]["objectId"], files=list(map(str, files))
        )
        self.wait(f"document.body.innerText.includes({files[-1].stem[-12:]!r})", 60)

    def choose(self, label: str, option: str) -> None:
        """Choose an option of the list with that label."""
        field = FIELD.format(label=json.dumps(label))
        self.wait(field, 20)
        self.page.evaluate(f"{field}.dispatchEvent(new Event('focus'))")
        found = (
            f"[...document.querySelectorAll('[role=option]')].find(one => one.innerText.includes({option!r}))"
        )
        self.wait(found, 20)
        self.page.evaluate(f"{found}.dispatchEvent(new MouseEvent('mousedown', {{bubbles: true}}))")
        self.wait(f"{field}.value === {option!r}", 20)

    def download(self, selector: str, attribute: str) -> bytes:
        """Return the content at the address in an attribute of an element."""
        address = f"document.querySelector({selector!r})?.{attribute}"
        self.wait(address, 20)
        data = self.page.evaluate(
            f"fetch({address}).then(answer => answer.blob()).then(blob => new Promise(done => "
            "{ const reader = new FileReader(); reader.onload = () => done(reader.result); "
            "reader.readAsDataURL(blob) }))"
        )
        return base64.b64decode(data.partition(",")[2])

    def status(self, panel: str = "#status") -> str:
        """Return the state of the run, or of the drawing."""
        return self.page.evaluate(f"document.querySelector('{panel} [data-status]')?.dataset.status ?? ''")

    def wait_for(self, state: str, panel: str = "#status") -> None:
        """Wait for a state of the run, or of the drawing."""
        self.wait(f"document.querySelector('{panel} [data-status]')?.dataset.status === {state!r}")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the runs in `folder` / "outputs"; yield the address."""
    port = free_port()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "personalar.web", f"--port={port}"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
    try:
        end = time.monotonic() + 120
        while subprocess.run(["curl", "-so", os.devnull, f"http://127.0.0.1:{port}"]).returncode:
            assert server.poll() is None and time.monotonic() < end, (folder / "server.log").read_text()
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(30)
    assert "Traceback" not in (folder / "server.log").read_text()


def make_files(folder: Path) -> list[Path]:
    """Return five photos and a text."""
    folder.mkdir()
    for index, image in enumerate(subjects.rendered_subject("cat", 0).train):
        image.save(folder / f"photo {index}.png")
    (folder / "what it shows.txt").write_text("a cat")
    return sorted(folder.iterdir())


def moves(screen: Screen, times: int) -> None:
    """Wait until the bar has moved so often."""
    seen: list[str] = []
    end = time.monotonic() + 300
    while len(seen) <= times:
        line, bar = "document.querySelector('#status .line')", "document.querySelector('#status progress')"
        now = screen.page.evaluate(f"{line}?.textContent + {bar}?.value")
        if now not in seen and screen.status() == "running":
            seen.append(now)
        assert time.monotonic() < end, seen
        time.sleep(0.1)


def pixels(folder: Path) -> dict[str, bytes]:
    return {path.name: Image.open(path).tobytes() for path in sorted(folder.glob("*.png"))}


def test_from_photos_to_pictures(tmp_path: Path) -> None:
    with served(tmp_path) as url, open_browser() as page, open_browser() as other:
        screen = Screen(page, url)
        screen.upload(*make_files(tmp_path / "files"))
        screen.write("What is it?", "cat")
        screen.press("button", "Check the photos")
        screen.wait("document.querySelectorAll('.used').length === 5")
        assert page.evaluate("document.querySelector('.skipped').closest('tr').innerText").startswith(
            "what_it_shows"
        )

        screen.press("[role=tab]", "Train")
        screen.press("label", "quick: see that it works")
        screen.press("button span", "Advanced")
        screen.write("More settings", "model.recipe.identifier.init=random trainer.checkpoint_every_steps=1")
        screen.wait("document.querySelector('#command textarea').value.includes('init=random')")
        screen.press("button", "Start")
        moves(screen, 3)
        same = Screen(other, url, width=390)  # opened while it runs, it shows the same run
        same.press("[role=tab]", "Train")
        same.wait_for("running")
        for tab in TABS:
            same.press("[role=tab]", tab)
            assert other.evaluate("document.documentElement.scrollWidth") == 390, tab
        screen.press("button", "Stop")
        screen.wait_for("stopped")
        same.wait_for("stopped")
        log = tmp_path / "outputs/web/logs/nano/my_cat-quick.log"
        assert "the same command goes on" in log.read_text()
        same.press("[role=tab]", "Train")
        same.press("button", "Resume")
        screen.wait_for("running")
        screen.wait_for("finished")

        screen.press("[role=tab]", "Result")
        screen.wait("document.body.innerText.includes('Memorised')")
        screen.press("[role=tab]", "Draw")
        screen.press("button.primary", "Draw")
        screen.wait_for("finished", "#draw-status")
        run = tmp_path / "outputs/nano/my_cat-quick"
        words = ["prompts=[a photo of \\[V\\] cat,a \\[V\\] cat on the beach]", "seeds=[0,1]"]
        subprocess.run([sys.executable, "-m", "personalar.sample", f"concept={run}", *words, "out=drawn"],
                       cwd=tmp_path, check=True, capture_output=True)  # fmt: skip
        drawn = pixels(tmp_path / "outputs/web/pictures/nano/my_cat-quick")
        assert len(drawn) == 4 and drawn == pixels(tmp_path / "drawn")
        asked = [*page.requested, *other.requested]
        assert [one for one in asked if not one.startswith((url, "data:", "blob:"))] == []


def test_strength_and_push(tmp_path: Path, finished_run: Path, hub: Hub) -> None:
    """A run of the tiny random base: what the page shows is what the commands write and upload."""
    run = Path(shutil.copytree(finished_run, tmp_path / "outputs" / "nano" / "cat"))
    first = run / "stages" / "embedding" / "concept"
    drawn = tmp_path / "outputs" / "web" / "pictures" / "nano" / "cat"
    drawn.mkdir(parents=True)
    (drawn / "damaged.png").write_bytes(b"\x89PNG")
    with served(tmp_path) as url, open_browser() as page:
        screen = Screen(page, url)
        screen.press("[role=tab]", "Draw")
        screen.write("Prompts, one a line", "a [V] cat")
        screen.write("Seeds", "3")
        screen.write("Strength", "0.5")
        screen.press("button.primary", "Draw")
        screen.wait_for("failed", "#draw-status")
        screen.wait("document.querySelector('#draw-status').innerText.includes('strength=0.5, but')")
        screen.choose("Stage", "embedding")
        screen.press("button.primary", "Draw")
        screen.wait_for("finished", "#draw-status")
        shown = screen.download(".grid-container img", "src")
        (expected,) = personalar.load(first, "strength=0.5", "trainer.threads=1").images(["a [V] cat"], [3])
        assert Image.open(io.BytesIO(shown)).tobytes() == expected.tobytes()
        page.evaluate("document.querySelector('.grid-container button').click()")
        screen.wait("""document.body.innerText.replace(/\\s/g, '').includes('"strength":"0.5"')""")
        page.evaluate("[...document.querySelectorAll('.thumbnails button')].at(-1).click()")
        screen.wait("document.body.innerText.includes('is a damaged picture')")

        screen.press("[role=tab]", "Result")
        archive = zipfile.ZipFile(io.BytesIO(screen.download('a[href^="/concept.zip"]', "href")))
        files = [path for path in (run / "concept").rglob("*") if path.is_file()]
        assert {name: archive.read(name) for name in archive.namelist()} == {
            path.relative_to(run / "concept").as_posix(): path.read_bytes() for path in files
        }
        screen.press("button span", "Push to the Hugging Face hub")
        screen.write("Repository", "me/my-cat")
        screen.press("button", "Upload")
        screen.wait("document.body.innerText.includes('was not shown for these settings')")
        screen.press("button", "Show what would be uploaded")
        screen.wait_for("finished", "#push")
        shown = page.evaluate("document.querySelector('#push pre').textContent")
        assert "me/my-cat (private)" in shown and not hub.repositories
        screen.press("button", "Upload")
        screen.wait("document.querySelector('#push').innerText.includes('use it with concept=hub:')")
        screen.wait_for("finished", "#push")
        said = page.evaluate("document.body.innerText")
    (repository,) = hub.repositories.values()
    assert repository.private
    assert {line.split()[0] for line in shown.splitlines() if line.endswith(" MB")} == set(repository.newest)
    assert repository.newest["README.md"].decode() in shown
    logs = [*(tmp_path / "outputs/web/logs").rglob("*.log"), tmp_path / "server.log"]
    written = [path.read_text() for path in logs]
    assert len(written) == 3
    assert not any(secret in text for text in (said, *written) for secret in (TOKEN, "HTTP Request"))


def test_a_bad_upload_is_answered(tmp_path: Path) -> None:
    bad = tmp_path / "..%2f..%2fevil $(date) ü.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    with served(tmp_path) as url, open_browser() as page:
        screen = Screen(page, url)
        screen.upload(bad)
        screen.press("button", "Check the photos")
        screen.wait("document.body.innerText.includes('must be one or a few plain words')")
        screen.write("What is it?", "../../cat")
        screen.press("button", "Check the photos")
        screen.wait("document.body.innerText.includes('0 of 1 can be used')")
    own = tmp_path / "outputs/web/photos"
    assert [path.parent.name for path in own.rglob("*.png")] == ["my_cat"]
