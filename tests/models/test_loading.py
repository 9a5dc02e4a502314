"""A base's files: folders, the cache, what is said before a download, the hub's refusals, other families."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from conftest_run import compose_config
from conftest_upstream import LUMINA
from hub_server import Hub
from huggingface_hub import constants, errors
from naive import NaiveDecoder
from published_files import BRANCH_COMMIT, LISTS, SHARDS, content, publish

from personalar.config.compose import conf_dir, group_options
from personalar.config.fingerprint import learning_settings
from personalar.config.model_config import PARTS, ModelConfig
from personalar.doctor import model_files, section
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.generator import Generator
from personalar.models.loading import (
    cache_folder,
    free_bytes,
    hub_parts,
    missing_bytes,
    obtain_model,
    offline_model,
    pin,
)

NAMES = [name for name in group_options(conf_dir(), "model") if name != "nano"]
FREE = "personalar.models.loading.free_bytes"


@pytest.fixture
def hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A running hub with all bases, an empty cache and room enough."""
    monkeypatch.setattr(FREE, lambda folder: 10**12)
    for repo in LISTS:
        publish(hub, repo)
    return hub


def model(name: str = "lumina_mgpt_7b_768", *overrides: str) -> ModelConfig:
    return compose_config("+subject=cat", f"model={name}", *overrides).model


def test_missing_files_are_described_before_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as error:
        obtain_model(model(), say=pytest.fail)
    told = str(error.value)
    for part in (
        "model=lumina_mgpt_7b_768 needs files that are not on this machine",
        "transformer: config.json, tokenizer.json, *.safetensors",
        "https://huggingface.co/Alpha-VLLM/Lumina-mGPT-7B-768 (revision 9624463a82ea",
        "about 14.1 GB",
        "image tokenizer: original_tokenizers/vqgan.ckpt\n",
        "https://huggingface.co/Alpha-VLLM/Chameleon_7B_mGPT",
        "licence to accept there: Chameleon Research License",
        "hf download Alpha-VLLM/Chameleon_7B_mGPT --include original_tokenizers/vqgan.ckpt --revision main",
        " --include '*.safetensors' --include ",
        f"they are stored in {tmp_path / 'hub'} (HF_HOME changes it), with ",
        " GB free",
        "HF_HUB_OFFLINE is set, so nothing is downloaded; unset it; or set model.path=DIR",
    ):
        assert part in told, part
    assert not (tmp_path / "hub").exists()


def test_every_base_but_the_one_that_ships_is_in_the_lists() -> None:
    assert {part.hub.repo for name in NAMES for part in hub_parts(model(name))} == set(LISTS)


