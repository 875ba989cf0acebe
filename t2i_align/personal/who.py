"""A user in one word, as on the command line, to tokens.

null                              the base model
anna                              a name that the adapter knows (a table's users, saved users)
pairs.parquet#17                  the answers of user_id 17 in any source of pairs; without #, the only user's
users.safetensors#anna            tokens [M, W] or, for encoder external, an array [L, F]; without #, the only one
clip=0.7,aesthetic=0.3            weights of a reward_vector
0.7*anna+0.3*pairs.parquet#17     a mixture of any of these
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from reward_models.errors import nearest_of_many
from t2i_align.data.pair_source import PairSource
from t2i_align.data.sources import open_table
from t2i_align.errors import UserError
from t2i_align.personal.config import NULL_USER
from t2i_align.personal.encoders import ExternalEncoder
from t2i_align.personal.external import read_external
from t2i_align.personal.features import open_extractor
from t2i_align.personal.mixtures import mix
from t2i_align.personal.pair_features import pair_features
from t2i_align.personal.pipeline import Personal
from t2i_align.rewards.pairs import everything

SAFETENSORS = ".safetensors"
PAIR_SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".csv", ".tsv")
TERM = re.compile(r"^(?:(?P<weight>-?\d+(?:\.\d*)?(?:e-?\d+)?)\*)?(?P<who>.+)$")


def tokens_of(personal: Personal, word: str) -> Tensor:
    """Tokens ``[M, W]`` of the user that a word describes, see the module.

    Raises:
        UserError: nobody is meant, or the adapter cannot take what is.
    """
    terms = split_terms(word)
    if len(terms) == 1 and terms[0][0] == 1.0:
        return _one(personal, terms[0][1])
    users = [_one(personal, who) for _, who in terms]
    return mix(users, [weight for weight, _ in terms])


def blend(start: str, end: str, share: float) -> str:
    """The user at `share` of the way from one to another, in one word; both may be mixtures."""
    parts = [
        (factor * weight, who)
        for word, factor in ((start, 1 - share), (end, share))
        for weight, who in split_terms(word)
        if factor
    ]
    return parts[0][1] if len(parts) == 1 and parts[0][0] == 1.0 else "+".join(f"{w:.9g}*{who}" for w, who in parts)


def split_user(word: str) -> tuple[str, str | None]:
    """Address and user of ``ADDRESS[#USER]``; the user is None where none is named.

    The longest beginning that is there as a path is the address, so that a folder ``pairs #1`` can be named; otherwise
    what stands before the first ``#``.
    """
    marks = [place for place, letter in enumerate(word) if letter == "#"]
    for end in (len(word), *reversed(marks)):
        if word[:end] and Path(word[:end]).expanduser().exists():
            return word[:end], word[end + 1 :] if end < len(word) else None
    address, mark, user = word.partition("#")
    return address, user if mark else None


def split_terms(word: str) -> list[tuple[float, str]]:
    """(weight, user) of every part of a mixture; a word without + and * is one part of weight 1.

    Raises:
        UserError: an empty part.
    """
    if Path(split_user(word)[0]).exists():  # a path may hold a + of its own
        return [(1.0, word)]
    found = []
    for part in word.split("+"):
        match = TERM.match(part.strip())
        if match is None:
            raise UserError("A user is missing in the mixture.", repr(word), "for example 0.7*anna+0.3*ben")
        found.append((float(match["weight"] or 1), match["who"].strip()))
    return found


def answers_of(address: str, user: str | None, ties: bool = False) -> PairSource:
    """The pairs of one user of a source.

    Args:
        address: anything ``data.source`` may be.
        user: whose; None where the source holds one user alone.
        ties: keep undecided pairs too.

    Raises:
        UserError: no such user, several without saying whom, or no pair is left.
    """
    table = open_table(address)
    table.raise_problems()
    pairs = everything(table)
    users = [name or "" for name in pairs.users()]
    known = list(dict.fromkeys(users))
    if user is None and len(known) > 1:
        shown = ", ".join(known[:5])
        raise UserError("Whose answers are these?", f"{address} has {len(known)} users: {shown} …", "add #USER")
    if user is not None and user not in known:
        raise UserError("This user gave no answer.", f"{user}, of {address}", nearest_of_many(user, known))
    labels = pairs.labels()
    mine = [user is None or name == user for name in users]
    others = [row for row in range(len(users)) if not mine[row] or (labels[row] == 0.5 and not ties)]
    kept = pairs.without(others, "of others, or ties")
    if len(kept) == 0:
        raise UserError(
            "The user has no comparisons.",
            f"{address}{'' if user is None else '#' + user}: no decided pair",
            "show a few pairs, or use null for the base model",
        )
    return kept


def everything_of(address: str) -> PairSource:
    """All pairs of a source, whoever answered."""
    table = open_table(address)
    table.raise_problems()
    return everything(table)


def _one(personal: Personal, who: str) -> Tensor:
    place, name = split_user(who)
    if who == NULL_USER or who in personal.names:
        return personal.tokens(who)
    if Path(place).expanduser().suffix == SAFETENSORS:
        return _from_arrays(personal, place, name)
    if "=" in who:
        return personal.add_rewards(who, _weights(who.split(",")))
    if Path(place).suffix in PAIR_SUFFIXES or Path(place).expanduser().is_dir() or name is not None:
        return _from_pairs(personal, who, place, name)
    raise UserError(
        "Unknown user.",
        who,
        f"{nearest_of_many(who, personal.names)}; or give pairs.parquet#USER, file.safetensors#NAME, or reward=weight",
    )


def _from_pairs(personal: Personal, who: str, address: str, user: str | None) -> Tensor:
    extractor = personal.adapter.config.extractor
    if not extractor:
        raise UserError(
            "This adapter does not encode comparisons.", f"encoder {personal.adapter.config.encoder}", "name a user"
        )
    source = answers_of(address, user)
    features = pair_features(source, open_extractor(extractor))
    first_wins = [bool(label > 0.5) for label in source.labels()]
    return personal.add_pairs(who, *features.shown(list(range(len(source))), first_wins))


def _from_arrays(personal: Personal, path: str, name: str | None) -> Tensor:
    arrays = read_external(path)
    if name is None and len(arrays) > 1:
        raise UserError("Which user is meant?", f"{path} has {', '.join(list(arrays)[:5])}", "add #NAME")
    if name is not None and name not in arrays:
        raise UserError("Unknown user.", f"{name}, of {path}", nearest_of_many(name, arrays))
    array = arrays[name] if name is not None else next(iter(arrays.values()))
    if isinstance(personal.adapter.encoder, ExternalEncoder):
        with torch.no_grad():
            return personal.adapter.encoder(array[None].to(next(personal.adapter.parameters()).device))[0]
    return personal.tokens(array)


def _weights(words: Sequence[str]) -> dict[str, float]:
    weights = {}
    for word in words:
        name, _, value = word.rpartition("=")  # a reward may hold = itself: colour=blue=0.3
        try:
            weights[name.strip()] = float(value)
        except ValueError as error:
            raise UserError("A reward weight is a number.", word, "for example clip=0.7,aesthetic=0.3") from error
    return weights
