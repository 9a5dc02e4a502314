"""Free text on the command line: what a person types reaches the configuration, whatever signs are in it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import assume, example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from test_knobs import inner, knobs

from personalar.config.arguments import prepare_arguments
from personalar.config.commands import ExportConfig, SampleConfig
from personalar.config.compose import COMMANDS, conf_dir, register
from personalar.config.quoting import QUOTED, parse, pieces, quote
from personalar.config.run_config import RunConfig

TEXTS = [(schema, key, hint) for schema in COMMANDS.values() for key, hint in knobs(schema)
         if inner(hint) is str and key != "decoder._target_"]  # fmt: skip
PRINTABLE = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), max_size=40)
NASTY = st.text("ab \"'\\,=()[]{}$~:;*#%é-+/.|@!&<>?01enul", max_size=12)
FOLDER = "sweeps/nano/+subject=cat,experiment=quick,seed=0,stage=both"


def prepare(*arguments: str, schema: type = RunConfig) -> list[str]:
    return prepare_arguments(arguments, schema=schema, conf=conf_dir(), needs_subject=False)


def read(argument: str, *flags: str, schema: type = RunConfig) -> Any:
    """Return the value that Hydra and OmegaConf make of one argument."""
    override = parse(prepare(*flags, argument, schema=schema)[-1])
    assert override is not None and not override.is_sweep_override(), argument
    return OmegaConf.create({"value": override.value()}).value


@given(setting=st.sampled_from(TEXTS), text=PRINTABLE | NASTY, flags=st.sampled_from([(), ("-m",)]))
@example(setting=(RunConfig, "subject.path", str | None), text="photos/my dog (1)", flags=())
@example(setting=(RunConfig, "subject.path", str | None), text="007", flags=())
@example(setting=(RunConfig, "subject.path", str | None), text="1e3", flags=())
@example(setting=(RunConfig, "subject.noun", str), text="null", flags=())
@example(setting=(RunConfig, "subject.noun", str), text="true", flags=())
@example(setting=(RunConfig, "subject.name", str), text="9" * 5000, flags=())
@example(setting=(RunConfig, "subject.path", str | None), text="C:\\", flags=())
@example(setting=(RunConfig, "reuse", str | None), text=FOLDER, flags=())
@example(setting=(SampleConfig, "concept", str), text=FOLDER, flags=())
@example(setting=(RunConfig, "subject.description", str | None), text="dog's [V], {a} = 'b\\", flags=())
def test_any_text_arrives(setting: tuple[type, str, Any], text: str, flags: tuple[str, ...]) -> None:
    """And what was prepared once stays: processes of one run are given each other's command line."""
    schema, key, hint = setting
    assume("${" not in text and text != "???")  # OmegaConf's own signs
    assume(not re.fullmatch(QUOTED, text.strip(), re.DOTALL))
    assume(inner(hint) is hint or text.strip().lower() != "null")
    assume(not flags or not {",", "("} & set(text))  # several values
    at_home = text == "~" or text.startswith("~/")
    assert read(f"{key}={text}", *flags, schema=schema) == (os.path.expanduser(text) if at_home else text)
    prepared = prepare(*flags, f"{key}={text}", schema=schema)
    assert prepare(*prepared, schema=schema) == prepared


@given(text=PRINTABLE | NASTY)
def test_a_quoted_text_is_what_is_in_the_quotes(text: str) -> None:
    assume("${" not in text and text != "???")
    assert read(f"subject.noun={quote(text)}") == text
    assert read(f"subject.noun={quote(text)}", "-m") == text


@given(texts=st.lists(NASTY.filter(str.strip), min_size=1, max_size=3))
def test_any_prompts_arrive(texts: list[str]) -> None:
    assume(not any("${" in text or text == "???" for text in texts))
    listed = f"[{','.join(quote(text) for text in texts)}]"
    assert list(read(f"prompts={listed}", schema=SampleConfig)) == texts
    assert list(read(f"prompts={listed[1:-1]}", schema=SampleConfig)) == texts


