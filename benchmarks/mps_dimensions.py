"""Does every dimension of an MPS rank its own dimension of the oracle better than its other dimensions do?

    python benchmarks/mps_dimensions.py --checkpoint shapes:mps --pairs shapes:pairs/heldout --out dimensions.json

For every dimension of the oracle, on the pairs that differ in it: the accuracy of the MPS under each condition, and how
much more often the condition of that name is right than each other one, with a paired 95 % bootstrap interval over
prompts. Prints tables; writes the same numbers as JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from reward_models.images import decode_image
from t2i_align.data.sources import open_table
from t2i_align.rewards.pairs import everything
from t2i_align.rewards.scorers import load_scorer
from t2i_align.shapes.oracle import DIMENSIONS, Oracle

REPLICATES = 4000
TIES = 0.01  # differences of an oracle dimension up to this do not count, as in training


def credits(margins: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """1 where a margin has the sign of the oracle's difference, 1/2 where it is 0, else 0."""
    return np.where(margins == 0, 0.5, np.sign(margins) == np.sign(gaps))


def interval(values: np.ndarray, groups: np.ndarray) -> list[float]:
    """Mean and 95 % bootstrap interval over groups."""
    sums, counts = (np.bincount(groups, weights) for weights in (values, np.ones(len(values))))
    drawn = np.random.default_rng(0).integers(len(sums), size=(REPLICATES, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return [round(float(number), 3) for number in (values.mean(), low, high)]


def measure(checkpoint: str, source: str) -> dict[str, Any]:
    """Accuracies and paired differences by dimension of the oracle."""
    pairs = everything(open_table(source))
    captions = [caption for caption in pairs.captions() for _ in range(2)]
    pictures = [decode_image(data) for index in range(len(pairs)) for data in pairs.images(index)]
    judged = Oracle().score(captions, pictures)
    margins = {}
    for name in ("overall", *DIMENSIONS):
        word = "mps" if name == "overall" else f"mps:{name}"
        scores = load_scorer(f"{word}={checkpoint}").score(captions, pictures).numpy()
        margins[name] = scores[::2] - scores[1::2]
    result: dict[str, Any] = {}
    for name in ("overall", *DIMENSIONS):
        gaps = judged[name][::2] - judged[name][1::2]
        decided = np.abs(gaps) > TIES
        _, groups = np.unique(np.array(pairs.captions())[decided], return_inverse=True)
        right = {other: credits(margin, gaps)[decided] for other, margin in margins.items()}
        result[name] = {
            "pairs": int(decided.sum()),
            "accuracy": {other: interval(part, groups) for other, part in right.items()},
            "own_minus": {
                other: interval(right[name] - part, groups) for other, part in right.items() if other != name
            },
        }
    return result


def table(result: dict[str, Any], part: str) -> str:
    """One part of the result in Markdown, a row per dimension of the oracle."""
    names = list(result)
    lines = [f"| oracle's | pairs | {' | '.join(names)} |", "|" + " --- |" * (len(names) + 2)]
    for name, row in result.items():
        cells = [row[part].get(other) for other in names]
        words = ["–" if cell is None else f"{cell[0]:.3f} [{cell[1]:.3f}, {cell[2]:.3f}]" for cell in cells]
        lines.append(f"| {name} | {row['pairs']} | {' | '.join(words)} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="shapes:mps")
    parser.add_argument("--pairs", default="shapes:pairs/heldout")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.checkpoint, arguments.pairs)
    print(table(result, "accuracy"), "\n\nOwn condition minus each other one:\n", table(result, "own_minus"), sep="\n")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
