"""Pictures made on the spot: parts, surfaces and tissue with exact defect masks. numpy alone."""

from vlad.synthetic.scene import Look, Picture, render

__all__ = ["Look", "Picture", "render"]
