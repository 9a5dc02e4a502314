"""The commands of the page mean what its fields contain."""

from __future__ import annotations

from pathlib import Path

import pytest

from personalar.config.commands import PushConfig, SampleConfig
from personalar.config.compose import composed, read_config
from personalar.runs.web.page_commands import push_command, run_command, sample_command


def read(words: list[str]) -> SampleConfig:
    """Return the settings of a command that samples."""
    assert words[:3] == ["python", "-m", "personalar.sample"]
    return read_config(composed("sample", words[3:]))


def test_a_run_has_the_settings_of_the_screen(tmp_path: Path) -> None:
    more = """seed=3 'samples.prompts=["a {} in, the [sea]"]'"""
    words = run_command(["subject=cat"], tmp_path / "a b", model="nano", method="lora", quick=True, more=more)
    assert words[:3] == ["python", "-m", "personalar.run"] and words[-1].startswith("hydra.run.dir=")
    config = read_config(composed("run", words[3:]))
    assert (config.seed, config.method.name, config.samples.prompts) == (3, "lora", ["a {} in, the [sea]"])
    for wrong in ("-m", "--cfg job", "fast"):
        with pytest.raises(ValueError, match="is not a setting: write key=value"):
            run_command([], tmp_path, model="nano", method="paper", quick=False, more=wrong)


def test_pictures_have_the_settings_of_the_screen(tmp_path: Path) -> None:
    prompts = ['a "photo" of [V] cat, {red}', "l'été: 50% \\ $x"]
    asked = {"prompts": "\n".join(prompts), "seeds": "0, 7", "guidance": " 2.5 ", "strength": 0.35}
    config = read(sample_command(tmp_path, tmp_path / "out", **asked))
    assert (config.prompts, config.seeds, config.strength) == (prompts, [0, 7], 0.35)
    assert (config.model.sampling.cfg_scale, config.out) == (2.5, str(tmp_path / "out"))
    for wrong in (
        {"prompts": " \n", "seeds": "0"},
        {"prompts": "a cat", "seeds": ""},
        {"prompts": "a cat", "seeds": "one"},
        {"prompts": "a cat\n" * 21, "seeds": "0 " * 20},
        {"prompts": "a cat", "seeds": "0", "axes": {"x": ("top_k", "1 " * 401)}},
    ):
        with pytest.raises(ValueError, match=r"at least one prompt, and seeds as|pictures; allowed: 400"):
            sample_command(tmp_path, tmp_path / "out", **wrong)


def test_a_grid_of_any_two_settings(tmp_path: Path) -> None:
    def grid(columns: tuple[str, str], rows: tuple[str, str] | None = None) -> SampleConfig:
        axes = {"x": columns} | ({"y": rows} if rows else {})
        return read(sample_command(tmp_path, tmp_path, prompts="a, cat", seeds="0 7", axes=axes))

    config = grid(("strength", "0.5, 1"), ("seed", "unused"))
    assert (config.grid.x.strength, config.grid.y.seed, config.prompts) == ([0.5, 1.0], [0, 7], ["a, cat"])
    config = grid(("guidance", "1\n2.5"), ("prompt", ""))
    assert (config.grid.x.guidance, config.grid.y.prompt, config.seeds) == ([1.0, 2.5], ["a, cat"], [0, 7])
    config = grid(("negative_prompt", "a red, big cat\na dog"), ("size", "96x96"))
    assert (config.grid.x.negative_prompt, config.grid.y.size) == (["a red, big cat", "a dog"], ["96x96"])
    with pytest.raises(ValueError, match="columns and rows both vary seed: choose two settings"):
        grid(("seed", ""), ("seed", ""))


@pytest.mark.parametrize("dry_run", [True, False])
def test_an_upload_is_private_unless_it_is_switched_off(tmp_path: Path, dry_run: bool) -> None:
    words = push_command(tmp_path / "a b", " me/my-cat ", private=True, dry_run=dry_run)
    assert words[:3] == ["python", "-m", "personalar.push"]
    expected = PushConfig(concept=str(tmp_path / "a b"), repo="me/my-cat", private=True, dry_run=dry_run)
    assert read_config(composed("push", words[3:]), PushConfig) == expected
