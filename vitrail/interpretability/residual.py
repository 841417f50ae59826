"""What a residual branch writes against what the skip carries. Do Vision Transformers See Like Convolutional Neural
Networks? Raghu et al., NeurIPS 2021, arXiv 2108.08810, figures 7 and 8.

Idea      at every addition z + f(z) of the stream the ratio ||z|| / ||f(z)|| of each token, norms over channels: large
          where the token is carried on, small where it is rewritten. f holds all that is done to it before it is added:
          LayerScale, the norm of a post-norm network.
Finding   every `+` of two tensors of one shape in a block's own pass is such an addition; in a part of a block, one of
          what the part was given and what its own parts have made of it. Of the two the skip is the one that fewer
          layers have made: the tensor itself, or a shortcut that projects or pools it.
Caution   the norm of a pre-norm stream grows with depth, so that later ratios rise by themselves: see the cosine.
Guard     a branch that is silent, as LayerScale of 0 makes it, gives 1e9, the largest ratio, not infinity.
Cost      one forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from vitrail.errors import UserError
from vitrail.interpretability.available import not_available
from vitrail.interpretability.still import frozen
from vitrail.interpretability.stream import as_flow, trunk
from vitrail.layers.attention import record

LARGEST = 1e9
ADDITIONS = ("add", "add_", "__add__", "__iadd__", "__radd__")


class ResidualRatios(NamedTuple):
    """||z|| / ||f(z)|| at R residual additions, in the order of the pass."""

    rows: list[str]
    """The module that adds; where it adds more than once, with the part that wrote: "blocks.3.mlp"."""
    what: list[str]
    """What wrote: "attention", "mlp", "mixing" (tokens, without softmax attention) or "block": all in one branch."""
    patch: NDArray[np.float64]
    """(R,) mean over images and places of the ratio, as in the paper."""
    cls: NDArray[np.float64]
    """(R,) mean over images of the class token's ratio; nan where there is none."""
    median: NDArray[np.float64]
    """(R,) mean over images of the median over places, which a few tokens with a silent branch do not move."""
    cosine: NDArray[np.float64]
    """(R,) mean over images and places of the cosine between z and z + f(z): 1 where nothing turns."""
    tokens: NDArray[np.float64] | None
    """(R, N) mean over images of each token's ratio, prefix tokens first; None where the rows differ in tokens."""
    left_out: list[str]
    """Blocks that add nothing to what they were given, such as those that change its shape."""
    images: int


def residual_ratios(model: nn.Module, batches: Iterable[Tensor]) -> ResidualRatios:
    """The ratios of every residual addition in the blocks of `trunk`, over all `batches` of normalised images
    (B, C, H, W), all of one size; norms in float64. The model is run in eval mode and left as it was.

    Raises UserError without images, and for a network that adds no branch to what it was given.
    """
    model = getattr(model, "_orig_mod", model)
    total: list[tuple[Tensor, Tensor]] = []
    names: list[tuple[str, str]] = []
    sites: list[str] = []
    images = 0
    with frozen(model):
        for batch in batches:
            names, found = _one_pass(model, batch)
            if [x.shape for _, x in found] != [x.shape for _, x in total or found]:
                raise UserError("residual_ratios: the images differ in size; give batches of one size")
            total = [(a + c, b + d) for (a, b), (c, d) in zip(total, found, strict=True)] if total else found
            sites = sites or _sites(model, batch[:1])
            images += len(batch)
    if not images:
        raise UserError("residual_ratios: there are no images; give at least one batch")
    if not names:
        raise not_available("the residual ratio", model, "no block of it adds a branch to what it was given")
    patch, cls, median, cosine = (torch.stack([numbers for numbers, _ in total]).cpu().numpy() / images).T
    alike = len({tokens.shape for _, tokens in total}) == 1
    tokens = torch.stack([tokens for _, tokens in total]).cpu().numpy() / images if alike else None
    blocks = trunk(model)
    left_out = [block for block in blocks if not any(f"{name}.".startswith(f"{block}.") for name, _ in names)]
    rows, what = zip(*_said(names, sites, blocks), strict=True)
    return ResidualRatios(list(rows), list(what), patch, cls, median, cosine, tokens, left_out, images)


def _one_pass(model: nn.Module, images: Tensor) -> tuple[list[tuple[str, str]], list[tuple[Tensor, Tensor]]]:
    """Module and part of every addition in the order of the pass, and what `_sums` gives for it."""
    names: list[tuple[str, str]] = []
    sums: list[tuple[Tensor, Tensor]] = []

    def found(module: str, part: str, skip: Tensor, branch: Tensor) -> None:
        names.append((module, part))
        sums.append(_sums(model, images, skip, branch))

    with torch.no_grad(), additions(model, found):
        model(images)
    return names, sums


