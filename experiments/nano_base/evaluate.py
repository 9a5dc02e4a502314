"""Evaluate the nano base on held-out pictures and prompts: `python experiments/nano_base/evaluate.py`.

It renders the held-out pictures itself (with other seeds than for training), so it needs only the installed
package. It prints JSON; --out also writes it to a file, and --grid writes a sheet of samples.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from training_pictures import sample_pair, twins

from personalar.generation.decoders.plain import PlainDecoder
from personalar.models.chameleon.model_files import open_folder
from personalar.nano.world.album import STYLES, Picture
from personalar.nano.world.album import draw as draw_picture
from personalar.nano.world.captions import article, place, wearing
from personalar.nano.world.contexts import CONTEXTS
from personalar.nano.world.objects.animals import HEADS
from personalar.nano.world.objects.skin import COLOURS
from personalar.nano.world.scene import (
    ACCESSORIES,
    ACCESSORY_COLOURS,
    CLASSES,
    sample_instance,
    sample_scene,
)
from personalar.scoring.features import ClipScorer, DinoScorer

NANO = Path(__file__).resolve().parents[2] / "personalar" / "nano"


def pixels(images) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float() / 255


def tokenizer_quality(backend, rng, count: int) -> dict:
    psnr, used = [], torch.zeros(backend.vq.config.num_embeddings)
    for _ in range(count // 50):
        views = [random_scene(rng)[0] for _ in range(50)]
        x = pixels(views)
        codes = backend.encode_images(x)
        used += torch.bincount(codes.flatten(), minlength=len(used))
        psnr += (-10 * (backend.decode_images(codes) - x).square().mean((1, 2, 3)).log10()).tolist()
    return {
        "pictures": len(psnr),
        "psnr_db": round(float(np.mean(psnr)), 2),
        "codes_used": round(float((used > 0).float().mean()), 4),
    }


def random_scene(rng):
    instance = sample_instance(str(rng.choice(CLASSES)), rng)
    worn = None
    if instance.noun in HEADS and rng.uniform() < 0.6:
        worn = (str(rng.choice(ACCESSORIES)), str(rng.choice(ACCESSORY_COLOURS)))
    context = str(rng.choice(list(CONTEXTS)))
    scene = sample_scene(instance, rng, context=context, worn=worn)
    return draw_picture(Picture(scenes=(scene,))), instance, context, worn


class Judge:
    """Zero-shot classification with the nano CLIP, in the words of the prompts."""

    def __init__(self, clip: ClipScorer) -> None:
        self.clip = clip

    def ask(self, image: torch.Tensor, answers: dict) -> object:
        features = self.clip.text_features(list(answers.values()))
        return list(answers)[int((features @ image).argmax())]

    def noun(self, image):
        return self.ask(image, {n: f"a photo of a {n}" for n in CLASSES})

    def context(self, image, noun):
        return self.ask(image, {c: f"a {noun}{place(c)}" for c in CONTEXTS})

    def colour(self, image, noun):
        return self.ask(image, {c: f"{article(c)} {noun}" for c in COLOURS})

    def worn(self, image, noun):
        pairs = [(k, c) for k in ACCESSORIES for c in ACCESSORY_COLOURS]
        return self.ask(image, {None: f"a {noun}", **{p: f"a {noun}{wearing(p)}" for p in pairs}})

    def style(self, image, noun):
        return self.ask(image, {s: f"{opening(s)} {article(noun)}" for s in (None, *STYLES)})

    def both(self, picture: Image.Image) -> list:
        """Return the classes of two objects from left to right, each judged in its part of the picture."""
        size = picture.width
        parts = [(0, 0.42, 0.55, 0.97), (0.45, 0.42, 1, 0.97)]
        crops = [picture.crop(tuple(round(x * size) for x in part)).resize((size, size)) for part in parts]
        return [self.noun(features) for features in self.clip.image_features(crops)]


def opening(style: str | None) -> str:
    return "a photo of" if style is None else f"{article(style)} of"


def scorer_quality(judge: Judge, dino: DinoScorer, rng, count: int) -> dict:
    views = [random_scene(rng) for _ in range(count)]
    features = judge.clip.image_features([v[0] for v in views])
    right = {"class": [], "context": [], "accessory": [], "accessory_kind": [], "colour": []}
    for (_, instance, context, worn), f in zip(views, features, strict=True):
        right["class"].append(judge.noun(f) == instance.noun)
        right["context"].append(judge.context(f, instance.noun) == context)
        if instance.skin.pattern == "plain":
            right["colour"].append(judge.colour(f, instance.noun) == instance.skin.colours[0][0])
        if instance.noun in HEADS:
            got = judge.worn(f, instance.noun)
            right["accessory"].append(got == worn)
            right["accessory_kind"].append((got and got[0]) == (worn and worn[0]))
    return {
        "pictures": count,
        **{k: round(float(np.mean(v)), 4) for k, v in right.items()},
        "two_classes": pair_quality(judge, rng),
        **twin_quality(dino, rng),
    }


def pair_quality(judge: Judge, rng, count: int = 60) -> float:
    """Return how often both classes are recognised in rendered pictures of two objects."""
    examples = [sample_pair(rng) for _ in range(count)]
    return mean(
        judge.both(draw_picture(e.picture)) == [s.instance.noun for s in e.picture.scenes] for e in examples
    )


def mean(values) -> float:
    return round(float(np.mean(list(values))), 4)


def twin_quality(dino: DinoScorer, rng, subjects: int = 48) -> dict:
    """Return how often DINO finds an unseen view more similar to four reference views than a twin's view."""
    wins = {"other": [], "reshaped": [], "recoloured": []}
    cosines = {"same": [], "other": [], "reshaped": [], "recoloured": []}

    def view(instance):
        scene = sample_scene(instance, rng, context=str(rng.choice(list(CONTEXTS))))
        return draw_picture(Picture(scenes=(scene,)))

    for number in range(subjects):
        noun = CLASSES[number % len(CLASSES)]
        instance = sample_instance(noun, rng)
        reshaped, recoloured = twins(instance, 2, rng)
        rivals = {"other": sample_instance(noun, rng), "reshaped": reshaped, "recoloured": recoloured}
        images = [view(instance) for _ in range(8)] + [view(r) for r in rivals.values() for _ in range(4)]
        f = dino.features(images)
        score = (f @ f[:4].T).mean(1)
        cosines["same"].append(float(score[4:8].mean()))
        for index, name in enumerate(rivals):
            theirs = score[8 + 4 * index : 12 + 4 * index]
            cosines[name].append(float(theirs.mean()))
            wins[name] += (score[4:8][:, None] > theirs[None]).flatten().float().tolist()
    return {
        "told_apart": {k: round(float(np.mean(v)), 3) for k, v in wins.items()},
        "cosine": {k: round(float(np.mean(v)), 3) for k, v in cosines.items()},
    }


