"""Train the nano base's image tokenizer: `python experiments/nano_base/train_vq.py DATA OUT --steps 2200`.

A plain autoencoder for the first steps; then k-means gives the codebook, which follows by exponential
averages with dead codes restarted. Loss: L1 + 4 MSE + 0.6 gradient L1 + 0.25 relative commitment, pixels in
[-1, 1]. Resumes by itself.

`--start FOLDER` goes on from a trained tokenizer; with `--decoder-only` its codes stay what they are, and a
transformer that was trained on them stays good.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pictures import Log, Master, Shards, save_state
from safetensors.torch import load_file, save_file

from personalar.models.chameleon.vq import VQConfig, VQModel

WARMUP, PLAIN_STEPS, DECAY = 60, 120, 0.98


def nano_vq(size: int, base: int) -> VQConfig:
    return VQConfig(
        embed_dim=32,
        num_embeddings=1024,
        latent_channels=32,
        resolution=size,
        in_channels=48,
        base_channels=base,
        channel_multiplier=(1, 2),
        num_res_blocks=1,
        patch_size=4,
    )


def k_means(points: torch.Tensor, count: int, generator: torch.Generator, rounds: int = 8) -> torch.Tensor:
    centres = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    for _ in range(rounds):
        nearest = torch.cdist(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = torch.bincount(nearest, minlength=count)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
    return centres


class MovingCodebook:
    """Codebook rows as exponential averages of the latents that chose them."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table, self.counts, self.sums = table, torch.ones(len(table)), table.clone()

    def restart(self, table: torch.Tensor) -> None:
        """Begin from the given rows."""
        self.table.copy_(table)
        self.sums, self.counts = self.table.clone(), torch.ones(len(self.table))

    def update(self, points: torch.Tensor, codes: torch.Tensor, generator: torch.Generator) -> None:
        counts = torch.bincount(codes, minlength=len(self.table)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, codes, points)
        self.counts.mul_(DECAY).add_(counts, alpha=1 - DECAY)
        self.sums.mul_(DECAY).add_(sums, alpha=1 - DECAY)
        dead = self.counts < 0.2
        if dead.any():
            pick = torch.randint(len(points), (int(dead.sum()),), generator=generator)
            self.sums[dead], self.counts[dead] = points[pick], 1.0
        self.table.copy_(self.sums / self.counts[:, None].clamp_min(1e-4))


def reconstruction_loss(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    error = out - target
    dx, dy = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    return error.abs().mean() + 4 * error.square().mean() + 0.6 * (dx.abs().mean() + dy.abs().mean())


@torch.no_grad()
def standardise(model: VQModel, x: torch.Tensor) -> None:
    """Give fresh latents unit scale.

    Without it a step moves them further than codes lie apart, and the book collapses.
    """
    latents = model.encode_latents(x)
    model.quant_conv.weight.mul_(1 / latents.std())


@torch.no_grad()
def evaluate(model: VQModel, shards: Shards, count: int) -> dict:
    """PSNR (dB, mean over pictures) and share of codes used on held-out pictures."""
    total, used = 0.0, torch.zeros(model.config.num_embeddings)
    for start in range(0, count, 50):
        x = shards.pictures(range(start, start + 50)).float() / 127.5 - 1
        codes = model.encode(x)
        used += torch.bincount(codes.flatten(), minlength=len(used))
        mse = ((model.decode(codes) - x) / 2).square().mean((1, 2, 3))
        total += float((-10 * mse.log10()).sum())
    share = used / used.sum()
    return {
        "psnr": round(total / count, 3),
        "codes_used": float((used > 0).float().mean()),
        "perplexity": round(float(torch.exp(-(share * (share + 1e-9).log()).sum())), 1),
    }


def export(model: VQModel, folder: Path) -> None:
    """Write config.json and float16 weights: what everything after this uses."""
    (folder / "config.json").write_text(json.dumps(model.config.to_hf(), indent=2) + "\n")
    save_file(
        {k: v.half().contiguous() for k, v in model.state_dict().items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=Path, help="trained tokenizer to go on from, as personalar/nano/vq")
    parser.add_argument("--decoder-only", action="store_true", help="with --start: keep encoder and codebook")
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--base", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def rate(peak: float, step: int, steps: int) -> float:
    """The learning rate: a short warm-up, then a cosine to 2 % of the peak."""
    return peak * min(1, (step + 1) / WARMUP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step / steps))))


