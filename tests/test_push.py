"""A concept to a hub and back: what is uploaded, who sees it, a repeated upload, refusals of one sentence."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import Hub, Repository
from huggingface_hub import constants
from test_concept import make
from test_exchange import adapter, learned_on_tiny

from personalar.__main__ import main
from personalar.concepts.concept import Concept
from personalar.concepts.concept_source import concept_folder
from personalar.core.own_files import ROWS_FILE, WEIGHTS_FILE

Command = Callable[..., str]
REPO = "repo=me/my-cat"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs `personalar WORDS` and returns its output, or its error message."""

    def run(*words: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["personalar", *words])
        try:
            main()
        except SystemExit as stopped:
            return str(stopped.code)
        return capsys.readouterr().out

    return run


def files(hub: Hub) -> dict[str, bytes]:
    """Return the newest files of the repository."""
    return hub.repositories["me/my-cat"].newest


def test_a_run_is_pushed_and_read_back(
    hub: Hub, command: Command, finished_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "concept" / "diary.txt").write_text("not a file of a concept")
    (run / "concept" / "pictures" / "holiday.png").write_bytes(b"not a picture of the run")
    listed = command("push", "run", REPO, "dry_run=true")
    assert listed.endswith("dry run: nothing was uploaded\n") and not hub.repositories
    said = command("push", "run", REPO)
    assert "use it with concept=hub://me/my-cat" in said and "me/my-cat (private), from run/concept:" in said
    assert hub.repositories["me/my-cat"].private
    names = {path.relative_to(finished_run / "concept").as_posix() for path in
             (finished_run / "concept").rglob("*") if path.is_file()}  # fmt: skip
    listed_names = {line.split()[0] for line in listed.splitlines() if line.endswith(" MB")}
    assert set(files(hub)) == names == listed_names
    shutil.copytree(run, tmp_path / "subject=cat,seed=0")  # as in a sweep
    assert "from subject=cat,seed=0/concept:" in command("push", "subject=cat,seed=0", REPO, "dry_run=true")
    assert files(hub)["README.md"].decode() in listed
    assert b"sample concept=hub://me/my-cat " in files(hub)["README.md"]
    for name in names - {"README.md"}:
        assert files(hub)[name] == (run / "concept" / name).read_bytes()
    folder = concept_folder("hub://me/my-cat")
    assert {path.name for path in folder.iterdir()} == {"concept.json", ROWS_FILE, WEIGHTS_FILE}
    Concept.load(folder)


def test_a_sample_of_the_hub_equals_that_of_the_folder(
    hub: Hub, command: Command, tiny_model_dir: Path, tmp_path: Path
) -> None:
    learned_on_tiny(tmp_path / "cat", tiny_model_dir)
    command("push", "cat", REPO)
    asked = ['prompts=["a [V] cat"]', f"model.path={tiny_model_dir}", "trainer.threads=1"]
    drawn = []
    for number, where in enumerate(("cat", "hub://me/my-cat", "[hub://me/my-cat]")):
        command("sample", f"concept={where}", *asked, f"out={number}")
        (picture,) = (tmp_path / str(number)).iterdir()
        drawn.append(picture.read_bytes())
    assert drawn[0] == drawn[1] == drawn[2]
    assert "learned_embeds.safetensors" in command("export", "concept=hub://me/my-cat", "out=exported")


def test_an_interrupted_push_goes_on_and_a_repeated_one_changes_nothing(
    hub: Hub, command: Command, tmp_path: Path
) -> None:
    make(lora=adapter()).save(tmp_path / "cat")
    hub.fail_after = 1
    stopped = command("push", "cat", REPO)
    assert "repeat the command, which sends only what is missing" in stopped and "\n" not in stopped
    assert files(hub) == {}
    hub.fail_after = None
    command("push", "cat", REPO)
    assert len(hub.uploaded) == len(set(hub.uploaded)) == 3  # rows, weights, adapter: each once
    command("push", "cat", REPO)
    assert len(hub.repositories["me/my-cat"].commits) == 2


