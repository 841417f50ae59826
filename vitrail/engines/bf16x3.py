"""float32 from bfloat16 matrix units (Henry, Tang and Heinecke, 2019, arXiv 1904.06376), for processors with AMX.

A float32 is, to 16 of its 24 bits, the sum of two bfloat16; of the four products of parts three matter, and three
passes of the matrix units take a third of the time that float32's own multiply-adds take. Logits differ from those of
plain float32 by about as much as those of another order of summation do.

Linear layers are replaced by the kernel of bf16x3.cpp, which the machine's own C++ compiler builds once and keeps in
the cache; torch.compile does the rest.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.engines.engine import Engine, Forward, Precision, cache_folder, one_batch, replace_linear
from vitrail.engines.inductor import compiled

SOURCE = Path(__file__).with_name("bf16x3.cpp")
SIDE = 32  # of a block, as in the source


def obstacle() -> str:
    """Why the kernel cannot run on this machine, or nothing."""
    if platform.system() != "Linux" or not torch.cpu._is_amx_tile_supported():
        return "the processor has no AMX, or the system is not Linux"
    return "" if _compiler() else "there is no C++ compiler (g++)"


def build(model: nn.Module, examples: Tensor, batch_size: int, _precision: Precision) -> Forward:
    """See Engine."""
    replace_linear(model, Linear)
    return compiled(model, one_batch(examples, batch_size), torch.float32)


class Linear(nn.Module):
    """A linear layer whose weights are split and laid out for the kernel: (..., K) -> (..., N)."""

    def __init__(self, plain: nn.Linear):
        super().__init__()
        _kernel()
        self.register_buffer("blocks", blocks(plain.weight.detach()))
        self.register_buffer("bias", torch.zeros(len(plain.weight)) if plain.bias is None else plain.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.vitrail.linear_bf16x3(x, self.blocks, self.bias)


def blocks(weight: Tensor) -> Tensor:
    """(N, K) float32 -> (N / 32, K / 32, high and low, 2, 16, 16, 2) bfloat16, padded with zeros to whole blocks."""
    weight = F.pad(weight, (0, -weight.shape[1] % SIDE, 0, -weight.shape[0] % SIDE))
    high = weight.bfloat16()
    parts = torch.stack([high, (weight - high.float()).bfloat16()])
    tiles = parts.unflatten(2, (-1, SIDE // 2, 2)).unflatten(1, (-1, 2, SIDE // 2))  # (2, n, 2, 16, k, 16, 2)
    return tiles.permute(1, 4, 0, 2, 5, 3, 6).contiguous()


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


@functools.cache
def _kernel() -> ctypes.CDLL:
    """The compiled source, from the cache where it is there."""
    text = SOURCE.read_bytes()
    file = cache_folder() / f"bf16x3-{hashlib.sha256(text).hexdigest()[:16]}.so"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            made = Path(folder, file.name)
            flags = ["-O3", "-march=sapphirerapids", "-fopenmp", "-shared", "-fPIC"]
            subprocess.run([_compiler() or "g++", *flags, SOURCE, "-o", made], check=True, capture_output=True)
            made.replace(file)
    library = ctypes.CDLL(str(file))
    library.linear.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3 + [ctypes.c_int]
    library.linear.restype = None
    if not library.allowed():
        raise OSError("the system does not give the matrix units to this process")
    return library


@torch.library.custom_op("vitrail::linear_bf16x3", mutates_args=(), device_types="cpu")
def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(..., K), blocks of the weights, (N,) -> (..., N), all of x float32 and dense."""
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], len(bias))
    pointers = (tensor.data_ptr() for tensor in (x, weight, bias, y))
    rows, inputs = x.numel() // x.shape[-1], x.shape[-1]
    _kernel().linear(*pointers, rows, inputs, len(bias), torch.get_num_threads())
    return y


@linear.register_fake
def _(x: Tensor, _weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(bias))


ENGINE = Engine("bf16x3", (), ("fp32",), ("cpu",), build, obstacle)
