"""Pretrain the nano base: `python experiments/nano_base/train_base.py DATA VQ OUT`.

Next-code cross-entropy on the image positions of Lumina-mGPT's sequence. One prompt in ten is dropped, so
that only the begin-of-image token is left of it. Muon for the matrices of the blocks, Adam for the rest.
The learning rate is constant after a warm-up, and an exponential moving average of the weights is evaluated
and exported every ten minutes, so that training can stop at any time and continue with the same command.

`[V]` in a caption stands for one individual, `[W]` for the second one. During training their embedding is a
linear map of the individual's parameters. The map is trained too and discarded afterwards. It plays the role
of the many proper names in a web-scale data set, so that one embedding can represent one appearance. The
individuals that serve as subjects are never used in training.

`--start FOLDER` continues from a trained base. Its tokens, image codes and number of layers may differ: see
`grow_base.py`.
"""

import argparse
import copy
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from grow_base import grow
from pictures import Log, Master, Shards, descend, peak_rates, save_state, set_rates, share_machine
from safetensors.torch import save_file
from torch import Tensor, nn
from train_vq import load_vq
from training_pictures import IDENTIFIER, SECOND_IDENTIFIER

from personalar.config.model_config import ProtocolConfig
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.chameleon.tokenizer import Tokenizer, build_tokenizer
from personalar.models.chameleon.transformer import ChameleonTransformer, TransformerConfig
from personalar.models.network.vq import VQModel

IDENTITY_SIZE = 26
PROMPT_DROP = 0.10
WARMUP, AVERAGE = 100, 0.998
REPORT, CHECK, SAVE_SECONDS = 50, 250, 600


def make_tokenizer(captions: list[str], size: int, codes: int, path: Path) -> Tokenizer:
    """Byte-level BPE over the captions in their wrapper, image codes, 128 reserved ids for concepts."""
    if not path.exists():
        wrapper = ProtocolConfig().prompt_template
        texts = [wrapper.format(width=s, height=s, prompt=c) for s in (size, 128) for c in captions[:20000]]
        words = ["photo", "picture", "image", "rendition", "close-up", "good", "clean", "small", "nice"]
        words += ["cropped", "bright", "dark", "the", "my", "one", "of", "it", "cool", "weird"]
        build_tokenizer(
            texts + words * 200, num_codes=codes, max_grids=32, num_concept_ids=128, vocab_size=codes + 1024
        ).save(str(path))
    return Tokenizer.from_file(path)


@torch.no_grad()
def encode_all(vq: VQModel, shards: Shards, folder: Path) -> np.ndarray:
    """Codes (N, h*w) int16 of every picture, cached per shard in `folder`."""
    parts = []
    for source, pictures in zip(shards.paths, shards.arrays, strict=True):
        path = folder / f"codes_{source.name}"
        if not path.exists():
            rows = []
            for start in range(0, len(pictures), 100):
                x = (
                    torch.from_numpy(np.array(pictures[start : start + 100])).permute(0, 3, 1, 2).float()
                    / 127.5
                    - 1
                )
                rows.append(vq.encode(x).flatten(1).to(torch.int16))
            np.save(path, torch.cat(rows).numpy())
        parts.append(np.load(path))
    return np.concatenate(parts)