def sample_prompts(rng, count: int) -> list[dict]:
    rows = []
    for number in range(count):
        noun = CLASSES[number % len(CLASSES)]
        colour, context, worn, style, beside = None, None, None, None, None
        subject = noun
        if rng.uniform() < 0.6:
            colour = str(rng.choice(list(COLOURS)))
            subject = f"{colour} {noun}"
        if noun in HEADS and rng.uniform() < 0.7:
            worn = (str(rng.choice(ACCESSORIES)), str(rng.choice(ACCESSORY_COLOURS)))
        if rng.uniform() < 0.7:
            context = str(rng.choice(list(CONTEXTS)))
        if rng.uniform() < 0.2:
            style = str(rng.choice(list(STYLES)))
        elif rng.uniform() < 0.2:
            beside = str(rng.choice([other for other in CLASSES if other != noun]))
        second = f" and {article(beside)}" if beside else ""
        prompt = f"{opening(style)} {article(subject)}{wearing(worn)}{second}{place(context)}"
        facts = {"noun": noun, "colour": colour, "context": context, "worn": worn, "style": style}
        rows.append({**facts, "beside": beside, "prompt": prompt})
    return rows


def draw(backend, prompts: list[str], seeds: list[int], cfg: float, top_p: float) -> list[Image.Image]:
    decoder = PlainDecoder(cfg_scale=cfg, top_p=top_p)
    grid = backend.code_shape()
    images = []
    for start in range(0, len(prompts), 24):
        ids = [backend.prompt_ids(p) for p in prompts[start : start + 24]]
        out = backend.decode_images(decoder(backend, ids, grid, seeds[start : start + 24]))
        images += [Image.fromarray((i * 255).to(torch.uint8).permute(1, 2, 0).numpy()) for i in out]
    return images


