"""Kinds of things over ImageNet's classes: breeds that a tagger wavers between are together surely a dog."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from filters.encoders.imagenet import imagenet_classes

# Indexes of the classes of each kind, first and last; ImageNet keeps relatives together.
KINDS: dict[str, Sequence[tuple[int, int]]] = {
    "shark": [(2, 4)],
    "bird": [(7, 24), (80, 100), (127, 146)],
    "frog": [(30, 32)],
    "turtle": [(33, 37)],
    "lizard": [(38, 48)],
    "crocodile": [(49, 50)],
    "snake": [(52, 68)],
    "spider": [(72, 77)],
    "crab": [(118, 121)],
    "dog": [(151, 268)],
    "wolf": [(269, 272)],
    "fox": [(277, 280)],
    "cat": [(281, 285)],
    "big cat": [(286, 293)],
    "bear": [(294, 297)],
    "beetle": [(300, 307)],
    "butterfly": [(321, 326)],
    "ape": [(365, 369)],
    "monkey": [(370, 382)],
    "elephant": [(385, 386)],
    "fish": [(389, 397)],
    "car": [(436, 436), (468, 468), (511, 511), (609, 609), (627, 627), (656, 656), (661, 661), (751, 751), (817, 817)],
    "truck": [(555, 555), (569, 569), (675, 675), (717, 717), (864, 864), (867, 867)],
    "bus": [(654, 654), (779, 779), (874, 874)],
    "train": [(466, 466), (547, 547), (705, 705), (820, 820), (829, 829)],
    "bicycle": [(444, 444), (671, 671)],
    "motorcycle": [(665, 665), (670, 670)],
    "aeroplane": [(404, 404), (895, 895)],
    "boat": [(472, 472), (484, 484), (554, 554), (576, 576), (625, 625), (814, 814), (871, 871), (914, 914)],
    "ship": [(403, 403), (510, 510), (628, 628), (724, 724), (780, 780)],
    "guitar": [(402, 402), (546, 546)],
}
# What is said where no class or kind is likely: the widest that the order of the classes still tells.
GENERAL: dict[str, Sequence[tuple[int, int]]] = {
    "animal": [(0, 397)],
    "vehicle": [span for name in ("car", "truck", "bus", "train", "bicycle", "motorcycle") for span in KINDS[name]]
    + [(407, 408), (475, 475), (479, 479), (581, 581), (603, 603), (612, 612), (734, 734), (757, 757), (866, 866)],
}
MOSTLY = 0.8  # share of the listed probability that has to be animals
SPECIFIC = 0.45  # probability from which one class is said by its own name


def with_kinds(tags: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """(name, probability) pairs, likeliest first, with the classes of a kind told as that kind, at their summed
    probability, unless one class is likely by itself. Names that are not ImageNet's stay as they are."""
    kinds = _named(general=False)
    sums: dict[str, float] = {}
    best: dict[str, tuple[str, float]] = {}
    for name, probability in tags:
        kind = kinds.get(name, name)
        sums[kind] = sums.get(kind, 0.0) + probability
        if kind not in best or probability > best[kind][1]:
            best[kind] = name, probability
    told = [best[kind] if best[kind][1] >= SPECIFIC else (kind, total) for kind, total in sums.items()]
    return sorted(told, key=lambda pair: -pair[1])


def in_general(tags: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """(name, probability) of "animal" and "vehicle", likelier first: sums over the classes in `tags`, lower bounds.
    Two classes in five are animals, so they add up on pictures of anything: one is only told where `tags` hold little
    else."""
    listed, kinds, sums = sum(p for _, p in tags), _named(general=True), dict.fromkeys(GENERAL, 0.0)
    for name, probability in tags:
        if name in kinds:
            sums[kinds[name]] += probability
    told = {name: p for name, p in sums.items() if name != "animal" or p >= MOSTLY * listed}
    return sorted(told.items(), key=lambda pair: -pair[1])


@functools.cache
def _named(general: bool) -> dict[str, str]:
    """Class name -> kind, for the names that only one class has."""
    names = [name for name, _ in imagenet_classes()]
    return {
        name: kind
        for kind, spans in (GENERAL if general else KINDS).items()
        for first, last in spans
        for name in names[first : last + 1]
        if names.count(name) == 1
    }
