"""The methods, one file each. Reach them by name: ``vlad.get_method("sdp")``."""
