"""What a method finds, drawn: colours and their scale, panels, contact sheets, raw maps.

The callbacks :class:`vlad.callbacks.HeatMaps` and :class:`vlad.callbacks.RawMaps` decide what is drawn and when.
"""

from vlad.drawing.panel import Panel, draw_contact_sheet, draw_panel
from vlad.drawing.raw import map_of_image, read_map, write_map
from vlad.drawing.scale import Scale, choose_scale

__all__ = [
    "Panel",
    "Scale",
    "choose_scale",
    "draw_contact_sheet",
    "draw_panel",
    "map_of_image",
    "read_map",
    "write_map",
]
