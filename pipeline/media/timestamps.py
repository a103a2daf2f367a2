"""Presentation times of decoded frames, also for containers that store decoding times only.

AVI, OGM, ASF, MXF and others keep one time a packet, in decoding order. FFmpeg hands it on as `pts`, so B-frames come
out of the decoder in display order but with permuted times (0, 2, 3, 1). The n-th frame displayed then has the n-th
smallest time.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import av

B_FRAME = 3  # AV_PICTURE_TYPE_B
LARGEST_DELAY = 32  # packets that a decoder holds at most; older times belong to lost frames


class DisplayTimes:
    """Tracks packets into a decoder and frames out of it, and derives when each frame is shown.

    `is_permuted` becomes true with the first B-frame of a stream whose pts never decrease: a container that stores
    display times sends the later frame that a B-frame refers to before it. It stays false while packets lack times, and
    becomes false again if the pts decrease after all.
    """

    def __init__(self) -> None:
        self.is_permuted = False
        self.is_reordered = False  # packets are not in order of pts: pts are display times
        self._sparse = False  # some packet had no pts
        self._last: int | None = None  # pts of the last packet
        self._slots: deque[tuple[int, int]] = deque()  # (pts, display time) of packets whose frame is still pending
        self._offset: int | None = None  # added to decoding times to get display times

    def is_unclear(self, context: Any) -> bool:
        """Return whether a reordering decoder has not yet shown if pts are display times."""
        return bool(context.has_b_frames) and not (self.is_reordered or self.is_permuted or self._sparse)

    def add_packet(self, pts: int | None, dts: int | None) -> None:
        """Note a packet that goes to the decoder."""
        if self.is_reordered or self._sparse:
            return
        if pts is None:
            self._sparse, self.is_permuted = True, False
        elif self._last is not None and pts < self._last:
            self.is_reordered, self.is_permuted = True, False
        else:
            self._last = pts
            if dts is not None:  # FFmpeg guesses the first packets' pts: the least difference is the constant one
                self._offset = pts - dts if self._offset is None else min(self._offset, pts - dts)
            self._slots.append((pts, pts if dts is None or self._offset is None else dts + self._offset))
            if len(self._slots) > LARGEST_DELAY:
                self._slots.popleft()

    def add_frame(self, frame: av.VideoFrame, reorders: bool) -> int | None:
        """Return the pts at which a decoded frame is shown; None if unknown. `reorders` is the decoder's
        `has_b_frames`."""
        pts: int | None = frame.pts
        if self.is_reordered or self._sparse or pts is None or not reorders:
            return pts
        if int(frame.pict_type) == B_FRAME:
            self.is_permuted = True
        if not self.is_permuted:
            while self._slots and self._slots[0][0] <= pts:
                self._slots.popleft()
            return pts
        while frame.key_frame and self._slots and self._slots[0][0] < pts:  # of lost frames: none is shown after it
            self._slots.popleft()
        return self._slots.popleft()[1] if self._slots else pts
