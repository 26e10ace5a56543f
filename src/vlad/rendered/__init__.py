"""Images made on the spot: parts, surfaces and tissue with exact defect masks. numpy alone."""

from vlad.rendered.scene import Look, RenderedImage, render

__all__ = ["Look", "RenderedImage", "render"]
