"""What lacks is said before anything is downloaded; caches, folders and the offline switch. No network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pytest
from conftest_run import compose_config
from conftest_upstream import LUMINA
from huggingface_hub import constants, errors

from personalar.config.run_config import ModelConfig
from personalar.doctor import model_files
from personalar.models.chameleon.model_files import ModelFiles
from personalar.models.loading import free_bytes, hub_parts, obtain_model, offline_model, pin

COMMIT = "a" * 40
LISTED = ["config.json", "tokenizer.json", "model.safetensors", "original_tokenizers/vqgan.ckpt",
          "original_tokenizers/vqgan.yaml"]  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache; a call that would need the network fails the test."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", refuse)
    return tmp_path / "hub"


def put(cache: Path, repo: str, revision: str, files: Path, inside: str = ".") -> Path:
    """Lay `files` into the cache as a download does."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    commit = COMMIT if revision == "main" else revision
    shutil.copytree(files, folder / "snapshots" / commit / inside, dirs_exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    return folder / "snapshots" / commit


def model(name: str = "lumina_mgpt_7b_768", *overrides: str) -> ModelConfig:
    return compose_config("+subject=cat", f"model={name}", *overrides).model


def fill(cache: Path, config: ModelConfig, lumina_dir: Path, vqgan_dir: Path) -> Path:
    assert config.hub is not None and config.vq_hub is not None
    put(cache, config.vq_hub.repo, config.vq_hub.revision, vqgan_dir, "original_tokenizers")
    base = put(cache, config.hub.repo, config.hub.revision, lumina_dir)
    if config.tokenizer_hub is not None:
        (base / "tokenizer.json").unlink()
        put(cache, config.tokenizer_hub.repo, config.tokenizer_hub.revision, tokenizer_of(lumina_dir))
    return base


def tokenizer_of(lumina_dir: Path) -> Path:
    """A folder with that checkpoint's tokenizer.json and nothing else."""
    folder = lumina_dir.parent / "tokenizer"
    folder.mkdir(exist_ok=True)
    shutil.copy(lumina_dir / "tokenizer.json", folder)
    return folder


def test_what_lacks_is_said_before_anything(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as error:
        obtain_model(model(), say=print)
    told = str(error.value)
    for part in (
        "model=lumina_mgpt_7b_768 needs files that are not on this machine",
        "transformer: config.json, tokenizer.json, *.safetensors",
        "https://huggingface.co/Alpha-VLLM/Lumina-mGPT-7B-768 (revision 9624463a82ea",
        "about 14.1 GB",
        "image tokenizer: original_tokenizers/vqgan.ckpt, original_tokenizers/vqgan.yaml",
        "https://huggingface.co/Alpha-VLLM/Chameleon_7B_mGPT",
        "licence to accept there: Chameleon Research License",
        f"they are kept in {cache} (HF_HOME moves it), where ",
        " GB are free",
        "HF_HUB_OFFLINE is set, so nothing is downloaded; unset it; or set model.path=DIR",
    ):
        assert part in told, part
    assert not cache.exists()


def test_a_full_cache_needs_no_network(cache: Path, lumina_dir: Path, vqgan_dir: Path) -> None:
    config = model("lumina_mgpt_7b_512")
    base = fill(cache, config, lumina_dir, vqgan_dir)
    files = obtain_model(config, say=pytest.fail)
    assert (files.base, files.vq.name, files.layout.resolution) == (base, "original_tokenizers", 512)
    assert not files.missing() and not (base / "tokenizer.json").exists()
    assert "models--Alpha-VLLM--Lumina-mGPT-7B-768" in files.tokenizer.parts
    assert f"text tokenizer: {files.tokenizer}" in list(model_files(config))


def test_a_partial_cache_is_not_taken_for_a_whole_one(cache: Path, lumina_dir: Path, vqgan_dir: Path) -> None:
    config = model()
    base = fill(cache, config, lumina_dir, vqgan_dir)
    (base / "model-00003-of-00003.safetensors").unlink()
    assert offline_model(config) is None
    assert [part.folder is None for part in hub_parts(config)] == [True, False]


@pytest.fixture
def fake_download(
    cache: Path, lumina_dir: Path, vqgan_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """A hub that has the files: what is asked for appears in the cache; returns what was asked for."""
    asked: list[str] = []
    real = huggingface_hub.snapshot_download

    def download(
        repo: str, *, revision: str, allow_patterns: list[str], local_files_only: bool = False
    ) -> str:
        if local_files_only:
            return real(repo, revision=revision, allow_patterns=allow_patterns, local_files_only=True)
        asked.append(f"{repo}@{revision[:7]}: {' '.join(allow_patterns)}")
        if allow_patterns == ["tokenizer.json"]:
            return str(put(cache, repo, revision, tokenizer_of(lumina_dir)))
        inside = ("original_tokenizers", vqgan_dir) if "original" in allow_patterns[0] else (".", lumina_dir)
        return str(put(cache, repo, revision, inside[1], inside[0]))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: LISTED)
    monkeypatch.setattr("personalar.models.loading.free_bytes", lambda folder: 10**12)
    return asked


def test_it_is_said_and_then_downloaded(cache: Path, fake_download: list[str]) -> None:
    said: list[str] = []
    files = obtain_model(model(), say=lambda text: said.append(f"{len(fake_download)} {text}"))
    assert isinstance(files, ModelFiles) and not files.missing()
    assert len(said) == 1 and said[0].startswith("0 model=lumina_mgpt_7b_768 needs files")
    assert said[0].endswith("downloading now")
    assert fake_download == [  # the small one first
        "Alpha-VLLM/Chameleon_7B_mGPT@main: original_tokenizers/vqgan.ckpt original_tokenizers/vqgan.yaml",
        "Alpha-VLLM/Lumina-mGPT-7B-768@9624463: config.json tokenizer.json *.safetensors "
        "*.safetensors.index.json",
    ]
    obtain_model(model(), say=pytest.fail)
    assert len(fake_download) == 2


def test_processes_that_start_together_download_once(cache: Path, fake_download: list[str]) -> None:
    """Each holds a lock of its own on the same file, as processes do; who comes second finds all there."""
    config, said = model(), []
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: obtain_model(config, say=said.append), range(3)))
    assert len(said) == 1 and len(fake_download) == 2
    assert not any(files.missing() for files in found)


