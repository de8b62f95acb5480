"""How good it is, and how it looks: metrics through the field's own libraries, exports that they read, overlays.

`boxes` (COCO mAP), `masks` (DAVIS J & F), `tracks` (HOTA, IDF1, MOTA); `coco`, `youtube_vis`, `mot`, `webdataset` write
files from plain rows shaped like the lake's tables; `overlay` and `sheet` draw. Nothing here imports torch.
"""
