"""Features of more places than their activations fit into memory.

The official location encoder keeps 37 kB of activations per place for its backward pass: 3.7 GB for 100,000
places. Here the places beyond the first ones are encoded a chunk at a time without a graph; when their
features' gradient arrives, every chunk runs again, with one, and adds its part to the weights' gradient (Gao
et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021). That costs a second
forward pass of those places.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_RandomState = tuple[Tensor, Tensor | None]  # of the CPU's generator and of the places' GPU


class _Encode(torch.autograd.Function):
    """Features of the head above those of further places, in one buffer, so that nothing is held twice."""

    @staticmethod
    def forward(
        ctx: Any, encoder: nn.Module, places: Tensor, chunk: int, head: Tensor, *weights: Tensor
    ) -> Tensor:
        ctx.encoder, ctx.places, ctx.chunk, ctx.weights = encoder, places, chunk, weights
        kind = places.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.random = []
        features = head.new_empty(len(head) + len(places), head.shape[1])
        features[: len(head)] = head
        for start in range(0, len(places), chunk):
            ctx.random.append(_random_state(places))
            some = places[start : start + chunk]
            features[len(head) + start :][: len(some)] = encoder(some)
        ctx.head = len(head)
        return features

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        trained = [k for k, weight in enumerate(ctx.weights) if weight.requires_grad]
        weights = [ctx.weights[k] for k in trained]
        totals: list[Tensor | None] = [None] * len(ctx.weights)
        kind, dtype, enabled = ctx.autocast
        devices = [ctx.places.device] if kind == "cuda" else []
        # what the chunks draw now they have drawn before: the generators go on from where they are
        with torch.random.fork_rng(devices=devices):
            for number, start in enumerate(range(0, len(ctx.places), ctx.chunk)):
                _set_random_state(ctx.random[number], ctx.places)
                some = ctx.places[start : start + ctx.chunk]
                with torch.enable_grad(), torch.autocast(kind, dtype, enabled):
                    features = ctx.encoder(some)
                part = gradient[ctx.head + start :][: len(some)].to(features.dtype)
                for k, own in zip(
                    trained, torch.autograd.grad(features, weights, part, allow_unused=True), strict=True
                ):
                    before = totals[k]
                    totals[k] = before if own is None else own if before is None else before + own
        head = gradient[: ctx.head] if ctx.needs_input_grad[3] else None
        return None, None, None, head, *totals


def encode_places(encoder: nn.Module, places: Tensor, *, kept: int, chunk: int) -> Tensor:
    """Encode all places; the activations of the first `kept` only are held until the backward pass.

    The gradients are those of `encoder(places)`; what the encoder draws at random is drawn again alike.

    Args:
        encoder: module from (n, 2) to (n, D) whose calls change no state; the places get no gradient.
        places: (n, 2).
        kept: places encoded the ordinary way, at least 1.
        chunk: further places encoded at once.

    Returns:
        (n, D) in the encoder's dtype.

    Raises:
        ValueError: `kept` or `chunk` is below 1.
    """
    if kept < 1 or chunk < 1:
        raise ValueError(f"kept, chunk: wanted at least 1, got {kept} and {chunk}")
    head: Tensor = encoder(places[:kept])
    if len(places) <= kept:
        return head
    features: Tensor = _Encode.apply(encoder, places[kept:], chunk, head, *encoder.parameters())
    return features


def _random_state(places: Tensor) -> _RandomState:
    on_gpu = torch.cuda.get_rng_state(places.device) if places.is_cuda else None
    return torch.get_rng_state(), on_gpu


def _set_random_state(state: _RandomState, places: Tensor) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], places.device)