def test_nobody_waits_for_a_process_that_failed(cache: Path, fake_download, monkeypatch) -> None:
    monkeypatch.setattr("personalar.models.loading.free_bytes", lambda folder: 0)
    config = model()
    with ThreadPoolExecutor(2) as pool:
        tries = [pool.submit(obtain_model, config, say=pytest.fail) for _ in range(2)]
    for one in tries:
        with pytest.raises(FileNotFoundError, match="not enough room"):
            one.result()


def test_only_what_lacks_is_downloaded(cache: Path, fake_download: list[str], vqgan_dir: Path) -> None:
    config = model()
    put(cache, "Alpha-VLLM/Chameleon_7B_mGPT", "main", vqgan_dir, "original_tokenizers")
    said: list[str] = []
    obtain_model(config, say=said.append)
    assert len(fake_download) == 1 and "image tokenizer" not in said[0]
    assert (
        obtain_model(model("lumina_mgpt_7b_512", f"model.vq_path={vqgan_dir}"), say=said.append).vq
        == vqgan_dir
    )


def test_a_full_disk_is_told_before_the_download(cache: Path, fake_download, monkeypatch) -> None:
    monkeypatch.setattr("personalar.models.loading.free_bytes", lambda folder: 14 * 10**9)
    with pytest.raises(FileNotFoundError, match=r"14\.0 GB are free\nthe disk has not enough room"):
        obtain_model(model(), say=pytest.fail)
    assert not fake_download


