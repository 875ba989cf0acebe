"""SPO's step-aware preference model: PickScore that knows how noisy the state was that a picture was predicted from.

    predicted clean picture ──> ViT, every block modulated by t ──> feature ──┐
                                                                              ├──> exp(logit_scale) cos
    prompt ──> text tower, unchanged ─────────────────────────────> feature ──┘

Published as SPM (arXiv 2406.04314). A clean picture that a denoiser predicts from much noise is blurred, and a scorer
of finished pictures does not expect that. Here a time vector shifts, scales and gates attention and MLP of every block
(AdaLN, as in DiT) and shifts and scales the pooled feature. At the start all shifts and scales are 0 and all gates 1,
so an untrained model is the CLIP scorer it was made from, at every timestep.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reward_models.clip_like import ClipLikeScorer
from reward_models.errors import RewardModelError
from reward_models.files import complete_file
from reward_models.hf_clip import build_clip_tower, clip_tokenise
from reward_models.loading import fit_state_dict, read_json, read_state_dict
from reward_models.preprocess import Preprocessor
from reward_models.tokenizers import ClipTokenise
from reward_models.towers import HFClipTower, freeze, unit

FORMAT = "t2i_align step-aware preference model 1"
FREQUENCIES = 128  # 256 sinusoidal features
LONGEST_PERIOD = 10_000.0


class TimeModulation(nn.Module):
    """Timesteps to shifts, scales and gates of every block, and shift and scale of the pooled feature.

    Args:
        width: W of the vision tower.
        blocks: number of its blocks.
    """

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.embedding = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_modulation(width, 6) for _ in range(blocks))
        self.pooled = _modulation(width, 2)

    def forward(self, timesteps: Tensor) -> tuple[list[list[Tensor]], list[Tensor]]:
        """From ``[N]``: for every block shift, scale and gate of attention, then of the MLP, each ``[N, 1, W]``; and
        shift and scale ``[N, W]`` of the pooled feature."""
        dtype = self.embedding[0].weight.dtype
        time = self.embedding(sinusoids(timesteps).to(dtype))
        blocks = [list(block(time).unsqueeze(1).chunk(6, dim=-1)) for block in self.blocks]
        return blocks, list(self.pooled(time).chunk(2, dim=-1))


def sinusoids(timesteps: Tensor) -> Tensor:
    """``[N, 256]`` cosines and sines of timesteps ``[N]``, periods from 2 pi to 2 pi 10,000."""
    powers = torch.arange(FREQUENCIES, device=timesteps.device, dtype=torch.float32) / FREQUENCIES
    angles = timesteps.float().unsqueeze(1) * torch.exp(-math.log(LONGEST_PERIOD) * powers)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _modulation(width: int, parts: int) -> nn.Sequential:
    """Starts as the identity: all outputs 0 but for the gates, which are 1."""
    linear = nn.Linear(width, parts * width)
    nn.init.zeros_(linear.weight)
    with torch.no_grad():
        linear.bias.zero_()
        for gate in range(2, parts, 3):
            linear.bias[gate * width : (gate + 1) * width] = 1.0
    return nn.Sequential(nn.SiLU(), linear)


class StepAwareModel(nn.Module):
    """Scores pictures predicted at a timestep; a score difference is the log-odds of a preference.

    Args:
        tower: CLIP in the transformers layout (PickScore's).
        tokenise: prompts to ids.
    """

    def __init__(self, tower: HFClipTower, tokenise: ClipTokenise) -> None:
        super().__init__()
        self.tower, self.tokenise = tower, tokenise
        vision = tower.config.vision_config
        self.modulation = TimeModulation(vision.hidden_size, vision.num_hidden_layers)
        self.preprocessor = Preprocessor("clip_pil", tower.image_size)
        self._prompts: dict[str, Tensor] = {}

    @classmethod
    def from_scorer(cls, scorer: ClipLikeScorer, seed: int = 0) -> StepAwareModel:
        """The untrained model around a CLIP scorer such as PickScore, whose weights are used, not copied.

        Raises:
            RewardModelError: a scorer of another family.
        """
        if not isinstance(scorer.tower, HFClipTower) or not isinstance(scorer.tokenise, ClipTokenise):
            raise RewardModelError(
                "a step-aware preference model starts from a CLIP in the transformers layout",
                found=scorer.name,
                fix="start from pickscore",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(scorer.tower, scorer.tokenise).to(scorer.device)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.tower.logit_scale.device

    @property
    def scale(self) -> Tensor:
        """tau, the largest possible score."""
        return self.tower.logit_scale.float().exp()

    def visual(self, pictures: Tensor, timesteps: Tensor) -> Tensor:
        """Unit vectors ``[N, D]`` of pictures ``[N, 3, H, W]`` in [0, 1], predicted at ``[N]`` timesteps."""
        inputs = self.preprocessor.tensor(pictures.to(self.device)).to(self.tower.patch_dtype)
        vision = self.tower.clip.vision_model
        blocks, pooled = self.modulation(timesteps.to(self.device))
        hidden = vision.pre_layrnorm(vision.embeddings(inputs))
        for layer, parts in zip(vision.encoder.layers, blocks, strict=True):
            hidden = _block(layer, hidden, parts)
        shift, scale = pooled
        feature = vision.post_layernorm(hidden[:, 0]) * (1.0 + scale) + shift
        return unit(self.tower.clip.visual_projection(feature))

    def textual(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors ``[P, D]``."""
        return unit(self.tower.encode_text(self.tokenise(list(prompts)).to(self.device)))

    def score(self, pictures: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores ``[N]``, differentiable in the pictures; each distinct prompt is encoded once and remembered."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._prompts]
        if new:
            with torch.no_grad():
                self._prompts |= dict(zip(new, self.textual(new), strict=True))
        text = torch.stack([self._prompts[prompt] for prompt in prompts])
        return self.scale * (self.visual(pictures, timesteps) * text).sum(-1)

    def forget_prompts(self) -> None:
        """Empty the prompt cache; needed after training steps."""
        self._prompts.clear()

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write ``config.json``, ``model.safetensors`` and the tokenizer."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {f"clip.{name}": value for name, value in self.tower.clip.state_dict().items()}
        state |= {f"modulation.{name}": value for name, value in self.modulation.state_dict().items()}
        kept = {name: _stored(value, dtype) for name, value in state.items()}
        with complete_file(folder / "model.safetensors") as temporary:
            save_file(kept, temporary, metadata={"format": "pt"})
        config: dict[str, Any] = {"format": FORMAT, "clip": self.tower.config.to_dict()}
        (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n", encoding="utf-8")
        self.tokenise.tokenizer.save_pretrained(folder)
        return folder

    @classmethod
    def load(
        cls, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> StepAwareModel:
        """A frozen model from a folder written by :meth:`save`.

        Raises:
            RewardModelError: a file is missing, damaged or of another format.
        """
        folder = Path(folder)
        config = read_json(folder / "config.json")
        if config.get("format") != FORMAT:
            raise RewardModelError(
                "this is not a step-aware preference model",
                found=f"{folder}: format {config.get('format')!r}",
                fix="pass a folder written by t2i-align rewards train with scorer: spm",
            )
        tower = build_clip_tower(config["clip"])
        model = cls(tower, clip_tokenise(None, folder, tower))
        path = folder / "model.safetensors"
        state = read_state_dict(path)
        for prefix, part in (("clip.", tower.clip), ("modulation.", model.modulation)):
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            fit_state_dict(part, own, path, dtype)
        freeze(model, torch.device(device))
        return model


def _block(layer: nn.Module, hidden: Tensor, parts: list[Tensor]) -> Tensor:
    """One transformer block; ``parts`` are shift, scale, gate of attention and of the MLP, each ``[N, 1, W]``."""
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
    attended, _ = layer.self_attn(hidden_states=layer.layer_norm1(hidden) * (1.0 + scale) + shift, attention_mask=None)
    hidden = hidden + gate * attended
    return hidden + mlp_gate * layer.mlp(layer.layer_norm2(hidden) * (1.0 + mlp_scale) + mlp_shift)


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.to(dtype) if value.is_floating_point() else value
