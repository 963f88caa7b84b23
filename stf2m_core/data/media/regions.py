"""Face regions: the followed face of each picture enters, appearance and motion of nine nodes leave.

The face is cut out, scaled to a fixed size and freed of its mean and contrast, so that exposure does not count. Regions
are fixed parts of that square; the box of the detector has the same place on every face. Source: ours.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from stf2m_core.data.media.extra import library
from stf2m_core.data.media.face import Face

SIZE = 96
"""Pixels of a side of the cut-out face."""
REGIONS = {
    "brow_left": (0.14, 0.16, 0.48, 0.31), "brow_right": (0.52, 0.16, 0.86, 0.31),
    "eye_left": (0.16, 0.30, 0.48, 0.45), "eye_right": (0.52, 0.30, 0.84, 0.45),
    "nose": (0.35, 0.42, 0.65, 0.66), "mouth": (0.25, 0.64, 0.75, 0.85),
    "jaw": (0.12, 0.83, 0.88, 1.00), "face": (0.0, 0.0, 1.0, 1.0),
}  # fmt: skip
"""Left, top, right and bottom in parts of the cut-out; left is the left of the picture."""
NODES = (*REGIONS, "motion")
CHANNELS = (
    "brightness", "contrast", "edges_x", "edges_y", "edges_up", "edges_down", "flow_x", "flow_y", "flow_speed",
)  # fmt: skip
_WIDER, _LOWER = 1.12, 0.06  # the cut-out against the detector's box, so that the chin is inside
_N_LOOKS = 6


class RegionReader:
    """Reads nodes from one picture after the other, remembering the one before.

    Channels of a region: mean and standard deviation of brightness, mean strength of edges in four directions, all in
    standard deviations of the face's brightness; mean motion (x, y) and its mean speed against the face as a whole, in
    face widths per second. The node "motion" has the first six of the difference between two pictures, per second, and
    the motion of the head. The first picture of a face has no motion yet: that to the second stands for it.
    """

    def __init__(self) -> None:
        self.cv2 = library("cv2")
        self.flow = self.cv2.DISOpticalFlow_create(self.cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self.values: list[np.ndarray] = []
        self.mask: list[np.ndarray] = []
        self.before: tuple[np.ndarray, np.ndarray, float, tuple[float, ...]] | None = None
        self.is_first = False

    def read(self, gray: np.ndarray, time: float, face: Face | None) -> None:
        """Append the nodes of a picture; without a face all are masked."""
        values, mask = np.zeros((len(NODES), len(CHANNELS)), np.float32), np.zeros(len(NODES), np.uint8)
        self.values.append(values)
        self.mask.append(mask)
        if face is None:
            self.before = None
            return
        cut = cut_out(self.cv2, gray, face.box)
        look = cut.astype(np.float32)
        look = (look - look.mean()) / max(float(look.std()), 1.0)
        values[:-1, :_N_LOOKS], mask[:-1] = self._appearance(look), 1
        known = self.before is not None and not face.is_new
        if known:
            self._motion(values, cut, look, time, face.box)
            mask[-1] = 1
            if self.is_first:  # the picture before could not know
                self.values[-2][:, _N_LOOKS:] = values[:, _N_LOOKS:]
                self.values[-2][-1], self.mask[-2][-1] = values[-1], 1
        self.is_first = not known
        self.before = (cut, look, time, face.box)

    def _appearance(self, look: np.ndarray) -> np.ndarray:
        """(region, 6)."""
        x, y = self.cv2.Sobel(look, -1, 1, 0, scale=0.125), self.cv2.Sobel(look, -1, 0, 1, scale=0.125)
        slant = np.float32(np.sqrt(0.5))
        maps = np.stack([look, look * look, abs(x), abs(y), abs(x - y) * slant, abs(x + y) * slant])
        means = _masks() @ maps.reshape(_N_LOOKS, -1).T
        means[:, 1] = np.sqrt(np.maximum(means[:, 1] - means[:, 0] ** 2, 0))
        return means

    def _motion(self, values: np.ndarray, cut: np.ndarray, look: np.ndarray, time: float, box: tuple[float, ...]
                ) -> None:  # fmt: skip
        old_cut, old_look, old_time, old_box = self.before
        rate = 1 / max(time - old_time, 1e-3)
        flow = self.flow.calc(old_cut, cut, None) * np.float32(rate / SIZE)
        whole = np.median(flow.reshape(-1, 2), axis=0)
        own = (flow - whole).reshape(-1, 2)
        maps = np.concatenate([own, np.hypot(own[:, :1], own[:, 1:])], axis=1)
        values[:-1, _N_LOOKS:] = _masks() @ maps
        values[-1, :_N_LOOKS] = self._appearance(abs(look - old_look))[-1] * rate
        size = (box[2] + old_box[2]) / 2
        moved = [(box[k] + box[k + 2] / 2 - old_box[k] - old_box[k + 2] / 2) / size * rate for k in (0, 1)]
        head = np.asarray(moved, np.float32) + whole * _WIDER
        values[-1, _N_LOOKS:] = (*head, np.hypot(*head))


def cut_out(cv2: object, gray: np.ndarray, box: tuple[float, ...], pixels: int = SIZE) -> np.ndarray:
    """(pixels, pixels) uint8: the face in its box; what lies outside the picture repeats the picture's border."""
    x, y, width, height = box
    side = _WIDER * max(width, height)
    centre = (x + width / 2, y + height / 2 + _LOWER * height)
    first, scale = (centre[0] - side / 2, centre[1] - side / 2), side / pixels
    shrink = max(1, int(scale))  # area means first, so that large faces do not alias
    left, top = (max(0, int(at) - shrink) for at in first)
    part = gray[top : int(first[1] + side) + 2 * shrink + 1, left : int(first[0] + side) + 2 * shrink + 1]
    if shrink > 1:
        size = (max(1, part.shape[1] // shrink), max(1, part.shape[0] // shrink))
        part = cv2.resize(part[: size[1] * shrink, : size[0] * shrink], size, interpolation=cv2.INTER_AREA)
    step = scale / shrink
    start = [(at - corner) / shrink + (step - 1) / 2 for at, corner in zip(first, (left, top), strict=True)]
    place = np.array([[step, 0, start[0]], [0, step, start[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(part, place, (pixels, pixels), flags=flags, borderMode=cv2.BORDER_REPLICATE)


@lru_cache(maxsize=1)
def _masks() -> np.ndarray:
    """(region, pixel) float32 weights that average each region."""
    masks = np.zeros((len(REGIONS), SIZE, SIZE), np.float32)
    for mask, (left, top, right, bottom) in zip(masks, REGIONS.values(), strict=True):
        part = mask[round(top * SIZE) : round(bottom * SIZE), round(left * SIZE) : round(right * SIZE)]
        part[:] = 1 / part.size
    return masks.reshape(len(REGIONS), -1)
