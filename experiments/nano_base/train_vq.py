"""Train the nano base's image tokenizer: `python experiments/nano_base/train_vq.py DATA OUT --steps 20000`.

From scratch, the first steps train an autoencoder without quantisation. Then k-means gives the codebook,
which is updated by exponential averages, and dead codes are restarted. `--start FOLDER` continues from a
trained tokenizer; another number of `--codes` is found by k-means on its latents. With `--decoder-only` the
codes stay the same, so a transformer that was trained on them can still be used.

The learning rate is constant after the warm-up, and the exponential average of the weights is evaluated and
exported, so training can be stopped and continued at any time. The state is saved every five minutes, and the
script resumes from it.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pictures import WORKING, Log, Master, Shards, save_state, share_machine
from safetensors.torch import load_file, save_file
from torch import Tensor
from vq_codebook import MovingCodebook, k_means
from vq_losses import Discriminator, InstanceJudge, gradient_energy, reconstruction_loss
from vq_optimizer import ConvolutionMuon

from personalar.models.network.vq import VQConfig, VQModel

WARMUP, PLAIN_STEPS, AVERAGE = 60, 120, 0.999
REPORT, CHECK, CHECKED, SAVE_SECONDS = 50, 500, 200, 300
JUDGE = Path(__file__).resolve().parents[2] / "personalar" / "nano" / "dino"


def nano_vq(size: int, codes: int) -> VQConfig:
    """Return the sizes of the nano tokenizer: patches of 4 x 4 pixels, and 8 x 8 pixels per code."""
    return VQConfig(
        embed_dim=32,
        num_embeddings=codes,
        latent_channels=32,
        resolution=size,
        base_channels=64,
        channel_multiplier=(1, 2),
        num_res_blocks=2,
        patch_size=4,
    )


def load_vq(folder: Path) -> VQModel:
    """Return the tokenizer that `export` wrote, in float32."""
    model = VQModel(VQConfig.from_hf(json.loads((folder / "config.json").read_text()))).eval()
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
    return model


def export(model: VQModel, folder: Path) -> None:
    """Write config.json and float16 weights for the following scripts."""
    (folder / "config.json").write_text(json.dumps(model.config.to_hf(), indent=2) + "\n")
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def pixels(shards: Shards, indices) -> Tensor:
    """Return pictures (B, 3, H, W) in [-1, 1]."""
    return shards.pictures(indices).float() / 127.5 - 1


@torch.no_grad()
def standardise(model: VQModel, x: Tensor) -> None:
    """Scale the latents of an untrained model to a standard deviation of 1.

    Otherwise a step moves latents further than the distance between codes, and the codebook collapses.
    """
    model.quant_conv.weight.mul_(1 / model.encode_latents(x).std())


@torch.no_grad()
def grow(model: VQModel, found: VQModel) -> None:
    """Load the weights of another tokenizer; additional blocks start as the identity.

    If it has another number of codes, the codebook is not loaded; see `recode`.
    """
    weights = found.state_dict()
    if found.config.num_embeddings != model.config.num_embeddings:
        del weights["quantize.embedding.weight"]
    fresh = model.load_state_dict(weights, strict=False).missing_keys
    for name in fresh:
        if ".conv2." in name:
            model.get_parameter(name).zero_()


@torch.no_grad()
def recode(model: VQModel, shards: Shards, count: int = 320) -> None:
    """Set the codebook by k-means on the latents of pictures from all shards."""
    picks = np.linspace(0, len(shards) - 1, count).astype(int)
    parts = [model.encode_latents(pixels(shards, picks[i : i + 40])) for i in range(0, count, 40)]
    points = torch.cat(parts).permute(0, 2, 3, 1).flatten(0, 2)
    table = model.quantize.embedding.weight
    table.copy_(k_means(points, len(table), torch.Generator().manual_seed(0)))


@torch.no_grad()
def evaluate(model: VQModel, judge: InstanceJudge, shards: Shards, picks: np.ndarray) -> dict:
    """Return the quality on the pictures with the indices `picks`.

    psnr: dB, mean over pictures. sharpness: gradient energy relative to that of the originals. judge: cosine
    similarity of the scorer's features of a picture and its reconstruction. codes_used: share of the
    codebook.
    perplexity: effective number of codes.
    """
    psnr, energy, likeness = [], [], []
    used = torch.zeros(model.config.num_embeddings)
    for start in range(0, len(picks), 50):
        x = pixels(shards, picks[start : start + 50])
        codes = model.encode(x)
        used += torch.bincount(codes.flatten(), minlength=len(used))
        out = model.decode(codes)
        psnr.append(-10 * ((out - x) / 2).square().mean((1, 2, 3)).log10())
        energy.append(torch.stack((gradient_energy(out), gradient_energy(x))))
        likeness.append(judge.likeness(out, x))
    share, (made, real) = used / used.sum(), torch.cat(energy, 1).mean(1)
    return {
        "psnr": round(float(torch.cat(psnr).mean()), 3),
        "sharpness": round(float(made / real), 4),
        "judge": round(float(torch.cat(likeness).mean()), 4),
        "codes_used": round(float((used > 0).float().mean()), 4),
        "perplexity": round(float(torch.exp(-(share * (share + 1e-9).log()).sum())), 1),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=Path, help="tokenizer to continue from, such as personalar/nano/vq")
    parser.add_argument("--decoder-only", action="store_true", help="with --start: keep encoder and codebook")
    parser.add_argument("--codes", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--perceptual", type=float, default=1.0, help="weight of the judge's features")
    parser.add_argument("--adversarial", type=float, default=0.1, help="weight of the discriminator")
    parser.add_argument("--adversarial-from", type=int, default=1000, help="its first step")
    parser.add_argument("--threads", type=int, default=2, help="at most; fewer while cores are busy")
    return parser.parse_args()


class Training:
    """The model with its codebook, moving average, losses and optimizers."""

    def __init__(self, model: VQModel, args: argparse.Namespace) -> None:
        self.args, self.plain_steps = args, 0 if args.start else PLAIN_STEPS
        self.model, self.master = model, Master(model)
        self.average = VQModel(model.config).eval()
        self.average.load_state_dict(model.state_dict())
        # Weight decay also moves parameters without a gradient, so the optimizer does not get frozen ones.
        frozen = ("quantize.", "encoder.", "quant_conv.") if args.decoder_only else ("quantize.",)
        trained = [(n, p) for n, p in model.named_parameters() if not n.startswith(frozen)]
        self.optimizer = ConvolutionMuon(trained, args.lr)
        self.judge, self.critic = InstanceJudge(JUDGE), Discriminator()
        self.critic_optimizer = torch.optim.AdamW(self.critic.parameters(), lr=args.lr, betas=(0.5, 0.95))
        self.book = MovingCodebook(model.quantize.embedding.weight.data)
        self.recent: list[Tensor] = []  # latents of the last plain steps, for k-means

    def resume(self, path: Path) -> tuple[int, float]:
        """Load the state that `save` wrote, if it exists; return the steps and seconds so far."""
        if not path.exists():
            return 0, 0.0
        state = torch.load(path, weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.book.counts, self.book.sums = state["counts"], state["sums"]
        self.master.push()
        return state["step"], state["seconds"]

    def _parts(self) -> dict:
        names = ("model", "average", "optimizer", "critic", "critic_optimizer")
        return {name: getattr(self, name) for name in names}

    def save(self, path: Path, *, step: int, seconds: float) -> None:
        """Save the state for `resume`."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        book = {"counts": self.book.counts, "sums": self.book.sums}
        save_state(path, **parts, **book, step=step, seconds=seconds)

    def quantise(self, latents: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the latents for the decoder and the commitment loss; initialise or update the codebook."""
        generator = torch.Generator().manual_seed(step)
        flat = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
        if step < self.plain_steps:
            self.recent = [*self.recent[-8:], flat.detach()]
            return latents, torch.zeros(())
        if self.plain_steps and step == self.plain_steps:
            points = torch.cat([*self.recent, flat.detach()])
            self.book.restart(k_means(points, len(self.book.table), generator))
            self.recent = []
        codes = self.model.quantize.nearest(latents.detach()).flatten()
        chosen = self.book.table[codes]
        # Relative to the variance: an absolute loss would dominate as soon as the latents grow.
        commit = F.mse_loss(flat, chosen) / flat.detach().var()
        straight = flat + (chosen - flat).detach()
        quantised = straight.view(*latents.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        self.book.update(flat.detach(), codes, generator)
        return quantised, commit

    def latents(self, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the quantised latents and the commitment loss of pictures."""
        if self.args.decoder_only:
            with torch.no_grad():
                return self.model.lookup(self.model.encode(x)), torch.zeros(())
        return self.quantise(self.master.fast.encode_latents(x.to(WORKING)).float(), step)

    def step(self, x: Tensor, step: int) -> dict[str, float]:
        """Update once on pictures (B, 3, H, W) in [-1, 1]; return the losses for the log."""
        self.optimizer.set_rate(self.args.lr * min(1, (step + 1) / WARMUP))
        # Not compiled: with torch 2.13 on a CPU the compiled encoder collapsed when the codebook was added.
        # Not channels_last: bfloat16 group norms of few channels then take a third of the step.
        quantised, commit = self.latents(x, step)
        out = self.master.fast.decode_latents(quantised.to(WORKING)).float()
        parts = {"pixels": reconstruction_loss(out, x), "commit": commit, "judge": self.judge.loss(out, x)}
        loss = parts["pixels"] + 0.25 * commit + self.args.perceptual * parts["judge"]
        adversarial = self.args.adversarial > 0 and step >= self.args.adversarial_from
        if adversarial:
            loss = loss - self.args.adversarial * self.critic(out).mean()
        loss.backward()
        self.master.take_gradients()
        self.model.quantize.embedding.weight.grad = None
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.master.push()
        self._follow(step)
        if adversarial:
            self.critic_optimizer.zero_grad()
            parts["critic"] = self.critic.loss(x, out)
            parts["critic"].backward()
            self.critic_optimizer.step()
        return {name: part.item() for name, part in parts.items()}

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        decay = min(AVERAGE, (step + 1) / (step + 10))
        for mean, now in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)


