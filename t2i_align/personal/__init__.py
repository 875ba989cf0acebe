"""One denoiser for many people: user tokens, the attention that reads them, and files that carry both.

    from t2i_align.personal import load_personal
    personal = load_personal(pipeline, "folder")             # any diffusers SD1.x, SD2.x or SDXL pipeline
    with personal.user("anna"):                              # or {"anna": 0.7, "ben": 0.3}, or tokens [M, W]
        pipeline("a red fox").images[0]

`config` sizes; `encoders` users to tokens; `pair_set` a user as a set of comparisons; `attention` one layer;
`adapter` all layers on a UNet; `condition` rows of a batch and guidance; `mixtures` of users; `fitting` new users of a
table; `external` embeddings from elsewhere; `files` saving; `pipeline` the two lines above.

Training: `section` of the YAML file, `features` of pictures and captions, `pair_features` their cache, `crowd` whose
pairs are whose, `users` what the encoder is told, `warm_up` what it learns first, `provider` and `step` for the loop,
`build` all of it. Before it: `extraction` of embeddings by a `vision_language` model that is shown a user's `support`,
`annotators` who agree or not. After it: `who` a user in one word, `new_user` from a few answers, `table_user` for
a table, `soups` of LoRAs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2i_align.personal.adapter import UserAdapter, add_user_adapter
    from t2i_align.personal.config import PersonalConfig
    from t2i_align.personal.files import save_personal
    from t2i_align.personal.pipeline import Personal, load_personal

_LAZY = {
    "UserAdapter": "adapter",
    "add_user_adapter": "adapter",
    "PersonalConfig": "config",
    "save_personal": "files",
    "Personal": "pipeline",
    "load_personal": "pipeline",
}

__all__ = ["Personal", "PersonalConfig", "UserAdapter", "add_user_adapter", "load_personal", "save_personal"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 't2i_align.personal' has no attribute '{name}'")
    return getattr(importlib.import_module(f"t2i_align.personal.{_LAZY[name]}"), name)
