"""Every YAML composes, becomes its dataclass and can be built; mistakes name the knob and what is allowed."""

from __future__ import annotations

import re

import pytest
from conftest_run import compose_config, composed
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from personalar.config.commands import EvaluateConfig
from personalar.config.compose import GROUPS, conf_dir, group_options, read_config
from personalar.config.fingerprint import learning_settings, unread
from personalar.config.plugins import build
from personalar.config.run_config import RunConfig
from personalar.training.stage import resolve_stages

CONF = conf_dir()
ALL_GROUPS = (*GROUPS, "experiment")
CHOICES = [(group, name) for group in ALL_GROUPS for name in group_options(CONF, group)]


GROUP_OPTIONS = {group: group_options(CONF, group) for group in ALL_GROUPS if group != "benchmark"}
ROUNDS = max(map(len, GROUP_OPTIONS.values()))
NAMED = {group for group, schema in GROUPS.items() if "name" in getattr(schema, "__annotations__", ())}


def test_every_yaml_is_a_choice_or_a_command() -> None:
    yamls = {path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml")}
    assert yamls == {f"{group}/{name}" for group, name in CHOICES} | {
        "run",
        "sample",
        "doctor",
        "export",
        "evaluate",
        "push",
        "hydra_settings",
    }


@pytest.mark.parametrize(
    "words",
    [
        ["+subject=cat", "experiment=quick", "seed=3", "model.recipe.betas=[0.9,0.99]"],
        [
            "seed=3",
            "experiment=paper/dreambooth",
            "+subject=folder",
            "subject.path='a b'",
            "subject.noun=dog",
        ],
        ["+subject=cat", "decoder=jacobi", "decoder.window=null", "++decoder.arguments={a: [1,'b']}"],
        [
            "+subject=cat",
            "~callbacks.learning_rate",
            "~optimizer",
            "+optimizer._target_=x",
            "+logger.b.c=${seed}",
        ],
    ],
)
def test_the_tests_compose_as_hydra_does(words: list[str]) -> None:
    """`conftest_run.composed` has Hydra compose once per choice of files, and sets the values itself."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        expected = compose("run", words)
    found = composed("run", *words)
    assert found == expected and OmegaConf.to_yaml(found) == OmegaConf.to_yaml(expected)
    assert OmegaConf.is_struct(found) == OmegaConf.is_struct(expected)


@pytest.mark.parametrize("turn", range(ROUNDS))
def test_every_choice_composes(turn: int) -> None:
    """The k-th choice of every group at once: each YAML is met, in a dozen compositions."""
    chosen = {group: options[turn % len(options)] for group, options in GROUP_OPTIONS.items()}
    photos = {
        "folder": ["subject.path=photos/my dog", "subject.noun=dog"],
        "dreambench": ["subject.path=dataset/dog2"],
        "style": ["subject.path=pictures/ink"],
    }.get(chosen["subject"], [])
    if chosen["experiment"].startswith("paper/"):  # it chooses method and stage itself
        del chosen["method"], chosen["stage"]
    if chosen.get("method") == "dcoar":
        chosen["stage"] = "both"  # its stage has another name
    elif chosen["prior"] == "dcoar":
        chosen["prior"] = "both"  # only that method has its token
    if chosen["trainer"].startswith("zero3") and chosen.get("method") == "qlora":  # cannot be sharded
        chosen["method"] = "lora"
    required = {"vlm": ["scorer.extra.vlm.model=some-model"]}.get(chosen["scorer"], [])
    if chosen["model/recipe"] == "nano":  # [V] starts at a reserved embedding
        required = [*required, "model.nearest_problem=null"]
    config = compose_config(
        f"+subject={chosen['subject']}",
        *[f"{group}={name}" for group, name in chosen.items() if group != "subject"],
        *photos,
        *required,
    )
    assert isinstance(config, RunConfig)
    folders = {"folder": "my dog", "dreambench": "dog2", "style": "ink"}
    chosen["subject"] = folders.get(chosen["subject"], chosen["subject"])
    for group in NAMED & {*chosen}:
        part = config.model.recipe if group == "model/recipe" else getattr(config, group)
        assert part.name == chosen[group]


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=lambda value: str(value))
def test_every_yaml_says_its_command(group: str, name: str) -> None:
    lines = (CONF / group / f"{name}.yaml").read_text().splitlines()
    commands = tuple(f"# python -m personalar.{name}" for name in ("run", "evaluate", "sample"))
    assert any(line.startswith(commands) for line in lines[:2])
    assert len(lines) <= 30


@pytest.mark.parametrize("name", group_options(CONF, "benchmark"))
def test_every_benchmark_composes(name: str) -> None:
    words = ["scorer=dreambench", *(["benchmark.path=photos"] if name != "nanobench" else [])]
    config = compose_config(f"benchmark={name}", *words, name="evaluate")
    assert isinstance(config, EvaluateConfig) and config.benchmark.name == name
    assert config.out == f"outputs/{name}"


def test_a_dreambench_subject_knows_its_class() -> None:
    subject = compose_config("+subject=dreambench", "subject.path=data/wolf_plushie").subject
    assert (subject.name, subject.noun, subject.kind) == ("wolf_plushie", "stuffed animal", "folder")


def test_a_benchmark_of_dreambench_takes_prompts_of_its_own() -> None:
    words = ["+subject=dreambench", "subject.path=data/dog2", "samples.prompts=['a {}']"]
    assert unread(config := compose_config(*words), words) is None
    assert config.samples.prompt_set == "dreambench"


def test_the_papers_experiments_differ_as_its_tables_do() -> None:
    def stages(name: str):
        config = compose_config("+subject=cat", f"experiment=paper/{name}")
        return config, config.method.stages

    assert not stages("without_class_name")[0].model.recipe.data.class_name
    assert (
        list(stages("one_stage")[1]) == ["transformer"] and stages("one_stage")[1]["transformer"].identifier
    )
    assert not stages("dreambooth")[1]["transformer"].identifier
    assert list(stages("two_stage")[1]) == ["embedding", "transformer"]


def test_decoder_takes_the_models_sampling_numbers() -> None:
    for name in group_options(CONF, "decoder"):
        config = compose_config("+subject=cat", f"decoder={name}", "decoder.top_k=5")
        decoder = build("decoder", config.decoder.settings)
        assert (decoder.sampling.cfg_scale, decoder.sampling.top_k) == (2.0, 5)


def test_paper_numbers_differ_from_nanos_in_config_only() -> None:
    config = compose_config("+subject=cat", "model/recipe=paper")
    one, two = resolve_stages(config.method, config.model.recipe)
    assert (one.numbers.steps, one.numbers.lr) == (1500, 0.01)
    assert (two.numbers.steps, two.numbers.lr, two.numbers.replay_ratio) == (70, 5e-6, 0.0)
    assert one.trains.parameters == [] and two.trains.identifier


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.devices=2", "trainer=auto runs in one process.*choose trainer=ddp, zero2"),
        ("model.recipe.identifier.init=words", "identifier.init=words needs words"),
        ("model.recipe.identifier.optimizer=adam", "identifier.optimizer='adam'; allowed: direction"),
        ("model.recipe.data.templates=[a photo]", r"each template must contain \{\}"),
        ("method.stages.embedding.identifier=false", "a stage trains nothing"),
        ("method.stages.transformer.lora.rank=4", "trains either parameters or lora"),
        ("method.stages.embedding.numbers=x", "allowed: embedding, transformer, lora, full, context"),
        ("decoder.window=8", "decoder.window=8 is not an argument of PlainDecoder, only of JacobiDecoder"),
        ("samples.seeds=[1,1]", "at least one seed and no duplicate"),
        ("samples.kinds=[class]", r"samples.kinds=\['class'\] must contain subject"),
        ("samples.kinds=[x]", "allowed: subject, class, description"),
    ],
)  # fmt: skip
def test_impossible_values_name_the_knob(override: str, message: str) -> None:
    cfg = composed("run", "+subject=cat")
    with pytest.raises(ValueError, match=message):
        read_config(OmegaConf.merge(cfg, OmegaConf.from_dotlist([override])))


@pytest.mark.parametrize("model", ["anole_7b", "chameleon_7b", "lumina_mgpt_7b_512", "lumina_mgpt_7b_1024"])
def test_float16_is_refused_where_the_model_says_so(model: str) -> None:
    words = ["concept=x", "prompts=[x]", f"model={model}", "model.dtype=float16"]
    with pytest.raises(ValueError, match=rf"float16 does not work for model={model}.*65504.*dtype=bfloat16"):
        compose_config(*words, name="sample")
    assert compose_config(*words[:-1], name="sample").model.dtype == "bfloat16"
    forced = compose_config(*words, "model.float16_problem=null", name="sample")
    assert forced.model.dtype == "float16"


@pytest.mark.parametrize("model", [name for name in group_options(conf_dir(), "model") if name != "nano"])
def test_nearest_is_refused_where_reserved_embeddings_were_never_trained(model: str) -> None:
    words = ["+subject=cat", f"model={model}", "model.recipe.identifier.init=nearest"]
    with pytest.raises(ValueError, match=rf"init=nearest does not work for model={model}: .*choose random"):
        compose_config(*words)
    assert compose_config(*words, "model.nearest_problem=null").model.recipe.identifier.init == "nearest"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["decoder._target_=nowhere.Mine"], "No module named 'nowhere'"),
        (["decoder.arguments.speed=3"], "unexpected keyword argument 'speed'"),
    ],
)
def test_a_decoder_that_cannot_be_made_is_named(words: list[str], reason: str) -> None:
    overrides = [word.replace("decoder.arguments", "++decoder.arguments") for word in words]
    config = compose_config("+subject=cat", *overrides)
    with pytest.raises(ValueError, match=rf"cannot create .* \(.*{reason}.*PYTHONPATH"):
        build("decoder", config.decoder.settings)


def test_a_missing_value_is_named() -> None:
    cfg = composed("run", "+subject=cat")
    cfg.subject.noun = "???"
    with pytest.raises(ValueError, match=r"no value for subject\.noun: set subject\.noun="):
        read_config(cfg)


def test_a_stage_that_the_method_lacks() -> None:
    cfg = composed("run", "+subject=cat")
    cfg.stage.name, cfg.stage.run = "embedding", ["embedding"]
    with open_dict(cfg):
        del cfg.method.stages["embedding"]
    with pytest.raises(ValueError, match=r"stage\.run='embedding'; allowed: transformer"):
        read_config(cfg)


STYLE = ("+subject=style", "subject.path=pictures/ink")
SOURCE = "+subject.source._target_=toys.red"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["decoder=jacobi", "decoder.window=null"], r"decoder\.window=null: JacobiDecoder needs a number"),
        (["decoder=compiled", "decoder.bucket=null"], "decoder.bucket=null: CompiledDecoder needs a number"),
        (["decoder=compiled", "decoder.window=8"],
         r"decoder\.window=8 is not an argument of CompiledDecoder, only of JacobiDecoder"),
        (["+subject=cat", "subject.path=photos/mycat"],
         r"cat is rendered .* \+subject=folder subject\.path=photos/mycat subject\.noun=cat$"),
        (["+subject=folder", "subject.noun=toy", "subject.path=x", SOURCE], "subject.path=x is not used"),
        (["+subject=cat", "subject.live=false", SOURCE], "subject.live=False is not used for the subject"),
        (["+subject=cat", "subject.description=red", SOURCE], "subject.description=red is not used"),
        (["+subject=style"], r"\+subject=style needs subject.path=DIR \(1 to 10 pictures in the style\)"),
        ([*STYLE, "subject.noun=cat"], "kind=style with subject.noun='cat': the noun of"),
        (["+subject=folder", "subject.path=x", "subject.noun=style"], r"kind=folder .* use \+subject=style"),
        ([*STYLE, "samples.prompts=['a {}']"], "samples.prompts: 'a {}' .* write 'in the style of {}' where"),
        ([*STYLE, "samples.prompts=null"], "samples.prompts: None is not a prompt of a style"),
        ([*STYLE, "model.recipe.data.templates=['{}, {}']"], "model.recipe.data.templates: '{}, {}' is not"),
        ([*STYLE, "prior.prompts=['a {}','a cat']"], "prior.prompts: 'a {}' is not a prompt of a style"),
        ([*STYLE, "scorer.outside=true"], "scorer.outside=true needs a subject in a box"),
        ([*STYLE, "selection.scorer.subject_crop=true"], "selection.scorer.subject_crop=true .* setting out"),
        (["benchmark.path=photos"],
         "benchmark=nanobench are rendered .* choose benchmark=dreambench or"),
        (["+benchmark.published.foo=1"], "benchmark.published='foo'; allowed: dino, clip_i, subjects"),
        (["concept=x", "trainer=ddp"], r"trainer\.devices=2 is for training; .* leave trainer\.devices out"),
        (["concept=x", "trainer.precision=16"], r"trainer\.precision=16 is for training"),
    ],
)  # fmt: skip
def test_what_a_part_would_not_read_or_cannot_be_is_refused(words: list[str], message: str) -> None:
    command = {"benchmark": "evaluate", "concept": "sample"}.get(
        re.split("[.=]", words[0].lstrip("+"))[0], "run"
    )
    subject = [] if command != "run" or "subject=" in words[0] else ["+subject=cat"]
    with pytest.raises(ValueError, match=message.replace("{}", r"\{\}")):
        compose_config(*subject, *words, name=command)


@pytest.mark.parametrize("seen", [True, False])
def test_a_7b_takes_the_gpu_that_is_there_and_nano_the_cpu(
    monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: seen)

    def where(*words: str) -> str:
        return compose_config("+subject=cat", *words).trainer.accelerator

    large = "model=lumina_mgpt_7b_512"
    assert where() == where(large, "trainer=cpu") == "cpu"
    assert where(large) == where("trainer.accelerator=auto") == ("gpu" if seen else "cpu")
    assert where("trainer=gpu") == "gpu"
    for command in ("sample", "doctor"):
        words = ["concept=x", "prompts=[x]"] if command == "sample" else []
        trainer = compose_config(large, *words, name=command).trainer
        assert trainer.torch_device == ("cuda" if seen else "cpu")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["method=lora", "model.recipe.stages.transformer.lr=1"],
            r"method=lora does not use model\.recipe\.stages\.transformer\.lr: set .*stages\.lora\.lr",
        ),
        (
            ["samples.prior_images=3"],
            r"samples\.prior_images has no effect in this run: it needs samples\.kinds",
        ),
        (
            ["scorer=none", "scorer.clip_text=prompt"],
            r"clip_text has no effect in this run: it needs CLIP and DINO",
        ),
        (
            ["scorer=none", "+scorer.extra.a._target_=x.Y", "scorer.dino_preprocess=checkpoint"],
            "dino_preprocess .* needs CLIP and DINO",
        ),
        (
            ["selection.scorer.outside=true"],
            r"needs selection\.scorer other than none",
        ),
        (["samples.prompts=['a {}']", "samples.prompt_set=dreambench"], r"needs samples\.prompts=null"),
        (
            ["prior.images=5", "model.recipe.data.replay_images=9"],
            r"replay_images .* does not set prior\.images \(set prior\.images instead\)",
        ),
        (
            ["model=anole_7b", "model.layout.negative_prompt=ugly"],
            r"it needs model\.layout\.unconditional=negative",
        ),
        (["method=dcoar", "model.recipe.data.replay_weight=2"], r"set prior\.weight"),
        (["scorer=none", "scorer.subject_crop=true"], "subject_crop .* needs CLIP and DINO"),
        (["scorer=none", "scorer.outside=true"], "outside .* needs CLIP and DINO"),
        (["method=full", "model.recipe.trained_weights=[x]"], "it needs method=paper"),
        (["optimizer=sgd", "model.recipe.betas=[0.9,0.99]"], "it needs optimizer=adamw"),
        (["optimizer.betas=[0.8,0.9]", "model.recipe.betas=[0.9,0.99]"], "does not set optimizer.betas"),
        (
            ["scheduler=cosine", "model.recipe.stages.embedding.schedule=constant"],
            r"schedule .* needs scheduler=recipe",
        ),
        (["model.recipe.stages.embedding.weight_decay=1"], "weight_decay .* a stage that trains weights"),
        (
            ["experiment=paper/dreambooth", "model.recipe.stages.joint.identifier_lr=1"],
            "identifier_lr .* a stage with identifier=true",
        ),
        (["method.stages.transformer.lora.every_n_layers=2"], r"needs lora\.rank above 0 in this stage"),
        (
            ["model.recipe.data.crops_per_photo=0", "model.recipe.data.crop_scale=0.5"],
            r"crop_scale .* needs model\.recipe\.data\.crops_per_photo above 0",
        ),
        (["method=embedding_only", "model.recipe.data.replay_images=9"], "replay_images .* prior.kind other"),
        (
            ["prior=none", "model.recipe.stages.transformer.replay_ratio=0.2"],
            "replay_ratio .* needs prior.kind other than none",
        ),
        (["scorer.url=http://localhost/v1"], r"url .* needs scorer=vlm"),
        (
            ["samples.kinds=[subject]", "subject.description=red cat"],
            r"description .* needs samples\.kinds=\[subject,description\]",
        ),
        (
            ["model.recipe.identifier.rows=1", "model.recipe.identifier.further=kmeans"],
            r"it needs model\.recipe\.identifier\.rows above 1",
        ),
        (["model.recipe.identifier.pull=0.1"], r"it needs model\.recipe\.identifier\.optimizer=direction"),
        (
            ["method=joint", "model.recipe.identifier.optimizer=direction"],
            "it needs a stage that trains nothing but the embeddings",
        ),
        (["method=embedding_only", "prior.weight=1"], r"prior\.weight .* needs .*replay_ratio above 0"),
        (["model=janus_pro_1b", "prior=replay"], r"prior has no effect .* needs .*replay_ratio above 0"),
        (["prior.kind=none", "prior.images=3"], r"prior\.images .* needs"),
        (["subject.proxy_share=1"], r"subject\.proxy_share .* needs subject\.proxies"),
    ],
)
def test_settings_that_change_nothing_are_refused(words: list[str], message: str) -> None:
    config = compose_config("+subject=cat", *words)
    assert re.search(message, unread(config, ["+subject=cat", *words]) or "")
    assert unread(config, ["+subject=cat", "method=paper", "seed=3"]) is None


@pytest.mark.parametrize(
    "words",
    [
        ["prior.kind=none"],
        ["model.recipe.betas=[0.9,0.99]"],
        [
            "model.recipe.stages.transformer.weight_decay=0.1",
            "model.recipe.stages.embedding.schedule=constant",
        ],
        ["method=lora", "method.stages.transformer.lora.every_n_layers=2"],
        ["model.recipe.data.replay_images=5", "model.recipe.stages.transformer.replay_ratio=0.2"],
        ["subject.description=red cat", "model.recipe.data.crop_scale=0.9"],
    ],
)
def test_settings_that_are_read_are_accepted(words: list[str]) -> None:
    assert unread(compose_config("+subject=cat", *words), words) is None


def test_arguments_of_the_trainer_that_change_results_are_recorded() -> None:
    words = [
        "trainer.precision=bf16-mixed", "trainer.gradient_clip_algorithm=value", "trainer.log_every_n_steps=5"
    ]  # fmt: skip
    assert learning_settings(compose_config("+subject=cat", *words))["trainer"] == {
        "precision": "bf16-mixed",
        "gradient_clip_algorithm": "value",
    }


@pytest.mark.parametrize("recipe", group_options(CONF, "model/recipe"))
def test_dreambooth_keeps_its_prior_with_every_recipe(recipe: str) -> None:
    words = ["+subject=cat", "experiment=paper/dreambooth", f"model/recipe={recipe}"]
    config = compose_config(*words)
    numbers = config.model.recipe.stages["joint"]
    assert config.has_prior and config.prior.prompts == ["a photo of a {}"] and config.prior.images == 48
    assert (numbers.batch, numbers.replayed, numbers.image_token_ratio) == (4, 2, 0)


@pytest.mark.parametrize("method", group_options(CONF, "method"))
def test_quick_is_quick_with_every_method_and_recipe(method: str) -> None:
    config = compose_config("+subject=cat", "experiment=quick", f"method={method}", "model/recipe=paper")
    for stage in resolve_stages(config.method, config.model.recipe):
        assert (stage.numbers.steps, stage.numbers.sequences) == (4, 2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ("distill", 2, "", 48)),
        (["prior=both"], ("both", 2, "", 48)),
        (["prior.kind=replay", "model.recipe.data.replay_images=5"], ("replay", 2, "", 5)),
        (["method=dcoar"], ("both", 0.01, "[I]", 8)),
        (["method=dcoar", "prior=none"], ("none", 2, "", 48)),
    ],
)
def test_a_method_chooses_its_prior_and_the_command_line_another(words: list[str], expected: tuple) -> None:
    prior = compose_config("+subject=cat", *words).prior
    assert (prior.kind, prior.weight, prior.append, prior.images) == expected


def test_replay_needs_class_images_and_room_beside_them() -> None:
    ratio = "model.recipe.stages.transformer.replay_ratio=0.5"
    with pytest.raises(ValueError, match=r"transformer\.replay_ratio is above 0 without class images: set"):
        compose_config("+subject=cat", "model/recipe=paper", ratio, "model.recipe.stages.transformer.batch=4")
    with pytest.raises(ValueError, match=r"replay_ratio=0\.5 with batch=1 leaves no sequence for"):
        compose_config("+subject=cat", ratio, "model.recipe.stages.transformer.batch=1")


def test_a_style_has_prompts_of_its_own_with_any_recipe() -> None:
    config = compose_config(*STYLE, "model/recipe=paper", "method=dcoar", "experiment=quick")
    prompts = (*config.model.recipe.data.templates, *config.samples.prompts)
    assert (config.subject.name, config.subject.noun) == ("ink", "style")
    assert len(prompts) == 20 and all("in the style of {}" in prompt for prompt in prompts)
    assert config.model.recipe.data.crop == "random" and config.prior.append == "[I]"
    assert not any("{}" in prompt for prompt in config.prior.prompts)


def test_settings_of_a_class_have_no_effect_on_a_style() -> None:
    for word in ("subject.live=true", "model.recipe.data.class_name=true"):
        said = unread(compose_config(*STYLE, word), [*STYLE, word])
        assert said is not None and "has no effect in this run: it needs a subject with a class" in said
