"""Captions longer than a text encoder reads: counted and said once, instead of a library's warning at every batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2i_align.backbones.base import Backbone

logger = logging.getLogger(__name__)
LOOKED_AT = 20_000  # captions, spread over all: counting them costs a second or two
TOGETHER = 1000
TOKENS = "Token indices sequence length is longer"  # and that indexing errors will follow, which cutting prevents
CUT = "The following part of your input was truncated"  # and the words
LIBRARIES = {  # logger -> how what it says of each long caption begins
    "transformers.tokenization_utils_base": TOKENS,
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion": CUT,
    "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl": CUT,
}


def token_limit(tokenizers: Sequence[Any]) -> int:
    """Tokens of a caption that all text encoders read, begin and end included."""
    return min(tokenizer.model_max_length for tokenizer in tokenizers)


def count_cut(tokenizers: Sequence[Any], captions: Sequence[str]) -> int:
    """How many captions lose their end in one of the text encoders."""
    cut = 0
    for start in range(0, len(captions), TOGETHER):
        some = list(captions[start : start + TOGETHER])
        longest = [0] * len(some)
        for tokenizer in tokenizers:
            with cut_in_silence():
                lengths = [len(ids) for ids in tokenizer(some, truncation=False).input_ids]
            excess = [length - tokenizer.model_max_length for length in lengths]
            longest = [max(before, now) for before, now in zip(longest, excess, strict=True)]
        cut += sum(over > 0 for over in longest)
    return cut


def tell_cut(backbone: Backbone, captions: Sequence[str]) -> None:
    """Say how many of the captions a run trains on are cut; once for a model, nothing where none is.

    Args:
        backbone: reads them.
        captions: all; of very many a share is looked at.
    """
    if backbone.told_of_cut_captions or not captions:
        return
    step = -(-len(captions) // LOOKED_AT)
    some = captions[::step]
    cut = count_cut(backbone.tokenizers, some)
    if cut:
        backbone.told_of_cut_captions = True
        limit = token_limit(backbone.tokenizers)
        logger.info("%d of %d captions are cut at %d tokens: the model does not read their ends", cut, len(some), limit)


@contextmanager
def cut_in_silence() -> Iterator[None]:
    """Inside, libraries do not speak of every caption that they cut; `tell_cut` has counted them."""
    filters = {name: partial(_keep, beginning) for name, beginning in LIBRARIES.items()}
    for name, keep in filters.items():
        logging.getLogger(name).addFilter(keep)
    try:
        yield
    finally:
        for name, keep in filters.items():
            logging.getLogger(name).removeFilter(keep)


def _keep(beginning: str, record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(beginning)
