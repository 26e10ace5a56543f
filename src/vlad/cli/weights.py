"""``vlad weights``: published weights in a folder, for machines without a network."""

from __future__ import annotations

import argparse
from pathlib import Path

from vlad.errors import WeightsError, nearest
from vlad.registry import get_method

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    """Runs ``vlad weights get`` or ``vlad weights check``.

    Args:
        arguments: The verb and its options.

    Returns:
        Exit status 0.

    Raises:
        WeightsError: Weights that cannot be had, or a folder that is none of weights.
    """
    parser = argparse.ArgumentParser("vlad weights", description="Published weights for machines without a network.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="get|check")
    get = verbs.add_parser("get", help="download what a method needs into a folder")
    get.add_argument("methods", nargs="+", metavar="METHOD", help="short names; see vlad methods")
    get.add_argument(
        "-o", "--output", required=True, type=Path, metavar="DIR", help="the folder; files are added to it"
    )
    get.add_argument("--backbone", help="another encoder than the method's own")
    get.add_argument("--pretrained", help="its weights")
    get.add_argument("--weights", help="one of the authors' weights, by name; by default all of them")
    check = verbs.add_parser("check", help="read every file of such a folder and compare its digest")
    check.add_argument("folder", type=Path, metavar="DIR")
    options = parser.parse_args(arguments[1:])
    if options.verb == "check":
        from vlad.offline import check_folder

        count = check_folder(options.folder)
        print(f"{options.folder}: {count} weights files, all as they were downloaded")
        return 0
    for name in options.methods:
        _get(name, options)
    print(f"use: vlad predict photos/ --model {options.methods[0]} --weights-dir {options.output}")
    return 0


def _get(name: str, options: argparse.Namespace) -> None:
    from vlad.encoders import load_encoder
    from vlad.methods.arguments import init_parameters
    from vlad.offline import collecting, save

    method = get_method(name)
    published = dict(getattr(method, "published_weights", {}))
    if options.weights is not None and options.weights not in published:
        raise WeightsError(
            f"{name} has no published weights '{options.weights}'; {nearest(options.weights, published)}"
        )
    defaults = {key: parameter.default for key, parameter in init_parameters(method).items()}
    backbone = options.backbone or defaults.get("backbone")
    pretrained = options.pretrained or (None if options.backbone else defaults.get("pretrained"))
    others = [value for key, value in defaults.items() if key != "backbone" and str(value).startswith("timm:")]
    with collecting() as found:
        load_encoder(backbone, pretrained, text=False)
        for other in others:
            load_encoder(other, text=False)
        for one in [options.weights] if options.weights else published:
            published[one].fetch()
    copies = save(found, options.output)
    if not copies:
        print(f"{name}: nothing to download ({backbone} is part of vlad or yours)")
    for key, path in copies.items():
        print(f"{name}: {key} -> {path} ({path.stat().st_size / 1e6:.0f} MB)")
