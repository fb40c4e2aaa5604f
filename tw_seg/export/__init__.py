"""Trained models as files for other programs: torch.export's and ONNX's."""
