"""Train the nano scorers: `python experiments/nano_base/train_scorers.py DATA OUT clip|dino --steps 1500`.

clip: a small `CLIPModel`; captions against pictures, and zero-shot questions asked through the text tower itself (which
class, place, colour, accessory), so that zero-shot accuracy is what is trained. dino: a small `ViTModel` whose class token
tells individuals apart: supervised contrast within groups that hold twins of the same skin or the same shape, and linear
read-outs (thrown away) of the individual's parameters, so that shape counts and not colour alone.

Part of the pictures are blurred or passed through the image tokenizer (`reconstruct.py`), because that is what the
scorers will judge. Resumes by itself.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pictures import Log, Master, Shards, save_state
from render import GROUP, SHARD, group_pictures
from torch import Tensor, nn

from personalar.world.animals import HEADS
from personalar.world.captions import article, description, place, wearing
from personalar.world.contexts import CONTEXTS
from personalar.world.scene import ACCESSORIES, ACCESSORY_COLOURS, CLASSES, identity_vector
from personalar.world.skin import COLOURS

SIZE = 96
WARMUP = 60
QUESTIONS: dict[str, list[tuple[str, str]]] = {  # question -> [(answer, phrase with {} for the noun)]
    "context": [(name, f"a {{}}{place(name)}") for name in CONTEXTS],
    "colour": [(name, f"{article(name)} {{}}") for name in COLOURS],
    "worn": [("none/none", "a {}")]
    + [(f"{k}/{c}", f"a {{}}{wearing((k, c))}") for k in ACCESSORIES for c in ACCESSORY_COLOURS],
}
CLASS_TEXTS = [f"a photo of a {noun}" for noun in CLASSES]


class Pictures:
    """Scorer shards with their tokenizer reconstructions where those exist, and the individuals behind them."""

    def __init__(self, folder: Path, kind: str = "scorer") -> None:
        self.folder, self.kind = folder, kind
        self.shards = Shards(folder, kind)
        self.recon: dict[int, np.ndarray] = {}
        self.instances: list = []
        self.refresh()

    def refresh(self) -> None:
        self.shards.refresh()
        groups = SHARD // GROUP
        for number in range(len(self.instances) // (groups * GROUP), len(self.shards.arrays)):
            rng = np.random.default_rng([{"scorer": 12, "scorer_heldout": 14}[self.kind], number])
            for g in range(groups):
                self.instances += [scene.instance for scene, _ in group_pictures(rng, number * groups + g)]
        self.identity = np.stack([identity_vector(i) for i in self.instances])
        for number in range(len(self.shards.arrays)):
            path = self.folder / f"{self.kind}_recon_{number:03d}.npy"
            if path.exists() and number not in self.recon:
                self.recon[number] = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.shards)

    def take(self, indices: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        """(B, 3, 96, 96) in [-1, 1]; with rng, some are reconstructions, blurred or shifted."""
        per = SHARD // GROUP * GROUP
        x = self.shards.pictures(indices)
        if rng is None:
            return x.float() / 127.5 - 1
        for row, i in enumerate(indices):
            kind = rng.uniform()
            if kind < 0.45 and i // per in self.recon:
                x[row] = torch.from_numpy(self.recon[i // per][i % per].copy()).permute(2, 0, 1)
            elif kind < 0.65:
                small = F.interpolate(
                    x[row : row + 1].float(), scale_factor=float(rng.uniform(0.3, 0.6)), mode="area"
                )
                x[row] = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear")[0].to(torch.uint8)
        dx, dy = rng.integers(-4, 5, 2)
        x = F.pad(x.float(), (4, 4, 4, 4), mode="replicate")[
            ..., 4 + dy : 4 + dy + SIZE, 4 + dx : 4 + dx + SIZE
        ]
        return x / 127.5 - 1


def make_tokenizer(folder: Path):
    """A CLIP-style tokenizer over the world's words, as a transformers folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts = [text for question in QUESTIONS.values() for _, text in question] + list(CLASSES) + list(COLOURS)
    texts += [
        "a photo of a picture an image rendition shiny striped spotted two-tone patched and wearing",
        "[V]",
    ] * 3
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    names = ["<|startoftext|>", "<|endoftext|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts * 50, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[(names[0], 0), (names[1], 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=names[0],
        eos_token=names[1],
        pad_token=names[2],
        model_max_length=40,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def build(which: str):
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

    if which == "dino":
        config = ViTConfig(
            hidden_size=192,
            num_hidden_layers=6,
            num_attention_heads=3,
            intermediate_size=576,
            image_size=SIZE,
            patch_size=12,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        config._attn_implementation = "eager"
        return ViTModel(config, add_pooling_layer=False)
    text = {
        "hidden_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 480,
        "vocab_size": 1024,
        "max_position_embeddings": 40,
        "eos_token_id": 1,
        "bos_token_id": 0,
        "pad_token_id": 2,
    }
    vision = {
        "hidden_size": 192,
        "num_hidden_layers": 5,
        "num_attention_heads": 3,
        "intermediate_size": 576,
        "image_size": SIZE,
        "patch_size": 12,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=160)
    for part in (config, config.text_config, config.vision_config):
        part._attn_implementation = "eager"
    return CLIPModel(config)


class ClipTask(nn.Module):
    """Contrast with the full captions, and the zero-shot questions."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.net = build("clip")
        self.tokenizer = make_tokenizer(folder)

    def tokens(self, texts: list[str]) -> dict[str, Tensor]:
        out = self.tokenizer(texts, padding=True, truncation=True, max_length=40, return_tensors="pt")
        return {"input_ids": out["input_ids"], "attention_mask": out["attention_mask"]}

    def images(self, net, x: Tensor) -> Tensor:
        return F.normalize(
            net.visual_projection(net.vision_model(pixel_values=x).pooler_output).float(), dim=-1
        )

    def texts(self, net, tokens: dict[str, Tensor]) -> Tensor:
        return F.normalize(net.text_projection(net.text_model(**tokens).pooler_output).float(), dim=-1)

    def prepare(self, data: Pictures, indices: np.ndarray, step: int) -> dict:
        facts = [data.shards.facts[i] for i in indices]
        captions = [
            f"a photo of {article(description(data.instances[i]))}{data.shards.facts[i]['tail']}"
            for i in indices
        ]
        question = question_at(step)
        nouns = [n for n in CLASSES if question != "worn" or n in HEADS]
        texts = [phrase.format(noun) for noun in nouns for _, phrase in QUESTIONS[question]]
        answers = [answer for answer, _ in QUESTIONS[question]]
        value = [f"{f['worn']}/{f['worn_colour']}" if question == "worn" else f[question] for f in facts]
        target = torch.tensor(
            [
                answers.index(v) if v in answers and f["noun"] in nouns else -100
                for v, f in zip(value, facts, strict=True)
            ]
        )
        own = torch.tensor([nouns.index(f["noun"]) if f["noun"] in nouns else 0 for f in facts])
        return {
            "captions": self.tokens(captions),
            "asked": self.tokens(texts),
            "per": len(answers),
            "own": own,
            "target": target,
            "class_texts": self.tokens(CLASS_TEXTS),
            "noun": torch.tensor([CLASSES.index(f["noun"]) for f in facts]),
        }

    def loss(self, net, x: Tensor, c: dict) -> tuple[Tensor, dict]:
        image = self.images(net, x)
        scale = net.logit_scale.float().exp().clamp(max=60)
        pair = scale * image @ self.texts(net, c["captions"]).T
        goal = torch.arange(len(x))
        contrast = (F.cross_entropy(pair, goal) + F.cross_entropy(pair.T, goal)) / 2
        asked = self.texts(net, c["asked"]).view(-1, c["per"], image.shape[1])[
            c["own"]
        ]  # the picture's own noun
        answers = scale * (asked @ image[..., None])[..., 0]
        zero_shot = F.cross_entropy(answers, c["target"]) if (c["target"] >= 0).any() else 0.0
        nouns = F.cross_entropy(scale * image @ self.texts(net, c["class_texts"]).T, c["noun"])
        return contrast * 0.5 + zero_shot + nouns, {
            "contrast": float(contrast.detach()),
            "zero_shot": float(torch.as_tensor(zero_shot).detach()),
            "class": float(nouns.detach()),
        }


class DinoTask(nn.Module):
    """Supervised contrast over individuals, with linear read-outs of what makes them individuals."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.net = build("dino")
        self.net.read = nn.Linear(192, 26 + len(CLASSES))

    def prepare(self, data: Pictures, indices: np.ndarray, step: int) -> dict:
        facts = [data.shards.facts[i] for i in indices]
        return {
            "who": torch.tensor([f["individual"] for f in facts]),
            "identity": torch.from_numpy(data.identity[indices]),
            "noun": torch.tensor([CLASSES.index(f["noun"]) for f in facts]),
        }

    def loss(self, net, x: Tensor, c: dict) -> tuple[Tensor, dict]:
        token = net(pixel_values=x).last_hidden_state[:, 0]
        feature = F.normalize(token.float(), dim=-1)
        similar = feature @ feature.T / 0.1
        same = (c["who"][:, None] == c["who"][None]).float()
        eye = torch.eye(len(x), dtype=torch.bool)
        log_p = similar.masked_fill(eye, -1e4).log_softmax(1)
        same = same.masked_fill(eye, 0)
        contrast = -((same * log_p).sum(1) / same.sum(1).clamp_min(1)).mean()
        out = net.read(token).float()
        read = F.mse_loss(out[:, :26], c["identity"]) + 0.3 * F.cross_entropy(out[:, 26:], c["noun"])
        return contrast + read, {"contrast": contrast.item(), "read": read.item()}


def question_at(step: int) -> str:
    """What CLIP is asked at a step: accessories, the hardest, every other time."""
    return ("worn", "context", "worn", "colour")[step % 4]


def pick(data: Pictures, rng: np.random.Generator, which: str, batch: int, step: int) -> np.ndarray:
    if which == "clip":
        wearers = [i for i, f in enumerate(data.shards.facts) if f["noun"] in HEADS]
        return (
            rng.choice(wearers, batch) if question_at(step) == "worn" else rng.integers(0, len(data), batch)
        )
    groups = rng.choice(len(data) // GROUP, batch // GROUP, replace=False)
    return (groups[:, None] * GROUP + np.arange(GROUP)).ravel()


def optimizers(net: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices: a small vision transformer leaves its plateau several times sooner than with AdamW."""
    blocks = [p for n, p in net.named_parameters() if "layers." in n and p.ndim == 2]
    taken = {id(p) for p in blocks}
    rest = [p for p in net.parameters() if id(p) not in taken]
    return [
        torch.optim.Muon(blocks, lr=20 * lr, momentum=0.95, nesterov=True, weight_decay=0.02),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.02),
    ]


def export(task: nn.Module, which: str, folder: Path) -> None:
    """Write the Hugging Face folder (float16) with its preprocessor."""
    import json

    net = build(which)
    net.load_state_dict({k: v for k, v in task.net.state_dict().items() if not k.startswith("read.")})
    net.half().save_pretrained(folder, safe_serialization=True)
    size = {"height": SIZE, "width": SIZE}
    kind = {"clip": "CLIPImageProcessor", "dino": "ViTImageProcessor"}[which]
    values = {
        "image_processor_type": kind,
        "do_resize": True,
        "size": size,
        "resample": 3,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(values, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("which", choices=("clip", "dino"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=84)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    folder = args.out / args.which
    folder.mkdir(parents=True, exist_ok=True)
    data = Pictures(args.data)
    task = {"clip": ClipTask, "dino": DinoTask}[args.which](folder)
    master = Master(task.net)
    opts = optimizers(task.net, args.lr)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in opts]
    state_path, step, already = args.out / f"{args.which}_state.pt", 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        task.net.load_state_dict(state["net"])
        for optimizer, part in zip(opts, state["optimizers"], strict=True):
            optimizer.load_state_dict(part)
        step, already = state["step"], state["seconds"]
        master.push()
    log = Log(args.out / f"{args.which}_log.jsonl", already)
    while step < args.steps:
        rng = np.random.default_rng([9, step])
        factor = min(1, (step + 1) / WARMUP) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / args.steps)))
        for optimizer, lrs in zip(opts, peaks, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * factor
        indices = pick(data, rng, args.which, args.batch, step)
        loss, parts = task.loss(
            master.fast, data.take(indices, rng).bfloat16(), task.prepare(data, indices, step)
        )
        loss.backward()
        master.take_gradients()
        torch.nn.utils.clip_grad_norm_(task.net.parameters(), 1.0)
        for optimizer in opts:
            optimizer.step()
        master.push()
        step += 1
        if step % 25 == 0:
            log(
                step=step,
                loss=round(loss.item(), 4),
                pictures=len(data),
                recon=len(data.recon),
                **{k: round(v, 4) for k, v in parts.items()},
            )
        if step % 100 == 0 or step == args.steps:
            data.refresh()
            save_state(
                state_path,
                net=task.net.state_dict(),
                optimizers=[o.state_dict() for o in opts],
                step=step,
                seconds=log.seconds,
            )
    export(task, args.which, folder)


if __name__ == "__main__":
    main()
