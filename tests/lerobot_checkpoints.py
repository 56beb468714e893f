"""Checkpoint folders as LeRobot itself saves them, for the toy task."""

from __future__ import annotations

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"


def save_checkpoint(folder, config) -> None:
    """A policy with random weights and normalisation that matters, as LeRobot itself saves it."""
    torch.manual_seed(0)
    config.input_features = {
        STATE: PolicyFeature(FeatureType.STATE, (2,)),
        ENVIRONMENT: PolicyFeature(FeatureType.ENV, (2,)),
    }
    config.output_features = {ACTION: PolicyFeature(FeatureType.ACTION, (3,))}
    config.device = "cpu"
    get_policy_class(config.type)(config).save_pretrained(folder)
    statistics = {
        name: {"mean": torch.full((size,), 0.1), "std": torch.full((size,), 0.5), "min": -ones, "max": 2 * ones}
        for name, size in ((STATE, 2), (ENVIRONMENT, 2), (ACTION, 3))
        for ones in (torch.ones(size),)
    }
    for processor in make_pre_post_processors(config, dataset_stats=statistics):
        processor.save_pretrained(folder)
