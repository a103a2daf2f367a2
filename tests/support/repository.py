"""Where the repository is, and the folder beside it that may hold media and weights which are no part of it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
