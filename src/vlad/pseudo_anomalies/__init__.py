"""Pseudo-anomalies for self-supervised methods: recipes, textures, masks. Knows nothing of methods or CLIP."""

from vlad.pseudo_anomalies.foreground import foreground
from vlad.pseudo_anomalies.random import Random
from vlad.pseudo_anomalies.recipes import RECIPES, Scene
from vlad.pseudo_anomalies.synthesizer import Synthesizer
from vlad.pseudo_anomalies.textures import TEXTURES, given_textures

__all__ = ["RECIPES", "TEXTURES", "Random", "Scene", "Synthesizer", "foreground", "given_textures"]
