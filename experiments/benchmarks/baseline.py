"""Baselines for sampling: `generate` of transformers with the same weights.

The class of transformers masks the logits of image codes if it gets a vocabulary map. It gets an empty one
here, and a logits processor limits the tokens at each position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from personalar.generation.sampling import Sampling, gumbel_noise, seed_tensor
from personalar.models.chameleon.backend import ChameleonBackend

BASELINES = {"generate": "transformers generate", "static": "transformers static, batched CFG"}
"""The two baselines; the second uses a static cache, and computes guidance in the same batch."""


def hf_model(backend: ChameleonBackend) -> Any:
    """Return transformers' Chameleon with the weights of `backend`, contiguous as if loaded from a file.

    Weights that are contiguous already are shared and not copied.
    """
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    numbers = {k: v for k, v in backend.transformer.config.to_hf().items() if k != "model_type"}
    small = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "latent_channels": 4}
    small |= {"embed_dim": 4, "num_embeddings": 4, "resolution": 32}  # never used: only codes are sampled
    config = ChameleonConfig(**numbers, vocabulary_map={}, vq_config=small)
    with torch.device("meta"):
        model = ChameleonForConditionalGeneration(config)
    weights = {name: tensor.contiguous() for name, tensor in backend.transformer.state_dict().items()}
    model.load_state_dict(weights, strict=False, assign=True)
    model.model.vqmodel = None
    rotary = type(model.model.rotary_emb)  # has a buffer that checkpoints do not contain
    model.model.rotary_emb = rotary(config).to(backend.device)
    model.generation_config.eos_token_id = model.generation_config.bos_token_id = None
    model.generation_config.pad_token_id = backend.tokenizer.pad
    return model.eval()


def image_body(backend: ChameleonBackend, grid: tuple[int, int]) -> list[int | None]:
    """Return the tokens from the first code to the last: fixed ids, and None for a sampled code."""
    grammar = backend.grammar(*grid)
    body = grammar[grammar.index(None) :]
    while body[-1] is not None:
        body.pop()
    return body


def legal_scores(backend: ChameleonBackend, body: list[int | None]) -> Tensor:
    """Return the mask that is added to the logits of each token of `body`, (T, V): 0 or -inf."""
    vocabulary = backend.transformer.config.vocab_size
    scores = torch.full((len(body), vocabulary), float("-inf"), device=backend.device)
    for position, forced in enumerate(body):
        scores[position, backend.tokenizer.image_rows if forced is None else forced] = 0.0
    return scores


class Baseline:
    """Callable like a decoder. `static`: use a static cache, and guidance as the second half of the batch."""

    def __init__(self, backend: ChameleonBackend, sampling: Sampling, *, static: bool) -> None:
        self.model, self.sampling, self.static = hf_model(backend), sampling, static
        self.name = BASELINES["static" if static else "generate"]

    @torch.no_grad()
    def __call__(
        self, backend: ChameleonBackend, prompts: list[list[int]], grid: tuple[int, int], seeds: list[int]
    ) -> Tensor:
        """Return codes (B, h, w); all prompts must have the same length."""
        grammar = backend.grammar(*grid)
        prefix = grammar[: grammar.index(None)]
        alone = [*backend.unconditional_prompt(prompts[0]), *prefix]
        body = image_body(backend, grid)
        start = len(prompts[0]) + len(prefix)
        both = self.static and self.sampling.guided
        rows = [[*prompt, *prefix] for prompt in prompts]
        mask = [[1] * start for _ in prompts]
        pad = start - len(alone)
        if both:
            rows += [[backend.tokenizer.pad] * pad + alone for _ in prompts]
            mask += [[0] * pad + [1] * len(alone) for _ in prompts]
        own = (backend, body, start)
        step = self._guided_draw(*own, seeds) if self.static else self._legal(*own)
        torch.manual_seed(seeds[0])
        ids = self.model.generate(
            torch.tensor(rows, device=backend.device),
            attention_mask=torch.tensor(mask, device=backend.device),
            max_new_tokens=len(body),
            logits_processor=[step],
            **(self._static() if self.static else self._own_sampling(alone, len(prompts))),
        )
        free = [start + i for i, forced in enumerate(body) if forced is None]
        return ids[: len(prompts), free].view(len(prompts), *grid) - backend.code_offset

    def forget(self) -> None:
        """Free the static cache and the compiled programs of transformers."""
        vars(self.model).pop("_cache", None)
        torch._dynamo.reset()

    def _static(self) -> dict[str, Any]:
        return {"do_sample": False, "cache_implementation": "static"}

    def _own_sampling(self, alone: list[int], batch: int) -> dict[str, Any]:
        """Return the sampling settings as arguments of `generate`."""
        settings: dict[str, Any] = {
            "do_sample": True,
            "top_k": self.sampling.top_k,
            "top_p": self.sampling.top_p,
            "temperature": self.sampling.temperature,
        }
        if self.sampling.guided:
            negative = torch.tensor([alone] * batch, device=self.model.device)
            settings |= {"guidance_scale": self.sampling.cfg_scale, "negative_prompt_ids": negative}
        return settings

    def _legal(self, backend: ChameleonBackend, body: list[int | None], start: int) -> Any:
        """Return a logits processor that excludes tokens which are not allowed at a position."""
        legal = legal_scores(backend, body)
        return lambda ids, scores: scores + legal[ids.shape[1] - start]

    def _guided_draw(
        self, backend: ChameleonBackend, body: list[int | None], start: int, seeds: list[int]
    ) -> Any:
        """Return a logits processor that samples and excludes all other tokens.

        With guidance two rows belong to an image, and both must get the same token.
        """
        keys, rows = seed_tensor(seeds, backend.device), backend.tokenizer.image_rows
        drawn = 0

        def draw(ids: Tensor, scores: Tensor) -> Tensor:
            nonlocal drawn
            only = torch.full_like(scores, float("-inf"))
            forced = body[ids.shape[1] - start]
            if forced is not None:
                only[:, forced] = 0.0
                return only
            logits = self.sampling.guide(scores[:, rows].float())
            place = torch.full((1,), drawn, device=backend.device)
            noise = gumbel_noise(keys, place, logits.shape[-1])[:, 0]
            codes = self.sampling.draw(logits, noise)[:, None]
            drawn += 1
            codes = torch.cat((codes, codes)) if self.sampling.guided else codes
            return only.scatter_(1, codes + backend.code_offset, 0.0)

        return draw
