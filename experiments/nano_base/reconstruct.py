"""Pass scorer pictures through the image tokenizer.

`python experiments/nano_base/reconstruct.py DATA VQ --shards 0:6`. A finished shard is skipped.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from train_vq import nano_vq

from personalar.models.chameleon.vq import VQModel


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("vq", type=Path)
    parser.add_argument("--shards", default="0:6")
    parser.add_argument("--kind", default="scorer")
    args = parser.parse_args()
    torch.set_num_threads(1)
    state = load_file(args.vq / "model.safetensors")
    vq = VQModel(nano_vq(96, state["encoder.conv_in.weight"].shape[0])).eval()
    vq.load_state_dict(state)
    vq = vq.to(memory_format=torch.channels_last)
    for number in range(*map(int, args.shards.split(":"))):
        source = np.load(args.data / f"{args.kind}_{number:03d}.npy", mmap_mode="r")
        target = args.data / f"{args.kind}_recon_{number:03d}.npy"
        if target.exists():
            continue
        parts = []
        for start in range(0, len(source), 95):
            x = torch.from_numpy(source[start : start + 95].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
            out = vq.decode(vq.encode(x.to(memory_format=torch.channels_last)))
            parts.append(((out + 1) / 2 * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())
        temporary = target.with_suffix(".tmp.npy")
        np.save(temporary, np.concatenate(parts))
        os.replace(temporary, target)
        print(target, flush=True)


if __name__ == "__main__":
    main()
