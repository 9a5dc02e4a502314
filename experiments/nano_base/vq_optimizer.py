"""Muon for the tokenizer's convolutions.

After 200 steps of 8 pictures from the same weights its loss was .136 where AdamW's was .143, for 5 % more
time.
"""

from collections.abc import Iterable

import torch
from torch import nn

ENDS = ("conv_in", "conv_out", "quant_conv")  # where pixels and codes come in and go out


class ConvolutionMuon:
    """Muon for convolutions between hidden layers, as matrices; AdamW for the rest. One rate for both."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], lr: float) -> None:
        rest: list[nn.Parameter] = []
        self.kernels: list[nn.Parameter] = []
        for name, parameter in named:
            hidden = parameter.ndim == 4 and not any(end in name for end in ENDS)
            (self.kernels if hidden else rest).append(parameter)
        # The same memory under another shape: what Muon changes here changes the kernels.
        self.matrices = [nn.Parameter(kernel.data.view(len(kernel), -1)) for kernel in self.kernels]
        self.muon = torch.optim.Muon(
            self.matrices, lr=lr, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
        )
        self.adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=1e-4)

    def set_rate(self, lr: float) -> None:
        """Set the learning rate."""
        for group in self.muon.param_groups + self.adam.param_groups:
            group["lr"] = lr

    def step(self) -> None:
        """One update from the parameters' gradients."""
        for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
            matrix.grad = kernel.grad.view_as(matrix)
        self.muon.step()
        self.adam.step()

    def state_dict(self) -> dict:
        """Both parts' states."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Load what `state_dict` returned."""
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
