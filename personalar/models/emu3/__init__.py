"""The Emu3 family: Emu3-Gen and Emu3-Stage1, in BAAI's own files or in those of transformers."""

from personalar.models.checkpoint_folder import PeftBase
from personalar.models.emu3.emu3_files import open_folder

__all__ = ["PEFT_BASE", "open_folder"]

PEFT_BASE = PeftBase(class_name="Emu3ForConditionalGeneration", stack="model.text_model")
