"""The shared core: CLIP patch-text similarity, independent of methods and data."""

from vlad.clip.backbone import Backbone
from vlad.clip.blocks import AttentionBranch, Tokens, run_blocks
from vlad.clip.image import ImageTower
from vlad.clip.numerics import Numerics
from vlad.clip.prompt_tokens import append_prompts, overwrite_prompts
from vlad.clip.text import TextTower

__all__ = [
    "AttentionBranch",
    "Backbone",
    "ImageTower",
    "Numerics",
    "TextTower",
    "Tokens",
    "append_prompts",
    "overwrite_prompts",
    "run_blocks",
]
