"""Models: everything here maps images to a ``SegOutput``; :mod:`tw_seg.models.factory` lists them by name."""
