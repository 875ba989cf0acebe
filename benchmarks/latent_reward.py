"""Judges of noisy latents by timestep: the packaged latent reward model against pixel judges on predicted pictures.

python benchmarks/latent_reward.py runs/latent-reward
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from reward_models.latent import LatentRewardModel, TextTower
from reward_models.noisy_pairs import accuracy_by_timestep
from t2i_align.rewards import noisy
from t2i_align.rewards.noisy_run import load_base, load_pairs, predictor
from t2i_align.rewards.scorers import load_scorer, resolved
from t2i_align.stepwise.judges import FileJudge, PictureJudge

TIMESTEPS = (1, 101, 201, 301, 401, 501, 601, 701, 801, 901)
GUIDANCE = 3.0


@torch.no_grad()
def main() -> None:
    """Write latent_reward.json and latent_reward.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--lrm", default="shapes:lrm", help="folder of the latent reward model")
    parser.add_argument("--draws", type=int, default=2, help="noises per pair")
    parser.add_argument(
        "--judge", action="append", help="pixel judge, as in --scorer; default: oracle and pickscore=shapes:pickscore"
    )
    arguments = parser.parse_args()
    config = noisy.NoisyRewardConfig.model_validate(
        {
            "scorer": "lrm",
            "output_dir": "unused",
            "model": {"pretrained_model_name_or_path": "shapes:base"},
            "data": {
                "source": "shapes:pairs",
                "heldout_source": "shapes:pairs/heldout",
                "resolution": 64,
                "cache_dir": "runs/shapes-cache",
            },
        }
    )
    backbone = load_base(config)
    _, heldout = load_pairs(config.data, config.seed, backbone)
    assert heldout is not None
    tower = TextTower(backbone.text_encoders, backbone.tokenizers)
    model = LatentRewardModel.load(resolved(arguments.lrm), tower)
    predict = predictor(backbone, GUIDANCE, config.data.resolution)
    scorers = [load_scorer(word) for word in arguments.judge or ("oracle", "pickscore=shapes:pickscore")]
    judges = {
        f"{scorer.name} on predicted pictures": (FileJudge if scorer.name == "oracle" else PictureJudge)(scorer)
        for scorer in scorers
    }

    def measured(score) -> dict[int, float]:
        draws = arguments.draws
        return accuracy_by_timestep(score, heldout, backbone.alphas_cumprod, TIMESTEPS, draws, batch_size=50)

    accuracy = {"latent reward model": measured(model.score)}
    for name, judge in judges.items():
        accuracy[name] = measured(lambda x, t, p, judge=judge: judge(list(p), predict(x, t, p), t))
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    noisy.write_accuracy(accuracy, arguments.output_dir, "latent_reward")
    for name, values in accuracy.items():
        print(name, {t: round(value, 3) for t, value in values.items()})


if __name__ == "__main__":
    main()