def prepare(args: argparse.Namespace, shards: Shards) -> VQModel:
    """Return the initial model: untrained, or that of `--start`."""
    size = shards.arrays[0].shape[1]
    if not args.start:
        model = VQModel(nano_vq(size, args.codes))
        standardise(model, pixels(shards, range(32)))
        return model
    found, model = load_vq(args.start), VQModel(nano_vq(size, args.codes))
    grow(model, found)
    if found.config.num_embeddings != args.codes and not (args.out / "state.pt").exists():
        recode(model, shards)
    return model


def main() -> None:
    args = arguments()
    share_machine(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    shards, heldout = Shards(args.data, "base"), Shards(args.data, "heldout")
    training, state_path = Training(prepare(args, shards), args), args.out / "state.pt"
    step, already = training.resume(state_path)
    log, recent, saved = Log(args.out / "log.jsonl", already), [], time.monotonic()
    while step < args.steps:
        share_machine(args.threads)
        rng = np.random.default_rng([5, step])
        recent.append(training.step(pixels(shards, rng.integers(0, len(shards), args.batch)), step))
        step += 1
        if step % REPORT == 0:
            means = {k: round(float(np.mean([parts[k] for parts in recent])), 4) for k in recent[0]}
            log(step=step, **means, pictures=len(shards))
            recent = []
            shards.refresh()
        if step == args.steps or step % CHECK == 0:
            log(step=step, **evaluate(training.average, training.judge, heldout, np.arange(CHECKED)))
        if step in (1, args.steps) or time.monotonic() - saved > SAVE_SECONDS:
            training.save(state_path, step=step, seconds=log.seconds)
            export(training.average, args.out)
            saved = time.monotonic()


if __name__ == "__main__":
    main()
