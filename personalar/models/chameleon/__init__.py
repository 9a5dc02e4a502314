"""The Chameleon family: Lumina-mGPT, Anole, Chameleon and nano."""

from personalar.models.chameleon.model_files import open_folder

__all__ = ["open_folder"]