def _sums(model: nn.Module, images: Tensor, skip: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the images of one addition: of ratio, class token's ratio, median and cosine (4,); by token (N,)."""
    z, f = (as_flow(x, model, images) for x in (skip, branch))
    prefix = z.prefix.shape[1]
    a, b = (torch.cat([x.prefix, x.tokens], dim=1) for x in (z, f))
    carried, written = (torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64) for x in (a, b))
    ratio = carried / torch.maximum(written, carried / LARGEST).clamp_min(torch.finfo(torch.float64).tiny)
    cosine = F.cosine_similarity(a, a + b, dim=-1)[:, prefix:].double()
    whole = len(images), -1  # folded maps, and the words of patches, lie with their image first
    places = ratio[:, prefix:].reshape(whole)
    cls = ratio[:, 0] if prefix else torch.full_like(places[:, 0], torch.nan)
    of_images = [places.mean(1), cls, places.quantile(0.5, dim=1), cosine.reshape(whole).mean(1)]
    return torch.stack(of_images).sum(1), ratio.reshape(whole).sum(0)


def _sites(model: nn.Module, image: Tensor) -> list[str]:
    """Names of the modules that compute softmax attention."""
    with torch.no_grad(), record(model) as maps:
        model(image)
    return list(maps)


def _said(names: list[tuple[str, str]], sites: list[str], blocks: list[str]) -> Iterator[tuple[str, str]]:
    """Row and kind of every addition. What follows attention directly, or comes last in a module, is its MLP."""
    modules = [module for module, _ in names]
    before = ("", "")
    for i, (module, part) in enumerate(names):
        alone = modules.count(module) == 1
        row = module if alone or not part else f"{module}.{part}"
        if (not alone or module not in blocks) and any(f"{site}.".startswith(f"{row}.") for site in sites):
            what = "attention"
        elif alone:
            what = "block"
        else:
            what = "mlp" if module not in modules[i + 1 :] or before == (module, "attention") else "mixing"
        before = module, what
        yield row, what


# ---------------------------------------------------------------------- finding the additions


class _Path(NamedTuple):
    """How a tensor came about inside the module at work."""

    layers: int
    """Modules without parts that it has gone through, on the longest way."""
    weights: int
    part: str
    """The part of the module at work on this way with the most `weights`."""


class _Frame(NamedTuple):
    """A module at work, and the tensors that come of what it was given: kept, so that no other takes their id."""

    name: str
    paths: dict[int, tuple[Tensor, _Path]]

    def path(self, given: Any) -> _Path | None:
        return max((self.paths[id(x)][1] for x in _tensors(given) if id(x) in self.paths), default=None)

    def follow(self, made: Any, path: _Path | None) -> None:
        if path is not None:
            for x in _tensors(made):
                self.paths.setdefault(id(x), (x, path))  # Identity hands on what it was given


START = _Path(0, 0, "")
Found = Callable[[str, str, Tensor, Tensor], None]


class _Additions(TorchFunctionMode):
    """Follows tensors through the modules that it `watches` and calls `found` before each residual addition."""

    def __init__(self, blocks: list[str], found: Found) -> None:
        super().__init__()
        self.blocks, self.found = set(blocks), found
        self.frames: list[_Frame] = []

    def watches(self, name: str, module: nn.Module) -> Iterator[RemovableHandle]:
        """The hooks of one module."""
        part, layers = name.rpartition(".")[2], sum(not list(child.children()) for child in module.modules())
        weights = sum(parameter.numel() for parameter in module.parameters())

        def enter(_module: nn.Module, args: Any, named: Any) -> None:
            self.frames.append(_Frame(name, {id(x): (x, START) for x in _tensors((args, named))}))

        def leave(_module: nn.Module, args: Any, named: Any, made: Any) -> None:
            self.frames.pop()
            path = self.frames[-1].path((args, named)) if self.frames else None
            if path is not None:
                most = max((path.weights, path.part), (weights, part), key=lambda pair: pair[0])
                self.frames[-1].follow(made, _Path(path.layers + layers, *most))

        yield module.register_forward_pre_hook(enter, with_kwargs=True)
        yield module.register_forward_hook(leave, with_kwargs=True)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.frames:
            return func(*args, **(kwargs or {}))
        frame = self.frames[-1]
        path = frame.path((args, kwargs))
        residual = func.__name__ in ADDITIONS and self.residual(frame, *args[:2])
        made = func(*args, **(kwargs or {}))
        if residual:
            frame.paths[id(made)] = made, START
        else:
            frame.follow(made, path)
        return made

    def residual(self, frame: _Frame, one: Any, other: Any) -> bool:
        """Whether one + other is a residual addition; if so it is reported, before `one` may be written into."""
        first, second = frame.path(one), frame.path(other)
        if first is None or second is None or one.shape != other.shape or one.ndim not in (3, 4):
            return False
        short, long, skip, branch = (first, second, one, other) if first <= second else (second, first, other, one)
        if long.layers == 0 or (short.layers and frame.name not in self.blocks):
            return False
        self.found(frame.name, long.part, skip, branch)
        return True


@contextmanager
def additions(model: nn.Module, found: Found) -> Iterator[None]:
    """Call `found(module, part, skip, branch)` at each residual addition in the blocks of `model`, of each pass inside
    the `with`: names of the module that adds and of its part with most weights in the branch, and the two tensors."""
    blocks = trunk(model)
    watch = _Additions(blocks, found)
    with ExitStack() as stack:
        for block in blocks:
            for name, module in model.get_submodule(block).named_modules(prefix=block):
                for hook in watch.watches(name, module):
                    stack.callback(hook.remove)
        stack.enter_context(watch)
        yield


def _tensors(given: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, tuple | list | dict):
        for item in given.values() if isinstance(given, dict) else given:
            yield from _tensors(item)
