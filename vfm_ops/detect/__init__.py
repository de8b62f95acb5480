"""Open-vocabulary detection: prompts in, boxes with a score and exactly one prompt each out.

`load_detector("grounding-dino:DIR").detect(images, "person . bicycle .")`. Families: Grounding DINO, OWL-ViT, OWLv2,
OmDet-Turbo (transformers' models) and YOLO-World (a network of ours). Importing this package does not import torch.
"""

from vfm_ops.detect.loading import load_detector
from vfm_ops.detect.types import Detections

__all__ = ["Detections", "load_detector"]