@pytest.mark.parametrize("name", NAMES)
def test_a_base_comes_whole_from_its_repositories(hub: Hub, name: str) -> None:
    config, said = model(name), []
    assert offline_model(config) is None and pin(config) == config
    files = obtain_model(config, say=lambda text: said.append((len(hub.files_asked_for), text)))
    (before, text), small = said[0], min(hub_parts(config), key=lambda part: part.hub.gigabytes)
    assert len(said) == 1 and before == 0
    assert text.startswith(f"model={name} needs files") and text.endswith("downloading now")
    assert hub.files_asked_for[0].startswith(small.hub.repo)  # a refusal comes before 14 GB are here
    assert not files.missing() and files.tokenizer.read_bytes() == content(files.tokenizer.name)
    asked = set(hub.files_asked_for)
    wanted = (".safetensors", ".bin", ".index.json")
    weights = {file for file in LISTS[config.hub.repo] if file.endswith(wanted)}
    beside = {"emu3_vision_tokens.txt"} if name.startswith("emu3") else set()
    if name.startswith(("emu3", "janus")):  # for programs that read an exported checkpoint
        beside |= {file for file in LISTS[config.hub.repo] if file.endswith(".json")}
    owned = {"config.json", files.tokenizer.name, *weights, *beside}
    if config.vq_hub is not None:
        patterns, listed = config.vq_hub.files, LISTS[config.vq_hub.repo]
        owned |= {Path(file).name for file in listed for pattern in patterns if fnmatchcase(file, pattern)}
    assert {Path(file).name for file in asked} == owned
    tokenizer = "Alpha-VLLM/Lumina-mGPT-7B-768" if name.startswith("lumina") else config.hub.repo
    words = files.tokenizer.name
    assert [file for file in asked if file.endswith(f"/{words}")] == [f"{tokenizer}/{words}"]

    assert obtain_model(config, say=pytest.fail) == files and set(hub.files_asked_for) == asked
    pinned, (told, _) = pin(config), section("model", model_files(config))
    assert f"text tokenizer: {files.tokenizer}" in told and pin(pinned) == pinned
    for key in PARTS:
        if (part := getattr(config, key)) is not None:
            moves = part.revision == "main"
            assert getattr(pinned, key).revision == (BRANCH_COMMIT if moves else part.revision)
            note = f"{part.repo}: main is at this commit; pin it with model.{key}.revision={BRANCH_COMMIT}"
            assert (note in told) == moves
    files.weights()[0].unlink()  # a partial cache is not taken for a whole one
    assert offline_model(config) is None and hub_parts(config)[0].folder is None


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_not_listed_is_known_before_anything_is_downloaded(hub: Hub, name: str) -> None:
    config = model(name)
    for part in hub_parts(config):
        for file in part.hub.files:
            kept = file.endswith(".index.json") and "pytorch_model.bin" in LISTS[part.hub.repo]
            if kept:
                continue  # weights in one file need no index
            names = [name for name in LISTS[part.hub.repo] if fnmatchcase(name, file)]
            publish(hub, part.hub.repo, without=names)
            with pytest.raises(FileNotFoundError) as error:
                obtain_model(config, say=pytest.fail)
            told = str(error.value)
            assert f"https://huggingface.co/{part.hub.repo} (revision {part.hub.revision})" in told
            assert re.search(rf"has no (\S+, )*{re.escape(file)}, (\S+, )*which model={name} needs", told)
            assert f"model.{part.key}.revision=COMMIT" in told
            publish(hub, part.hub.repo)
    assert hub.files_asked_for == []


def test_a_repository_with_one_file_of_weights_needs_no_index(hub: Hub) -> None:
    repo = model("anole_7b").hub.repo
    index = "model.safetensors.index.json"
    publish(hub, repo, without=[index, *SHARDS], extra=["model.safetensors"])
    files = obtain_model(model("anole_7b"), say=lambda text: None)
    assert [file.name for file in files.weights()] == ["model.safetensors"]


def test_a_shard_that_only_the_index_names(hub: Hub) -> None:
    publish(hub, model("anole_7b").hub.repo, without=[SHARDS[1]])
    with pytest.raises(FileNotFoundError, match=r"leloy/Anole-7b-v0\.1-hf: the index lists files that"):
        obtain_model(model("anole_7b"), say=lambda text: None)


def test_processes_that_start_together_download_once(hub: Hub) -> None:
    """Each has a lock of its own on the same file, as processes do; the second one finds all there."""
    config, said = model(), []
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: obtain_model(config, say=said.append), range(3)))
    assert len(said) == 1 and found[0] == found[1] == found[2] and not found[0].missing()


def test_a_full_disk_is_told_before_the_download(hub: Hub, monkeypatch) -> None:
    monkeypatch.setattr(FREE, lambda folder: 14 * 10**9)
    config = model()
    with ThreadPoolExecutor(2) as pool:
        tries = [pool.submit(obtain_model, config, say=pytest.fail) for _ in range(2)]
    for one in tries:
        with pytest.raises(FileNotFoundError, match=r"14\.0 GB free\nthe disk has too little space"):
            one.result()
    assert not hub.files_asked_for


def test_an_interrupted_download_goes_on_if_the_rest_fits(hub: Hub, monkeypatch) -> None:
    monkeypatch.setattr(FREE, lambda folder: 1_500_000)
    config = model("lumina_mgpt_7b_768", "model.hub.gigabytes=0.002", "model.vq_hub.gigabytes=0")
    with pytest.raises(FileNotFoundError, match="the disk has too little space"):
        obtain_model(config, say=pytest.fail)
    blobs = cache_folder() / "models--Alpha-VLLM--Lumina-mGPT-7B-768" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "a.incomplete").write_bytes(bytes(1_000_000))
    with monkeypatch.context() as windows:
        without_blocks = SimpleNamespace(st_mode=blobs.stat().st_mode, st_size=1_000_000)
        windows.setattr(Path, "stat", lambda path, **how: without_blocks)
        assert missing_bytes(config.hub) == 2_000_000 - 1_000_448  # rounded up to blocks
    assert not obtain_model(config, say=lambda text: None).missing()


