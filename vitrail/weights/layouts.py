"""The same network under other names -> ours: the plain ViT of Google's JAX, torchvision and transformers, told by its
keys; any other by the rules for its authors' release that the model carries (`release_keys`).

What is not recognised is handed on unchanged, and the strict check of `fit.py` then names it.
"""

from __future__ import annotations

import logging
import re

import torch
from torch import Tensor, nn

log = logging.getLogger("vitrail")

State = dict[str, Tensor]
Rules = list[tuple[str, str]]


def to_timm_keys(state: State, model: nn.Module) -> State:
    """`state` in the names of `model`, whose Config has num_heads. Tensors are reshaped and stacked where needed."""
    own_rules = list(getattr(model, "release_keys", ()))
    if any(key.endswith("/kernel") for key in state):
        return from_jax(state, own_rules + JAX)
    if "conv_proj.weight" in state and "encoder.ln.weight" in state:
        return renamed(state, TORCHVISION)
    if any(key.endswith("embeddings.patch_embeddings.projection.weight") for key in state):
        return stacked(renamed(state, TRANSFORMERS))
    if (first := "layers.0.downsample.reduction.weight") in state and first not in model.state_dict():
        return renamed(state, SWIN)
    return renamed(state, own_rules)


def renamed(state: State, rules: Rules) -> State:
    """Every name with the first rule applied that fits the whole of it; a rule without a new name drops the entry."""
    names = {key: rename(key, rules) for key in state}
    return {names[key]: value for key, value in state.items() if names[key]}


def rename(key: str, rules: Rules) -> str:
    for pattern, name in rules:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, name, key)
    return key


def stacked(state: State) -> State:
    """Join `{q,k,v}` entries that stand apart into one `qkv` (rows q, k, v), and `{k,v}` into `kv`."""
    out: State = {}
    for key, value in state.items():
        found = re.fullmatch(r"(.*\.)(q|k|v)\.\[(\w+)\]\.(weight|bias)", key)
        if not found:
            out[key] = value
            continue
        prefix, letter, letters, kind = found.groups()
        parts = [state.get(f"{prefix}{each}.[{letters}].{kind}") for each in letters]
        present = [part for part in parts if part is not None]
        if len(present) < len(parts):
            out[key] = value  # incomplete: left for the strict check to name
        elif letter == letters[0]:
            out[f"{prefix}{letters}.{kind}"] = torch.cat(present)
    return out


# Swin's release, both versions: a merging closes its stage there, and opens the next one in timm.
SWIN: Rules = [
    (r".+\.(?:attn_mask|relative_position_index|relative_coords_table)", ""),
    (r"layers\.0\.downsample\.(.+)", r"layers.1.downsample.\1"),
    (r"layers\.1\.downsample\.(.+)", r"layers.2.downsample.\1"),
    (r"layers\.2\.downsample\.(.+)", r"layers.3.downsample.\1"),
    (r"head\.(weight|bias)", r"head.fc.\1"),
]

TORCHVISION: Rules = [
    (r"class_token", "cls_token"),
    (r"conv_proj\.(.+)", r"patch_embed.proj.\1"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(.+)", r"blocks.\1.norm\2.\3"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(\w+)", r"blocks.\1.attn.qkv.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(.+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(.+)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(.+)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.ln\.(.+)", r"norm.\1"),
    (r"heads\.pre_logits\.(.+)", r"pre_logits.fc.\1"),
    (r"heads\.head\.(.+)", r"head.\1"),
]

# transformers writes files in the names of its version 4 (`encoder.layer.0.attention.attention.query`), while modules
# of version 5 have shorter ones (`layers.0.attention.q_proj`): both are read.
MODEL = r"(?:vit\.|deit\.)?"
LAYER = MODEL + r"(?:encoder\.layer|layers)\.(\d+)\."
TRANSFORMERS: Rules = [
    (MODEL + r"embeddings\.cls_token", "cls_token"),
    (MODEL + r"embeddings\.distillation_token", "dist_token"),
    (MODEL + r"embeddings\.position_embeddings", "pos_embed"),
    (MODEL + r"embeddings\.patch_embeddings\.projection\.(.+)", r"patch_embed.proj.\1"),
    (LAYER + r"attention\.(?:attention\.query|q_proj)\.(.+)", r"blocks.\1.attn.q.[qkv].\2"),
    (LAYER + r"attention\.(?:attention\.key|k_proj)\.(.+)", r"blocks.\1.attn.k.[qkv].\2"),
    (LAYER + r"attention\.(?:attention\.value|v_proj)\.(.+)", r"blocks.\1.attn.v.[qkv].\2"),
    (LAYER + r"attention\.(?:output\.dense|o_proj)\.(.+)", r"blocks.\1.attn.proj.\2"),
    (LAYER + r"layernorm_before\.(.+)", r"blocks.\1.norm1.\2"),
    (LAYER + r"layernorm_after\.(.+)", r"blocks.\1.norm2.\2"),
    (LAYER + r"(?:intermediate\.dense|mlp\.fc1)\.(.+)", r"blocks.\1.mlp.fc1.\2"),
    (LAYER + r"(?:output\.dense|mlp\.fc2)\.(.+)", r"blocks.\1.mlp.fc2.\2"),
    (MODEL + r"layernorm\.(.+)", r"norm.\1"),
    (MODEL + r"pooler\.dense\.(.+)", r"pre_logits.fc.\1"),  # Linear and tanh on the class token: the same thing
    (r"(?:cls_)?classifier\.(.+)", r"head.\1"),
    (r"distillation_classifier\.(.+)", r"head_dist.\1"),
]

