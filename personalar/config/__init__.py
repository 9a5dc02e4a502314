"""Typed settings of every command, one dataclass per group of conf/."""
