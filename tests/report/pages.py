"""Reports for tests: thumbnails of noise, scores and names that are chosen."""

import numpy as np
import torch

from vlad.report import Group, MediaStore, Page, Row, encode_media, write_page
from vlad.report.store import Kept, media_key

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    '<img src=x onerror="window.hacked=1">',
    "quo\"te's & amp;",
    "new\nline",
    "ünï\u2028code \u202e",
]


def kept(seed=0, *, mask=False, size=(40, 36)):
    random = np.random.default_rng(seed)
    values = torch.from_numpy(random.random((12, 12), np.float32))
    truth = np.zeros(size[::-1], bool)
    truth[5:12, 5:12] = True
    image = random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Kept(encode_media(image, values, truth if mask else None), "", float(values.max()), 0.5)


def write_report(folder, rows, groups=("bottle",), *, verb="test", thresholds=None, card=None, **options):
    """Writes a page of ``(group, name, label, score)`` or :class:`Row`, each with a thumbnail; returns the path."""
    rows = [
        row if isinstance(row, Row) else Row(row[0], row[1], f"images/{row[1]}.png", row[2], row[3]) for row in rows
    ]
    store = MediaStore(folder)
    store.clear()
    keys = [media_key(groups[row.group], row.name, row.path) for row in rows]
    store.add((key, kept(i, mask=row.label == 1)) for i, (key, row) in enumerate(zip(keys, rows, strict=True)))
    store.close()
    store.join()
    places = store.places()
    thresholds = thresholds or {}
    page = Page(
        "A <test>",
        verb,
        "of mine",
        [Group(name, (0.0, 0.5, 1.0), thresholds.get(name)) for name in groups],
        options.get("tables", {}),
        card or {"Run": [("command", "vlad test <b>")]},
        [("images", str(len(rows)))],
        options.get("notes", ()),
        options.get("against", ""),
    )
    return write_page(folder / "report.html", page, rows, lambda: store.read(places.get(key) for key in keys))