# Google's names, after flattening: vit_jax numbers the parts of a block as they were made (LayerNorm_0,
# MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3), big_vision each kind by itself.
BLOCK = r"Transformer/encoderblock_(\d+)/"
POOL = r"(?:MAPHead_0/)?"
ATTENTION = r"MultiHeadDotProductAttention_\d/"
JAX: Rules = [
    (r"embedding/(.+)", r"patch_embed.proj.\1"),
    (r"cls", "cls_token"),
    (r"(?:Transformer/posembed_input/)?pos_embedding", "pos_embed"),
    (BLOCK + r"LayerNorm_0/(.+)", r"blocks.\1.norm1.\2"),
    (BLOCK + r"LayerNorm_[12]/(.+)", r"blocks.\1.norm2.\2"),
    (BLOCK + ATTENTION + r"query/(.+)", r"blocks.\1.attn.q.[qkv].\2"),
    (BLOCK + ATTENTION + r"key/(.+)", r"blocks.\1.attn.k.[qkv].\2"),
    (BLOCK + ATTENTION + r"value/(.+)", r"blocks.\1.attn.v.[qkv].\2"),
    (BLOCK + ATTENTION + r"out/(.+)", r"blocks.\1.attn.proj.\2"),
    (BLOCK + r"MlpBlock_\d/Dense_0/(.+)", r"blocks.\1.mlp.fc1.\2"),
    (BLOCK + r"MlpBlock_\d/Dense_1/(.+)", r"blocks.\1.mlp.fc2.\2"),
    (r"Transformer/encoder_norm/(.+)", r"norm.\1"),
    (POOL + r"probe", "attn_pool.latent"),
    (POOL + ATTENTION + r"query/(.+)", r"attn_pool.q.\1"),
    (POOL + ATTENTION + r"key/(.+)", r"attn_pool.k.[kv].\1"),
    (POOL + ATTENTION + r"value/(.+)", r"attn_pool.v.[kv].\1"),
    (POOL + ATTENTION + r"out/(.+)", r"attn_pool.proj.\1"),
    (POOL + r"LayerNorm_0/(.+)", r"attn_pool.norm.\1"),
    (POOL + r"MlpBlock_\d/Dense_0/(.+)", r"attn_pool.mlp.fc1.\1"),
    (POOL + r"MlpBlock_\d/Dense_1/(.+)", r"attn_pool.mlp.fc2.\1"),
    (r"pre_logits/(.+)", r"pre_logits.fc.\1"),
    (r"head/(.+)", r"head.\1"),
]


def from_jax(state: State, rules: Rules) -> State:
    """Google's arrays: kernels turned to torch's order, heads flattened, the position table with a class slot."""
    state = image_tower(state)
    if "cls" in state and "pos_embedding" in state:
        # big_vision adds N positions before it puts the class token in front: the token's own position is zero.
        table = state["pos_embedding"]
        state = {**state, "pos_embedding": torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)}
    turned = {rename(key, rules): turn(key, value) for key, value in unrolled(state).items()}
    return stacked({re.sub(r"\.(kernel|scale)$", ".weight", key): value for key, value in turned.items()})


def image_tower(state: State) -> State:
    """Without the prefix of a training state; of an image-text model the image tower alone, which is logged."""
    for prefix in ("opt/target/", "target/", "params/"):
        if any(key.startswith(prefix) for key in state):
            other = [key for key in state if not key.startswith(prefix)]
            if other:
                log.warning("%d arrays of the training state left out (%s, ...)", len(other), other[0])
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if "img/embedding/kernel" in state:
        image = {key.removeprefix("img/"): value for key, value in state.items() if key.startswith("img/")}
        log.warning("%d arrays outside the image tower left out", len(state) - len(image))
        return image
    return state


def unrolled(state: State) -> State:
    """A scanned encoder, one subtree whose arrays have depth as first axis, as one subtree a block."""
    out: State = {}
    for key, value in state.items():
        if key.startswith("Transformer/encoderblock/"):
            for index, layer in enumerate(value):
                out[key.replace("encoderblock/", f"encoderblock_{index}/")] = layer
        else:
            out[key] = value
    return out


def turn(key: str, value: Tensor) -> Tensor:
    """One array in torch's order: (P, P, C, D), (D, h, d), (h, d, D) and (in, out) kernels, (h, d) biases."""
    if key.endswith("/bias"):
        return value.flatten()
    if not key.endswith("/kernel"):
        return value
    if value.ndim == 4:
        return value.permute(3, 2, 0, 1).contiguous()
    if value.ndim == 3:
        value = value.flatten(0, 1) if "/out/" in key else value.flatten(1)
    return value.T.contiguous()
