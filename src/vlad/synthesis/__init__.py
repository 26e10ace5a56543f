"""Pseudo-anomalies for self-supervised methods: recipes, textures, masks. Knows nothing of methods or CLIP."""

from vlad.synthesis.foreground import foreground
from vlad.synthesis.random import Random
from vlad.synthesis.recipes import RECIPES, Scene
from vlad.synthesis.synthesizer import Synthesizer
from vlad.synthesis.textures import FolderTextures, texture_source

__all__ = ["RECIPES", "FolderTextures", "Random", "Scene", "Synthesizer", "foreground", "texture_source"]
