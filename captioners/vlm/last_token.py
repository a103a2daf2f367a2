"""A prefill that computes the last layer's MLP only for the last token of each prompt, the only one that is used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LastTokenMlp(nn.Module):
    """The last layer's MLP; in a prefill it computes only the last token of each prompt, the only one that is used."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp
        self.only: tuple[Tensor, Tensor] | None = None  # row and index of the tokens to compute; None for all

    def forward(self, hidden: Tensor) -> Tensor:
        if self.only is None:
            return self.mlp(hidden)
        out = torch.zeros_like(hidden)
        out[self.only] = self.mlp(hidden[self.only][:, None])[:, 0]
        return out


def trim_last_layer(model: PreTrainedModel) -> None:
    layer = model.get_decoder().layers[-1]
    layer.mlp = LastTokenMlp(layer.mlp)


@contextlib.contextmanager
def read_only_last(model: PreTrainedModel, rows: Tensor, last: Tensor) -> Iterator[None]:
    """Context in which only the hidden state of token `last` in each of `rows` is valid, if the last layer of `model`
    is trimmed."""
    mlp = model.get_decoder().layers[-1].mlp
    if not isinstance(mlp, LastTokenMlp):
        yield
        return
    mlp.only = rows, last
    try:
        yield
    finally:
        mlp.only = None
