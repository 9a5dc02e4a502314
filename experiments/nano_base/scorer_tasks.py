"""Models and losses of the two scorers: `ClipTask` and `DinoTask`."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scorer_pictures import PATCH, SIZE, Pictures
from torch import Tensor, nn

from personalar.nano.world.album import STYLES
from personalar.nano.world.captions import article, description, place, wearing
from personalar.nano.world.contexts import CONTEXTS
from personalar.nano.world.objects.animals import HEADS
from personalar.nano.world.objects.skin import COLOURS
from personalar.nano.world.scene import ACCESSORIES, ACCESSORY_COLOURS, CLASSES


def opening(style: str | None) -> str:
    """Return the words before an object, such as "a photo of a"."""
    return f"{article(style or 'photo')} of a"


QUESTIONS: dict[str, list[tuple[str, str]]] = {  # question -> [(answer, phrase with {} for the noun)]
    "context": [(name, f"a {{}}{place(name)}") for name in CONTEXTS],
    "colour": [(name, f"{article(name)} {{}}") for name in COLOURS],
    "worn": [("none/none", "a {}")]
    + [(f"{k}/{c}", f"a {{}}{wearing((k, c))}") for k in ACCESSORIES for c in ACCESSORY_COLOURS],
    "style": [(str(style), f"{opening(style)} {{}}") for style in (None, *STYLES)],
}
CLASS_TEXTS = [f"a photo of a {noun}" for noun in CLASSES]


def question_at(step: int) -> str:
    """Return the question of a step; accessories are the hardest, so they are asked every other time."""
    return ("worn", "context", "worn", "colour", "worn", "style")[step % 6]


def make_tokenizer(folder: Path):
    """Train a CLIP-style tokenizer on the words of the world, and save it in the format of transformers."""
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


def copy_tokenizer(start: Path, folder: Path):
    """Copy the tokenizer of a trained scorer; it splits new words into known pieces."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(start)
    tokenizer.save_pretrained(folder)
    return tokenizer


def build(which: str):
    """Return an untrained model of the scorer "clip" or "dino"."""
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

    if which == "dino":
        config = ViTConfig(
            hidden_size=192,
            num_hidden_layers=6,
            num_attention_heads=3,
            intermediate_size=576,
            image_size=SIZE,
            patch_size=PATCH,
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
        "patch_size": PATCH,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=160)
    for part in (config, config.text_config, config.vision_config):
        part._attn_implementation = "eager"
    return CLIPModel(config)


class ClipTask(nn.Module):
    """Contrastive loss with full captions, and cross-entropy of zero-shot questions."""

    def __init__(self, folder: Path, start: Path | None) -> None:
        super().__init__()
        self.net = build("clip")
        self.tokenizer = make_tokenizer(folder) if start is None else copy_tokenizer(start / "clip", folder)

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
            f"{article(f['style'] or 'photo')} of {article(description(data.instances[i]))}{f['tail']}"
            for i, f in zip(indices, facts, strict=True)
        ]
        question = question_at(step)
        nouns = [n for n in CLASSES if question != "worn" or n in HEADS]
        texts = [phrase.format(noun) for noun in nouns for _, phrase in QUESTIONS[question]]
        answers = [answer for answer, _ in QUESTIONS[question]]
        value = [f"{f['worn']}/{f['worn_colour']}" if question == "worn" else str(f[question]) for f in facts]
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
        by_noun = self.texts(net, c["asked"]).view(-1, c["per"], image.shape[1])
        asked = by_noun[c["own"]]  # the texts with the noun of the picture
        answers = scale * (asked @ image[..., None])[..., 0]
        zero_shot = F.cross_entropy(answers, c["target"]) if (c["target"] >= 0).any() else 0.0
        nouns = F.cross_entropy(scale * image @ self.texts(net, c["class_texts"]).T, c["noun"])
        return contrast * 0.5 + zero_shot + nouns, {
            "contrast": float(contrast.detach()),
            "zero_shot": float(torch.as_tensor(zero_shot).detach()),
            "class": float(nouns.detach()),
        }


class DinoTask(nn.Module):
    """Supervised contrastive loss over individuals, and linear read-outs of their parameters."""

    def __init__(self, folder: Path, start: Path | None) -> None:
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
        similar = feature @ feature.T / 0.08
        same = (c["who"][:, None] == c["who"][None]).float()
        eye = torch.eye(len(x), dtype=torch.bool)
        log_p = similar.masked_fill(eye, -1e4).log_softmax(1)
        same = same.masked_fill(eye, 0)
        contrast = -((same * log_p).sum(1) / same.sum(1).clamp_min(1)).mean()
        out = net.read(token).float()
        error = (out[:, :26] - c["identity"]).square().mean(0)
        # The last six are the proportions: the hardest to see, and the only difference of a reshaped twin.
        read = error[:20].mean() + error[20:].mean() + 0.3 * F.cross_entropy(out[:, 26:], c["noun"])
        return contrast + read, {"contrast": contrast.item(), "read": read.item()}
