"""The Chameleon transformer (arXiv 2405.09818): a Llama with normalised queries and keys.

Parameter names and results are those of transformers' `ChameleonForConditionalGeneration`, except that image
logits are not masked. The head can be limited to the rows of the image codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from torch import Tensor

from personalar.config.fields import limits
from personalar.models.network.llama import LanguageModel, LlamaConfig


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(LlamaConfig):
    """Sizes of a Chameleon transformer, with the names and defaults of transformers' `ChameleonConfig`."""

    qk_norm: ClassVar[bool] = True
    vocab_size: int = field(default=65536, metadata=limits(1, 2**22))
    rms_norm_eps: float = field(default=1e-5, metadata=limits(0.0, 1.0))
    max_position_embeddings: int = field(default=4096, metadata=limits(1, 2**24))

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read the JSON of transformers' `ChameleonConfig`; missing keys get the values of the 7B.

        Raises:
            ValueError: another family, or an unsupported option (biases, scaled RoPE, tied embeddings).
        """
        if "chameleon" not in str(config.get("model_type", "chameleon")).lower():
            raise ValueError(
                f"config.json has model_type={config['model_type']!r}, which is not a Chameleon: choose the "
                "model= of that checkpoint, or set model.path to a folder with model_type 'chameleon'"
            )
        if config.get("tie_word_embeddings", False):
            raise ValueError("config.json has tie_word_embeddings=True; Chameleon needs it False")
        return super().from_hf(config)

    def build(self) -> ChameleonTransformer:
        """Return a transformer of this shape, on torch's default device."""
        return ChameleonTransformer(self)

    def to_hf(self) -> dict[str, Any]:
        """Return the JSON that transformers' `ChameleonConfig` and `from_hf` read."""
        names = [f.name for f in fields(self) if f.name != "rope_theta"]
        # transformers 5 expects rope_theta inside of rope_parameters.
        rope = {"rope_type": "default", "rope_theta": self.rope_theta}
        values = {name: getattr(self, name) for name in names}
        return {"model_type": "chameleon", **values, "rope_parameters": rope, "tie_word_embeddings": False}


class ChameleonTransformer(LanguageModel):
    """Maps token embeddings to hidden states and logits."""

    config: TransformerConfig


def expand_norm(name: str, tensor: Tensor, config: TransformerConfig) -> Tensor:
    """Return a query or key norm with one row per head; any other tensor is returned unchanged.

    Lumina-mGPT's files have one row per model-parallel shard, (1, head_dim) or (2, head_dim).
    """
    if ".q_norm." in name:
        heads = config.num_attention_heads
    elif ".k_norm." in name:
        heads = config.num_key_value_heads
    else:
        return tensor
    # Any other number of rows is an error, which `check_fit` reports.
    if tensor.ndim != 2 or not len(tensor) or heads % len(tensor):
        return tensor
    # Interleaved, because the heads of one shard follow each other.
    return tensor.repeat_interleave(heads // len(tensor), dim=0)
