"""The Janus family: Janus-Pro-1B and -7B, in DeepSeek's own files or in those of transformers."""

from personalar.models.checkpoint_folder import PeftBase
from personalar.models.janus.janus_files import open_folder

__all__ = ["PEFT_BASE", "open_folder"]

PEFT_BASE = PeftBase(class_name="JanusForConditionalGeneration", stack="model.language_model")
