"""Faces: pictures enter one by one, the followed face of each leaves, with how certain it is.

The detector is the cascade of boosted Haar features that OpenCV ships (Viola & Jones 2001; Lienhart & Maydt 2002), so
nothing is downloaded. It finds upright faces seen from the front; others are absent, which is masked, not guessed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stf2m_core.data.media.extra import library
from stf2m_core.data.media.recording import Picture
from stf2m_core.data.media.settings import MediaSettings
from stf2m_core.errors import MediaError

_CASCADE = "haarcascade_frontalface_alt2.xml"
_SCALE_STEP = 1.1
_NEIGHBOURS = 3  # fewer overlapping hits than this are chance
_CERTAIN = 10.0  # hits; their number n becomes the confidence 1 - exp(-n / 10)
_NEAR = 1.4  # the part of the picture where a followed face is searched, in face sizes
_NEAR_PIXELS = 48  # size that a followed face is scaled to for the search
_SMOOTH_S = 0.08  # time constant of the box: the detector's jitter is no movement of the face
_JUMP = 0.35  # a box further away than this, in face sizes, is another face


@dataclass(frozen=True, slots=True)
class Face:
    """A face in a picture: box (x, y, width, height) in its pixels, `confidence` 0 to 1.

    `is_new` says that it is not known to be the face of the picture before. The confidence is a monotone measure of how
    many detector hits agree, no probability.
    """

    box: tuple[float, float, float, float]
    confidence: float
    is_new: bool


class FaceTracker:
    """Follows one face through the pictures of a recording: the largest at first, then the same one while it is there.

    A followed face is searched near where it was, in each picture; when it is lost, the whole picture is searched.

    Args:
        settings: of the front end.

    Raises:
        MediaError: if OpenCV has no such detector.
    """

    def __init__(self, settings: MediaSettings):
        self.cv2 = library("cv2")
        self.cv2.setNumThreads(1)
        self.settings = settings
        self.detector = _detector(self.cv2)
        self.box: np.ndarray | None = None
        self.time = 0.0
        self.searched = -math.inf
        self.n_faces = 0

    def follow(self, picture: Picture) -> Face | None:
        """The face in this picture, or None; `n_faces` then says how many the last whole search found."""
        found = None if self.box is None else self._near(picture.gray)
        is_new = found is None
        every = self.settings.search_every_s * (1 if self.box is None else 10)
        if (is_new and self.box is not None) or picture.time - self.searched >= every - 1e-9:
            faces = self._everywhere(picture.gray)
            self.searched, self.n_faces = picture.time, len(faces)
            if is_new and faces:
                found = self._choose(faces)
                is_new = self.box is None or not _is_close(self.box, found[0])
        if found is None:
            self.box = None
            return None
        box, hits = found
        share = 1.0 if is_new else 1 - math.exp(-max(picture.time - self.time, 1e-3) / _SMOOTH_S)
        self.box = box if is_new else self.box + share * (box - self.box)
        self.time = picture.time
        return Face(tuple(float(x) for x in self.box), 1 - math.exp(-hits / _CERTAIN), is_new)

    def _choose(self, faces: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, int]:
        """The followed face if one is close to where it was, else the largest."""
        close = [] if self.box is None else [face for face in faces if _is_close(self.box, face[0])]
        return max(close or faces, key=lambda face: face[0][2] * min(face[1], _CERTAIN))

    def _everywhere(self, gray: np.ndarray) -> list[tuple[np.ndarray, int]]:
        scale = min(1.0, self.settings.search_height / min(gray.shape))
        small = self._resized(gray, scale)
        least = max(20, round(self.settings.face_min * min(small.shape)))
        return [(box / scale, hits) for box, hits in self._detect(small, least, min(small.shape))]

    def _near(self, gray: np.ndarray) -> tuple[np.ndarray, int] | None:
        x, y, width, height = self.box
        reach = _NEAR * width / 2
        left, top = max(0, int(x + width / 2 - reach)), max(0, int(y + height / 2 - reach))
        part = gray[top : int(y + height / 2 + reach), left : int(x + width / 2 + reach)]
        scale = min(1.0, _NEAR_PIXELS / width)
        if min(part.shape) * scale < 20:
            return None
        size = width * scale
        found = self._detect(self._resized(part, scale), int(0.8 * size), math.ceil(1.25 * size))
        boxes = [(box / scale + (left, top, 0, 0), hits) for box, hits in found]
        boxes = [(box, hits) for box, hits in boxes if _is_close(self.box, box)]
        return max(boxes, key=lambda face: face[1], default=None)

    def _resized(self, gray: np.ndarray, scale: float) -> np.ndarray:
        if scale == 1.0:
            return gray
        size = (max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale)))
        return self.cv2.resize(gray, size, interpolation=self.cv2.INTER_AREA)

    def _detect(self, gray: np.ndarray, least: int, most: int) -> list[tuple[np.ndarray, int]]:
        if min(gray.shape) < 20 or gray.max() - gray.min() < 8:  # a black or even picture
            return []
        boxes, hits = self.detector.detectMultiScale2(
            np.ascontiguousarray(gray), _SCALE_STEP, _NEIGHBOURS, 0, (least, least), (most, most)
        )
        return [(np.asarray(box, float), int(n)) for box, n in zip(boxes, np.ravel(hits), strict=True)]


def _detector(cv2: object) -> object:
    path = Path(cv2.data.haarcascades) / _CASCADE if hasattr(cv2, "CascadeClassifier") else None
    if path is None or not path.is_file():
        raise MediaError(
            f"OpenCV {cv2.__version__} has no face detector {_CASCADE}", expected="version 4",
            remedy="Install it with: pip install 'opencv-python-headless<5'",
        )  # fmt: skip
    return cv2.CascadeClassifier(str(path))


def _is_close(box: np.ndarray, other: np.ndarray) -> bool:
    apart = np.hypot(*(box[:2] + box[2:] / 2 - other[:2] - other[2:] / 2))
    return apart < _JUMP * box[2] and 0.6 < other[2] / box[2] < 1.6
