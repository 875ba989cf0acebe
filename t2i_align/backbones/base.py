"""The contract between a denoiser and the rest of the project."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from t2i_align.backbones.adapters import add_lora, train_everything
from t2i_align.backbones.attention import apply_attention, compile_blocks
from t2i_align.backbones.codec import LatentCodec
from t2i_align.backbones.embeddings import PromptEmbeddings
from t2i_align.backbones.features import FrozenEncoder
from t2i_align.backbones.fingerprints import Fingerprint, base_weights
from t2i_align.backbones.frugal import keep_less
from t2i_align.backbones.modes import evaluating, train_mode
from t2i_align.backbones.precision import autocast_inside, frozen_copy
from t2i_align.backbones.reference import AdapterOff, FrozenCopy, Reference, reference_kind
from t2i_align.backbones.schedule import NoiseSchedule
from t2i_align.backbones.shared_prompts import apart, share_prompts, side_by_side
from t2i_align.backbones.snapshots import Snapshots
from t2i_align.config.schema import ModelConfig
from t2i_align.errors import UserError


class Backbone(ABC):
    """A denoiser with its encoders, noise schedule and reference; nothing outside asks which model it is.

    Args:
        pipeline: loaded pipeline, modules on `device` in their dtypes; its ``unet`` may be None (encoders only).
        device: where everything runs.
        dtype: compute precision; frozen weights are stored in it, trained ones are float32 under autocast to it.

    Attributes:
        policy: what `predict` calls; the loop replaces it by the wrapped (distributed) `unet`.
        attention_choice: one sentence, set by `adapt`.
        told_of_cut_captions: whether it was said that captions are longer than the text encoders read.
        variant: of the weight files that were read, set by `load_backbone`; None for the plain ones.

    Raises:
        UserError: components that do not fit each other, or an unsupported schedule.
    """

    pipeline_class: ClassVar[type[DiffusionPipeline]]
    text_encoder_names: ClassVar[tuple[str, ...]]
    tokenizer_names: ClassVar[tuple[str, ...]]

    def __init__(self, pipeline: DiffusionPipeline, device: torch.device, dtype: torch.dtype) -> None:
        self._pipeline, self.device, self.dtype = pipeline, device, dtype
        self.unet, self.vae = pipeline.unet, pipeline.vae
        self.text_encoders = [getattr(pipeline, name) for name in self.text_encoder_names]
        self.tokenizers = [getattr(pipeline, name) for name in self.tokenizer_names]
        self.schedule = NoiseSchedule(pipeline.scheduler.config)
        self.codec = LatentCodec(self.vae)
        self.attention_choice = ""
        self.told_of_cut_captions = False
        self.variant: str | None = None
        self.policy: nn.Module | None = self.unet
        self._reference: Reference | None = None
        self._reference_network: nn.Module | None = None
        self._encoder: FrozenEncoder | None = None
        self._layout = torch.preserve_format
        self._shares_prompts = False
        self._snapshots: Snapshots | None = None
        self._denoiser_fingerprint: str | None = None
        for module in (self.vae, *self.text_encoders):
            module.eval().requires_grad_(False)
        if self.unet is not None:
            self._check_channels()
            self.check_architecture()

    # --- what the model is -------------------------------------------------------------------------------------------

    @property
    def prediction_type(self) -> str:
        """epsilon, v_prediction or sample, from the checkpoint."""
        return self.schedule.prediction_type

    @property
    def alphas_cumprod(self) -> Tensor:
        """``[T]`` float32."""
        return self.schedule.alphas_cumprod

    @property
    def num_train_timesteps(self) -> int:
        """T."""
        return self.schedule.num_train_timesteps

    @property
    def latent_channels(self) -> int:
        """C of the latents."""
        return self.codec.channels

    @property
    def vae_scale_factor(self) -> int:
        """Picture side / latent side."""
        return self.codec.factor

    def check_resolution(self, resolution: int) -> None:
        """Refuse picture sides that the VAE cannot halve often enough.

        Raises:
            UserError: not a multiple of the VAE's factor.
        """
        factor = self.vae_scale_factor
        if resolution % factor:
            nearest = max(factor, round(resolution / factor) * factor)
            raise UserError(
                f"data.resolution must be a multiple of {factor} for this VAE.", str(resolution), f"use {nearest}"
            )

    @abstractmethod
    def check_architecture(self) -> None:
        """Raise UserError if encoders and denoiser do not fit each other."""

    # --- pictures and prompts ----------------------------------------------------------------------------------------

    @abstractmethod
    def encode_prompt(self, prompts: list[str]) -> PromptEmbeddings:
        """Embeddings of B prompts, without gradients, exactly those of the diffusers pipeline."""

    @abstractmethod
    def empty_prompt(self, count: int) -> PromptEmbeddings:
        """`count` rows of what the pipeline uses for the unconditional half of guidance."""

    @abstractmethod
    def time_ids(self, original_size: Any, crop_top_left: Any, target_size: Any) -> Tensor | None:
        """Micro-conditioning ``[B, 6]`` from sizes (height, width) and crops (top, left); None if unused.

        Each argument is a pair, giving one row, or B pairs.
        """

    def encode_image(self, pixels: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1] to scaled latents ``[B, C, h, w]`` float32 (posterior mode)."""
        return self.codec.encode(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents to pictures ``[B, 3, H, W]`` float32 in [0, 1]."""
        return self.codec.decode(latents)

    # --- denoising ---------------------------------------------------------------------------------------------------

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``x_t`` float32; see `NoiseSchedule`."""
        return self.schedule.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What `predict` should return for ``x_t``, float32."""
        return self.schedule.target(latents, noise, timesteps)

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        prompt: PromptEmbeddings,
        time_ids: Tensor | None = None,
    ) -> Tensor:
        """Output of the policy, or of the reference inside `reference()`.

        Args:
            noisy: ``[B, C, h, w]``.
            timesteps: ``[B]`` long.
            prompt: B prompts, or B / G that hold for the first B / G rows, again for the next ones, and so on: their
                states then go through cross-attention once.
            time_ids: ``[B, 6]`` where the model has micro-conditioning.

        Returns:
            ``[B, C, h, w]`` float32, in the parametrisation of `prediction_type`.
        """
        network = self._reference_network if self._reference_network is not None else self.policy
        if network is None:
            raise RuntimeError("the backbone was loaded without its denoiser (encoders_only)")
        if not self._shares_prompts:
            prompt = prompt.for_pictures(len(noisy))
        shared = len(noisy) // len(prompt)
        pooled = None if prompt.pooled is None else prompt.pooled.repeat(shared, 1)
        added = self.conditioning(PromptEmbeddings(prompt.hidden, pooled), time_ids, noisy.device)
        if shared > 1:
            noisy, timesteps = side_by_side(noisy, shared), side_by_side(timesteps, shared)
            added = added and {name: side_by_side(value, shared) for name, value in added.items()}
        output = network(
            noisy.to(torch.float32, memory_format=self._layout),
            timesteps,
            encoder_hidden_states=prompt.hidden.to(noisy.device, self.dtype),
            added_cond_kwargs=added,
            return_dict=False,
        )[0].float()
        return apart(output, shared) if shared > 1 else output

    def conditioning(
        self, prompt: PromptEmbeddings, time_ids: Tensor | None, device: torch.device
    ) -> dict[str, Tensor] | None:
        """The denoiser's further inputs (``added_cond_kwargs``), or None."""
        return None

    @contextmanager
    def reference(self) -> Iterator[None]:
        """`predict` inside is the reference: the same inputs, kernels and precision, other weights."""
        if self._reference is None:
            raise RuntimeError("the backbone was loaded without a reference (needs_reference)")
        with self._reference.network() as network:
            self._reference_network = network
            try:
                yield
            finally:
                self._reference_network = None

    def features(
        self, noisy: Tensor, timesteps: Tensor, prompt: PromptEmbeddings, time_ids: Tensor | None = None
    ) -> list[Tensor]:
        """Output of every down block of the initial denoiser, finest first, float32; differentiable in `noisy`.

        Arguments as for `predict`.
        """
        if self._encoder is None:
            raise RuntimeError("the backbone was loaded without frozen features (needs_features)")
        added = self.conditioning(prompt, time_ids, noisy.device)
        return self._encoder(noisy, timesteps, prompt.hidden.to(noisy.device), added)

    @property
    def snapshots(self) -> Snapshots:
        """Earlier weights of the policy; empty until something takes one."""
        if self._snapshots is None:
            self._snapshots = Snapshots(self.unet)
        return self._snapshots

    @contextmanager
    def inference(self, snapshot: str | None = None) -> Iterator[None]:
        """`predict` inside is the policy, or a snapshot of it, without gradients or dropout."""
        inside = evaluating(self.unet) if snapshot is None else self.snapshots.using(snapshot)
        with torch.no_grad(), inside:
            yield

    # --- training ----------------------------------------------------------------------------------------------------

    def adapt(self, config: ModelConfig, needs_reference: bool = True, needs_features: bool = False) -> None:
        """Make the denoiser trainable as configured: attention, precision, reference, adapters, compilation."""
        kind = reference_kind(config)
        if needs_features:
            self._encoder = FrozenEncoder(self.unet)
        self.attention_choice = apply_attention(self.unet, config.attention, self.device, self.dtype, config.compile)
        self._shares_prompts = config.train != "user"  # a user adapter brings processors of its own
        if self._shares_prompts:
            share_prompts(self.unet)
        autocast_inside(self.unet, self.device, self.dtype)
        if config.channels_last:  # before a reference is copied from it: both run the same kernels
            self._layout = torch.channels_last
            self.unet.to(memory_format=self._layout)
        if needs_reference and kind == "frozen_copy":
            clone = frozen_copy(self.unet, self.dtype, beside_trained=config.train == "full")
            if config.compile:
                compile_blocks(clone, self.device)
            self._reference = FrozenCopy(clone)
        if config.train == "lora":
            add_lora(self.unet, config.lora, self.dtype)
        elif config.train == "full":
            train_everything(self.unet)
        else:  # a user adapter is put into the frozen denoiser when the users are known, and brings its reference
            self.unet.requires_grad_(False)
        keep_less(self.unet)
        if needs_reference and kind == "adapter_off":
            self._reference = AdapterOff(self.unet)
        if config.gradient_checkpointing is True:  # auto is settled when the batch is known
            self.unet.enable_gradient_checkpointing()
        if config.compile:
            compile_blocks(self.unet, self.device)
        train_mode(self.unet)

    @property
    def has_reference(self) -> bool:
        """Whether `reference()` is there."""
        return self._reference is not None

    @property
    def frozen_copy(self) -> nn.Module | None:
        """The second network that plays the reference, where there is one."""
        return self._reference.clone if isinstance(self._reference, FrozenCopy) else None

    def use_reference(self, reference: Reference) -> None:
        """Let another network play the reference from now on."""
        self._reference = reference

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Float32 parameters that receive gradients."""
        return [parameter for parameter in self.unet.parameters() if parameter.requires_grad]

    def encoders_to(self, device: torch.device | str) -> None:
        """Move VAE and text encoders, to free accelerator memory while training reads a cache."""
        for module in (self.vae, *self.text_encoders):
            module.to(device)

    @contextmanager
    def encoders_here(self) -> Iterator[None]:
        """Inside, VAE and text encoders are on the device; afterwards where they were."""
        home = self.vae.device
        away = home.type != self.device.type
        if away:
            self.encoders_to(self.device)
        try:
            yield
        finally:
            if away:
                self.encoders_to(home)

    def pipeline(self) -> DiffusionPipeline:
        """A pipeline that shares the modules: it samples from the policy as it is now."""
        return self._pipeline

    # --- identity ----------------------------------------------------------------------------------------------------

    def encoder_fingerprint(self) -> str:
        """Hash of all that decides cached latents and prompts: VAE, text encoders, tokenizers, their precision."""
        fingerprint = Fingerprint()
        fingerprint.add_config("vae", self.vae.config)
        fingerprint.add_weights("vae", self.vae.state_dict())
        for name, encoder in zip(self.text_encoder_names, self.text_encoders, strict=True):
            fingerprint.add_config(name, encoder.config.to_dict())
            fingerprint.add_weights(name, encoder.state_dict())
        for name, tokenizer in zip(self.tokenizer_names, self.tokenizers, strict=True):
            shape = {"vocabulary": tokenizer.get_vocab(), "length": tokenizer.model_max_length}
            fingerprint.add_config(name, {**shape, "pad": tokenizer.pad_token_id, "class": type(tokenizer).__name__})
        fingerprint.add_config("empty", {"zeros": self._pipeline.config.get("force_zeros_for_empty_prompt", False)})
        return fingerprint.hexdigest()

    def denoiser_fingerprint(self) -> str:
        """Hash of the denoiser without adapters, taken at the first call; in full training call it before a step."""
        if self._denoiser_fingerprint is None:
            fingerprint = Fingerprint()
            fingerprint.add_config("unet", self.unet.config)
            fingerprint.add_weights("unet", base_weights(self.unet))
            self._denoiser_fingerprint = fingerprint.hexdigest()
        return self._denoiser_fingerprint

    def _check_channels(self) -> None:
        wanted, given = self.unet.config.in_channels, self.latent_channels
        if wanted != given:
            raise UserError(
                "The VAE and the denoiser do not fit each other.",
                f"the VAE has {given} latent channels, the UNet takes {wanted}",
                "use the VAE of this model family; inpainting UNets (9 channels) are not supported",
            )
