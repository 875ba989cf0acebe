"""The latent reward model: a diffusion model's own encoder as a judge of noisy latents.

    latents, t ──> down and mid blocks ──> pooled features ──> visual projection ──┐
                        ^                                                          ├──> exp(logit_scale) cos
    prompt ──> text encoder ──────────────> pooled vector ──> text projection ─────┘

Published as LRM (arXiv 2502.01051). It reads the noise level from the timestep and needs no predicted clean picture, no
VAE decoding and no image encoder: ranking a candidate in the middle of sampling costs less than a UNet pass.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reward_models.errors import RewardModelError
from reward_models.files import complete_file, write_json
from reward_models.latent_config import LatentRewardConfig
from reward_models.latent_heads import LatentHeads
from reward_models.latent_space import LatentSpace
from reward_models.latent_text import TextConditioning, TextTower
from reward_models.latent_trunk import LatentTrunk, enhance
from reward_models.loading import fit_state_dict, read_json, read_state_dict
from reward_models.quantised import quantise, restore

__all__ = ["LatentRewardConfig", "LatentRewardModel", "LatentSpace", "TextConditioning", "TextTower"]
_CACHED_PROMPTS = 512


class LatentRewardModel(nn.Module):
    """Scores noisy latents for prompts; a score difference is the log-odds of a preference.

    Made by :meth:`from_components` or :meth:`load`; the constructor alone leaves the UNet blocks without weights.

    Args:
        config: sizes and choices.
        text: text encoders, or None for a model that is only given encoded prompts.
    """

    def __init__(self, config: LatentRewardConfig, text: TextTower | None = None) -> None:
        super().__init__()
        self.config, self.text = config, text
        self.trunk = LatentTrunk(config.unet, config.vae_scale_factor, config.stages)
        widths = self.trunk.widths if config.multi_scale else self.trunk.widths[-1:]
        self.heads = LatentHeads(sum(widths), config.pooled_width, config.width, config.text_projection)
        self._prompts: OrderedDict[str, TextConditioning] = OrderedDict()

    @classmethod
    def from_components(
        cls,
        unet: nn.Module,
        text: TextTower,
        vae_scale_factor: int,
        latent_space: LatentSpace | None = None,
        text_projection: Tensor | None = None,
        **choices: Any,
    ) -> LatentRewardModel:
        """A new reward model from the parts of a diffusion pipeline; the UNet's weights are copied.

        Args:
            unet: a diffusers ``UNet2DConditionModel`` without adapters.
            text: its text encoders, used as they are (not copied).
            vae_scale_factor: picture side / latent side.
            latent_space: see :class:`LatentSpace`; without it the model cannot be used in a rollout.
            text_projection: ``[width, Q]`` to start from (one encoder): CLIP's own where it is at hand.
            **choices: other fields of :class:`LatentRewardConfig`.

        Raises:
            RewardModelError: a UNet of another family, or with adapters.
        """
        width = text.pooled_width if text_projection is None else text_projection.shape[0]
        settings = {"width": width, "text_projection": len(text.encoders) == 1, **choices}
        config = LatentRewardConfig(
            unet=dict(unet.config),  # type: ignore[arg-type]
            pooled_width=text.pooled_width,
            vae_scale_factor=vae_scale_factor,
            latent_space=latent_space,
            **settings,
        )
        model = cls(config, text)
        model.trunk.load_unet(unet.state_dict(), Path("the given UNet"))
        if text_projection is not None and model.heads.text_projection is not None:
            model.heads.text_projection.weight.data = text_projection.detach().float().clone()
        return model

    @classmethod
    def load(
        cls,
        folder: str | Path,
        base: str | Path | TextTower | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> LatentRewardModel:
        """A frozen model in evaluation mode, from a folder written by :meth:`save`.

        Args:
            folder: where it is.
            base: the base model's folder or text encoders, for a model saved without its own.
            device: where it runs.
            dtype: of the UNet blocks and text encoders; projections and scores stay in float32.

        Raises:
            RewardModelError: a file is missing, damaged or of another size, or the text encoders are elsewhere.
        """
        folder = Path(folder)
        config = LatentRewardConfig.from_json(read_json(folder / "config.json"), folder)
        if config.text_encoders == "base" and base is None:
            raise RewardModelError(
                "this latent reward model reads prompts with its base model's text encoders",
                found=f"{folder} holds none",
                fix="pass base= the diffusers folder of the base model",
            )
        source: Any = folder if config.text_encoders == "own" else base
        model = cls(config, source if isinstance(source, TextTower) else TextTower.load(source, dtype))
        model.load_weights(folder / "model.safetensors", dtype)
        return model.to(device).eval().requires_grad_(False)

    def load_weights(self, path: Path, dtype: torch.dtype = torch.float32) -> None:
        """Take ``unet.*`` (in ``dtype``) and the heads (in float32) from a safetensors file."""
        state, prefix = restore(read_state_dict(path)), "unet."
        unet = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        self.trunk.load_unet(unet, path, dtype)
        heads = {name: value for name, value in state.items() if not name.startswith(prefix)}
        fit_state_dict(self.heads, heads, path, torch.float32)

    def save(self, folder: str | Path, dtype: torch.dtype | Literal["int8"] = torch.float32) -> Path:
        """Write ``config.json``, ``model.safetensors`` and, unless they are the base's, the text encoders.

        Args:
            folder: created if needed.
            dtype: of the stored UNet blocks; int8 keeps one scale per row.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        unet = {f"unet.{name}": value for name, value in self.trunk.unet.state_dict().items()}
        state = quantise(unet) if dtype == "int8" else {name: value.to(dtype) for name, value in unet.items()}
        state |= {name: value.float() for name, value in self.heads.state_dict().items()}
        cpu = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        with complete_file(folder / "model.safetensors") as temporary:
            save_file(cpu, temporary)
        write_json(folder / "config.json", self.config.to_json())
        if self.config.text_encoders == "own" and self.text is not None:
            self.text.save(folder)
        return folder

    def forward(
        self, latents: Tensor, timesteps: Tensor, text: TextConditioning, null: TextConditioning | None = None
    ) -> Tensor:
        """Scores ``[N]``, float32 or wider; differentiable.

        Args:
            latents: ``[N, C, h, w]`` noisy latents in the denoiser's scale.
            timesteps: ``[N]`` long.
            text: of N prompts.
            null: of the empty prompt, one row; needed where the guidance scale is not 1.
        """
        visual = self.visual_features(latents, timesteps, text, null)
        return self.heads.scale * (visual * self.heads.textual(text.pooled)).sum(-1)

    def visual_features(
        self, latents: Tensor, timesteps: Tensor, text: TextConditioning, null: TextConditioning | None = None
    ) -> Tensor:
        """Unit vectors ``[N, width]`` of noisy latents seen through their prompts; arguments as in :meth:`forward`."""
        config, count = self.config, len(latents)
        if config.guidance_scale == 1.0:
            features = self.trunk(latents, timesteps, text)
        else:
            if null is None:
                raise ValueError("the visual feature enhancement needs the encoded empty prompt")
            both = self.trunk(latents.repeat(2, 1, 1, 1), timesteps.repeat(2), text.cat(null.expand(count)))
            given, empty = ([part[:count] for part in both], [part[count:] for part in both])
            features = enhance(given, empty, config.guidance_scale, config.enhanced)
        return self.heads.visual(features if config.multi_scale else features[-1:])

    def score(self, latents: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores ``[N]`` of noisy latents ``[N, C, h, w]`` at timesteps ``[N]`` for N prompts.

        Differentiable in the latents. Each distinct prompt is encoded once and remembered.
        """
        device = self.heads.logit_scale.device
        null = None if self.config.guidance_scale == 1.0 else self.encode([""])
        return self(latents.to(device), timesteps.to(device), self.encode(prompts), null)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextConditioning:
        """Encoded prompts, one row each, through a cache; see :meth:`forget_prompts`."""
        if self.text is None:
            raise ValueError("this model was made without text encoders")
        distinct = list(dict.fromkeys(prompts))
        known = {prompt: self._prompts[prompt] for prompt in distinct if prompt in self._prompts}
        new = [prompt for prompt in distinct if prompt not in known]
        if new:
            encoded = self.text(new)
            known |= {prompt: encoded.index(torch.tensor([row])) for row, prompt in enumerate(new)}
        self._remember(known)
        rows = [known[prompt] for prompt in prompts]
        return rows[0].cat(*rows[1:])

    def forget_prompts(self) -> None:
        """Empty the cache of encoded prompts; needed after the text encoders have been trained."""
        self._prompts.clear()

    def _remember(self, encoded: Mapping[str, TextConditioning]) -> None:
        for prompt, row in encoded.items():
            self._prompts[prompt] = row
            self._prompts.move_to_end(prompt)
        while len(self._prompts) > _CACHED_PROMPTS:
            self._prompts.popitem(last=False)
