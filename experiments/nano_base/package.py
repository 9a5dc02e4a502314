"""Put what was trained into the package.

`python experiments/nano_base/package.py VQ BASE SCORERS personalar/nano`.
float16 safetensors in Hugging Face folders; the throw-away map of `[V]` stays behind.
"""

import argparse
import shutil
from pathlib import Path

import torch
from train_base import base_config, load_vq

from personalar.models.backend import ChameleonBackend, save_backend
from personalar.models.protocol import ProtocolConfig
from personalar.models.tokenizer import Tokenizer
from personalar.models.transformer import ChameleonTransformer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vq", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("scorers", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=96)
    args = parser.parse_args()
    vq = load_vq(args.vq, args.size)
    tokens = Tokenizer.from_file(args.base / "tokenizer.json")
    state = torch.load(args.base / "state.pt", weights_only=True)["model"]
    weights = {k.removeprefix("transformer."): v for k, v in state.items() if k.startswith("transformer.")}
    width = weights["model.norm.weight"].shape[0]
    layers = 1 + max(int(k.split(".")[2]) for k in weights if k.startswith("model.layers."))
    transformer = ChameleonTransformer(base_config(tokens.vocab_size, width, layers))
    transformer.load_state_dict(weights)
    protocol = ProtocolConfig(grid_px=16, resolution=args.size, buckets="square")
    save_backend(
        ChameleonBackend(transformer=transformer, vq=vq, tokenizer=tokens, protocol=protocol), args.out
    )
    for which in ("clip", "dino"):
        if (args.scorers / which / "model.safetensors").exists():
            shutil.copytree(args.scorers / which, args.out / which, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
