"""Files of prompts: whatever an editor writes is read, and a mistake is named with its line."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personalar.data.prompt_file import KINDS, PromptLine, fill_wildcards, parse_line, read_prompts

TEXT = st.text(st.characters(exclude_characters="|", exclude_categories=["Cs"]))
VALUES = {
    "seed": st.integers(0, 2**63 - 1), "num_images": st.integers(1, 10_000),
    "guidance": st.floats(0, 1000), "top_k": st.integers(0, 10**9), "top_p": st.floats(1e-6, 1),
    "temperature": st.floats(0, 1000), "strength": st.floats(0, 1.5), "negative_prompt": TEXT, "size": TEXT,
}  # fmt: skip
WORDS = st.text(st.characters(exclude_characters="|\r\n", exclude_categories=["Cs", "Z", "Cc"]), min_size=1)
PROMPTS = WORDS.filter(lambda text: not text.startswith("#") and text.strip() == text)
OPTIONS = st.sets(st.sampled_from(list(VALUES))).flatmap(
    lambda names: st.fixed_dictionaries({name: VALUES[name] for name in sorted(names)})
)


def written(prompt: str, options: dict[str, object]) -> str:
    """Return a line of a file with `options`."""
    return " ".join([prompt, "|", *(shlex.quote(f"{name}={value}") for name, value in options.items())])


def test_the_strategies_cover_every_option() -> None:
    assert VALUES.keys() == KINDS.keys()


@given(PROMPTS, OPTIONS)
def test_a_line_is_read_as_it_was_written(prompt: str, options: dict[str, object]) -> None:
    assert parse_line(written(prompt, options)) == PromptLine(prompt=prompt, options=options)


@given(st.text())
def test_any_line_is_read_or_refused_in_one_sentence(line: str) -> None:
    try:
        found = parse_line(line)
    except ValueError as error:
        assert str(error) and "\n" not in str(error).replace(line, "")
    else:
        assert found.prompt and found.prompt in line and found.options.keys() <= KINDS.keys()


@given(
    lines=st.lists(PROMPTS, max_size=4),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.sampled_from(["", "\ufeff"]),
    between=st.sampled_from(["", "\t ", "# a | b=c", "  # note"]),
    last=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_a_file_gives_its_prompts(
    tmp_path: Path, lines: list[str], end: str, mark: str, between: str, last: bool
) -> None:
    file = tmp_path / "prompts.txt"
    text = mark + f"{end}{between}{end}".join([between, *lines]) + end * last
    file.write_bytes(text.encode())
    assert [found.prompt for found in read_prompts(file)] == lines


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "a cat | guidence=3",
            r"unknown option 'guidence'; did you mean guidance\?; allowed: seed, num_images",
        ),
        ("a cat | seed=1.5", r"seed=1\.5 must be a whole number"),
        ("a cat | guidance=much", "guidance=much must be a number"),
        ("a cat | top_p=nan", "top_p=nan is out of range; allowed: 1e-06 to 1"),
        ("a cat | seed=-1", "seed=-1 is out of range"),
        ("a cat | num_images=0", "num_images=0 is out of range; allowed: 1 to 10000"),
        ("a cat | dog", r"'dog' after the last \| is not an option: write name=value.*needs another one"),
        ("a cat | seed=1 seed=2", "the option seed is given twice"),
        ("a cat | negative_prompt='red", r"quote that is not closed"),
        ("| seed=1", r"there is no prompt before the \|"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(f"# two fine lines\na dog | seed=3\n\n{line}\n")
    with pytest.raises(ValueError, match=rf"prompts_file={file}, line 4: .*{message}"):
        read_prompts(file)


def test_a_bar_in_a_prompt() -> None:
    assert parse_line("a | b | ") == PromptLine(prompt="a | b")


def test_wildcards_are_chosen_by_the_seed(tmp_path: Path) -> None:
    (tmp_path / "colour.txt").write_bytes("\ufeff# colours\r\nred\r\n\r\nblue \r\ngreen".encode())
    (tmp_path / "old_place.txt").write_text("in the snow\n")
    prompt = "a __colour__ cat and a __colour__ hat __old_place__ __ not_one __"
    found = {seed: fill_wildcards(prompt, tmp_path, seed=seed) for seed in range(40)}
    assert found == {seed: fill_wildcards(prompt, tmp_path, seed=seed) for seed in range(40)}
    assert len(set(found.values())) == 9  # every pair of colours, also two different ones
    assert all(text.endswith("hat in the snow __ not_one __") for text in found.values())
    other = fill_wildcards("__colour__ dog", tmp_path, seed=3)
    assert other.split()[0] == found[3].split()[1]  # another prompt with this seed has the same word


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ("a __size__ cat", FileNotFoundError, r"the wildcard __size__=.*size\.txt: no such file"),
        ("a __none__ cat", ValueError, r"the wildcard __none__=.*none\.txt contains no line"),
    ],
)
def test_a_missing_word_list(tmp_path: Path, prompt: str, error: type[Exception], message: str) -> None:
    (tmp_path / "none.txt").write_text("# nothing\n")
    with pytest.raises(error, match=message):
        fill_wildcards(prompt, tmp_path, seed=0)
    with pytest.raises(FileNotFoundError, match=r"contains the wildcard .*: set wildcards=DIR, a folder"):
        fill_wildcards(prompt, None, seed=0)
