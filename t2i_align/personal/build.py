"""A personal run's parts of the one loop, from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from t2i_align.backbones import Backbone
from t2i_align.config.schema import RunConfig
from t2i_align.objectives import Objective
from t2i_align.personal.adapter import add_user_adapter
from t2i_align.personal.external import read_external
from t2i_align.personal.features import open_extractor
from t2i_align.personal.files import read_config, write_config
from t2i_align.personal.pair_features import pair_features
from t2i_align.personal.provider import UserPairs
from t2i_align.personal.section import PersonalSection
from t2i_align.personal.step import UserOff, UserStep
from t2i_align.personal.users import Answered, ArrayUsers, RewardUsers, ShownPairs, TableUsers, Users
from t2i_align.personal.warm_up import warm_up

SHOWN_USERS = 2  # users for whom validation pictures are made


@dataclass(frozen=True)
class PersonalParts:
    """What the loop gets.

    Attributes:
        provider: fills batches.
        step: turns them into losses.
    """

    provider: UserPairs
    step: UserStep


def build_personal(
    config: RunConfig, section: PersonalSection, backbone: Backbone, objective: Objective, accelerator: Accelerator
) -> PersonalParts:
    """Open the pairs, learn who the users are, and put an adapter for them into the denoiser.

    Raises:
        UserError: the pairs cannot be used, or the users are not known as the encoder needs it.
    """
    training = config.training
    provider = UserPairs(
        config,
        section,
        backbone,
        batch_size=training.train_batch_size,
        accumulation=training.gradient_accumulation_steps,
        device=accelerator.device,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        needs=objective.data_needs,
        margin=objective.margin,
    )
    users = _users(config, section, provider, accelerator)
    adapter = add_user_adapter(backbone.unet, users.config)
    if isinstance(users, ShownPairs) and section.encoder_steps:
        with accelerator.main_process_first():
            warm_up(adapter.encoder, users.training, section.support_pairs, section.encoder_steps, config.seed)
    backbone.use_reference(UserOff(backbone.unet, adapter))
    if accelerator.is_main_process:
        write_config(adapter, config.output_dir)
    known = provider.heldout_pairs or provider.training_pairs
    names = list(users.config.names) if section.rewards is not None else list(known)
    step = UserStep(
        backbone,
        objective,
        config.seed,
        training.max_train_steps,
        accelerator,
        adapter=adapter,
        users=users,
        dropout=section.user_dropout,
        shown=names[:SHOWN_USERS],
    )
    return PersonalParts(provider, step)


def attach_saved(backbone: Backbone, run_dir: str | Path) -> None:
    """Put the adapter of a run into its base again, without weights: a checkpoint brings them."""
    add_user_adapter(backbone.unet, read_config(run_dir))


def _users(config: RunConfig, section: PersonalSection, provider: UserPairs, accelerator: Accelerator) -> Users:
    device = torch.device(accelerator.device)
    everyone = [*provider.training_pairs, *provider.heldout_pairs]
    if section.encoder == "table":
        return TableUsers(section, list(provider.training_pairs), list(provider.heldout_pairs))
    if section.encoder == "external":
        return ArrayUsers(section, read_external(section.users_file or ""), everyone, device)
    if section.encoder == "reward_vector":
        provider.reward_users = RewardUsers(section, config.seed, device)
        return provider.reward_users
    return _shown_pairs(config, section, provider, accelerator)


def _shown_pairs(
    config: RunConfig, section: PersonalSection, provider: UserPairs, accelerator: Accelerator
) -> ShownPairs:
    """Features are computed by one process, before the others read them."""
    extractor = open_extractor(section.features or "", accelerator.device)
    folder = config.data.cache_dir or str(Path(config.output_dir) / "features")
    sources = provider.sides()
    with accelerator.main_process_first():
        sides = {
            purpose: Answered(source, pair_features(source, extractor, Path(folder).expanduser()), pairs)
            for purpose, (source, pairs) in sources.items()
        }
    provider.keep({purpose: answered.showable() for purpose, answered in sides.items()})
    sides = {
        purpose: Answered(source, sides[purpose].features, pairs)
        for purpose, (source, pairs) in provider.sides().items()
    }
    return ShownPairs(section, sides, config.seed, torch.device(accelerator.device), extractor.name)
