"""A concept out to other programs' files and back in: rows, adapters, whole checkpoints."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest_backend import load_backend, make_backend
from conftest_run import compose_config
from conftest_upstream import lumina_backend, tensors_of
from safetensors import safe_open
from safetensors.torch import save_file
from test_readme import compose, shell_lines

import personalar.export
from personalar.concepts.adapters.lora import inject_lora, lora_files
from personalar.concepts.concept import Concept
from personalar.concepts.exchange import named_adapter, read_export, read_row, write_export
from personalar.core.files import base_fingerprint
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.generator import Generator
from personalar.models.chameleon.model_files import ChameleonFiles, open_folder

PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
QKV = "model.layers.{}.self_attn.{}_proj.weight"


def adapter(width: int = 32) -> dict[str, bytes]:
    transformer = make_backend(hidden_size=width).transformer
    generator = torch.Generator().manual_seed(0)
    for parameter in inject_lora(transformer, rank=2, generator=generator).values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return lora_files(transformer)


def concept_on(files: ChameleonFiles, width: int, **changes: object) -> Concept:
    values = {
        "base": {"name": "nano", "fingerprint": base_fingerprint(files.weights())},
        "subject": {"name": "cat", "noun": "cat", "fingerprint": "f"},
        "stage": "transformer",
        "tokens": {"[V]": 80, "[S1]": 81},
        "rows": torch.randn(2, width, generator=torch.Generator().manual_seed(4)),
    }
    return Concept(**(values | changes))


def export(concept: Path, out: Path, *overrides: str) -> list[Path]:
    """Do what `personalar.export` does, and return the paths."""
    config = compose_config(f"concept={concept}", f"out={out}", *overrides, name="export")
    return write_export(Concept.load(concept), out, config.model, checkpoint=config.checkpoint)


def drawn(concept: Concept, base: ChameleonFiles | Path) -> torch.Tensor:
    """Return the codes that a concept draws on a base."""
    backend = load_backend(base)
    generator = Generator(backend=backend, decoder=PlainDecoder(), identifier=concept.apply(backend))
    return generator.codes(["a photo of a [V] cat"], [3])


def test_adapters_are_not_left_out_in_silence(tiny_model_dir: Path, tmp_path: Path) -> None:
    adapters = {"context": {"text": torch.zeros(2, 32)}}
    concept_on(open_folder(tiny_model_dir), 32, adapters=adapters).save(tmp_path / "concept")
    with pytest.raises(ValueError, match="adapters context, which no other program reads: copy the concept"):
        export(tmp_path / "concept", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_out_and_in_again_draws_the_same_pictures(tiny_model_dir: Path, tmp_path: Path) -> None:
    files = open_folder(tiny_model_dir)
    ids = load_backend(files).tokenizer.concept_ids
    concept = concept_on(files, 32, tokens={"[V]": ids[0], "[S1]": ids[1]}, lora=adapter())
    concept.save(tmp_path / "concept")
    paths = export(tmp_path / "concept", tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in paths] == [
        "learned_embeds.safetensors", "lora/adapter_config.json", "lora/adapter_model.safetensors",
        "README.md",
    ]  # fmt: skip
    with safe_open(paths[0], framework="pt") as opened:
        assert list(opened.keys()) == ["[V]"] and opened.metadata() == {"format": "pt"}
        assert torch.equal(opened.get_tensor("[V]"), concept.rows[:1])
    adopted = read_export(tmp_path / "out", f"model.path={tiny_model_dir}", noun="cat", name="rex")
    again = Concept.load(adopted.save(tmp_path / "in"))
    again.check_base(name="nano", fingerprint=base_fingerprint(files.weights()))
    assert again.tokens == {"[V]": ids[0]} and again.subject["name"] == "rex" and again.lora == concept.lora
    assert torch.equal(drawn(concept, files), drawn(again, files))


def test_several_rows_go_out_and_in_again(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Under one key, as textual-inversion tools store several vectors; in a checkpoint each has its id."""
    files = open_folder(tiny_model_dir)
    ids = load_backend(files).tokenizer.concept_ids
    tokens = {"[V]": ids[4], "[V:2]": ids[1], "[S1]": ids[0]}
    concept = concept_on(files, 32, tokens=tokens, rows=torch.randn(3, 32))
    concept.save(tmp_path / "concept")
    where = [f"model.path={tiny_model_dir}", "checkpoint=true"]
    export(tmp_path / "concept", tmp_path / "out", *where)
    assert torch.equal(read_row(tmp_path / "out" / "learned_embeds.safetensors"), concept.rows[:2])
    assert f"`[V]` is token {ids[4]}, {ids[1]};" in (tmp_path / "out" / "README.md").read_text()
    again = read_export(tmp_path / "out", where[0], noun="cat")
    assert again.tokens == {"[V]": ids[0], "[V:2]": ids[1]} and torch.equal(again.rows, concept.rows[:2])
    table = load_backend(open_folder(tmp_path / "out" / "checkpoint")).word_table
    assert torch.allclose(table[[ids[4], ids[1]]], concept.rows[:2])
    assert torch.equal(drawn(Concept.load(tmp_path / "concept"), files), drawn(again, files))