class Training:
    """The model with its codebook and optimizer, and what they are saved as."""

    def __init__(self, model: VQModel, lr: float, *, plain_steps: int, frozen_codes: bool = False) -> None:
        self.plain_steps, self.frozen_codes = plain_steps, frozen_codes
        self.model, self.master = model, Master(model)
        # Weight decay moves what gets no gradient, so frozen parts must not be the optimizer's.
        decodes = ("decoder.", "post_quant_conv.")
        trained = [p for n, p in model.named_parameters() if not frozen_codes or n.startswith(decodes)]
        self.optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.95), weight_decay=1e-4)
        self.book = MovingCodebook(model.quantize.embedding.weight.data)
        self.recent: list[torch.Tensor] = []  # latents of the last plain steps, for k-means

    def resume(self, path: Path) -> tuple[int, float]:
        """Load what `save` wrote, if anything: (steps, seconds) done so far."""
        if not path.exists():
            return 0, 0.0
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.book.counts, self.book.sums = state["counts"], state["sums"]
        self.book.table = self.model.quantize.embedding.weight.data
        self.master.push()
        return state["step"], state["seconds"]

    def save(self, path: Path, *, step: int, seconds: float) -> None:
        """Save weights, optimizer and the codebook's averages."""
        save_state(
            path,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            counts=self.book.counts,
            sums=self.book.sums,
            step=step,
            seconds=seconds,
        )

    def quantise(self, latents: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(latents as the decoder gets them, commitment); the codebook begins and follows here."""
        generator = torch.Generator().manual_seed(step)
        flat = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
        if step < self.plain_steps:
            self.recent = [*self.recent[-5:], flat.detach()]
            return latents, torch.zeros(())
        if self.plain_steps and step == self.plain_steps:
            points = torch.cat([*self.recent, flat.detach()])
            self.book.restart(k_means(points, len(self.book.table), generator))
            self.recent = []
        codes = self.model.quantize.nearest(latents.detach()).flatten()
        chosen = self.book.table[codes]
        # Relative to the latents' spread: an absolute pull outweighs the pictures as soon as latents grow.
        commit = F.mse_loss(flat, chosen) / flat.detach().var()
        straight = flat + (chosen - flat).detach()
        quantised = straight.view(*latents.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        self.book.update(flat.detach(), codes, generator)
        return quantised, commit

    def step(self, x: torch.Tensor, step: int, lr: float) -> tuple[float, float]:
        """One update on pictures (B, 3, H, W) in [-1, 1]: (loss, commitment)."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # Not compiled: under torch 2.13 on CPU the compiled encoder collapsed once the codebook joined in.
        fast, layout = self.master.fast, torch.channels_last
        if self.frozen_codes:
            with torch.no_grad():
                quantised, commit = self.model.lookup(self.model.encode(x)), torch.zeros(())
        else:
            latents = fast.encode_latents(x.bfloat16().to(memory_format=layout)).float()
            quantised, commit = self.quantise(latents, step)
        out = fast.decode_latents(quantised.bfloat16().contiguous(memory_format=layout)).float()
        loss = reconstruction_loss(out, x) + 0.25 * commit
        loss.backward()
        self.master.take_gradients()
        self.model.quantize.embedding.weight.grad = None
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.master.push()
        return loss.item(), commit.item()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    shards, heldout = Shards(args.data, "base"), Shards(args.data, "heldout")
    model = VQModel(nano_vq(shards.arrays[0].shape[1], args.base)).to(memory_format=torch.channels_last)
    if args.start:
        model.load_state_dict({k: v.float() for k, v in load_file(args.start / "model.safetensors").items()})
    else:
        standardise(model, shards.pictures(range(32)).float() / 127.5 - 1)
    training, state_path = (
        Training(
            model, args.lr, plain_steps=0 if args.start else PLAIN_STEPS, frozen_codes=args.decoder_only
        ),
        args.out / "state.pt",
    )
    step, already = training.resume(state_path)
    log = Log(args.out / "log.jsonl", already)
    while step < args.steps:
        rng = np.random.default_rng([5, step])
        lr = rate(args.lr, step, args.steps)
        x = shards.pictures(rng.integers(0, len(shards), args.batch)).float() / 127.5 - 1
        loss, commit = training.step(x, step, lr)
        step += 1
        if step % 50 == 0:
            values = {"loss": round(loss, 4), "commit": round(commit, 4), "lr": round(lr, 6)}
            log(step=step, **values, pictures=len(shards))
            shards.refresh()
        if step == 200 or step % 250 == 0 or step == args.steps:
            log(step=step, **evaluate(model, heldout, 200))
            training.save(state_path, step=step, seconds=log.seconds)
    export(model, args.out)


if __name__ == "__main__":
    main()
