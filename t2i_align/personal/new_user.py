"""A user nobody has trained on: what a few answers say, how sure that is, and which pair to ask next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from reward_models.files import complete_file
from reward_models.personal.files import load_head
from reward_models.personal.posterior import UserPosterior, choose_pair, predict
from t2i_align.data.pair_source import PairSource
from t2i_align.errors import UserError
from t2i_align.personal.config import NULL_USER
from t2i_align.personal.files import SavedPersonal, read_personal
from t2i_align.personal.pair_features import pair_features
from t2i_align.personal.who import answers_of, everything_of, split_user
from t2i_align.rewards.personal import comparisons, read_features


@dataclass(frozen=True)
class NextPair:
    """The question that is expected to teach most.

    Attributes:
        pair_id, caption, location: of the pair.
        gain: expected information in nats.
        probability: that picture 0 is preferred, as far as is known.
    """

    pair_id: str
    caption: str
    location: str
    gain: float
    probability: float


@dataclass(frozen=True)
class NewUser:
    """Result of `fit`.

    Attributes:
        posterior: what is known.
        question: None where every candidate was asked.
    """

    posterior: UserPosterior
    question: NextPair | None

    def render(self) -> str:
        """What to tell a person."""
        lines = [self.posterior.summary()]
        if self.question is None:
            return "\n".join([*lines, "No pair is left to ask."])
        ask = self.question
        lines += [
            f"Ask next: pair {ask.pair_id}, '{ask.caption}' ({ask.location})",
            f"  expected to teach {ask.gain:.3f} nats; picture 0 is preferred with {ask.probability:.2f} so far",
        ]
        return "\n".join(lines)


def fit(head_run: str | Path, answers: str, first: int | None = None, candidates: str | None = None) -> NewUser:
    """Fit a new user; milliseconds on a CPU, besides the features of the pairs.

    Args:
        head_run: output folder of ``rewards train`` with ``scorer: personal``.
        answers: ``SOURCE#USER``, or a source of one user.
        first: use only the first so many answers.
        candidates: source of pairs that may be asked; None takes the answers' source. Labels are not read, and pairs
            whose pictures the user has answered are left out.

    Raises:
        UserError: not a personal head, no such user, or features of another kind.
        RewardModelError: features of another width.
    """
    extractor = read_features(head_run)
    head = load_head(Path(head_run) / "model")
    address, user = split_user(answers)
    given = answers_of(address, user, ties=True)
    if first is not None:
        given = given.without(range(first, len(given)), "not shown yet")
    known = comparisons(given, pair_features(given, extractor))
    posterior = head.fit_user(known.of_user(known.users[0]))
    source = _askable(everything_of(candidates or address), given)
    if len(source) == 0:
        return NewUser(posterior, None)
    options = comparisons(source, pair_features(source, extractor))
    question = choose_pair(head, posterior, options)
    chosen = NextPair(
        source.pair_ids()[question.index],
        source.captions()[question.index],
        source.location(question.index),
        float(question.gains[question.index]),
        float(predict(head, posterior, options).probability[question.index]),
    )
    return NewUser(posterior, chosen)


def save_tokens(adapter_run: str, answers: str, first: int | None, name: str, path: str | Path) -> Path:
    """The user's tokens for a user adapter, as a file that ``generate --user FILE`` takes.

    An adapter of pairs reads them in one pass; for a table the combination of its users is sought that explains the
    answers, see ``table_user``.

    Raises:
        UserError: an adapter that does not learn from pairs, or a name that is taken.
    """
    from t2i_align.backbones import identify_model

    source = identify_model(adapter_run)
    if source.kind != "user" or source.weights is None:
        raise UserError("This run has no user adapter.", adapter_run, "give a run of a personal section")
    if name == NULL_USER:
        raise UserError(f"'{NULL_USER}' is the user of whom nothing is known.", fix="choose another --name")
    saved = read_personal(source.weights)
    address, user = split_user(answers)
    given = answers_of(address, user)
    if first is not None:
        given = given.without(range(first, len(given)), "not shown yet")
    if saved.adapter.config.encoder == "table":
        from t2i_align.personal.table_user import fit_to_table

        tokens = fit_to_table(adapter_run, saved.adapter, address, given).tokens
    else:
        tokens = _shown(saved, name, given)
    with complete_file(path) as temporary:
        save_file({name: tokens.detach().cpu().contiguous()}, temporary)
    return Path(path)


def _shown(saved: SavedPersonal, name: str, given: PairSource) -> Tensor:
    from t2i_align.personal.features import open_extractor
    from t2i_align.personal.pipeline import Personal

    extractor = saved.adapter.config.extractor
    if not extractor:
        found = f"encoder {saved.adapter.config.encoder}"
        raise UserError("This adapter does not learn users from comparisons.", found, "leave --adapter out")
    features = pair_features(given, open_extractor(extractor))
    wins = [bool(label > 0.5) for label in given.labels()]
    return Personal(None, saved.adapter, {}).add_pairs(name, *features.shown(list(range(len(given))), wins))


def _askable(source: PairSource, given: PairSource) -> PairSource:
    """Pairs whose two pictures the user has not compared yet, each once."""
    seen = {frozenset(given.images(row)) for row in range(len(given))}
    left_out = []
    for row in range(len(source)):
        pictures = frozenset(source.images(row))
        if pictures in seen or len(pictures) < 2:
            left_out.append(row)
        seen.add(pictures)
    return source.without(left_out, "asked, or the same again")
