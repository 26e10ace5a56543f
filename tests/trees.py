"""A little tree of every record and layout, what its index must say, and a data module for small images."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tests_support import write_picture

from vlad.datamodules import AnomalyDataModule
from vlad.datamodules.catalog import list_datasets
from vlad.types import Preprocess, Requirements

A, N = 1, 0  # anomalous, normal
BLACK = object()  # a mask without a defect


def mvtec(category, *, normal="good", ending="_mask", suffix=".png"):
    c = category
    return {
        f"{c}/train/{normal}/000{suffix}": (c, "train", N, ""),
        f"{c}/test/{normal}/000{suffix}": (c, "test", N, ""),
        f"{c}/test/dent/000{suffix}": (c, "test", A, f"{c}/ground_truth/dent/000{ending}.png"),
        f"{c}/test/dent/001{suffix}": (c, "test", A, f"{c}/ground_truth/dent/001{ending}.png"),
    }


def repack(category, **more):
    return {path: (category, *row[1:]) for path, row in mvtec("folder", **{"ending": "", **more}).items()}


def pairs(category, images="images", masks="masks", suffix=".png", ending=""):
    return {f"{images}/{i}{suffix}": (category, "test", A, f"{masks}/{i}{ending}{suffix}") for i in ("1", "10", "2")}


def thirds(stem, label_of):
    mask = f"kos01/{stem}_label.bmp"
    return {f"kos01/{stem}.jpg#{k}": ("SDD", None, label, mask if label else "") for k, label in enumerate(label_of)}


BMAD = {
    "train/good/a.png": ("{}", "train", N, ""),
    "valid/good/img/b.png": ("{}", "val", N, ""),
    "valid/good/label/b.png": BLACK,
    "test/good/img/c.png": ("{}", "test", N, ""),
    "test/good/label/c.png": BLACK,
    "test/Ungood/img/d.png": ("{}", "test", A, "test/Ungood/label/d.png"),
}


def bmad(name):
    if name in {"bmad_oct2017", "bmad_chest", "bmad_histopathology"}:
        return {"train/good/a.png": (name, "train", N, ""), "valid/Ungood/b.png": (name, "val", A, ""),
                "test/good/c.png": (name, "test", N, ""), "test/Ungood/d.png": (name, "test", A, "")}  # fmt: skip
    return {path: row if row is BLACK else (name, *row[1:]) for path, row in BMAD.items()}


TREES = {
    "mvtec_ad": [mvtec("bottle"), mvtec("grid", ending="")],
    "visa": [mvtec("candle", ending=""), mvtec("candle", normal="ok", suffix=".JPG")],
    "mpdd": [mvtec("tubes")],
    "goodsad": [mvtec("food_box", ending="", suffix=".jpg")],
    "dtd_synthetic": [mvtec("Woven_001")],
    "synthetic": [mvtec("woven_ring")],
    "synthetic_aux": [mvtec("striped_disc")],
    "btad": [
        mvtec("01", normal="ok", ending="", suffix=".bmp")
        | {"02/test/ko/7.png": ("02", "test", A, "02/ground_truth/ko/7.bmp")},
        mvtec("03"),
    ],
    "ksdd": [
        thirds("Part0", [N, A, N]) | thirds("Part1", [N, N, N]) | {"kos01/Part1_label.bmp": BLACK},
        repack("SDD", ending="_label"),
    ],
    "ksdd2": [
        {
            "train/10000.png": ("KSDD2", "train", N, ""),
            "train/10000_GT.png": BLACK,
            "train/10001.png": ("KSDD2", "train", A, "train/10001_GT.png"),
            "test/20000.png": ("KSDD2", "test", A, "test/20000_GT.png"),
            "test/20001.png": ("KSDD2", "test", N, ""),
            "test/20001_GT.png": BLACK,
            "test/20001 (copy).png": None,
        },
        repack("KSDD2"),
    ],
    "dagm": [
        {
            "Class10/Train/0001.PNG": ("Class10", "train", N, ""),
            "Class10/Train/0002.PNG": ("Class10", "train", A, "Class10/Train/Label/0002_label.PNG"),
            "Class1/Test/0001.PNG": ("Class1", "test", A, "Class1/Test/Label/0001_label.PNG"),
            "Class1/Test/0002.PNG": ("Class1", "test", N, ""),
        },
        mvtec("Class1", ending="_label"),
    ],
    "mvtec_loco": [
        {
            "pushpins/train/good/000.png": ("pushpins", "train", N, ""),
            "pushpins/validation/good/000.png": ("pushpins", "val", N, ""),
            "pushpins/test/good/000.png": ("pushpins", "test", N, ""),
            "pushpins/test/logical_anomalies/000.png": (
                "pushpins",
                "test",
                A,
                "pushpins/ground_truth/logical_anomalies/000/",
            ),
        }
    ],
    "mvtec_ad_2": [
        {
            "can/train/good/0.png": ("can", "train", N, ""),
            "can/validation/good/0.png": ("can", "val", N, ""),
            "can/test_public/good/0.png": ("can", "test", N, ""),
            "can/test_public/bad/0.png": ("can", "test", A, "can/test_public/ground_truth/bad/0_mask.png"),
            "can/test_private/0.png": None,
        }
    ],
    "magnetic_tile": [
        {
            "MT_Free/Imgs/a.jpg": ("magnetic_tile", "test", N, ""),
            "MT_Free/Imgs/a.png": BLACK,
            "MT_Crack/Imgs/b.jpg": ("magnetic_tile", "test", A, "MT_Crack/Imgs/b.png"),
        },
        repack("magnetic_tile"),
    ],
    "headct": [repack("headct") | {path: row for path, row in repack("headct").items() if not row[3]}],
    "brain_mri": [
        {
            "yes/Y1.jpg": ("brain_mri", "test", A, ""),
            "no/1 no.jpeg": ("brain_mri", "test", N, ""),
            "brain_tumor_dataset/yes/Y1.jpg": None,
            "brain_tumor_dataset/no/1 no.jpeg": None,
        },
        {
            "brain_tumor_dataset/yes/Y1.JPG": ("brain_mri", "test", A, ""),
            "brain_tumor_dataset/no/2.png": ("brain_mri", "test", N, ""),
        },
    ],
    "br35h": [
        {
            "yes/y0.jpg": ("br35h", "test", A, ""),
            "no/No12.jpg": ("br35h", "test", N, ""),
            "pred/pred0.jpg": None,
            "Br35H-Mask-RCNN/TEST/y1.jpg": None,
        }
    ],
    "covid19": [
        {
            "NORMAL/NORMAL (1).png": ("chest", "test", N, ""),
            "COVID-19/COVID-19 (1).png": ("chest", "test", A, ""),
            "Viral Pneumonia/x.png": None,
        },
        {
            "Normal/images/N-1.png": ("chest", "test", N, ""),
            "Normal/masks/N-1.png": BLACK,
            "COVID/images/C-1.png": ("chest", "test", A, ""),
            "COVID/masks/C-1.png": BLACK,
        },
    ],
    "isic2016": [
        pairs("isic", "ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth", ending="_Segmentation"),
        pairs("isic"),
        repack("isic"),
    ],
    "colondb": [
        {"77.tif": ("ColonDB", "test", A, "p77.tiff"), "1.tiff": ("ColonDB", "test", A, "p1.tiff"), "cp1.tiff": None},
        pairs("ColonDB"),
        {f"CVC-ColonDB/{path}": (*row[:3], f"CVC-ColonDB/{row[3]}") for path, row in pairs("ColonDB").items()},
    ],
    "clinicdb": [pairs("ClinicDB", "Original", "Ground Truth", ".tif"), pairs("ClinicDB"), repack("ClinicDB")],
    "kvasir": [pairs("kvasir", suffix=".jpg")],
    "endotect": [pairs("endo", suffix=".jpg")],
    "tn3k": [
        pairs("tn3k", "test-image", "test-mask", ".jpg")
        | {"trainval-image/0000.jpg": ("tn3k", "train", A, "trainval-mask/0000.jpg")},
        repack("tn3k"),
    ],
    "ddti": [pairs("ddti", "image", "mask", ".PNG")],
    **{name: [bmad(name)] for name in list_datasets() if name.startswith("bmad_")},
}
ELSEWHERE = {"real_iad"}  # listed by JSON files; the official VisA and HeadCT, by CSV, are tested with the index


MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def small_data(
    root: Path | str | None = None,
    supervision: str | None = None,
    *,
    preprocess: Preprocess | None = None,
    **options: Any,
) -> AnomalyDataModule:
    """Returns a data module of a method that wants images of 32 x 32, which reads them in the test's own process."""
    requirements = Requirements(preprocess or Preprocess(32, MEAN, STD), supervision)
    return AnomalyDataModule(root=root and str(root), **{"num_workers": 0, **options}).require(requirements)


def build(root: Path, tree: dict) -> None:
    """Writes a tree's images, and masks that hold a defect in the middle third."""
    masks = {row[3] for row in tree.values() if isinstance(row, tuple) and row[3]}
    for path, row in tree.items():
        if row is BLACK:
            write_mask_file(root / path, value=0)
        else:
            write_picture(root / path.split("#")[0], seed=zlib.crc32(path.encode()))
    for mask in masks:
        for file in [f"{mask}000.png", f"{mask}001.png"] if mask.endswith("/") else [mask]:
            write_mask_file(root / file)


def write_mask_file(path: Path, value: int = 255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((36, 40), np.uint8)
    mask[14:20, 10:20] = value
    Image.fromarray(mask).save(path)