def test_what_hydra_reads_alike_stays_as_it_was() -> None:
    """A sweep's folders are named after the words of its jobs."""
    same = ["subject.noun=dog", "subject.path=photos/rex", "subject.description=a dog", "reuse=null",
            "model.path=package://nano", "+subject.name=${subject.noun}_1", "objective=[dino*clip_t]",
            "hydra.run.dir=x y", "method.stages.transformer.parameters=[model.layers.*.mlp]"]  # fmt: skip
    assert prepare(*same) == same
    assert prepare("subject.description=a ${subject.noun}, brown") == [
        'subject.description="a ${subject.noun}, brown"'
    ]


def test_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert prepare("subject.path=~/nope", "hydra.run.dir=~/a,b", "reuse=a/~/b") == [
        "subject.path=/home/ada/nope", 'hydra.run.dir="/home/ada/a,b"', 'reuse="a/~/b"',
    ]  # fmt: skip
    assert prepare("-m", "subject.path=~/a,~/b (1)")[1] == 'subject.path=/home/ada/a,"/home/ada/b (1)"'


def values(argument: str) -> list[str]:
    """Return the values of a sweep."""
    override = parse(prepare("-m", argument)[1])
    assert override is not None and override.is_sweep_override(), argument
    return list(override.sweep_string_iterator())


def test_commas_still_sweep() -> None:
    assert values("subject.noun=cat,dog") == ["cat", "dog"]
    assert values("subject.description=null, a (small) dog ,'a, b'") == ["null", '"a (small) dog"', "'a, b'"]
    assert values("subject.path=choice(a,b)") == ["a", "b"]
    assert values("samples.prompts=a {},the {}") == ['["a {}"]', '["the {}"]']
    assert values('samples.prompts=["a {}"],["the {}"]') == ['["a {}"]', '["the {}"]']
    assert read("subject.noun=cat,dog") == "cat,dog" and read("subject.noun=choice(a,b)") == "choice(a,b)"


