"""Options that make the recipe `embedded` quick: tests of builds need every pass, not every filter."""

LIGHT_FILTERS = (  # of every pass, without those that take most of a build's time
    *("select.thresholds={}", "filters={}", "pack.heights=[240]"),
    *(f"filters.{name}={{}}" for name in ("motion", "camera", "exposure", "colour", "tags", "similarity")),
)
GOLDEN_OPTIONS = ("scan.shots=stride", "scan.max_seconds=3", "scan.min_seconds=1", *LIGHT_FILTERS)
