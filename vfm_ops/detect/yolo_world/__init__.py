"""YOLO-World v2 (Cheng et al., CVPR 2024, https://arxiv.org/abs/2401.17270), written from the paper.

`backbone` (YOLOv8's CSPDarknet) -> `neck` (RepVL-PAN: text guides CSP layers by max-sigmoid attention) -> `head`
(contrast with text embeddings; boxes as distributions). `fold` bakes a vocabulary into the convolutions (the paper's
"prompt-then-detect"), `checkpoint` reads published weights by their key names, `text` embeds prompts with CLIP.
"""