class Sequences:
    """Fixed-length training batches out of codes and captions."""

    def __init__(self, backend: ChameleonBackend, facts: list[dict], codes: np.ndarray) -> None:
        tokens = backend.tokenizer
        self.names = dict(zip((IDENTIFIER, SECOND_IDENTIFIER), tokens.concept_ids, strict=False))
        self.codes, self.tokens = codes, tokens
        self.prompts = [backend.prompt_ids(f["caption"], None, self.names) for f in facts]
        self.identity = np.zeros((len(facts), 2, IDENTITY_SIZE), np.float32)
        for row, fact in zip(self.identity, facts, strict=True):
            for which, identity in enumerate(fact["identities"]):
                row[which] = identity or 0
        # Neither the last newline nor EOI is ever an input that matters.
        grammar = backend.grammar(*backend.code_shape())[:-2]
        self.free = np.array([i for i, forced in enumerate(grammar) if forced is None])
        self.image = np.array([0 if forced is None else forced for forced in grammar])
        self.length = max(map(len, self.prompts)) + len(grammar)

    def batch(self, rng: np.random.Generator, size: int, drop: float = PROMPT_DROP) -> dict[str, Tensor]:
        ids = np.full((size, self.length), self.tokens.pad)
        where = np.zeros((size, len(self.free)), np.int64)
        picks = rng.integers(0, len(self.prompts), size)
        for row, pick in enumerate(picks):
            prompt = [] if rng.uniform() < drop else self.prompts[pick]
            image = self.image.copy()
            image[self.free] = self.codes[pick].astype(np.int64) + self.tokens.code_offset
            ids[row, : len(prompt)] = prompt
            ids[row, len(prompt) : len(prompt) + len(image)] = image
            where[row] = len(prompt) + self.free - 1  # the position that predicts each code
        return {
            "ids": torch.from_numpy(ids),
            "where": torch.from_numpy(where),
            "target": torch.from_numpy(self.codes[picks].astype(np.int64)),
            "identity": torch.from_numpy(self.identity[picks]),
        }


