"""A scorer of your own: a function in a Python file, named `file.py:function`.

    def warmth(prompts: list[str], images: list[PIL.Image.Image]) -> list[float]: ...

The file is run when such a scorer is loaded, never when its name is only checked (`check_own`). Its scores carry the
hash of the file as version: of that file alone, not of what it imports.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reward_models.errors import RewardModelError, unknown_name
from reward_models.images import ImageSource, decode_image
from reward_models.preprocess import Preprocessor
from reward_models.scorer import BaseScorer, Prepared, Prompts, expand_prompts

SUFFIX = ".py"
FORM = "file.py:function"
_LARGEST = float(np.finfo(np.float32).max)

Function = Callable[[list[str], list[Image.Image]], Sequence[float]]


class OwnName(NamedTuple):
    """The two parts of `file.py:function`."""

    path: Path
    function: str


def own_name(name: str) -> OwnName | None:
    """The parts of the name of a scorer of one's own; None for any other scorer.

    Raises:
        RewardModelError: a Python file without a function, or with something after it that is no name.
    """
    path, _, function = name.rpartition(f"{SUFFIX}:")
    if path and function.isidentifier():
        return OwnName(Path(f"{path}{SUFFIX}").expanduser(), function)
    if path or name.endswith(SUFFIX):
        raise RewardModelError("a scorer of your own needs the name of its function", found=name, fix=f"write {FORM}")
    return None


def check_own(own: OwnName) -> None:
    """Look for the function in the file, without running anything of it.

    Raises:
        RewardModelError: no such file, not Python, or nothing of that name is defined in it.
    """
    _check(own, _read(own.path))


def _check(own: OwnName, source: bytes) -> None:
    try:
        names = _defined(ast.parse(source))
    except (SyntaxError, ValueError) as error:
        raise RewardModelError("the file of a scorer is not valid Python", found=f"{own.path}: {error}") from error
    if own.function not in names:
        raise unknown_name(f"function of {own.path}", own.function, sorted(names) or ["(it defines nothing)"])


def load_own(own: OwnName) -> FunctionScorer:
    """Run the file and take its function.

    Raises:
        RewardModelError: see `check_own`; the file cannot be run, or what it defines cannot be called with prompts and
            images.
    """
    source = _read(own.path)
    _check(own, source)
    function = getattr(_run(own.path.resolve(), source), own.function, None)
    where = f"{own.path}:{own.function}"
    if not callable(function):
        raise RewardModelError(
            "a scorer of your own must be a function", found=f"{where} is of type {type(function).__name__}"
        )
    try:
        inspect.signature(function).bind([], [])
    except (TypeError, ValueError) as error:
        raise RewardModelError(
            "a scorer of your own is called with two arguments, prompts and images",
            found=f"{where}: {error}",
            fix=f"write def {own.function}(prompts, images):",
        ) from error
    return FunctionScorer(function, f"{own.path.name}:{own.function}", f"sha256:{_digest(source)}")


class AsDecoded(Preprocessor):
    """No pipeline at all: the decoded picture itself, a PIL image in RGB."""

    def __init__(self) -> None:
        # Neither size nor normalisation, so the base class's check of names does not apply.
        object.__setattr__(self, "name", "as_decoded")
        object.__setattr__(self, "size", 0)

    def __call__(self, source: ImageSource) -> Any:
        return decode_image(source)

    def tensor(self, pixels: Tensor) -> Tensor:
        raise RewardModelError("a scorer of your own is not differentiable", fix="use a trained head for gradients")

    def __str__(self) -> str:
        return self.name


class FunctionScorer(BaseScorer):
    """A function of prompts and pictures as a scorer.

    Args:
        function: called with lists of one length N, at most a batch at once; returns N finite
            numbers, higher is better.
        name, version: stand beside its scores.
    """

    differentiable = False

    def __init__(self, function: Function, name: str, version: str) -> None:
        self.function, self.name, self.version = function, name, version
        self.device = torch.device("cpu")

    @property
    def preprocessors(self) -> tuple[Preprocessor, ...]:
        return (AsDecoded(),)

    def score_prepared(self, prompts: Prompts, prepared: Prepared) -> Tensor:
        images = list(prepared[self.preprocessing])
        texts = expand_prompts(prompts, len(images))
        try:
            scores = self.function(texts, images)
        except Exception as error:  # whatever the user's own code raises is the user's to put right
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise RewardModelError(
                f"the scorer {self.name} failed",
                found=f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})",
                fix="correct the file",
            ) from error
        return torch.from_numpy(_numbers(scores, len(images), self.name))

    def score_tensor(self, prompts: Prompts, pixels: Tensor) -> Tensor:
        raise RewardModelError(f"the scorer {self.name} is not differentiable", fix="use a trained head for gradients")


def _numbers(scores: Any, count: int, name: str) -> np.ndarray:
    """What the function returned as float32 [count]."""
    what = f"the scorer {name} must return one finite number per picture"
    if isinstance(scores, Tensor):
        scores = scores.detach().cpu()
        scores = scores.float().numpy() if scores.is_floating_point() else scores.numpy()
    if isinstance(scores, (str, bytes)) or not isinstance(scores, (Sequence, np.ndarray)):
        raise RewardModelError(what, found=f"{type(scores).__name__}", fix=f"return a list of {count} floats")
    if np.ndim(scores) == 0 or len(scores) != count:
        raise RewardModelError(what, found=f"{np.shape(scores)} for {count} pictures", fix="do not leave pictures out")
    for index, score in enumerate(scores):
        if isinstance(score, (bool, np.bool_)) or not isinstance(score, (int, float, np.integer, np.floating)):
            raise RewardModelError(what, found=f"{type(score).__name__} for picture {index} of {count}: {score!r:.80}")
        if not -_LARGEST <= score <= _LARGEST:  # NaN compares as false
            raise RewardModelError(what, found=f"{score} for picture {index} of {count}")
    return np.asarray(scores, dtype=np.float32).reshape(count)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RewardModelError(
            "the file of a scorer cannot be read", found=f"{path}: {error.strerror}", fix=f"looked in {Path.cwd()}"
        ) from error


def _digest(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()[:12]


def _defined(module: ast.Module) -> set[str]:
    """Names that the file binds at its top level: functions, classes, variables, imports."""
    names: set[str] = set()
    for node in module.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        else:
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and _is_bound(part)}
            names |= {part.name for part in ast.walk(node) if isinstance(part, ast.FunctionDef)}
    return names


def _is_bound(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


@lru_cache(maxsize=16)
def _run(path: Path, source: bytes) -> ModuleType:
    """The module of a file; it is run once per content.

    Compiled here and not by importlib, whose cache of bytecode takes a file of the same second and size for the same.
    """
    name = f"reward_models_own_{path.stem}_{_digest(source)}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except Exception as error:  # whatever the user's own code raises is the user's to put right
        del sys.modules[name]
        raise RewardModelError(
            "the file of a scorer cannot be run",
            found=f"{path}: {type(error).__name__}: {error}",
            fix="correct the file",
        ) from error
    return module
