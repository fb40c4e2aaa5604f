"""Models: everything here maps images to a ``SegOutput``; `tw_seg.models.factory` lists them by name."""