class Base(nn.Module):
    """The transformer and the throw-away map from an individual's parameters to its `[V]`."""

    def __init__(self, config: TransformerConfig, tokens: Tokenizer, codebook: Tensor) -> None:
        super().__init__()
        self.transformer = ChameleonTransformer(config)
        self.identify = nn.Linear(IDENTITY_SIZE, config.hidden_size)
        self.identifiers, self.rows = tokens.concept_ids[:2], tokens.image_rows
        generator = torch.Generator().manual_seed(0)
        self.transformer.init_weights(generator)
        nn.init.normal_(self.identify.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.identify.bias)
        # Codes that look alike start alike, at the input and at the output: the first nats come sooner.
        white = (codebook - codebook.mean(0)) / codebook.std(0)
        projection = (
            torch.randn(white.shape[1], config.hidden_size, generator=generator) / white.shape[1] ** 0.5
        )
        with torch.no_grad():
            self.transformer.model.embed_tokens.weight[self.rows] += 0.05 * white @ projection
            self.transformer.lm_head.weight[self.rows] += 0.02 * white @ projection

    def loss(self, ids: Tensor, where: Tensor, target: Tensor, identity: Tensor) -> Tensor:
        """Mean cross-entropy in nats per code."""
        embeds = self.transformer.embed(ids)
        names = self.identify(identity.to(embeds.dtype))  # (B, 2, C)
        for which, identifier in enumerate(self.identifiers):
            named = (ids == identifier)[..., None]
            embeds = torch.where(named, names[:, which : which + 1], embeds)
        hidden = self.transformer(embeds)
        chosen = hidden.gather(1, where[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = self.transformer.logits(chosen, self.rows)
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def optimizers(model: Base, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, Adam for the rest."""
    blocks = [p for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2 and "norm" not in n]
    taken = {id(p) for p in blocks}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [
        torch.optim.Muon(blocks, lr=lr, momentum=0.95, nesterov=True, weight_decay=0.01),
        torch.optim.Adam(rest, lr=lr / 8, betas=(0.9, 0.98)),
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("vq", type=Path, help="folder of train_vq.py")
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=Path, help="trained base to continue from, such as personalar/nano")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2, help="at most; fewer while cores are busy")
    return parser.parse_args()


def base_config(vocab_size: int, width: int, layers: int) -> TransformerConfig:
    """The nano's shape."""
    return TransformerConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=1024,
    )


class Training:
    """The model, its moving average and their optimizers."""

    def __init__(self, model: Base, lr: float) -> None:
        self.master, self.average = Master(model), copy.deepcopy(model)
        self.optimizers = optimizers(model, lr)
        self.peaks = peak_rates(self.optimizers)
        self.loss_fn = torch.compile(self.master.fast.loss)

    def resume(self, path: Path) -> tuple[int, float]:
        """Load what `save` wrote, if anything. Returns (steps, seconds) done so far."""
        if not path.exists():
            return 0, 0.0
        state = torch.load(path, weights_only=True)
        self.master.full.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, part in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(part)
        self.master.push()
        return state["step"], state["seconds"]

    def save(self, folder: Path, *, step: int, seconds: float) -> None:
        """Save the state that `resume` reads, and the average as float16 weights: `base/`, `identify`."""
        save_state(
            folder / "state.pt",
            model=self.master.full.state_dict(),
            average=self.average.state_dict(),
            optimizers=[optimizer.state_dict() for optimizer in self.optimizers],
            step=step,
            seconds=seconds,
        )
        half = {
            name: weight.half().contiguous() for name, weight in self.average.transformer.state_dict().items()
        }
        save_file(half, folder / "base" / "model.safetensors", {"format": "pt"})
        save_file(self.average.identify.state_dict(), folder / "identify.safetensors")

    def step(self, batch: dict[str, Tensor], step: int) -> float:
        """One update. Returns the loss in nats per code."""
        set_rates(self.optimizers, self.peaks, min(1.0, (step + 1) / WARMUP))
        loss = self.loss_fn(**batch)
        loss.backward()
        descend(self.master, self.optimizers)
        decay = min(AVERAGE, (step + 1) / (step + 10))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.master.full.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
        return loss.item()


def prepare(args: argparse.Namespace) -> tuple[Base, Sequences, Sequences]:
    """A fresh model, and the sequences to train it on and to check it with."""
    shards, heldout = Shards(args.data, "base"), Shards(args.data, "heldout")
    size = shards.arrays[0].shape[1]
    vq = load_vq(args.vq)
    (args.out / "base").mkdir(parents=True, exist_ok=True)
    tokenizer = args.out / "base" / "tokenizer.json"
    if args.start and load_vq(args.start / "vq").config == vq.config:
        shutil.copy(args.start / "base" / "tokenizer.json", tokenizer)
    captions, codes = [f["caption"] for f in shards.facts], vq.config.num_embeddings
    tokens = make_tokenizer(captions, size, codes, tokenizer)
    config = base_config(tokens.vocab_size, args.width, args.layers)
    model = Base(config, tokens, vq.quantize.embedding.weight.detach())
    layout = ProtocolConfig(grid_px=16, resolution=size, buckets="square")
    backend = ChameleonBackend(transformer=model.transformer, vq=vq, tokenizer=tokens, layout=layout)
    train, check = (
        Sequences(backend, part.facts, encode_all(vq, part, args.out)) for part in (shards, heldout)
    )
    if args.start and not (args.out / "state.pt").exists():
        grow(model, tokens, args.start, heldout, check.codes)
    return model, train, check


@torch.no_grad()
def heldout_loss(loss_fn: Callable[..., Tensor], check: Sequences, size: int) -> float:
    """Nats per code over twelve batches of held-out pictures, the same at every call."""
    rng = np.random.default_rng(1)
    return float(np.mean([loss_fn(**check.batch(rng, size, drop=0.0)).item() for _ in range(12)]))


def main() -> None:
    args = arguments()
    share_machine(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    model, train, check = prepare(args)
    training = Training(model, args.lr)
    step, already = training.resume(args.out / "state.pt")
    log, running, saved = Log(args.out / "log.jsonl", already), [], time.monotonic()
    while step < args.steps:
        running.append(training.step(train.batch(np.random.default_rng([7, step]), args.batch), step))
        step += 1
        if step % REPORT == 0:
            log(step=step, loss=round(float(np.mean(running)), 4), sequences=step * args.batch)
            running = []
            share_machine(args.threads)
        if step % CHECK == 0 or step == args.steps:
            log(step=step, heldout=round(heldout_loss(training.average.loss, check, args.batch), 4))
        if step == args.steps or time.monotonic() - saved > SAVE_SECONDS:
            training.save(args.out, step=step, seconds=log.seconds)
            saved = time.monotonic()


if __name__ == "__main__":
    main()
