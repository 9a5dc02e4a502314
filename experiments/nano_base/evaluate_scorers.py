"""Evaluate scorers on held-out groups: `python evaluate_scorers.py DATA SCORERS`.

DATA contains `scorer_heldout` shards of `render.py`. Prints JSON. Of CLIP: zero-shot accuracy of each
question of `scorer_tasks.py`. Of DINO: how often a view is more similar to another view of the same
individual than to a view of its twin, of another shape and of another colour; photos only, and all pictures.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from render import GROUP
from scorer_pictures import Pictures
from scorer_tasks import CLASS_TEXTS, QUESTIONS

from personalar.nano.world.objects.animals import HEADS
from personalar.nano.world.scene import CLASSES
from personalar.scoring.features import ClipScorer, DinoScorer


def zero_shot(clip: ClipScorer, images: torch.Tensor, facts: list[dict]) -> dict[str, float]:
    """Return the share of right answers by question; `images` are the features of the pictures (N, D)."""
    found = (images @ clip.text_features(CLASS_TEXTS).T).argmax(1).tolist()
    right = {"class": [CLASSES[n] == fact["noun"] for n, fact in zip(found, facts, strict=True)]}
    for question, answers in QUESTIONS.items():
        names, right[question] = [name for name, _ in answers], []
        texts = {noun: clip.text_features([text.format(noun) for _, text in answers]) for noun in CLASSES}
        for image, fact in zip(images, facts, strict=True):
            value = f"{fact['worn']}/{fact['worn_colour']}" if question == "worn" else str(fact[question])
            if value in names and is_asked(question, fact):
                right[question].append(names[int((texts[fact["noun"]] @ image).argmax())] == value)
    return {question: round(float(np.mean(values)), 3) for question, values in right.items()}


def is_asked(question: str, fact: dict) -> bool:
    """Return whether a question applies: only animals wear something, and a pattern has several colours."""
    return {"worn": fact["noun"] in HEADS, "colour": fact["pattern"] == "plain"}.get(question, True)


def twins_told_apart(features: torch.Tensor, usable: list[bool]) -> dict[str, float]:
    """Return the share of comparisons that a view of the same individual wins, by kind of twin.

    In a group, pictures 0 to 2 show an individual, 3 and 4 its twin of another shape, 5 and 6 one of other
    colours. `usable` says which pictures count.
    """
    wins: dict[str, list[bool]] = {"reshaped": [], "recoloured": []}
    for start in range(0, len(features), GROUP):
        f, u = features[start : start + GROUP], usable[start : start + GROUP]
        similar = f @ f.T
        for one in range(3):
            for two in range(3):
                for twin in range(3, GROUP):
                    if one != two and u[one] and u[two] and u[twin]:
                        kind = "reshaped" if twin < 5 else "recoloured"
                        wins[kind].append(bool(similar[one, two] > similar[one, twin]))
    return {kind: round(float(np.mean(values)), 3) for kind, values in wins.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("scorers", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = Pictures(args.data, "scorer_heldout")
    pictures = [Image.fromarray(picture) for shard in data.shards.arrays for picture in shard]
    facts = data.shards.facts
    clip = ClipScorer(args.scorers / "clip")
    print(json.dumps({"scorer": "clip", **zero_shot(clip, clip.image_features(pictures), facts)}))
    features = DinoScorer(args.scorers / "dino").features(pictures)
    for name, usable in (("photos", [f["style"] is None for f in facts]), ("all", [True] * len(facts))):
        print(json.dumps({"scorer": "dino", "pictures": name, **twins_told_apart(features, usable)}))


if __name__ == "__main__":
    main()
