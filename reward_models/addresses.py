"""Addresses of checkpoints that another package brings, such as `shapes:pickscore` of t2i_align.

The table names the function that turns an address into a path, as text: it is imported when such an address is used, so
that nothing here needs the other package.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from reward_models.errors import RewardModelError

# prefix -> "module:function", which takes the whole address and returns a path.
RESOLVERS = {"shapes:": "t2i_align.shapes.assets:resolve"}


def prefix_of(reference: object) -> str | None:
    """The prefix of an address that another package resolves; None for any other path or name."""
    return next((prefix for prefix in RESOLVERS if isinstance(reference, str) and reference.startswith(prefix)), None)


def resolved(reference: Any) -> Any:
    """The path behind an address; anything else unchanged.

    Raises:
        RewardModelError: the package that knows the address is not installed, or knows no such address.
    """
    prefix = prefix_of(reference)
    if prefix is None:
        return reference
    module, _, function = RESOLVERS[prefix].partition(":")
    package = module.partition(".")[0]
    try:
        resolve = getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise RewardModelError(
            f"an address that begins with {prefix} needs the package {package}, which is not installed",
            found=reference,
            fix=f"install {package}, or give the path of a checkpoint",
        ) from error
    try:
        return str(resolve(reference))
    except Exception as error:
        if not hasattr(error, "what"):
            raise
        raise RewardModelError(error.what, getattr(error, "found", ""), getattr(error, "fix", "")) from error


def named_model(name: str) -> tuple[str, str | None]:
    """A scorer's name, and the checkpoint where the name is an address.

    `shapes:mps:aesthetic` is `mps:aesthetic` with the checkpoint `shapes:mps`; another name comes back with None.
    """
    prefix = prefix_of(name)
    if prefix is None:
        return name, None
    inner = name.removeprefix(prefix)
    return inner, f"{prefix}{inner.partition(':')[0]}"
