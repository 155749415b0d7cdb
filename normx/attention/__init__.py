"""Attention with any row normalizer, and in linear time."""

from normx.attention._attention import attention as attention
from normx.attention._cosformer import CosformerState as CosformerState
from normx.attention._cosformer import cosformer as cosformer
from normx.attention._state import AttentionState as AttentionState
from normx.attention._unit import entropy_invariant_attention as entropy_invariant_attention
from normx.attention._unit import gated_attention_unit as gated_attention_unit
from normx.attention._unit import layer_scale as layer_scale
from normx.attention._unit import sigmoid_attention as sigmoid_attention
from normx.attention._unit import ssmax_attention as ssmax_attention