def hub_error(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "refused by the server")
    return error


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.GatedRepoError, r"accepted its licence \(.*log in with `hf auth login`"),
        (errors.RevisionNotFoundError, r"has no revision main.*model\.vq_hub\.revision=main"),
        (errors.HfHubHTTPError, r"could not be read \(refused by the server\)"),
        (errors.LocalEntryNotFoundError, "could not be read"),
    ],
)
def test_what_the_hub_can_answer(
    cache: Path, monkeypatch: pytest.MonkeyPatch, listed: bool, kind: type[Exception], message: str
) -> None:
    """When it is asked for its list of files, and when it is asked for the files."""
    real: Callable = huggingface_hub.snapshot_download

    def refuse(*names: object, local_files_only: bool = False, **how: object) -> str:
        if local_files_only:
            return real(*names, local_files_only=True, **how)
        raise hub_error(kind)

    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", (lambda *_, **__: LISTED) if listed else refuse
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr("personalar.models.loading.free_bytes", lambda folder: 10**12)
    with pytest.raises(FileNotFoundError, match=message):
        obtain_model(model(), say=lambda text: None)


def test_a_folder_of_ones_own(cache: Path, lumina_dir: Path, vqgan_dir: Path, tmp_path: Path) -> None:
    where = [f"model.path={lumina_dir}", f"model.vq_path={vqgan_dir}", "model.layout.resolution=64"]
    files = obtain_model(model("lumina_mgpt_7b_512", *where), say=pytest.fail)
    assert (files.base, files.vq, files.layout.resolution) == (lumina_dir, vqgan_dir, 64)
    assert files.layout.ids == model("lumina_mgpt_7b_512").layout.ids
    assert LUMINA.ids.items() <= files.layout.ids.items()
    part = Path(shutil.copytree(lumina_dir, tmp_path / "part"))
    (part / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"model-00002-of-00003\.safetensors missing .*a whole Hugging"
    ):
        obtain_model(model("lumina_mgpt_7b_512", f"model.path={part}", where[1]), say=pytest.fail)


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("lumina_mgpt_7b_512", "9624463a82ea5ce814af9b561dcd08a31082c3af"),
        ("lumina_mgpt_7b_768", "9624463a82ea5ce814af9b561dcd08a31082c3af"),
        ("lumina_mgpt_7b_1024", "9624463a82ea5ce814af9b561dcd08a31082c3af"),
    ],
)
def test_a_folder_without_the_text_tokenizer(
    cache: Path, lumina_dir: Path, vqgan_dir: Path, tmp_path: Path, name: str, revision: str
) -> None:
    """The message has the command that brings it; with the file there, the folder is whole."""
    part = Path(shutil.copytree(lumina_dir, tmp_path / "as published"))
    (part / "tokenizer.json").unlink()
    config = model(name, f"model.path='{part}'", f"model.vq_path={vqgan_dir}")
    with pytest.raises(FileNotFoundError) as error:
        obtain_model(config, say=pytest.fail)
    command = f"hf download Alpha-VLLM/Lumina-mGPT-7B-768 tokenizer.json --revision {revision}"
    assert str(part / "tokenizer.json") in str(error.value)
    assert f"run `{command} --local-dir '{part}'`" in str(error.value)
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


def test_a_branch_becomes_the_commit_that_was_downloaded(
    cache: Path, lumina_dir: Path, vqgan_dir: Path
) -> None:
    config = model("lumina_mgpt_7b_512")
    assert pin(config) == config  # nothing is there yet
    fill(cache, config, lumina_dir, vqgan_dir)
    pinned = pin(config)
    assert pinned.hub.revision == pinned.vq_hub.revision == COMMIT
    assert config.hub.revision == "main" and pin(pinned) == pinned
    assert pinned.tokenizer_hub == config.tokenizer_hub  # a commit already
    told = "\n".join(model_files(config))
    assert f"Lumina-mGPT-7B-512: main is this commit; model.hub.revision={COMMIT} keeps it" in told
    assert f"model.vq_hub.revision={COMMIT} keeps it" in told
    assert pin(model("lumina_mgpt_7b_512", f"model.path={lumina_dir}")).hub.revision == "main"


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") == free_bytes(tmp_path) > 0


def test_a_model_must_say_where_it_is() -> None:
    with pytest.raises(ValueError, match=r"model=x says nowhere where its weights are: set model\.path=DIR"):
        ModelConfig(name="x")