def test_another_concept_replaces_the_first_which_its_commit_still_has(
    hub: Hub, command: Command, tmp_path: Path
) -> None:
    make().save(tmp_path / "cat")
    command("push", "cat", REPO)
    first = hub.repositories["me/my-cat"].revision("main")
    files(hub)["notes.md"] = b"of the owner"
    make(weights={}).save(tmp_path / "cat")
    command("push", "cat", REPO)
    assert {"README.md", "concept.json", ROWS_FILE, "notes.md"} == set(files(hub))
    assert not Concept.load(concept_folder("hub://me/my-cat")).weights
    assert Concept.load(concept_folder(f"hub://me/my-cat@{first}")).weights


def test_a_repository_of_something_else_is_left_as_it_is(hub: Hub, command: Command, tmp_path: Path) -> None:
    make(weights={}).save(tmp_path / "cat")
    hub.repositories["me/my-cat"] = Repository(private=True)
    hub.repositories["me/my-cat"].commit({".gitattributes": b""})
    assert "use it with concept=hub://me/my-cat" in command("push", "cat", REPO)
    theirs = {".gitattributes": b"", "README.md": b"a model", WEIGHTS_FILE: b"weights"}
    hub.repositories["me/my-cat"].commit(theirs)
    refused = "repo=me/my-cat contains files, but no concept (README.md, weights.safetensors): choose"
    assert command("push", "cat", REPO).startswith(f"personalar.push: {refused}")
    assert files(hub) == theirs


def test_a_private_repository_is_not_called_public(hub: Hub, command: Command, tmp_path: Path) -> None:
    make().save(tmp_path / "cat")
    command("push", "cat", REPO)
    refused = "personalar.push: repo=me/my-cat exists and is private: make it public on its page"
    assert command("push", "cat", REPO, "private=false").startswith(refused)


def test_a_public_repository_is_written_only_if_asked_for(hub: Hub, command: Command, tmp_path: Path) -> None:
    make().save(tmp_path / "cat")
    assert "(public, visible to everybody)" in command("push", "cat", REPO, "private=false")
    assert not hub.repositories["me/my-cat"].private
    refused = "personalar.push: repo=me/my-cat exists and everybody can see it: add private=false"
    assert command("push", "cat", REPO).startswith(refused)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["push", "nowhere", REPO], "concept=nowhere contains no concept.json: give a concept folder"),
        (["push", "cat", "repo=my-cat"], "repo=my-cat is not the name of a repository: write repo="),
        (["push", "cat", "repo=you/cat"], "repo=you/cat is refused: your token may not read it, or not"),
        (["sample", "concept=hub://cat", "prompts=[a]"], "is not an address: write hub://OWNER/NAME[@"),
        (["sample", "concept=hub://me/none", "prompts=[a]"], "hub://me/none does not exist, or you may"),
        (["export", "concept=hub://me/other@v9", "out=x"], "hub://me/other@v9 has no such branch, tag"),
        (["export", "concept=hub://me/other", "out=x"], "hub://me/other contains no concept.json: give a"),
    ],
)  # fmt: skip
def test_refusals_are_one_sentence(
    hub: Hub, command: Command, tmp_path: Path, words: list[str], said: str
) -> None:
    make().save(tmp_path / "cat")
    command("push", "cat", "repo=me/other")
    hub.repositories["me/other"].commit({"README.md": b"a repository of something else"})
    answer = command(*words)
    assert said in answer and answer.startswith(f"personalar.{words[0]}: ") and "\n" not in answer


def test_without_token_or_network_nothing_is_uploaded(
    hub: Hub, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().save(tmp_path / "cat")
    command("push", "cat", REPO)
    monkeypatch.delenv("HF_TOKEN")
    no_token = "there is no token for the hub: log in with `hf auth login`, or set HF_TOKEN"
    assert command("push", "cat", REPO, "dry_run=true").endswith(f"note: {no_token}\n")
    assert command("push", "cat", REPO) == f"personalar.push: {no_token}"
    invisible = command("export", "concept=hub://me/my-cat", "out=x")
    assert "hub://me/my-cat does not exist, or you may not see it" in invisible
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it" in command("push", "cat", REPO)
    assert "hub://me/my-cat is not on this machine" in command("export", "concept=hub://me/my-cat", "out=x")
