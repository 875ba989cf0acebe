"""The report of a data check: numbers, their rendering as text, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field

from t2i_align.data.wording import counted
from t2i_align.errors import UserError

SHOWN = 20


@dataclass(frozen=True)
class PictureSummary:
    """What was seen when every training picture was decoded.

    Attributes:
        different: pictures that are not byte for byte the same.
        in_several_pairs, most_pairs: pictures in more than one pair; pairs of the most frequent one.
        identical_pairs: pairs that compare a picture with itself.
        repeated_pairs: pairs beyond the first with the same caption and pictures.
        contradictory_pairs: different (caption, pictures) judged both ways.
        sizes: the most common (width, height) with their counts; size_count: of all sizes.
        smaller_than_resolution: pictures that training enlarges.
        aspect_ratios: smallest, median and largest width / height.
        pairs_of_unequal_size: pairs whose pictures differ in size.
        seen: pictures that were decoded, each as often as it occurs.
        cropped: of them, those that are no squares. lost, most_lost: share of the pixels that the square leaves out, of
            all pictures and of the picture that loses most.
    """

    different: int
    in_several_pairs: int
    most_pairs: int
    identical_pairs: int
    repeated_pairs: int
    contradictory_pairs: int
    sizes: list[tuple[tuple[int, int], int]]
    size_count: int
    smaller_than_resolution: int
    aspect_ratios: tuple[float, float, float] | None
    pairs_of_unequal_size: int
    seen: int
    cropped: int
    lost: float
    most_lost: float


@dataclass(frozen=True)
class CaptionLengths:
    """What one tokenizer makes of the captions.

    Attributes:
        name: of the tokenizer.
        limit: tokens that are read, start and end among them.
        captions: different ones. cut: of them, the longer ones. longest: tokens of the longest.
    """

    name: str
    limit: int
    captions: int
    cut: int
    longest: int


@dataclass(frozen=True)
class DataReport:
    """What `check.check` found.

    Attributes:
        address: of the source.
        read_as: which columns hold what; not_read: those that nothing reads. Empty where there is one layout only.
        rows: in the source. usable: pairs a run trains on.
        left_out: reason -> pairs that are no training pairs.
        row_problems: "where: reason" of rows with a wrong label, caption or weight.
        labels: meaning -> pairs of the source.
        prompts: different prompts of the source.
        pairs_per_user: most first; empty without users.
        heldout_pairs: usable held-out pairs, None without a hold-out. heldout_left_out: reason -> pairs.
        shared_prompts, shared_pictures: in both the training and the held-out data.
        pictures: of the training pairs.
        undecodable: "where: reason", training and held-out.
        leaves_out_undecodable: whether the run leaves such pairs out (it caches), or would stop.
        errors: what stops the data from being opened for training.
        captions: their lengths, by tokenizer; None where no tokenizer is known.
    """

    address: str
    rows: int
    usable: int
    left_out: dict[str, int]
    row_problems: list[str]
    labels: dict[str, int]
    prompts: int
    pairs_per_user: list[int]
    heldout_pairs: int | None
    heldout_left_out: dict[str, int]
    shared_prompts: int
    shared_pictures: int
    pictures: PictureSummary
    undecodable: list[str]
    leaves_out_undecodable: bool
    errors: list[UserError] = field(default_factory=list)
    captions: list[CaptionLengths] | None = None
    read_as: str = ""
    not_read: str = ""

    @property
    def is_trainable(self) -> bool:
        """Whether a run would start."""
        return not self.errors and not (self.undecodable and not self.leaves_out_undecodable)

    def require_trainable(self) -> None:
        """Refuse data that cannot train.

        Raises:
            UserError: the first reason.
        """
        if self.errors:
            raise self.errors[0]
        if self.undecodable and not self.leaves_out_undecodable:
            raise UserError(
                f"{counted(len(self.undecodable), 'pair')} of {self.address} cannot be decoded.",
                "; ".join(self.undecodable[:3]),
                "repair or remove them (t2i-align data convert --skip-undecodable), or set data.cache_dir: "
                "a cache leaves them out",
            )

    def render(self) -> str:
        """The report as plain text."""
        sections = [
            [
                ("rows", f"{self.rows} in {self.address}"),
                *([("read as", self.read_as)] if self.read_as else []),
                *([("not read", self.not_read)] if self.not_read else []),
                ("usable pairs", f"{self.usable}{_counts(self.left_out)}"),
                ("labels", ", ".join(f"{n} {name}" for name, n in self.labels.items() if n) or "none"),
                ("prompts", f"{self.prompts} different"),
                *self._caption_lines(),
                ("users", self._users()),
            ],
            self._picture_lines(),
            self._heldout_lines(),
        ]
        text = "\n\n".join("\n".join(f"{name:<18}{value}" for name, value in lines) for lines in sections if lines)
        lists = [
            _listed("row", "that cannot be trained on", self.row_problems),
            _listed("pair", "that cannot be decoded", self.undecodable),
        ]
        return "\n\n".join([text, *filter(None, lists), self._verdict()])

    def _caption_lines(self) -> list[tuple[str, str]]:
        if self.captions is None:
            return [("caption lengths", "not counted: no tokenizer (--model names one)")]
        return [
            (
                "caption lengths",
                f"{found.cut} of {found.captions} cut at {found.limit} tokens ({found.name}); longest {found.longest}",
            )
            for found in self.captions
        ]

    def _users(self) -> str:
        counts = self.pairs_per_user
        if not counts:
            return "none named"
        return f"{len(counts)}, pairs of each: most {counts[0]}, median {counts[len(counts) // 2]}, least {counts[-1]}"

    def _picture_lines(self) -> list[tuple[str, str]]:
        seen = self.pictures
        if seen.aspect_ratios is None:
            return []
        sizes = ", ".join(f"{width} x {height} ({n})" for (width, height), n in seen.sizes)
        more = f" and {seen.size_count - len(seen.sizes)} more" if seen.size_count > len(seen.sizes) else ""
        least, median, most = seen.aspect_ratios
        several = f"{seen.in_several_pairs} in several pairs, at most {seen.most_pairs}"
        return [
            ("pictures", f"{seen.different} different; {several}"),
            ("sizes", sizes + more),
            ("width / height", f"{least:.2f} to {most:.2f}, median {median:.2f}"),
            ("cropped", self._cropped()),
            ("to be enlarged", f"{counted(seen.smaller_than_resolution, 'picture')} smaller than data.resolution"),
            ("unequal sizes", counted(seen.pairs_of_unequal_size, "pair")),
            ("same picture", f"{counted(seen.identical_pairs, 'pair')} of a picture with itself"),
            ("repeated", f"{counted(seen.repeated_pairs, 'pair')}, {seen.contradictory_pairs} judged both ways"),
        ]

    def _cropped(self) -> str:
        seen = self.pictures
        if not seen.cropped:
            return "nothing: all pictures are squares"
        return (
            f"{seen.lost:.1%} of the pixels: {seen.cropped} of {seen.seen} pictures are no squares, "
            f"the longest loses {seen.most_lost:.0%}"
        )

    def _heldout_lines(self) -> list[tuple[str, str]]:
        if self.heldout_pairs is None:
            return [("held out", "nothing")]
        prompts = f"{counted(self.shared_prompts, 'prompt')} (their held-out pairs are left out)"
        return [
            ("held out", counted(self.heldout_pairs, "pair") + _counts(self.heldout_left_out)),
            ("shared", f"{prompts}, {counted(self.shared_pictures, 'picture')}"),
        ]

    def _verdict(self) -> str:
        if not self.is_trainable:
            return "This data cannot train."
        if self.undecodable:
            return f"This data can train; {counted(len(self.undecodable), 'pair')} will be left out of the cache."
        return "This data can train."


def _counts(reasons: dict[str, int]) -> str:
    return "; left out: " + ", ".join(f"{n} {reason}" for reason, n in reasons.items()) if reasons else ""


def _listed(noun: str, what: str, items: list[str]) -> str:
    if not items:
        return ""
    more = [f"  and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return "\n".join([f"{counted(len(items), noun)} {what}:", *(f"  {item}" for item in items[:SHOWN]), *more])
