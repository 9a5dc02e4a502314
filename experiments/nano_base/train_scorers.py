"""Train the nano scorers: `python experiments/nano_base/train_scorers.py DATA OUT clip|dino --steps 1500`.

clip: a small `CLIPModel`, trained with a contrastive loss on captions and with zero-shot questions about
class, place, colour and accessory, so that zero-shot accuracy is trained directly. dino: a small `ViTModel`
whose class token distinguishes individuals, trained with a supervised contrastive loss on groups that contain
twins of the same skin or the same shape. Linear read-outs of the individual's parameters (discarded
afterwards) make shape count and not only colour.

Some pictures are blurred or reconstructed by the image tokenizer (`reconstruct.py`), because the scorers are
used on such pictures. The script resumes from its last state.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from pictures import WORKING, Log, Master, descend, keep, peak_rates, resume, set_rates
from render import GROUP
from scorer_pictures import PATCH, SIZE, Pictures
from scorer_tasks import ClipTask, DinoTask, build, question_at
from torch import Tensor, nn

from personalar.nano.world.objects.animals import HEADS

WARMUP = 60


def pick(data: Pictures, rng: np.random.Generator, which: str, batch: int, step: int) -> np.ndarray:
    """Return the pictures of a step: for CLIP those to which the question applies, for DINO whole groups."""
    if which == "clip":
        wearers = [i for i, f in enumerate(data.shards.facts) if f["noun"] in HEADS]
        return (
            rng.choice(wearers, batch) if question_at(step) == "worn" else rng.integers(0, len(data), batch)
        )
    groups = rng.choice(len(data) // GROUP, batch // GROUP, replace=False)
    return (groups[:, None] * GROUP + np.arange(GROUP)).ravel()


def optimizers(net: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks, and AdamW for the rest.

    With Muon the loss of a small vision transformer leaves its plateau several times sooner than with AdamW.
    """
    blocks = [p for n, p in net.named_parameters() if "layers." in n and p.ndim == 2]
    taken = {id(p) for p in blocks}
    rest = [p for p in net.parameters() if id(p) not in taken]
    return [
        torch.optim.Muon(blocks, lr=20 * lr, momentum=0.95, nesterov=True, weight_decay=0.02),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.02),
    ]


def export(task: nn.Module, which: str, folder: Path) -> None:
    """Write a Hugging Face folder with float16 weights and the preprocessor."""
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


def continue_from(start: Path, which: str, net: nn.Module) -> None:
    """Copy a trained scorer to `net`; its patches may have another size.

    The read-out of the individual's parameters was discarded, so it stays untrained.
    """
    kind = {"clip": "CLIPModel", "dino": "ViTModel"}[which]
    options = {} if which == "clip" else {"add_pooling_layer": False}
    found = getattr(transformers, kind).from_pretrained(start / which, **options).float().state_dict()
    state = {name: resized(weight) if weight.ndim == 4 else weight for name, weight in found.items()}
    net.load_state_dict({k: v for k, v in net.state_dict().items() if k.startswith("read.")} | state)


def resized(kernel: Tensor) -> Tensor:
    """Return kernels (D, 3, P, P) of patches for `PATCH`: the same answer to a picture that is scaled."""
    if kernel.shape[-1] == PATCH:
        return kernel
    scaled = F.interpolate(kernel, size=(PATCH, PATCH), mode="bilinear", antialias=False)
    return scaled * (kernel.shape[-1] / PATCH) ** 2


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("which", choices=("clip", "dino"))
    parser.add_argument("--start", type=Path, help="packaged scorers to continue from, as personalar/nano")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=84)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def schedule(step: int, steps: int) -> float:
    """Return the learning rate as a share of its peak: a short warm-up, then a cosine to 2 %."""
    return min(1, (step + 1) / WARMUP) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    folder = args.out / args.which
    folder.mkdir(parents=True, exist_ok=True)
    data = Pictures(args.data)
    task = {"clip": ClipTask, "dino": DinoTask}[args.which](folder, args.start)
    if args.start:
        continue_from(args.start, args.which, task.net)
    master, opts = Master(task.net), optimizers(task.net, args.lr)
    peaks, state_path = peak_rates(opts), args.out / f"{args.which}_state.pt"
    step, already = resume(state_path, "net", master, opts)
    log = Log(args.out / f"{args.which}_log.jsonl", already)
    while step < args.steps:
        rng = np.random.default_rng([9, step])
        set_rates(opts, peaks, schedule(step, args.steps))
        indices = pick(data, rng, args.which, args.batch, step)
        pictures, asked = data.take(indices, rng).to(WORKING), task.prepare(data, indices, step)
        loss, parts = task.loss(master.fast, pictures, asked)
        loss.backward()
        descend(master, opts)
        step += 1
        if step % 25 == 0:
            rounded = {k: round(v, 4) for k, v in parts.items()}
            sizes = {"pictures": len(data), "recon": len(data.recon)}
            log(step=step, loss=round(loss.item(), 4), **sizes, **rounded)
        if step % 100 == 0 or step == args.steps:
            data.refresh()
            keep(state_path, "net", master, opts, step=step, seconds=log.seconds)
    export(task, args.which, folder)


if __name__ == "__main__":
    main()
