"""Which weights of an image backbone are trained: none, its last blocks, or low-rank adapters (LoRA)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from geoclip.image_encoder import ImageEncoder
from semivario_kernels.extras import install_command

FineTuning = Literal["none", "last_k", "lora"]


class FineTunedTower(nn.Module):
    """The image tower of an `ImageEncoder`, of which a part is trained in place.

    Only what is trained is registered: state dicts, optimisers and wrappers see nothing of the rest, whose
    weights stay those that `backbone` and `pretrained` name. The encoder itself gives the tuned embeddings
    from now on.

    Args:
        encoder: loads its backbone now.
        method: "last_k" trains the last blocks and what follows them, "lora" adapters of the attention and of
            the linear layers in all blocks, but for those inside nn.MultiheadAttention.
        blocks: k.
        rank: of the adapters.
        seed: of the adapters' start.

    Raises:
        ValueError: an unknown method, k or rank out of range, or a backbone without a list of blocks.
        ModuleNotFoundError: LoRA without peft.
    """

    def __init__(
        self, encoder: ImageEncoder, method: FineTuning, *, blocks: int = 2, rank: int = 8, seed: int = 0
    ) -> None:
        super().__init__()
        tower, _ = encoder._load()
        if method == "last_k":
            trained = _last_blocks(tower, blocks)
        elif method == "lora":
            trained = _adapters(tower, rank, seed)
        else:
            raise ValueError(f"finetune: wanted 'last_k' or 'lora', got {method!r}")
        # a one-entry list hides the tower from nn.Module
        self._tower = [tower]
        # names of parameters may hold no dot
        self.trained = nn.ParameterDict({name.replace(".", "/"): p for name, p in trained.items()})
        for parameter in trained.values():
            parameter.requires_grad_()

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (n, E) of preprocessed images (n, 3, H, W), with their graph."""
        embeddings: Tensor | tuple[Tensor, ...] = self._tower[0].to(images.device)(images)
        return embeddings[0] if isinstance(embeddings, tuple) else embeddings  # CoCa adds its tokens


def _blocks(tower: nn.Module) -> tuple[list[nn.Module], list[nn.Module | nn.Parameter]]:
    """A tower's blocks in order, and what comes after the last one."""
    if isinstance(getattr(tower, "transformer", None), nn.Module):  # open_clip's VisionTransformer
        found = list(tower.transformer.resblocks)  # type: ignore[union-attr, arg-type]
        after = [tower.ln_post, tower.proj, getattr(tower, "attn_pool", None)]
    elif hasattr(tower, "layer4"):  # open_clip's ModifiedResNet
        found = [block for k in range(1, 5) for block in getattr(tower, f"layer{k}")]
        after = [tower.attnpool]
    elif hasattr(tower, "trunk"):  # timm's models
        trunk = tower.trunk
        found = list(getattr(trunk, "blocks", None) or getattr(trunk, "stages", None) or [])
        after = [getattr(trunk, name, None) for name in ("norm", "fc_norm", "attn_pool", "head")]
        after.append(tower.head)
    else:
        found = []
    if not found:
        raise ValueError(f"finetune: {type(tower).__name__} has no list of blocks that is known")
    return found, [part for part in after if isinstance(part, nn.Module | nn.Parameter)]


def _last_blocks(tower: nn.Module, k: int) -> dict[str, nn.Parameter]:
    blocks, after = _blocks(tower)
    if not 1 <= k <= len(blocks):
        raise ValueError(f"finetune_blocks: wanted 1 to {len(blocks)}, the backbone's blocks, got {k}")
    chosen = {
        id(parameter)
        for part in (*blocks[-k:], *after)
        for parameter in ([part] if isinstance(part, nn.Parameter) else part.parameters())
    }
    return {name: parameter for name, parameter in tower.named_parameters() if id(parameter) in chosen}


def _adapters(tower: nn.Module, rank: int, seed: int) -> dict[str, nn.Parameter]:
    if rank < 1:
        raise ValueError(f"lora_rank: wanted at least 1, got {rank}")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"finetune: LoRA needs {error.name!r}: {install_command('finetune')}", name=error.name
        ) from error
    blocks, _ = _blocks(tower)
    inside = {id(module) for block in blocks for module in block.modules()}
    # not nn.MultiheadAttention: peft merges an adapter of it into the frozen weights and takes it out again
    # at every call, and the rounding moves them; an adapter of its output layer alone would be idle
    attention = tuple(f"{n}." for n, m in tower.named_modules() if isinstance(m, nn.MultiheadAttention))
    targets = [
        name
        for name, module in tower.named_modules()
        if id(module) in inside
        and isinstance(module, nn.Linear)
        and not any(name.startswith(part) for part in attention)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), tower)
    tower.eval()
    return {name: parameter for name, parameter in tower.named_parameters() if "lora_" in name}
