"""Builds a `Segmenter` from a configuration."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from hfgd_jax.models.attention import AxialAttention
from hfgd_jax.models.backbones import BACKBONES, normalization
from hfgd_jax.models.context import CONTEXTS, ContextEncoder
from hfgd_jax.models.guidance import ClassTokens
from hfgd_jax.models.layers import BatchNorm
from hfgd_jax.models.probe import Probe
from hfgd_jax.models.segmenter import Segmenter
from hfgd_jax.models.upsamplers import UPSAMPLERS


def signed_features(model_config: ConfigDict) -> dict[str, bool]:
    """Whether the features that the class tokens classify may be negative; else they end in a ReLU.

    With tokens that are frozen for the student, non-negative features cannot score some classes highest
    (docs/readings.md), so `guidance.signed` says which of the branches end without a ReLU.

    Returns:
        `student`: the feature of the prediction; `teacher`: the context encoder's, False where no guide
        branch classifies it.
    """
    guidance = model_config.guidance
    ends_here = guidance.tokens or guidance.axial_attention
    return {
        "student": ends_here and guidance.signed in ("student", "both"),
        "teacher": guidance.tokens and guidance.signed == "both",
    }


def build_model(
    model_config: ConfigDict,
    num_classes: int,
    dtype: Any,
    constrain: Callable[[Array], Array] | None = None,
    freeze_backbone: bool = False,
) -> Segmenter:
    """The model of a validated configuration; nothing is computed yet.

    Args:
        model_config: `config.model`.
        num_classes: classes of the data set.
        dtype: of the computation, such as "bfloat16"; parameters, statistics and outputs are float32.
        constrain, freeze_backbone: see `Segmenter`.
    """
    m, guidance, dtype = model_config, model_config.guidance, jnp.dtype(dtype)
    signed = signed_features(m)
    common = {"bn": BatchNorm(m.batch_norm_decay, m.batch_norm_epsilon), "dtype": dtype}
    mean, std = normalization(m.backbone.name, m.backbone.normalization)
    encoded = m.context != "identity" or m.upsampler == "none" or guidance.tokens
    upsampler = UPSAMPLERS[m.upsampler](
        channels=m.channels,
        output_stride=m.output_stride,
        geometry=m.geometry,
        signed=signed["student"] and not guidance.axial_attention,
        **common,
    )
    axial_attention = AxialAttention(
        m.channels,
        m.attention_heads,
        signed=signed["student"],
        start=m.attention_start,
        equal_start=m.attention_equal_start,
        **common,
    )
    return Segmenter(
        backbone=_backbone(m, dtype),
        context=_context(m, num_classes, signed["teacher"], common) if encoded else None,
        upsampler=upsampler,
        axial_attention=axial_attention if guidance.axial_attention else None,
        class_tokens=ClassTokens(m.channels, num_classes),
        probe=Probe(m.channels, m.context_channels, num_classes, **common) if guidance.probe else None,
        share_tokens=guidance.tokens,
        freeze_tokens=guidance.stop_gradient,
        protect=guidance.protect,
        probe_stop_gradient=guidance.probe_stop_gradient,
        residual=guidance.residual,
        geometry=m.geometry,
        mean=mean,
        std=std,
        constrain=constrain,
        freeze_backbone=freeze_backbone,
    )


def _backbone(m: ConfigDict, dtype: Any) -> nn.Module:
    entry = BACKBONES[m.backbone.name]
    epsilon = entry.epsilon if m.backbone.batch_norm_epsilon < 0 else m.backbone.batch_norm_epsilon
    return entry.build(
        output_stride=m.backbone.output_stride,
        multi_grid=m.backbone.multi_grid,
        expanded_levels=m.backbone.expanded_levels,
        drop_path=entry.drop_path if m.backbone.drop_path < 0 else m.backbone.drop_path,
        scan_blocks=m.backbone.scan_blocks,
        remat=m.backbone.remat,
        bn=BatchNorm(m.batch_norm_decay, epsilon),
        dtype=dtype,
    )


def _context(m: ConfigDict, num_classes: int, signed: bool, common: dict[str, Any]) -> ContextEncoder:
    return CONTEXTS[m.context](
        channels=m.channels,
        context_channels=m.context_channels,
        query_channels=m.query_channels,
        wide_channels=m.wide_channels,
        num_classes=num_classes,
        output_stride=m.backbone.output_stride,
        geometry=m.geometry,
        scale_attention=m.scale_context_attention,
        attention_bias=m.context_attention_bias,
        attention_equal_start=m.attention_equal_start,
        signed=signed,
        **common,
    )
