"""Copy trained weights to the package.

`python experiments/nano_base/package.py VQ BASE SCORERS personalar/nano`.
It writes float16 safetensors in Hugging Face folders. The linear map of `[V]` is not copied. Instead the
reserved ids get the embeddings of random individuals, which serve as initial values for a new `[V]`.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from train_base import base_config
from train_vq import load_vq
from training_pictures import caption_words, identity_vector

from personalar.config.model_config import ProtocolConfig
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.chameleon.serialization import save_backend
from personalar.models.chameleon.tokenizer import Tokenizer
from personalar.models.chameleon.transformer import ChameleonTransformer
from personalar.nano.world.scene import CLASSES, sample_instance


def random_identities(count: int) -> torch.Tensor:
    """Return the parameters (count, 26) of individuals that are in no training picture."""
    rng = np.random.default_rng(15)
    drawn = [identity_vector(sample_instance(str(rng.choice(CLASSES)), rng)) for _ in range(count)]
    return torch.from_numpy(np.stack(drawn))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vq", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("scorers", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    vq = load_vq(args.vq)
    size = vq.config.resolution
    tokens = Tokenizer.from_file(args.base / "base" / "tokenizer.json")
    state = torch.load(args.base / "state.pt", weights_only=True)["average"]
    weights = {k.removeprefix("transformer."): v for k, v in state.items() if k.startswith("transformer.")}
    width = weights["model.norm.weight"].shape[0]
    layers = 1 + max(int(k.split(".")[2]) for k in weights if k.startswith("model.layers."))
    transformer = ChameleonTransformer(base_config(tokens.vocab_size, width, layers))
    transformer.load_state_dict(weights)
    with torch.no_grad():
        ids, names = list(tokens.concept_ids), random_identities(len(tokens.concept_ids))
        embeddings = transformer.model.embed_tokens.weight
        embeddings[ids] = names @ state["identify.weight"].T + state["identify.bias"]
    words = list(caption_words())
    layout = ProtocolConfig(grid_px=16, resolution=size, buckets="square", known_words=words)
    save_backend(ChameleonBackend(transformer=transformer, vq=vq, tokenizer=tokens, layout=layout), args.out)
    for which in ("clip", "dino"):
        if (args.scorers / which / "model.safetensors").exists():
            shutil.copytree(args.scorers / which, args.out / which, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
