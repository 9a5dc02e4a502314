"""Every base with a repository comes whole from the hub; what a repository does not list is known first.

The hub is a server on this machine: the published lists, as far as weights and tokenizers go, and contents of
a few bytes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest_run import compose_config
from huggingface_hub import constants

from personalar.config.compose import conf_dir, group_options
from personalar.config.run_config import ModelConfig
from personalar.models.loading import PARTS, hub_parts, obtain_model, offline_model, pin

SHARDS = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
WEIGHTS = [".gitattributes", "README.md", "config.json", "generation_config.json", *SHARDS,
           "model.safetensors.index.json"]  # fmt: skip
TOKENIZER = ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]
VQ = [f"original_tokenizers/{name}" for name in ("text_tokenizer.json", "vqgan.ckpt", "vqgan.yaml")]
LISTS = {
    "Alpha-VLLM/Lumina-mGPT-7B-512": WEIGHTS,
    "Alpha-VLLM/Lumina-mGPT-7B-768": [*WEIGHTS, *TOKENIZER],
    "Alpha-VLLM/Lumina-mGPT-7B-1024": WEIGHTS,
    "Alpha-VLLM/Chameleon_7B_mGPT": [*WEIGHTS, *VQ],
    "leloy/Anole-7b-v0.1-hf": [*WEIGHTS, *TOKENIZER, "preprocessor_config.json", "processor_config.json"],
    "facebook/chameleon-7b": [*WEIGHTS, *TOKENIZER, "preprocessor_config.json", "processor_config.json"],
}
BRANCH_COMMIT = "c" * 40
NAMES = group_options(conf_dir(), "model")


def content(name: str) -> bytes:
    """Return a few bytes that stand for the file."""
    index = {"weight_map": {f"tensor_{i}": shard for i, shard in enumerate(SHARDS)}}
    return json.dumps(index).encode() if name.endswith("index.json") else f"{name}\n".encode()


class Hub(ThreadingHTTPServer):
    """A hub that knows which files were read, and is without the `hidden` ones (repository, name)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files_asked_for: list[str] = []
        self.hidden: set[tuple[str, str]] = set()

    def files(self, repo: str) -> list[str]:
        """Return the names of the files of a repository."""
        return [name for name in LISTS[repo] if (repo, name) not in self.hidden]


class Answer(BaseHTTPRequestHandler):
    """The three questions that a download asks: which commit, which files, and the files."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer a question."""
        path = urlsplit(self.path).path
        if path.startswith("/api/models/"):
            owner, name, kind, revision = path.removeprefix("/api/models/").split("/")[:4]
            files = self.server.files(f"{owner}/{name}")
            commit = BRANCH_COMMIT if revision == "main" else revision
            listed = [{"type": "file", "path": f, "size": len(content(f)), "oid": "0" * 40} for f in files]
            about = {"id": f"{owner}/{name}", "sha": commit, "siblings": [{"rfilename": f} for f in files]}
            self.send(json.dumps(listed if kind == "tree" else about).encode(), {})
            return
        repo, _, rest = path.strip("/").partition("/resolve/")
        commit, _, name = rest.partition("/")
        if name not in self.server.files(repo):
            self.send(b"", {"X-Error-Code": "EntryNotFound"}, status=404)
            return
        self.server.files_asked_for.append(f"{repo}/{name}")
        self.send(content(name), {"X-Repo-Commit": commit, "ETag": f'"{name.replace("/", "-")}"'})

    def send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        """Write an answer."""
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running hub, as HF_ENDPOINT and HF_HOME would have it, and an empty cache."""
    with Hub() as server:
        where = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", where)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", where + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr("personalar.models.loading.free_bytes", lambda folder: 10**12)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def model(name: str) -> ModelConfig:
    return compose_config("+subject=cat", f"model={name}").model


def test_every_base_but_the_one_that_ships_is_here() -> None:
    assert {part.hub.repo for name in NAMES if name != "nano" for part in hub_parts(model(name))} == set(
        LISTS
    )


@pytest.mark.parametrize("name", [name for name in NAMES if name != "nano"])
def test_a_base_comes_whole_from_its_repositories(hub: Hub, name: str) -> None:
    config, said = model(name), []
    assert offline_model(config) is None
    files = obtain_model(config, say=said.append)
    assert len(said) == 1 and not files.missing()
    assert files.tokenizer.read_bytes() == content("tokenizer.json")
    asked = {file for file in hub.files_asked_for if not file.endswith(".md")}
    assert obtain_model(config, say=pytest.fail) == files
    assert set(hub.files_asked_for) == asked  # the second time nothing
    owned = {"config.json", "tokenizer.json", *SHARDS, "model.safetensors.index.json"}
    owned |= {"vqgan.ckpt", "vqgan.yaml"} if config.vq_hub else set()
    assert {Path(file).name for file in asked} == owned
    pinned = pin(config)
    for key in PARTS:
        if (part := getattr(config, key)) is not None:
            revision = BRANCH_COMMIT if part.revision == "main" else part.revision
            assert getattr(pinned, key).revision == revision


@pytest.mark.parametrize("name", ["lumina_mgpt_7b_512", "lumina_mgpt_7b_1024"])
def test_the_text_tokenizer_is_the_one_that_the_authors_take(hub: Hub, name: str) -> None:
    obtain_model(model(name), say=lambda text: None)
    taken = [file for file in hub.files_asked_for if file.endswith("/tokenizer.json")]
    assert set(taken) == {"Alpha-VLLM/Lumina-mGPT-7B-768/tokenizer.json"}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "nano"])
def test_a_file_that_is_not_listed_is_known_before_anything_is_downloaded(hub: Hub, name: str) -> None:
    config = model(name)
    for part in hub_parts(config):
        for file in part.hub.files:
            names = SHARDS if file == "*.safetensors" else [file.replace("*", "model")]
            hub.hidden = {(part.hub.repo, gone) for gone in names}
            with pytest.raises(FileNotFoundError) as error:
                obtain_model(config, say=pytest.fail)
            told = str(error.value)
            assert f"https://huggingface.co/{part.hub.repo} (revision {part.hub.revision})" in told
            assert f"has no {file}, which model={name} takes from there" in told
            assert f"model.{part.key}.revision=COMMIT" in told
    assert hub.files_asked_for == []


def test_a_repository_with_one_file_of_weights_needs_no_index(hub: Hub) -> None:
    config = model("anole_7b")
    gone = {"model.safetensors.index.json", *SHARDS}
    hub.hidden = {(config.hub.repo, name) for name in gone}
    LISTS[config.hub.repo].append("model.safetensors")
    try:
        files = obtain_model(config, say=lambda text: None)
    finally:
        LISTS[config.hub.repo].remove("model.safetensors")
    assert [file.name for file in files.weights()] == ["model.safetensors"]


def test_a_shard_that_only_the_index_names(hub: Hub) -> None:
    config = model("anole_7b")
    hub.hidden = {(config.hub.repo, SHARDS[1])}
    with pytest.raises(FileNotFoundError, match=r"leloy/Anole-7b-v0\.1-hf: its index names files that"):
        obtain_model(config, say=lambda text: None)
