"""A method whose import fails, as plug-ins do in life."""

import a_package_that_is_not_there  # noqa: F401


class Broken:
    """Never reached."""
