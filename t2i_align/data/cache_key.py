"""What a cache was made from, and whether that is still what a run needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from reward_models.files import TEMPORARY, write_json
from t2i_align.config.schema import DataConfig
from t2i_align.data.tables import PairTable
from t2i_align.data.transform import VERSION
from t2i_align.errors import UserError

FORMAT = 1
FILE = "cache.json"


@dataclass
class CacheKey:
    """Everything encodings depend on.

    Attributes:
        format: of the files.
        encoder: hash of the VAE's and text encoders' weights and configs.
        transform: version of the geometry code.
        resolution: side in pixels.
        flips: whether mirrored pictures are there too.
        sources: address -> fingerprint of the ids, captions and pictures found there.
    """

    encoder: str
    resolution: int
    flips: bool
    sources: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT
    transform: int = VERSION

    @classmethod
    def of(cls, config: DataConfig, encoder: str, tables: Sequence[PairTable]) -> CacheKey:
        """The key a run needs."""
        sources = {table.address: table.fingerprint for table in tables}
        return cls(encoder, config.resolution, config.random_flip, sources)

    @classmethod
    def read(cls, folder: Path) -> CacheKey | None:
        """The key of an existing cache; None where there is no cache.

        Raises:
            UserError: the folder holds something else.
        """
        file = folder / FILE
        if file.is_file():
            try:
                return cls(**json.loads(file.read_text()))
            except (json.JSONDecodeError, TypeError) as error:
                raise UserError(f"{file} does not describe a cache.", str(error), _rebuild(folder)) from error
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        held = [name for name in names if not name.endswith(TEMPORARY)]  # another process may be writing the key
        if not held:
            return None
        if file.is_file():  # it came between the two looks
            return cls.read(folder)
        raise UserError(
            "data.cache_dir is a folder that is not a cache.",
            f"{folder} holds {held[0]} and no {FILE}",
            "set data.cache_dir to a new or empty folder",
        )

    def write(self, folder: Path) -> None:
        """Save the key."""
        write_json(folder / FILE, asdict(self))

    def require(self, wanted: CacheKey, folder: Path) -> None:
        """Refuse to serve a run whose encodings would be different.

        Raises:
            UserError: names everything that changed.
        """
        changes = [
            f"{name}: cache {_short(mine)}, run {_short(theirs)}"
            for name, mine, theirs in (
                ("cache format", self.format, wanted.format),
                ("transform version", self.transform, wanted.transform),
                ("VAE and text encoders", self.encoder, wanted.encoder),
                ("data.resolution", self.resolution, wanted.resolution),
            )
            if mine != theirs
        ]
        if wanted.flips and not self.flips:
            changes.append("data.random_flip: the cache has no mirrored pictures")
        changes += [
            f"pictures, captions or ids of {address} are not those that were cached"
            for address, fingerprint in wanted.sources.items()
            if self.sources.get(address, fingerprint) != fingerprint
        ]
        if changes:
            raise UserError(f"The cache in {folder} is stale.", "; ".join(changes), _rebuild(folder))


def _rebuild(folder: Path) -> str:
    return f"delete {folder} and run t2i-align data cache CONFIG, or set data.cache_dir to another folder"


def _short(value: object) -> str:
    return value[:12] if isinstance(value, str) else str(value)
