"""The passes in the order in which a build runs them. A new pass is a file and a line here."""

from __future__ import annotations

import itertools

from pipeline.passes.base import Pass
from pipeline.passes.caption import CaptionPass
from pipeline.passes.embed import EMBED
from pipeline.passes.identify import IdentifyPass
from pipeline.passes.pack import PackPass
from pipeline.passes.scan import ScanPass
from pipeline.passes.transcode import TranscodePass

CHAINS: tuple[tuple[Pass, ...], ...] = (  # passes of a chain run concurrently; each hands its units to the next
    (IdentifyPass(),),
    (ScanPass(), EMBED),
    (CaptionPass(),),
    (TranscodePass(),),
    (PackPass(),),
)
PASSES: tuple[Pass, ...] = tuple(itertools.chain(*CHAINS))
PASS_NAMES = tuple(each.name for each in PASSES)