def test_auto_peft_finds_the_base(tiny_model_dir: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModel, AutoPeftModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    learned_on_tiny(tmp_path / "c", tiny_model_dir)
    where = [f"model.path={tiny_model_dir}", "checkpoint=true"]
    *_, checkpoint, _ = export(tmp_path / "c", tmp_path / "whole", *where)
    for base, given in ((tiny_model_dir / "base", tiny_model_dir), (checkpoint, checkpoint)):
        files = open_folder(given)
        concept = concept_on(files, 32, lora=adapter())
        concept.save(tmp_path / "concept")
        out = tmp_path / f"out_{given.name}"
        export(tmp_path / "concept", out, f"model.path={given}")
        config = json.loads((out / "lora/adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(base.resolve())
        assert config["task_type"] is None  # PEFT's AutoPeftModel refuses a config with a task
        backend, ids = load_backend(files), torch.tensor([[0, 70, 5, 9, 30, 200]])
        concept.apply(backend)
        for auto in (AutoPeftModel, AutoPeftModelForCausalLM):
            theirs = auto.from_pretrained(out / "lora").eval()
            with torch.no_grad():
                expected = theirs.base_model.model.model(input_ids=ids).last_hidden_state
            torch.testing.assert_close(backend(backend.embed(ids)), expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_names_the_repository_of_its_base(tmp_path: Path, capsys, monkeypatch) -> None:
    hub = {"repo": "leloy/Anole-7b-v0.1-hf", "revision": "96df523", "licence": "x"}
    values = {
        "base": {"name": "anole_7b", "fingerprint": "f"},
        "subject": {"name": "cat", "noun": "cat", "fingerprint": "f"},
        "stage": "transformer",
        "tokens": {"[V]": 80},
        "rows": torch.ones(1, 32),
        "lora": adapter(),
    }
    monkeypatch.setattr("personalar.concepts.exchange.local_base", lambda *_: None)
    model = compose_config("concept=x", "out=x", name="export").model
    for config, named in (({"model": {"hub": hub, "path": None}}, True), ({}, False)):
        files = named_adapter(Concept(**values, config=config), model)
        told = json.loads(files["lora/adapter_config.json"])
        assert (told["base_model_name_or_path"], told["revision"]) == (
            (hub["repo"], "96df523") if named else (None, None)
        )
        assert ("does not name a base" in capsys.readouterr().out) is not named


def test_a_checkpoint_holds_what_was_learned(lumina_files: ChameleonFiles, tmp_path: Path, capsys) -> None:
    tokens = {"[V]": lumina_backend().tokenizer.concept_ids[0]}
    weights = {QKV.format(1, "v"): torch.randn(64, 64, generator=torch.Generator().manual_seed(1))}
    concept = concept_on(lumina_files, 64, tokens=tokens, rows=torch.ones(1, 64), weights=weights)
    concept.save(tmp_path / "concept")
    where = ["model=lumina_mgpt_7b_512", "model.dtype=float32", f"model.path={lumina_files.base}"]
    where += [f"model.vq_path={lumina_files.vq}", "checkpoint=true"]
    *_, folder, _ = export(tmp_path / "concept", tmp_path / "out", *where)
    assert tensors_of(folder)["model.layers.0.self_attn.q_norm.weight"].shape == (4, 16)
    assert "ChameleonForConditionalGeneration and Lumina-mGPT's own code read" in capsys.readouterr().out
    stored = json.loads((folder / "config.json").read_text())
    assert (stored["model_parallel_size"], stored["mask_image_logits"], stored["dtype"]) == (
        4,
        False,
        "float32",
    )
    merged, learned = load_backend(folder), load_backend(lumina_files)
    identifier = concept.apply(learned)
    ids = torch.tensor([[0, 9100, tokens["[V]"], 9200, 8710]])
    got = merged(merged.embed(ids))
    torch.testing.assert_close(got, learned(identifier(ids, learned.embed(ids))), atol=1e-5, rtol=0)


def learned_on_tiny(folder: Path, where: Path) -> Concept:
    """Save a concept with changed q and k on the tiny base, whose norms differ between heads."""
    generator = torch.Generator().manual_seed(2)
    weights = {QKV.format(0, part): torch.randn(32, 32, generator=generator) for part in "qk"}
    first = load_backend(where).tokenizer.concept_ids[0]
    concept = concept_on(open_folder(where), 32, weights=weights, tokens={"[V]": first, "[S1]": first + 1})
    concept.save(folder)
    return concept


def test_transformers_reads_the_checkpoint(tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import ChameleonForConditionalGeneration

    concept = learned_on_tiny(tmp_path / "concept", tiny_model_dir)
    where = [f"model.path={tiny_model_dir}", "checkpoint=true"]
    *_, folder, _ = export(tmp_path / "concept", tmp_path / "out", *where)
    theirs, loading = ChameleonForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading  # nothing is drawn at random, its image encoder neither
    ours = load_backend(tiny_model_dir)
    identifier, ids = concept.apply(ours), torch.tensor([[0, 70, concept.tokens["[V]"], 9, 30, 200]])
    with torch.no_grad():
        expected = theirs.eval().model(input_ids=ids).last_hidden_state
    got = ours(identifier(ids, ours.embed(ids)))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_is_a_base_on_which_the_row_draws_the_same_pictures(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    concept = learned_on_tiny(tmp_path / "concept", tiny_model_dir)
    where = [f"model.path={tiny_model_dir}", "checkpoint=true"]
    _, folder, card = export(tmp_path / "concept", tmp_path / "out", *where)
    (block,) = PYTHON.findall(card.read_text())
    monkeypatch.chdir(tmp_path)
    exec(block.replace("DIR", "out"))
    again = Concept.load(tmp_path / "adopted")
    assert torch.equal(drawn(concept, tiny_model_dir), drawn(again, folder))


def test_a_checkpoint_that_cannot_be_leaves_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    learned_on_tiny(tmp_path / "concept", tiny_model_dir)
    with pytest.raises(ValueError, match="other weights of base 'nano'"):  # and not on the shipped nano
        export(tmp_path / "concept", tmp_path / "out", "checkpoint=true")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ("concept.json", r"contains concept\.json of a concept, whose files an export would overwrite"),
        ("README.md", r"contains README\.md that was not written by an export: choose another folder"),
        ("lora/adapter_config.json", "contains lora of an earlier export, which this export does not write"),
        ("checkpoint/config.json", "contains checkpoint of an earlier export"),
    ],
)
def test_a_folder_of_something_else_is_left_alone(
    there: str, message: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    concept_on(open_folder(tiny_model_dir), 32).save(tmp_path / "concept")
    file = tmp_path / "out" / there
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "concept", tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [file]
    assert file.read_text() == "mine"


def test_trained_weights_without_checkpoint_are_mentioned(
    tiny_model_dir: Path, tmp_path: Path, capsys
) -> None:
    learned_on_tiny(tmp_path / "concept", tiny_model_dir)
    export(tmp_path / "concept", tmp_path / "out")
    note = "note: stage 2 also changed 2 tensors of the transformer, which these files do not contain; "
    told = f"{note}to export the whole model, add checkpoint=true with the base model=nano"
    assert told in capsys.readouterr().out


def test_a_row_may_be_flat_and_called_anything(tmp_path: Path) -> None:
    path = tmp_path / "row.safetensors"
    save_file({"<dog>": torch.arange(4).half()}, path)
    assert read_row(path).tolist() == [[0.0, 1.0, 2.0, 3.0]] and read_row(path).dtype == torch.float32


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.zeros(4), "b": torch.zeros(4)}, r"contains 2 keys \(a, b\); expected one embedding"),
        ({"a": torch.zeros(100, 4)}, r"shape \(100, 4\); expected one embedding \(rows, width\), at most 99"),
        ({"a": torch.zeros(1, 1, 4)}, r"shape \(1, 1, 4\); expected one embedding"),
        ({"a": torch.full((4,), float("nan"))}, "contains NaN"),
        (None, "is not a safetensors file"),
    ],
)
def test_wrong_rows(tensors: dict | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "row.safetensors"
    save_file(tensors, path) if tensors else path.write_bytes(b"pickle?")
    with pytest.raises(ValueError, match=message):
        read_row(path)


def test_what_does_not_fit_the_base_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    path, base = tmp_path / "learned_embeds.safetensors", f"model.path={tiny_model_dir}"
    save_file({"a": torch.zeros(5)}, path)
    with pytest.raises(ValueError, match="the embedding has width 5, the base's embeddings 32"):
        read_export(tmp_path, base, noun="cat")
    save_file({"a": torch.zeros(32)}, path)
    (tmp_path / "lora").mkdir()
    for name, data in adapter(64).items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match="another architecture; mismatches"):
        read_export(tmp_path, base, noun="cat")
    (tmp_path / "lora" / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"lora/adapter_config\.json is missing; lora/ must"):
        read_export(tmp_path, base, noun="cat")
    with pytest.raises(FileNotFoundError, match="does not exist: give a folder that"):
        read_export(tmp_path / "lora", base, noun="cat")
    with pytest.raises(ValueError, match=r"the command has no .modle.; did you mean model"):
        read_export(tmp_path, "modle=nano", noun="cat")


def test_the_command(tiny_model_dir: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    concept_on(open_folder(tiny_model_dir), 32).save(tmp_path / "concept")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["export", f"concept={tmp_path}", "out=out"])
    personalar.export.main()
    assert capsys.readouterr().out.split() == ["out/learned_embeds.safetensors", "out/README.md"]
    for arguments, message in (
        (["concept=nowhere", "out=x"], "concept=nowhere contains no concept.json"),
        (["concept=x"], "no value for out: set out="),
    ):
        monkeypatch.setattr(sys, "argv", ["x", *arguments])
        with pytest.raises(SystemExit, match=message):
            personalar.export.main()


def test_the_lines_of_the_guide_are_settings(tmp_path: Path, monkeypatch) -> None:
    guide = Path(__file__).parents[2] / "docs" / "export.md"
    commands = [line for line in shell_lines(guide) if line.startswith("python -m personalar.export ")]
    assert len(commands) == 2
    assert all(compose(command).out.startswith("exported") for command in commands)
    (block,) = PYTHON.findall(guide.read_text())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^exported/learned_embeds\.safetensors does not exist"):
        exec(block)
