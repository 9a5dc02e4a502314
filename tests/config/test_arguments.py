"""The command line: what is rewritten, and every message that a mistake is answered with."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from personalar.config.arguments import as_value, check_key, parse, prepare_arguments, quote
from personalar.config.commands import SampleConfig
from personalar.config.compose import COMMANDS, composed, conf_dir
from personalar.config.run_config import RunConfig


def prepare(*arguments: str) -> list[str]:
    return prepare_arguments(arguments, schema=RunConfig, conf=conf_dir(), needs_subject=True)


def test_subject_works_with_and_without_plus() -> None:
    assert prepare("subject=cat", "stage=both") == ["+subject=cat", "stage=both"]
    assert prepare("+subject=cat") == ["+subject=cat"]


@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"], ["--hydra-help"], ["--info"]])
def test_looking_needs_no_subject(flags: list[str]) -> None:
    assert prepare(*flags) == flags


def test_hydras_own_settings_groups_and_sweeps_pass() -> None:
    arguments = ["+subject=cat,dog", "-m", "hydra.run.dir=x y", "model/recipe=paper", "seed=range(3)"]
    assert prepare(*arguments) == arguments
    assert prepare("+subject=cat", "model.recipe.stages.mine.steps=3")  # a dict may have any name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"(?s)no subject.*allowed: backpack, bear.*\+subject=cat stage=both.*subject.path=DIR"),
        (["subject=cta"], r"(?s)subject='cta' is not known; did you mean cat\?.*allowed: backpack"),
        (["+subject=cat,dgo"], "subject='dgo' is not known; did you mean dog"),
        (["+subject=folder"], "needs subject.path=DIR .*subject.noun=dog"),
        (["+subject=cat", "stage=booth"], r"(?s)stage='booth' is not known.*allowed: both, emb"),
        (["+subject=cat", "trainer.thread=2"], r"(?s)did you mean threads\?.*allowed: name, accelerator"),
        (["+subject=cat", "sead=2"], r"(?s)the command has no 'sead'; did you mean seed\?.*allowed: model"),
        (["+subject=cat", "++model.recipe.data.crops=2"], "model.recipe.data has no 'crops'"),
        (["+subject=cat", "method.stages.transformer.lora.rnk=2"], "did you mean rank"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_with_what_is_allowed(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(*arguments)


def test_a_decoder_from_outside_takes_any_setting() -> None:
    given = ["+subject=cat", "decoder.arguments._target_=mine.Decoder", "+decoder.arguments.speed=3"]
    assert prepare(*given) == [given[0], "++decoder.arguments._target_=mine.Decoder", given[2]]


def test_keys_of_the_sample_command() -> None:
    check_key("model.sampling.batch", SampleConfig)
    with pytest.raises(ValueError, match="did you mean prompts"):
        check_key("prompt", SampleConfig)


@pytest.mark.parametrize(
    ("schema", "arguments", "message"),
    [
        (SampleConfig, ["prompts=[a [V] cat]"],  # what a shell leaves of ["a [V] cat"]
         r"^prompts=\[a \[V\] cat\] could not be read: .* a list 'prompts=\[\"a, b\"\]'$"),
        (SampleConfig, ["prompts=[a [V] cat,", "a [V] dog]"], r"^prompts=\[a \[V\] cat, could not be read"),
        (SampleConfig, ["prompts=a", "[V]"], r"'\[V\]' is no setting: write key=value; .*'prompts=a \[V\]"),
        (SampleConfig, ["prompts"], "'prompts' is no setting: write key=value$"),
        (RunConfig, ["subject.path=photos/my dog (1)"], r"quotes inside .* as 'subject\.path=\"a, b\"'"),
        (RunConfig, ["subject.path=~/rex"], "or ~ needs quotes"),
        (RunConfig, ["subject.path=a${b"], r"^subject\.path=a\${b could not be read"),
        (RunConfig, ["subject.path='a${b'"], "could not be read"),
        (RunConfig, ["seed=" + "9" * 5000], "could not be read"),
        (RunConfig, ["seed=[1"], r"^seed=\[1 could not be read"),
        (RunConfig, ["a/b@c=[d"], "could not be read"),
        (RunConfig, ["+subject=[cat"], r"subject=\[cat could not be read"),
        (RunConfig, ["hydra.run.dri=x"], r"hydra\.run has no 'dri'; did you mean dir\?"),
        (RunConfig, ["--mutirun"], r"(?s)--mutirun is no flag; did you mean --multirun\?.*allowed: --help"),
        (RunConfig, ["--config-di=x"], "--config-di is no flag"),
        (COMMANDS["doctor"], ["+subject=cat"],
         r"^subject= belongs to personalar\.run; personalar\.doctor takes model=, trainer=$"),
        (SampleConfig, ["subject.path=x"], r"^subject= belongs to personalar\.run; .*sample takes model="),
        (COMMANDS["export"], ["benchmark=nanobench"], r"^benchmark= belongs to personalar\.evaluate"),
        (COMMANDS["export"], ["experiment=quick"], r"^experiment= belongs to .*run; .*export takes model=$"),
        (RunConfig, ["benchmark=nanobench"], r"^benchmark= belongs to personalar\.evaluate; .*run takes"),
    ],
)  # fmt: skip
def test_what_cannot_be_read(schema: type, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as stopped:
        prepare_arguments(arguments, schema=schema, conf=conf_dir(), needs_subject=False)
    assert "hydra.cc" not in str(stopped.value)


@pytest.mark.parametrize(
    "argument", ["seed=wide", "seed=1.5", "seed=0,1", "+subject=cat,dog", "samples.prompts=cat"]
)
def test_what_hydra_refuses_is_a_value_error(argument: str) -> None:
    with pytest.raises(ValueError, match=re.escape(argument)):
        composed("run", [argument])


@given(text=st.text(max_size=20) | st.text("ab \"'\\,=()[]{}~:;*#%-+/.|@!01enul", max_size=12))
@example(text="null")
@example(text="a,b")
@example(text="007")
@example(text='my dog\'s "(1)"\\')
def test_any_text_comes_back_from_its_quotes(text: str) -> None:
    assume("${" not in text)
    for written in (quote(text), as_value(text)):
        override = parse(f"k={written}")
        assert override is not None and not override.is_sweep_override() and override.value() == text


def test_quotes_only_where_they_are_needed() -> None:
    assert [as_value(text) for text in ("outputs/nano/cat", "a b", "x/seed=0", "1", "a,b")] == [
        "outputs/nano/cat", "a b", '"x/seed=0"', '"1"', '"a,b"'
    ]  # fmt: skip
