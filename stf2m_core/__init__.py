"""ST-F2M: few-shot recognition of fine-grained emotions from multi-modal video."""

__version__ = "0.1.0"
