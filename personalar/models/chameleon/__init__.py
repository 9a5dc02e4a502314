"""The Chameleon family: Lumina-mGPT, Anole, Chameleon and nano."""