def test_finished_files_of_an_interrupted_download_count_too(hub: Hub, monkeypatch) -> None:
    """The hub's library knows then what the repository contains, and gives no folder for a part of it."""
    config = model("lumina_mgpt_7b_768", "model.hub.gigabytes=0.002", "model.vq_hub.gigabytes=0")
    finished, other, *_ = obtain_model(config, say=lambda text: None).weights()
    finished.resolve().write_bytes(bytes(1_000_000))
    other.unlink()
    monkeypatch.setattr(FREE, lambda folder: 1_500_000)
    assert not obtain_model(config, say=lambda text: None).missing()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("janus_pro_1b", "model.recipe.loss=answer", "predicts only image codes; allowed: image_tokens"),
        ("emu3_gen", "model.layout.unconditional=pad", "layout.unconditional='pad'; allowed: negative"),
        ("anole_7b", "model.vq_path=nowhere", r"no image tokenizer at nowhere; set model\.vq_path"),
        ("anole_7b", "model.family=json", r"model\.family=json is not a model family"),
    ],
)
def test_a_wrong_setting_is_an_error_before_the_download(
    hub: Hub, name: str, change: str, message: str
) -> None:
    config = model(name, change)
    for work in (lambda: obtain_model(config, say=pytest.fail), lambda: list(model_files(config))):
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            work()
    assert not hub.files_asked_for


@pytest.mark.parametrize("repo", ["a/b/c", "https://huggingface.co/GAIR/Anole-7b-v0.1"])
def test_a_mistyped_repository_is_named(hub: Hub, repo: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{repo} .*is no name of a repository.*model\.hub\.repo="):
        obtain_model(model("anole_7b", f"model.hub.repo='{repo}'"), say=pytest.fail)


def test_only_the_missing_part_is_downloaded(hub: Hub, vqgan_dir: Path) -> None:
    said: list[str] = []
    shutil.rmtree(obtain_model(model(), say=said.append).base)
    hub.files_asked_for.clear()
    obtain_model(model(), say=said.append)
    assert "image tokenizer" in said[0] and "image tokenizer" not in said[1]
    assert not any("vqgan" in file for file in hub.files_asked_for)
    config = model("lumina_mgpt_7b_512", f"model.vq_path={vqgan_dir}")
    assert obtain_model(config, say=said.append).vq == vqgan_dir and "image tokenizer" not in said[2]


def hub_error(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "refused by the server")
    error.response = None
    return error


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.GatedRepoError, r"accept its conditions: .*log in with `hf auth login`"),
        (errors.RevisionNotFoundError, r"revision main\) has no such branch.*set model\.vq_hub\.revision="),
        (errors.HfHubHTTPError, r"is refused: refused by the server; or set .*model\.path="),
        (errors.LocalEntryNotFoundError, "and the hub cannot be reached"),
        (
            ConnectionError,
            r"/(Lumina-mGPT-7B-768|Chameleon_7B_mGPT) .* reached: the network failed",
        ),
    ],
)
def test_what_the_hub_can_answer(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], message: str
) -> None:
    """To the question for its list of files, and to that for the files."""
    real: Callable = huggingface_hub.snapshot_download

    def refuse(*names: object, local_files_only: bool = False, **how: object) -> str:
        if local_files_only:
            return real(*names, local_files_only=True, **how)
        raise hub_error(kind)

    def listed(_: object, repo: str, **how: object) -> list[str]:
        return LISTS[repo]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    for answer in (listed, refuse):
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", answer)
        with pytest.raises(FileNotFoundError, match=message):
            obtain_model(model(), say=lambda text: None)


def test_a_folder_of_ones_own(lumina_dir: Path, vqgan_dir: Path, tmp_path: Path) -> None:
    where = [f"model.path={lumina_dir}", f"model.vq_path={vqgan_dir}", "model.layout.resolution=64"]
    files = obtain_model(model("lumina_mgpt_7b_512", *where), say=pytest.fail)
    assert (files.base, files.vq, files.layout.resolution) == (lumina_dir, vqgan_dir, 64)
    assert LUMINA.ids.items() <= files.layout.ids.items()
    part = Path(shutil.copytree(lumina_dir, tmp_path / "part"))
    (part / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"model-00002-of-00003\.safetensors missing .*with all files"
    ):
        obtain_model(model("lumina_mgpt_7b_512", f"model.path={part}", where[1]), say=pytest.fail)


