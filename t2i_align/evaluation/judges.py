"""What each judge is, in a sentence or two for who reads a report and did not choose it.

Ranges are those reported for the published weights (``docs/reward-models.md``); a checkpoint of another origin, such as
a head of the built-in world, has a scale of its own.
"""

from __future__ import annotations

JUDGES = {
    "oracle": (
        "The built-in world's own judge, written by hand in t2i_align: it measures shapes, colours, sizes and "
        "places in the picture's pixels and compares them with the caption. Every number is in [0, 1], 1 is a "
        "picture just as asked; overall is half semantic (what the caption asks for is there), a quarter aesthetic"
        " (contrast, clean ground, room) and a quarter detail (sharp, exact outlines). It knows that world alone "
        "and gives other pictures a low or arbitrary number."
    ),
    "taste": (
        "A made-up user of the built-in world, written in t2i_align: it likes some pictures for their looks "
        "(colour, brightness, ...) whatever the caption asks for. Higher is more to this user's liking."
    ),
    "pickscore": (
        "PickScore (Kirstain et al. 2023), a CLIP ViT-H/14 trained on the choices of users of a web app between "
        "two pictures for one prompt (Pick-a-Pic). A logit, usually about 18 to 24: of two pictures, one that is 1"
        " higher is picked 73 % of the time."
    ),
    "hps_v1": (
        "HPS v1 (Wu et al. 2023), a CLIP ViT-L/14 trained on choices that people made among generated pictures. A "
        "cosine of prompt and picture, usually about 0.2; publications print 100 times that."
    ),
    "hpsv2": (
        "HPS v2 (Wu et al. 2023), a CLIP ViT-H/14 trained on people's rankings of generated pictures (HPD v2). A "
        "cosine of prompt and picture, usually 0.23 to 0.29; publications print 100 times that. Not comparable "
        "with v2.1."
    ),
    "hpsv2.1": (
        "HPS v2.1 (Wu et al. 2023), a CLIP ViT-H/14 trained on people's rankings of generated pictures, after HPS "
        "v2. A cosine of prompt and picture, usually 0.14 to 0.34; publications print 100 times that. Not "
        "comparable with v2."
    ),
    "mps": (
        "MPS (Zhang et al. 2024), a CLIP ViT-H/14 with a condition, trained on people's preferences by several "
        "criteria: overall, aesthetics, fit to the prompt, detail. A logit, usually about 11 to 14 for overall: of"
        " two pictures, one that is 1 higher is preferred 73 % of the time."
    ),
    "image_reward": (
        "ImageReward (Xu et al. 2023), a BLIP trained on experts' rankings of generated pictures. Standardised: 0 "
        "is the average picture of its authors' set, 1 is a standard deviation better."
    ),
    "clip_score": (
        "CLIPScore (Hessel et al. 2021), the likeness of prompt and picture to OpenAI's CLIP, trained on captions "
        "and on nobody's preference. 2.5 times the cosine, from 0 up, usually 0.6 to 0.9 in the paper's form: it "
        "asks whether the picture shows what the prompt says, not whether it is a good one."
    ),
    "aesthetic": (
        "LAION's aesthetic predictor, a small head on OpenAI's CLIP fitted to people's ratings of beauty from 1 to"
        " 10, usually about 4 to 7. It never sees the prompt and likes saturated portraits."
    ),
    "ensemble": (
        "Several of the judges of reward_models, each standardised on a reference set, as one weighted sum: 0 is "
        "the average of that set."
    ),
}
"""Name before any colon -> who made it, what it looks at, what its numbers mean."""

OWN = (
    "A scorer given under a name of its own: what its numbers mean is for who made it to say; higher counts as"
    " better, and only which of two pictures is higher enters the win rate."
)


def about(name: str, spec: str = "") -> str:
    """What a judge is.

    Args:
        name: as it stands beside its scores; ``mps:aesthetic`` is explained as ``mps``.
        spec: the word that asked for it, which tells weights of another origin: ``shapes:pickscore``,
            ``pickscore=DIR``.
    """
    head, _, part = name.partition(":")
    words = JUDGES.get(head, OWN)
    if head == "mps" and part:
        words += f" Here its condition is “{part}”."
    if head not in JUDGES or head in ("oracle", "taste"):
        return words
    if spec.startswith("shapes:") or "=shapes:" in spec:
        return (
            f"{words} Here with weights that t2i_align trained on pictures of the built-in world: the form is the "
            "same, the scale and what was learnt are not."
        )
    return (
        f"{words} Here with weights of your own ({spec.partition('=')[2]}), so on a scale of its own."
        if "=" in spec
        else words
    )
