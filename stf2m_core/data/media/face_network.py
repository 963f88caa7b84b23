"""The user's network for faces at work: faces of pictures enter, landmarks or embeddings leave, masked where absent."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from stf2m_core.data import landmarks
from stf2m_core.data.media.extra import library
from stf2m_core.data.media.face import Face
from stf2m_core.data.media.model_file import ModelFile
from stf2m_core.data.media.regions import cut_out
from stf2m_core.errors import MediaError


class FaceNetwork:
    """A network that was read from the user's file, tried once on an empty face.

    Args:
        model: facts of the file.

    Raises:
        MediaError: if the file is not there, is another one than stated, is no network OpenCV can run, or has another
            input or output than its kind needs.
    """

    def __init__(self, model: ModelFile):
        self.model, self.cv2 = model, library("cv2")
        try:
            content = Path(model.path).read_bytes()
        except OSError as error:
            raise MediaError(f"the face model cannot be read: {error.strerror}", where=model.path) from error
        found = hashlib.sha256(content).hexdigest()
        if found != model.sha256:
            raise MediaError(f"the face model has sha256 {found[:12]}…", expected=f"{model.sha256[:12]}…, as stated",
                             where=model.path, remedy="It is another file; get the right one")  # fmt: skip
        logging = self.cv2.utils.logging
        level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)  # what is wrong is said once, below
        try:
            self.net = self.cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8))
            n_numbers = self._forward(np.zeros((model.size, model.size), np.uint8)).size
        except self.cv2.error as error:
            reason, shape = str(error.err or error).splitlines()[0], (1, model.n_channels, model.size, model.size)
            raise MediaError(f"the face model cannot be run: {reason}", expected=f"an ONNX file with one input {shape}",
                             where=model.path) from error  # fmt: skip
        finally:
            logging.setLogLevel(level)
        if model.kind == "landmarks" and n_numbers != 2 * landmarks.N_LANDMARKS:
            raise MediaError(f"the face model gives {n_numbers} numbers", expected="136: 68 pairs x, y",
                             where=model.path)  # fmt: skip
        size = (landmarks.N_LANDMARKS, 2) if model.kind == "landmarks" else (1, n_numbers)
        self.shape: tuple[int, int] = size

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes."""
        return landmarks.NAMES if self.model.kind == "landmarks" else ("face",)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels."""
        if self.model.kind == "landmarks":
            return ("x", "y")
        return tuple(f"emb{number:0{len(str(self.shape[1] - 1))}d}" for number in range(self.shape[1]))

    def read(self, gray: np.ndarray, face: Face | None) -> tuple[np.ndarray, np.ndarray]:
        """(node, channel) float32 and (node,) uint8 mask; all masked without a face, or where a number is not finite.

        Landmarks are freed of place and size, as by `landmarks.centred`.

        Args:
            gray: (row, column) uint8, the picture.
            face: the followed one.
        """
        values, mask = np.zeros(self.shape, np.float32), np.zeros(self.shape[0], np.uint8)
        if face is None:
            return values, mask
        said = self._forward(cut_out(self.cv2, gray, face.box, self.model.size)).reshape(self.shape)
        if self.model.kind == "landmarks":
            said = landmarks.centred(said[None])[0]
        if np.isfinite(said).all():
            values[:], mask[:] = said, 1
        return values, mask

    def _forward(self, cut: np.ndarray) -> np.ndarray:
        look = (cut.astype(np.float32) - np.float32(self.model.mean)) * np.float32(self.model.scale)
        self.net.setInput(np.repeat(look[None, None], self.model.n_channels, axis=1))
        return np.asarray(self.net.forward(), np.float32)


@lru_cache(maxsize=2)
def network_of(model: ModelFile) -> FaceNetwork:
    """The network, read once per process.

    Raises:
        MediaError: as `FaceNetwork`.
    """
    return FaceNetwork(model)