@pytest.mark.parametrize("name", ["lumina_mgpt_7b_512", "lumina_mgpt_7b_768"])
def test_a_folder_without_the_text_tokenizer(
    lumina_dir: Path, vqgan_dir: Path, tmp_path: Path, name: str
) -> None:
    """The message has the command that brings it; with the file there, the folder is whole."""
    part = Path(shutil.copytree(lumina_dir, tmp_path / "as published"))
    (part / "tokenizer.json").unlink()
    config = model(name, f"model.path='{part}'", f"model.vq_path={vqgan_dir}")
    with pytest.raises(FileNotFoundError) as error:
        obtain_model(config, say=pytest.fail)
    command = "hf download Alpha-VLLM/Lumina-mGPT-7B-768 tokenizer.json --revision 9624463a82ea"
    assert str(part / "tokenizer.json") in str(error.value)
    assert f"run `{command}" in str(error.value) and f" --local-dir '{part}'`" in str(error.value)
    with pytest.raises(FileNotFoundError) as said_by_the_doctor:
        list(model_files(config))
    assert str(said_by_the_doctor.value) == str(error.value)
    shutil.copy(lumina_dir / "tokenizer.json", part)
    assert obtain_model(config, say=pytest.fail).tokenizer == part / "tokenizer.json"


def test_our_folder_without_its_parts(tiny_model_dir: Path, tmp_path: Path) -> None:
    part = Path(shutil.copytree(tiny_model_dir, tmp_path / "part"))
    shutil.rmtree(part / "vq")
    (part / "base" / "config.json").unlink()
    with pytest.raises(FileNotFoundError) as error:
        obtain_model(model("nano", f"model.path={part}"), say=pytest.fail)
    for name in ("base/config.json", "vq/config.json", "vq/model.safetensors"):
        assert str(part / name) in str(error.value)


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") == free_bytes(tmp_path) > 0


def test_a_model_must_say_where_it_is() -> None:
    with pytest.raises(ValueError, match=r"model=x has neither path nor hub: set model\.path=DIR"):
        ModelConfig(name="x")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """A base of a family from outside of the package."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "plugins"))
    import toy_family

    toy_family.write_weights(tmp_path)
    return model("nano", "model.family=toy_family", f"model.path={tmp_path}")


def test_another_family_is_one_package_and_one_setting(toy: ModelConfig) -> None:
    files = obtain_model(toy, say=pytest.fail)
    assert f"transformer: {toy.path}" in list(model_files(toy))
    backend = files.load(dtype=torch.float32, device="cpu")
    prompts = [backend.prompt_ids(text) for text in ("a cat", "a dog in the snow")]
    how = {"prompts": prompts, "grid": backend.code_shape(), "seeds": [0, 1]}
    drawn = PlainDecoder(cfg_scale=2.0)(backend, **how)
    assert torch.equal(drawn, NaiveDecoder(cfg_scale=2.0)(backend, **how)) and len(drawn.unique()) > 2
    assert torch.equal(backend.encode_images(backend.decode_images(drawn)), drawn)
    with pytest.raises(ValueError, match="the guidance of this base has no words; leave out the setting"):
        Generator(backend=backend, decoder=PlainDecoder()).images(["a cat"], [0], negative_prompt="a dog")
    (files.folder / "toy.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"toy\.safetensors missing \(model\.path="):
        obtain_model(toy, say=pytest.fail)


@pytest.mark.parametrize("name", ["no_such_package", "json"])
def test_an_unknown_family_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.family={name} is not a model family .*models\.chameleon"):
        offline_model(model("nano", f"model.family={name}"))


def test_the_family_is_not_among_the_settings_of_a_run() -> None:
    words = ("+subject=cat", "model=nano")
    given = learning_settings(compose_config(*words, "model.family=toy_family"))
    assert given == learning_settings(compose_config(*words)) and "family" not in given["model"]
