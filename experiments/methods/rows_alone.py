"""Measure the fidelity of `[V]` alone, without the weights that were trained with it.

`PYTHONPATH=experiments/nano_base python experiments/methods/rows_alone.py RUN [RUN ...]`. The paper claims
that an embedding trained jointly with the weights "fails to convey any meaningful content" on the untouched
base, unlike one that was trained first. This script loads only `[V]` of the last stage of each finished run
into the base, and prints the fidelity over the subject's prompts. With `--true-parameters` it takes the `[V]`
that the base's pretraining gave to an individual with these parameters, to see how far the base alone can go.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from training_pictures import identity_vector

from personalar.concepts.concept import Concept
from personalar.config.compose import package_path
from personalar.data.prompts import sample_prompt
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.generator import Generator
from personalar.generation.requests import Request
from personalar.models.chameleon.model_files import open_folder
from personalar.nano.world.prompt_set import bench_prompts
from personalar.nano.world.subjects import rendered_subject, subject_instance
from personalar.scoring.features import DinoScorer

IDENTIFY = Path(__file__).parents[1] / "nano_base" / "results" / "identify.safetensors"


def true_row(noun: str, seed: int) -> torch.Tensor:
    """Return the embedding (D,) that stood for an individual in pretraining (`train_base.Base.identify`)."""
    layer = load_file(IDENTIFY)
    parameters = torch.tensor(identity_vector(subject_instance(noun, seed)), dtype=torch.float32)
    return layer["weight"] @ parameters + layer["bias"]


def rows_alone(run: Path, threads: int, *, true_parameters: bool) -> dict:
    torch.set_num_threads(threads)
    config = OmegaConf.load(run / ".hydra" / "config.yaml")
    facts = json.loads((run / "summary.json").read_text())
    concept = replace(Concept.load(run / "concept"), weights={}, lora={})
    files = open_folder(package_path("package://nano"))
    backend = files.load(dtype=torch.float32, device="cpu")
    identifier = concept.apply(backend)
    noun, individual = config.subject.noun, config.subject.get("seed", 0)
    if true_parameters:
        with torch.no_grad():
            identifier.rows[0] = true_row(noun, individual)
    subject = rendered_subject(noun, individual)
    specs = bench_prompts(subject.noun)
    requests = [
        Request(
            stage="transformer",
            kind="subject",
            seed=s,
            spec=spec,
            prompt=sample_prompt(spec, kind="subject", noun=subject.noun, description=None, learned=True),
        )
        for s in config.samples.seeds
        for spec in specs
    ]
    decoder = PlainDecoder(cfg_scale=config.decoder.cfg_scale, top_p=config.decoder.top_p)
    samples = Generator(backend=backend, decoder=decoder, identifier=identifier).samples(requests)
    dino = DinoScorer("package://nano/dino")
    references = dino.features(subject.train)
    score = float((dino.features([s.image for s in samples]) @ references.T).mean())
    floor, ceiling = facts["floor"]["dino"], facts["ceiling"]["dino"]
    last = list(facts["stages"].values())[-1]
    return {
        "run": run.name,
        "with_weights": last["fidelity"],
        "rows_alone": (score - floor) / (ceiling - floor),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--true-parameters", action="store_true")
    args = parser.parse_args()
    rows = [rows_alone(run, args.threads, true_parameters=args.true_parameters) for run in args.runs]
    for row in rows:
        print(json.dumps(row), flush=True)
    print(
        json.dumps(
            {
                "mean_with_weights": mean(r["with_weights"] for r in rows),
                "mean_rows_alone": mean(r["rows_alone"] for r in rows),
            }
        )
    )


if __name__ == "__main__":
    main()
