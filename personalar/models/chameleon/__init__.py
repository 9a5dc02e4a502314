"""The Chameleon family: Lumina-mGPT, Anole, Chameleon and nano."""

from personalar.models.chameleon.model_files import open_folder
from personalar.models.checkpoint_folder import PeftBase

__all__ = ["PEFT_BASE", "open_folder"]

PEFT_BASE = PeftBase(class_name="ChameleonForConditionalGeneration", stack="model")