def base_quality(backend, judge: Judge, rng, count: int, cfg: float, top_p: float) -> dict:
    rows = sample_prompts(rng, count)
    started = time.time()
    images = draw(backend, [r["prompt"] for r in rows], list(range(count)), cfg, top_p)
    seconds = time.time() - started
    features = judge.clip.image_features(images)
    names = ("class", "context", "colour", "accessory", "accessory_kind", "style", "two_classes")
    right: dict[str, list] = {name: [] for name in names}
    for row, image, f in zip(rows, images, features, strict=True):
        if row["beside"]:
            right["two_classes"].append(judge.both(image) == [row["noun"], row["beside"]])
            continue
        if row["style"]:
            right["style"].append(judge.style(f, row["noun"]) == row["style"])
        right["class"].append(judge.noun(f) == row["noun"])
        if row["context"]:
            right["context"].append(judge.context(f, row["noun"]) == row["context"])
        if row["colour"]:
            right["colour"].append(judge.colour(f, row["noun"]) == row["colour"])
        if row["worn"]:
            got = judge.worn(f, row["noun"])
            right["accessory"].append(got == row["worn"])
            right["accessory_kind"].append(bool(got) and got[0] == row["worn"][0])
    asked = {k: len(v) for k, v in right.items()}
    return {
        "prompts": count,
        "cfg": cfg,
        "top_p": top_p,
        "seconds_per_image": round(seconds / count, 3),
        "asked": asked,
        **{k: round(float(np.mean(v)), 4) for k, v in right.items()},
    }


def sample_grid(backend, path: Path, cfg: float, top_p: float, rows: int = 6, columns: int = 8) -> list[str]:
    chosen = sample_prompts(np.random.default_rng(77), 96)[: rows * columns]
    images = draw(backend, [r["prompt"] for r in chosen], [1000 + i for i in range(len(chosen))], cfg, top_p)
    side = images[0].width
    sheet = Image.new("RGB", (columns * (side + 2) - 2, rows * (side + 2) - 2), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * (side + 2), index // columns * (side + 2)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.resize((sheet.width * 3 // 2, sheet.height * 3 // 2), Image.Resampling.LANCZOS).save(
        path, optimize=True
    )
    return [r["prompt"] for r in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=NANO)
    parser.add_argument("--prompts", type=int, default=480)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--cfg", type=float, default=2.0)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--grid", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    backend = open_folder(args.model).load(dtype=torch.float32, device="cpu")
    judge, dino = Judge(ClipScorer(args.model / "clip")), DinoScorer(args.model / "dino")
    results = {
        "tokenizer": tokenizer_quality(backend, np.random.default_rng(101), args.pictures),
        "scorers": scorer_quality(judge, dino, np.random.default_rng(102), args.pictures),
        "base": base_quality(backend, judge, np.random.default_rng(103), args.prompts, args.cfg, args.top_p),
    }
    if args.grid:
        results["grid_prompts"] = sample_grid(backend, args.grid, args.cfg, args.top_p)
    text = json.dumps(results, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