def test_a_folder_with_commas_is_one_value_of_a_sweep(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(values(f"reuse={FOLDER}")) == 4
    Path(FOLDER).mkdir(parents=True)
    assert read(f"reuse={FOLDER}", "-m") == FOLDER


@pytest.mark.parametrize(
    ("typed", "prompts"),
    [
        ("[a [V] cat]", ["a [V] cat"]),  # what a shell leaves of ["a [V] cat"]
        ("[a [V] cat,a [V] dog]", ["a [V] cat", "a [V] dog"]),
        ("[[V] cat]", ["[V] cat"]),
        ('"a [V] cat, in the snow"', ["a [V] cat, in the snow"]),
        ("a [V] cat in the snow", ["a [V] cat in the snow"]),
        ("a [V] cat, in the snow", ["a [V] cat, in the snow"]),
        ("[V] and [V]", ["[V] and [V]"]),
        ('"a [V] cat", "a [V] dog"', ["a [V] cat", "a [V] dog"]),
        ('["a [V] cat, in the snow"]', ["a [V] cat, in the snow"]),
        ("[a,b]", ["a", "b"]),
        ("[]", []),
        ("3", ["3"]),
    ],
)
def test_prompts(typed: str, prompts: list[str]) -> None:
    assert list(read(f"prompts={typed}", schema=SampleConfig)) == prompts
    mine = typed.replace("[V]", "{}")
    assert list(read(f"samples.prompts={mine}")) == [prompt.replace("[V]", "{}") for prompt in prompts]


def test_other_lists_of_texts() -> None:
    assert list(read("model.recipe.data.templates=[a photo of a {},a {}]")) == ["a photo of a {}", "a {}"]
    assert list(read("benchmark.subjects=[my dog (1)]", schema=COMMANDS["evaluate"])) == ["my dog (1)"]
    assert read("samples.prompts=null") is None and prepare("prompts=${x}", schema=SampleConfig)


def test_pieces() -> None:
    assert pieces("a, dog's ,'b, c',\"d\\\", e\", ") == ["a", "dog's", "'b, c'", '"d\\", e"']
    assert pieces("") == []


def test_the_whole_way(tmp_path: Path) -> None:
    """Through Hydra's composition, with the names that are made of a path."""
    path = tmp_path / "my dog (1), x=y 'é'"
    arguments = prepare("subject=folder", f"subject.path={path}", "subject.noun=toy, soft", f"reuse={FOLDER}")
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("run", overrides=arguments)
    assert (config.subject.path, config.subject.name) == (str(path), path.name)
    assert (config.subject.noun, config.reuse) == ("toy, soft", FOLDER)


@pytest.mark.parametrize(
    ("schema", "arguments", "message"),
    [
        (SampleConfig, ["prompts=[a [V] cat, in the snow]"],
         r"prompts=\[a \[V\] cat, in the snow\] could not be read: put the whole setting in single quotes, "
         r"as 'prompts=\[\"a photo of \[V\] cat in the snow\"\]'$"),
        (SampleConfig, ["prompts=[a [V] cat,", "a [V] dog]"], r"as 'prompts=\[\"a photo of \[V\] cat in the"),
        (SampleConfig, ["prompts=a", "[V]"], r"'\[V\]' is no setting: write key=value; .*'prompts=a \[V\]"),
        (SampleConfig, ["prompts"], "'prompts' is no setting: write key=value$"),
        (RunConfig, ["samples.prompts=[a {} cat"], r"'samples.prompts=\[\"a photo of a {} in the snow\"\]'$"),
        (RunConfig, ["subject.path=a${b"], r"subject.path=a\${b could not be read: \${ begins a reference"),
        (RunConfig, ["seed=[1"], r"seed=\[1 could not be read: allowed: a whole number$"),
        (RunConfig, ["samples.seeds=[1"], "could not be read: allowed: a list, as"),
        (RunConfig, ["model.recipe.stages={"], r"allowed: what it holds, as model\.recipe\.stages\.x="),
        (RunConfig, ["trainer.threads=(1"], r"allowed: .*as 'trainer\.threads=\"\.\.\.\"'$"),
        (RunConfig, ["+subject=[cat"], r"^subject=\[cat could not be read: allowed: backpack, bear"),
        (RunConfig, ["a/b@c=[d"], "could not be read: allowed: group=option"),
        (RunConfig, ["+subject=cat,dog"], r"several values: give one, or run each with .*personalar\.run -m"),
        (RunConfig, ["seed=0,1"], "^seed=0,1 is several values"),
        (RunConfig, ["hydra.run.dri=x"], r"hydra\.run has no 'dri'; did you mean dir\?"),
        (RunConfig, ["--mutirun"], r"(?s)--mutirun is no flag; did you mean --multirun\?.*allowed: --help"),
        (RunConfig, ["--config-di=x"], "--config-di is no flag"),
        (COMMANDS["doctor"], ["+subject=cat"],
         r"^subject= belongs to personalar\.run; personalar\.doctor takes model=, trainer=$"),
        (SampleConfig, ["subject.path=x"], r"^subject= belongs to personalar\.run; .*sample takes model="),
        (ExportConfig, ["benchmark=nanobench"], r"^benchmark= belongs to personalar\.evaluate"),
        (RunConfig, ["benchmark=nanobench"], r"^benchmark= belongs to personalar\.evaluate; .*run takes"),
    ],
)  # fmt: skip
def test_what_cannot_be_read(schema: type, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as stopped:
        prepare(*arguments, schema=schema)
    assert "hydra.cc" not in str(stopped.value)


def test_a_foreign_configuration_may_sweep_by_itself(tmp_path: Path) -> None:
    """Its experiments can set hydra.mode, which is not known here."""
    assert prepare("--config-dir", str(tmp_path), "seed=0,1")[-1] == "seed=0,1"
    assert prepare("hydra.mode=MULTIRUN", "subject.noun=a,b")[-1] == "subject.noun=a,b"
