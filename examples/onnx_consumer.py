"""Masks from an ONNX file of ``tw-seg export``, with numpy and onnxruntime alone.

    python examples/onnx_consumer.py exported/model.onnx pictures.npy masks.npy

pictures.npy holds 8-bit RGB pixels, (N, H, W, 3); masks.npy gets the class of every pixel, (N, H, W).
"""

import json
import sys

import numpy as np
import onnxruntime

model, pictures, output = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
classes = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
masks, probabilities, _ = session.run(None, {"images": np.load(pictures)})
np.save(output, masks)
for number, (mask, scores) in enumerate(zip(masks, probabilities, strict=True)):
    shares = np.bincount(mask.ravel(), minlength=len(classes)) / mask.size
    for name, score, share in zip(classes, scores, shares, strict=True):
        print(f"picture {number}: {name} {score:.2f}, {share:.1%} of the pixels")
