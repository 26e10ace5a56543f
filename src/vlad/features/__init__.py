"""What a frozen encoder makes of an image, computed once and kept on disk: for further epochs, methods and runs."""

from vlad.features.cache import FeatureCache

__all__ = ["FeatureCache"]
