"""Context vectors: learned hidden states before each of the first blocks, at two places of the prompt.

After DCoAR (CVPR 2026), which has no public code. At the place of [V], and in an extra place [I] directly
before the image, the hidden state before each of the first N blocks is replaced by a learned vector; later
blocks compute both places as usual. The base is frozen. Both places are in the prompt, so only the prefill of
sampling changes.

Not published, and chosen here: the place of [I], the form of the regularizer, and the start of the text
vectors.
Shapes: N blocks, D width, B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from personalar.concepts.adapters.base import Adapter
from personalar.concepts.adapters.identifier import Identifier
from personalar.data.prompts import subject_names
from personalar.models.base import Backend, TrainingSequence

TEXT, IMAGE_TOKEN = "[V]", "[I]"
PLACES = {"prompt": "image", "both": "image_in_both_contexts"}
"""Where [I] is -> the name of its parameter; so a concept contains its place."""
DISTANCES = ("squared", "plain")


class ReplacedInputs(nn.Module):
    """Replaces the hidden states of some ids before the first blocks; see `Backend.block_inputs`."""

    def __init__(self, vectors: Mapping[int, nn.Parameter]) -> None:
        """Create the module; `vectors` maps an id to its hidden states (N, D)."""
        super().__init__()
        self.ids = tuple(vectors)
        self.vectors = nn.ParameterList(vectors.values())

    def forward(self, block: int, ids: Tensor, hidden: Tensor) -> Tensor:
        """Return `hidden` (B T, D) of the tokens `ids` (B T,) with the states of our ids replaced."""
        for index, vectors in zip(self.ids, self.vectors, strict=True):
            if block < len(vectors):
                hidden = torch.where((ids == index)[:, None], vectors[block].to(hidden.dtype), hidden)
        return hidden


class ContextVectors(Adapter):
    """Learned hidden states at [V] and [I].

    Args:
        blocks: N, the number of blocks; a base with fewer blocks has vectors before all of them.
        place: "prompt": [I] ends every prompt with [V], and guidance amplifies it; "both": it also ends the
            unconditional context, as if it came after the start of the image; null: no [I].
        regularizer: weight of the distance between [I] and the mean image token (CASR).
        distance: "squared" (mean over blocks of |difference|^2) or "plain" (of |difference|).
    """

    combinable = True

    def __init__(
        self,
        *,
        blocks: int = 9,
        place: str | None = "prompt",
        regularizer: float = 5e-4,
        distance: str = "squared",
    ) -> None:
        if blocks < 0 or regularizer < 0:
            raise ValueError(f"blocks={blocks} and regularizer={regularizer} must be at least 0")
        if place not in (*PLACES, None) or distance not in DISTANCES:
            raise ValueError(
                f"place={place!r}, distance={distance!r}: allowed are place={', '.join(PLACES)} or null, and "
                f"distance={', '.join(DISTANCES)}"
            )
        self.blocks, self.place, self.regularizer, self.distance = blocks, place, regularizer, distance
        self.tokens = () if place is None else (IMAGE_TOKEN,)
        self._vectors: dict[str, nn.Parameter] = {}
        self._mean_image: Tensor | None = None

    def read_arguments(self, learned: Mapping[str, Tensor]) -> None:
        """Set the number of blocks and the place from the names and shapes of learned vectors."""
        self.blocks = max((len(tensor) for tensor in learned.values() if tensor.ndim), default=0)
        self.place = next((place for place, name in PLACES.items() if name in learned), None)

    def attach(
        self, backend: Backend, *, identifier: Identifier, generator: torch.Generator
    ) -> dict[str, nn.Parameter]:
        """Add vectors (N, D), zero before `prepare`: "text" for [V], and one for [I] if it has a place."""
        names = {"text": TEXT} if self.place is None else {"text": TEXT, PLACES[self.place]: IMAGE_TOKEN}
        if missing := sorted(set(names.values()) - set(identifier.tokens)):
            raise ValueError(
                f"the concept has no id for {', '.join(missing)}, which context vectors need: train it again "
                "from its first stage"
            )
        shape = min(self.blocks, len(backend.blocks)), backend.word_table.shape[1]
        self._vectors = {name: nn.Parameter(torch.zeros(shape, device=backend.device)) for name in names}
        ids = [identifier.tokens[token] for token in names.values()]
        backend.block_inputs.append(ReplacedInputs(dict(zip(ids, self._vectors.values(), strict=True))))
        subject = [identifier.tokens[name] for name in subject_names(identifier.tokens)]
        backend.separate_ids.append([*subject, *ids])  # the identity mask of several concepts
        if self.place is not None and shape[0]:
            backend.endings[ids[0]] = ids[1]
            if self.place == "both":
                backend.kept_endings.add(ids[1])
        return self._vectors

    @torch.no_grad()
    def prepare(
        self,
        backend: Backend,
        identifier: Identifier,
        photos: Sequence[TrainingSequence],
        *,
        initialize: bool,
    ) -> None:
        """Start [V] at what its embedding becomes in each block, and [I] at the mean image token.

        Both are means over the photos in the base without context vectors.

        Raises:
            ValueError: there are no blocks.
        """
        text, *images = self._vectors.values()
        if not len(text):
            raise ValueError("blocks=0 trains nothing: set method.stages.*.adapters.*.blocks to at least 1")
        states = [self._states(backend, identifier, photo) for photo in photos]
        at_text = torch.stack([found for found, _ in states]).mean(0)
        self._mean_image = torch.cat([found for _, found in states], dim=1).mean(1)
        if initialize:
            text.copy_(at_text)
            for image in images:
                image.copy_(self._mean_image)

    def _states(
        self, backend: Backend, identifier: Identifier, photo: TrainingSequence
    ) -> tuple[Tensor, Tensor]:
        """Return what the first N blocks read at [V] (N, D), and at the codes of the image (N, codes, D)."""
        kept = [place for place, index in enumerate(photo.ids) if index not in backend.endings.values()]
        ids = torch.tensor(photo.ids, device=backend.device)[kept]
        is_code = torch.tensor(photo.loss_mask, device=backend.device)[kept]
        found: list[Tensor] = []
        hooks = [
            block.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].float()))
            for block in backend.blocks[: len(self._vectors["text"])]
        ]
        try:
            backend.forward(identifier(ids[None], backend.embed(ids[None])))
        finally:
            for hook in hooks:
                hook.remove()
        states = torch.stack(found)  # (N, T, D)
        return states[:, ids == identifier.tokens[TEXT]].mean(1), states[:, is_code]

    def penalty(self) -> Tensor | None:
        """Return the weighted distance between [I] and the mean image token, averaged over blocks."""
        if self.place is None or self.regularizer == 0 or self._mean_image is None:
            return None
        away = self._vectors[PLACES[self.place]] - self._mean_image
        # vector_norm has a gradient (0) where the distance is 0, which a square root does not have.
        distances = torch.linalg.vector_norm(away, dim=-1)  # (N,)
        return self.regularizer * (distances.square() if self.distance == "squared" else distances).mean()
