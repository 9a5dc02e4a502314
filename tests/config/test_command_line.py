"""The command line: rewritten arguments, and messages for mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from personalar.config.command_line import as_value, parse, prepare, quote
from personalar.config.compose import composed


def test_subject_works_with_and_without_plus() -> None:
    assert prepare("run", ["subject=cat", "stage=both"]) == ["+subject=cat", "stage=both"]
    assert prepare("run", ["subject=cat", "selection.scorer=modern"])[1] == "scorer@selection.scorer=modern"
    assert prepare("run", ["+subject=cat", "+experiment=quick"]) == ["+subject=cat", "experiment=quick"]


@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"], ["--hydra-help"], ["--info"]])
def test_looking_needs_no_subject(flags: list[str]) -> None:
    assert prepare("run", flags) == flags


def test_help_of_a_sweep_is_that_of_one_run() -> None:
    """Hydra composes for --help without a sweep, and would refuse several values."""
    assert prepare("run", ["-m", "subject=cat,dog", "seed=1", "--help"]) == ["seed=1", "-m", "--help"]


@pytest.mark.parametrize(
    "words",
    [["-m", "subject=cat,dog", "seed=0,1"], ["subject=cat,dog", "-m", "seed=0,1"],
     ["subject=cat,dog", "seed=0,1", "--multirun"]],
)  # fmt: skip
def test_flags_in_any_order(words: list[str]) -> None:
    flag = words[[word.startswith("-") for word in words].index(True)]
    assert prepare("run", words) == ["+subject=cat,dog", "seed=0,1", flag]


def test_flags_with_values_in_any_order(tmp_path: Path) -> None:
    where = ["--config-dir", str(tmp_path)]
    assert prepare("run", [*where, "+subject=cat", "-m", "seed=1"]) == [
        "+subject=cat",
        "seed=1",
        *where,
        "-m",
    ]


def test_hydras_own_settings_groups_and_sweeps_pass() -> None:
    for words in (
        ["+subject=cat,dog", "hydra.run.dir=x y", "model/recipe=paper", "seed=range(3)", "-m"],
        ["+subject=cat", "hydra.mode=MULTIRUN", "seed=1,2"],
        ["+subject=glob(c*)", "seed=0", "-m"],
        ["+subject=cat", "decoder.top_p=interval(0.5,1)", "hydra/launcher=joblib", "-m"],
        ["+subject=cat", "+decoder.arguments.speed=3"],
        ["+subject=cat", "~model.recipe.stages.full"],
        ["+subject=cat", "hydra.callbacks.sweep._target_=mine.Callback", "+hydra.job.env_set.A=b"],
    ):
        assert prepare("run", words) == words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"(?s)no subject.*allowed: backpack, bear.*\+subject=cat stage=both.*subject.path=DIR"),
        (["subject=cta"], r"(?s)subject='cta'; did you mean cat\?.*allowed: backpack"),
        (["-m", "+subject=cat,dgo"], "subject='dgo'; did you mean dog"),
        (["-m", "+subject=cat", "seed=0,1", "stage=both,booth"], "stage='booth'"),
        (["-m", "+subject=cat", "sead=0,1"], "has no 'sead'; did you mean seed"),
        (["+subject=folder"], "needs subject.path=DIR .*subject.noun=dog"),
        (["+subject=cat", "stage=booth"], r"(?s)stage='booth'.*allowed: both, emb"),
        (["+subject=cat", "experiment=paper/two_stag"], "did you mean paper/two_stage"),
        (["+subject=cat", "hydra/launcher=jobli"], "launcher='jobli'; did you mean joblib"),
        (["+subject=cat", "trainer.thread=2"], r"(?s)did you mean threads\?.*allowed: .*accelerator"),
        (["+subject=cat", "trainer.limit_val_batches=0"],
         r"^trainer\.limit_val_batches is set by another setting: samples\.grid_every_steps \(0: no"),
        (["+subject=cat", "trainer.max_steps=2"],
         r"^trainer\.max_steps is set by another setting: model\.recipe\.stages\.NAME\.steps$"),
        (["+subject=cat", "++trainer.max_time=00:01:00:00"], "max_time is set by .*timeout -s INT"),
        (["+subject=cat", "sead=2"], r"(?s)the command has no 'sead'; did you mean seed\?.*allowed: model"),
        (["+subject=cat", "+sead=2"], "has no 'sead'; did you mean seed"),
        (["+subject=cat", "++model.recipe.data.crops=2"], "model.recipe.data has no 'crops'"),
        (["+subject=cat", "method.stages.transformer.lora.rnk=2"], "did you mean rank"),
        (["+subject=cat", "decoder.arguments.speed=3"], r"to add it write \+decoder\.arguments\.speed="),
        (["+subject=cat", "~sead"], "'sead' does not exist"),
        (["+subject=cat", "seed=wide"], "seed=wide: Value 'wide' .* could not be converted to Integer"),
        (["+subject=cat", "model.hub.revision=abc"],
         r"below one that is null cannot be set \(one of model\.hub\.revision\): .* option of its group"),
        (["+subject=cat", "model=nano", "model.layout={resolution: 512}"],
         r"below one that is null cannot be set \(one of model\.layout\)"),
        (["+subject=dreambench"], r"^subject\.noun: \+subject=dreambench needs [^\n]*\+subject=folder$"),
        (["+subject=cat", "seed=0,1"], "(?s)Ambiguous value .*add --multirun"),
        (["+subject=cat", "--config-name", "rnu"], "Cannot find primary config 'rnu'"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_with_what_is_allowed(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare("run", arguments)


def test_a_range_of_seeds_is_a_list_in_python_too() -> None:
    assert composed("run", ["+subject=cat", "samples.seeds=range(0,3)"]).samples.seeds == [0, 1, 2]


def test_keys_of_the_sample_command() -> None:
    composed("sample", ["model.sampling.batch=2"])
    with pytest.raises(ValueError, match="did you mean prompts"):
        composed("sample", ["prompt=[a]"])


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("sample", ["prompts=[a [V] cat]"],  # what a shell leaves of ["a [V] cat"]
         r"^cannot parse prompts=\[a \[V\] cat\].* as a list 'prompts=\[\"a, b\"\]'$"),
        ("sample", ["prompts=[a [V] cat,", "a [V] dog]"], r"^cannot parse prompts=\[a \[V\] cat,"),
        ("sample", ["prompts=a", "[V]"], r"'\[V\]' is not a setting: .*with spaces .*: 'key=one two'$"),
        ("sample", ["prompts"], "'prompts' is not a setting: write key=value"),
        ("run", ["subject.path=photos/my dog (1)"], r"double quotes .*: 'subject\.path=\"a, b\"'"),
        ("run", ["subject.path=~/rex"], "or ~ needs double quotes"),
        ("run", ["subject.path=a${b"], r"^cannot parse subject\.path=a\${b"),
        ("run", ["subject.path='a${b'"], "cannot parse"),
        ("run", ["seed=" + "9" * 5000], "cannot parse"),
        ("run", ["seed=[1"], r"^cannot parse seed=\[1"),
        ("run", ["a/b@c=[d"], "cannot parse"),
        ("run", ["+subject=[cat"], r"cannot parse \+?subject=\[cat"),
        ("run", ["hydra.run.dri=x"], r"hydra\.run has no 'dri'; did you mean dir\?"),
        ("run", ["--mutirun"], r"(?s)unknown flag --mutirun; did you mean --multirun\?.*allowed: --help"),
        ("run", ["-m", "+subject=cat,dog", "--cfg", "job"], "^--cfg shows .*: leave out -m"),
        ("doctor", ["+subject=cat"],
         r"^subject= is for personalar\.run; personalar\.doctor accepts model=, trainer=$"),
        ("doctor", ["subject=cat"], r"^subject= is for personalar\.run"),
        ("sample", ["subject.path=x"], r"^subject= is for personalar\.run; .*sample accepts model="),
        ("evaluate", ["benchmark.published={foo: 1}"], r"to add it write \+benchmark\.published\.foo="),
        ("export", ["benchmark=nanobench"], r"^benchmark= is for personalar\.evaluate"),
        ("export", ["experiment=quick"], r"^experiment= is for .*run; .*export accepts model=$"),
        ("run", ["benchmark=nanobench"], r"^benchmark= is for personalar\.evaluate; .*run accepts"),
        ("run", ["+benchmark=nanobench"], r"^benchmark= is for personalar\.evaluate; .*run accepts"),
    ],
)  # fmt: skip
def test_what_cannot_be_read(command: str, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as stopped:
        prepare(command, arguments)
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
