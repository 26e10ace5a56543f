"""From method interface 1 to 2: checkpoints are brought up, renamed options are refused with their new names."""

from __future__ import annotations

from typing import Any

from vlad.errors import WeightsError

__all__ = ["RENAMED", "migrate_checkpoint"]

RENAMED = {
    "data.few": "data.images_per_category",
    "data.texts": "data.class_name_style",
    "data.protocol": "data.split_protocol",
    "data.image_size": "model.image_size",
    "metrics.protocol": "metrics.evaluation_protocol",
    "metrics.pro_limit": "metrics.pro_limits",
    "model.recipe": "model.synthesis.recipe",
    "model.textures": "model.synthesis.textures",
    "model.probability": "model.synthesis.probability",
    "model.keep_to_part": "model.synthesis.keep_to_part",
    "model.pixel_loss": "model.losses.pixel",
    "model.region_view": "model.losses.region_view",
    "model.regions": "model.refinement.count",
    "model.threshold": "model.refinement.threshold",
    "model.margin": "model.refinement.box_scale",
    "model.min_side": "model.refinement.min_side",
    "model.merge": "model.refinement.merge",
    "model.steps": "model.refinement.steps",
}
"""Options of earlier versions, and what they are called now."""

_CLIP_ADA = "vlad.methods.clip_ada.CLIPADA"


def migrate_checkpoint(content: dict[str, Any]) -> dict[str, Any]:
    """Brings a checkpoint of an earlier method interface to the present one; the present one is left as it is.

    Args:
        content: What the file holds, with the record ``vlad``.

    Raises:
        WeightsError: Written by a later vlad.
    """
    record = dict(content.get("vlad", {}))
    api = record.get("api", 2)
    if api == 2 or not record:
        return content
    if api != 1:
        raise WeightsError(
            f"the checkpoint was written for method interface {api}, this vlad has 2: install a newer vlad"
        )
    arguments = dict(content.get("hyper_parameters", {}))
    if record.get("class_path") == _CLIP_ADA:
        arguments = _nest_clip_ada(arguments)
    record |= {"api": 2, "fingerprint_version": 1, "origin": "checkpoint"}
    return {**content, "vlad": record, "hyper_parameters": arguments}


def _nest_clip_ada(old: dict[str, Any]) -> dict[str, Any]:
    """Groups CLIP-ADA's flat arguments of interface 1."""
    new = dict(old)

    def take(**names: str) -> dict[str, Any]:
        return {present: new.pop(past) for present, past in names.items() if past in new}

    synthesis = take(recipe="recipe", textures="textures", probability="probability", keep_to_part="keep_to_part")
    if synthesis.get("textures", "procedural") not in {"procedural", "images"}:
        from lightning.pytorch.utilities import rank_zero_warn  # here: the command line reads the names above

        rank_zero_warn(
            f"the textures {synthesis['textures']} of the checkpoint's training are no part of the method any more; "
            "give data.textures to train on with them"
        )
        del synthesis["textures"]
    losses = take(pixel="pixel_loss", region_view="region_view")
    zoom = take(
        count="regions", threshold="threshold", box_scale="margin", min_side="min_side", merge="merge", steps="steps"
    )
    kind = new.pop("refinement", "zoom")
    paths = {"zoom": "Zoom", "head": "Head", "none": "NoRefinement"}
    refinement = {
        "class_path": f"vlad.methods.refinement.{paths.get(kind, kind)}",
        "init_args": zoom if kind == "zoom" else {},
    }
    return {**new, "synthesis": synthesis, "losses": losses, "refinement": refinement}
