"""The command line: what is rewritten, and every message that a mistake is answered with."""

from __future__ import annotations

import pytest

from personalar.config.arguments import check_key, prepare_arguments
from personalar.config.commands import SampleConfig
from personalar.config.compose import conf_dir
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


def test_keys_of_the_sample_command() -> None:
    check_key("model.sampling.batch", SampleConfig)
    with pytest.raises(ValueError, match="did you mean prompts"):
        check_key("prompt", SampleConfig)
