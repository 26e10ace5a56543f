"""Scores an image with a file of ``vlad export --format onnx|openvino``: neither vlad nor torch is needed.

python run_exported.py out/model.json photo.jpg heat.png
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sidecar, photo, heat = map(Path, sys.argv[1:])
facts = json.loads(sidecar.read_text(encoding="utf-8"))
height, width = facts["input"]["shape"][2:]

with Image.open(photo) as opened:
    image = opened.convert("RGB")
pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
mean, std = (np.array(facts["preprocess"][name], np.float32) for name in ("mean", "std"))
batch = ((pixels - mean) / std).transpose(2, 0, 1)[None].copy()  # (1, 3, height, width)

file = str(sidecar.parent / facts["file"])
if facts["engine"] == "onnx":
    import onnxruntime

    maps, scores = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"image": batch})
else:
    import openvino

    hint = {"INFERENCE_PRECISION_HINT": "f32"}  # without it all is computed in bf16 where the CPU has it
    results = openvino.Core().compile_model(file, "CPU", hint)(batch)
    maps, scores = results["map"], results["score"]

print(f"score {float(scores[0]):.9g}")
shown = (maps[0] - maps[0].min()) / max(float(np.ptp(maps[0])), 1e-12)  # a colour means nothing across images
warm = np.stack([shown, 0.2 * shown, 1 - shown], axis=-1) * 255
heat_map = Image.fromarray(warm.astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
Image.blend(image, heat_map, 0.5).save(heat)
np.save(heat.with_suffix(".npy"), maps[0])
