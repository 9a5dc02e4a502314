"""Which pictures a command asks for: files of prompts, counts of seeds, negative prompts and grids."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest_run import compose_config

from personalar.config.command_line import prepare
from personalar.config.fields import with_list
from personalar.generation.drawings import axes, drawings

PROMPT = "prompts=['a [V] cat']"


def ask(*words: str) -> list:
    config = compose_config("concept=x", *words, name="sample")
    return [(d.prompt, d.seed, d.guidance, d.negative_prompt) for d in drawings(config)]


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        (["seeds=[3,1]"], [3, 1]),
        (["seeds=4"], [4]),
        (["num_images=3"], [0, 1, 2]),
        (["num_images=2", "seeds=7"], [7, 8]),
        (["num_images=2", "seeds=[7]"], [7, 8]),
    ],
)
def test_seeds(words: list[str], seeds: list[int]) -> None:
    assert [seed for _, seed, *_ in ask(PROMPT, *words)] == seeds


def test_a_range_of_seeds_is_a_list_and_not_a_sweep() -> None:
    assert with_list("seeds=range(0,8,3)") == "seeds=[0,3,6]" and with_list("seeds=1,2") == "seeds=1,2"
    assert with_list("grid.y.seed=range(0,2)") == "grid.y.seed=[0,1]"
    assert with_list("seed=range(0,2)") == "seed=range(0,2)"  # of a run: a sweep
    words = ["concept=x", PROMPT, "seeds=range(2,5)"]
    assert prepare("sample", words)[2] == "seeds=[2,3,4]"
    assert prepare("sample", [*words, "-m"])[2] == "seeds=range(2,5)"
    assert prepare("run", ["+subject=cat", "samples.seeds=range(0,2)"])[1] == "samples.seeds=[0,1]"
    with pytest.raises(ValueError, match="more than 10000 seeds: give a shorter range"):
        with_list("seeds=range(0,20000)")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seeds=[]"], r"seeds=\[\] must be whole numbers: a list \[0,1,2\], one seed, or range\(0,8\)"),
        (["seeds=[1.5]"], "must be whole numbers"),
        (["seeds=x"], "seeds=x must be whole numbers"),
        (["seeds=-1"], "seeds=-1 is out of range"),
        (["seeds=[0,1]", "num_images=2"], r"from one seed, but 'a \[V\] cat' has 2: leave out num_images"),
        (["num_images=0"], "num_images=0 is out of range; allowed: 1 to 10000"),
        (["num_images=2", f"seeds={2**63 - 1}"], "is out of range"),
        (["negative_prompt=red", "decoder.cfg_scale=1"], "'red' has no effect without guidance"),
        (["grid.x.guidance=[1,2]", "grid.x.seed=[1]"], "grid.x varies seed and guidance: set one of them"),
        (["grid.x.seed=[1]", "grid.y.seed=[2]"], "both vary seed: choose two settings"),
        (["strength=[]"], r"invalid value strength=\[\]; allowed: numbers from 0 to 1.5"),
        (["grid.x.seed=[]"], r"grid.x.seed=\[\] must have at least one value and no duplicate"),
        (["grid.x.seed=[1,1]"], "no duplicate"),
        (["grid.x.guidance=[1,2]", "seeds=[0,1]"], r"several values of seed: .*grid\.y\.seed=\["),
        (["grid.x.seed=[1,2]", "seeds=7"], r"seeds=\[7\] has no effect, because the grid varies seed"),
        (["grid.x.seed=[1,2]", "num_images=2"], "num_images=2 has no effect, because the grid varies seed"),
        (["grid.x.prompt=[a,b]"], "the grid has prompts of its own: leave out prompts="),
        (["grid.x.guidance=[-1]"], r"grid\.x\.guidance=-1(\.0)? is out of range"),
    ],
)  # fmt: skip
def test_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(PROMPT, *words)


def test_options_of_a_line_replace_those_of_the_command(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(
        "a [V] dog | seed=7 guidance=3 num_images=2\na  __colour__ [V] cat| negative_prompt='red  hat'"
    )
    (tmp_path / "colour.txt").write_text("blue")
    words = (f"prompts_file={file}", f"wildcards={tmp_path}", "decoder.cfg_scale=2", "negative_prompt=big")
    assert ask(PROMPT, *words) == [
        ("a [V] cat", 0, 2.0, "big"),
        ("a [V] dog", 7, 3.0, "big"),
        ("a [V] dog", 8, 3.0, "big"),
        ("a blue [V] cat", 0, 2.0, "red hat"),
    ]
    assert [seed for _, seed, *_ in ask(*words, "num_images=3")] == [7, 8, 0, 1, 2]
    file.write_text("a [V] dog | num_images=2")
    with pytest.raises(ValueError, match="num_images=2 counts up from one seed"):
        ask(f"prompts_file={file}", "seeds=[0,1]")


@pytest.mark.parametrize("option", ["seed=7", "num_images=2", "guidance=3"])
def test_an_axis_does_not_replace_an_option_of_a_line(tmp_path: Path, option: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(f"a [V] dog | {option}")
    with pytest.raises(ValueError, match=rf"{option}(\.0)? has no effect, because the grid varies"):
        ask(f"prompts_file={file}", "grid.x.guidance=[2,4]", "grid.y.seed=[0,1]")


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# none yet\n")
    with pytest.raises(ValueError, match=r"prompts_file=.* contains no prompt: write one per line"):
        ask(f"prompts_file={file}")


def test_a_long_prompt_is_no_path() -> None:
    long = "a [V] cat " + "very " * 100 + "happy"
    assert ask(f"prompts=['{long}']")[0][0] == long


def test_a_line_can_have_its_own_strength(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a [V] dog | strength=1.2")
    words = ("concept=x", PROMPT, "strength=0.5", f"prompts_file={file}")
    assert [d.strength for d in drawings(compose_config(*words, name="sample"))] == [0.5, 1.2]


def test_a_grid_is_every_combination_row_by_row() -> None:
    words = ("grid.x.guidance=[1,2.5]", "grid.y.seed=[5,3]")
    found = ask(PROMPT, *words)
    assert [(seed, guidance) for _, seed, guidance, _ in found] == [(5, 1), (5, 2.5), (3, 1), (3, 2.5)]
    config = compose_config("concept=x", PROMPT, *words, name="sample")
    assert axes(config.grid) == {"seed": [5, 3], "guidance": [1.0, 2.5]} and list(axes(config.grid)) == [
        "seed",
        "guidance",
    ]
    prompts = ask(
        "grid.y.prompt=['a [V] cat','a [V] dog']", "grid.x.negative_prompt=[red,big]", "decoder.cfg_scale=2"
    )
    assert [(prompt, negative) for prompt, *_, negative in prompts] == [
        ("a [V] cat", "red"), ("a [V] cat", "big"), ("a [V] dog", "red"), ("a [V] dog", "big"),
    ]  # fmt: skip
