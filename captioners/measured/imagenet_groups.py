"""Groups of ImageNet's classes: a classifier that is undecided between related classes may be certain of their group.

Web footage seldom shows one of a thousand products and breeds, so a single class rarely gets a high probability, but a
group of related classes often does: clothes and sports gear mean a person, banjo and guitar a stringed instrument.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from filters.encoders.imagenet import imagenet_classes

Ranges = Sequence[tuple[int, int]]  # indices of the first and last class; related ImageNet classes are adjacent


class Group(NamedTuple):
    """A group of classes, named as in a caption."""

    name: str  # a noun without article, or for a setting a phrase that follows the subject
    ranges: Ranges
    setting: bool = False
    moves: bool = False  # moves by itself, so that measured motion may be attributed to it
    subgroups: Sequence[str] = ()  # names in SUBGROUPS that replace `name` if they have most of the probability


def _each(*indices: int) -> Ranges:
    return [(index, index) for index in indices]


BOATS = _each(403, 449, 472, 484, 510, 554, 576, 625, 628, 694, 724, 780, 814, 871, 914)
PANS = _each(469, 521, 544, 567, 618, 659, 813, 909, 910)  # pots, pans and what stirs in them
KITCHEN = [*PANS, *_each(473, 534, 550, 651, 729, 760, 827, 828, 849, 859, 891)]
PLANTS = [(300, 313), (315, 326), (984, 990), *_each(738, 946, 998)]  # with insects, which films show on plants
SUBGROUPS: dict[str, Ranges] = {
    "shark": [(2, 4)],
    "bird": [(7, 24), (80, 100), (127, 146)],
    "frog": [(30, 32)],
    "turtle": [(33, 37)],
    "lizard": [(38, 48)],
    "crocodile": [(49, 50)],
    "snake": [(52, 68)],
    "spider": [(72, 77)],
    "crab or shell": [(112, 113), (117, 121), (125, 125)],
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
    "fish": [(0, 1), (389, 397)],
    "car": _each(436, 468, 511, 609, 627, 656, 661, 751, 817),
    "truck": _each(555, 569, 675, 717, 864, 867),
    "bus": _each(654, 779, 874),
    "bicycle": _each(444, 671),
    "guitar": _each(402, 546),
    "person with a ball": _each(429, 430, 522, 574, 722, 768, 805, 852, 890, 981),
    "web page or program on a screen": _each(916),
    "in a kitchen": KITCHEN,
    "before bookshelves": _each(453, 454, 624),
    "by the sea": [(146, 150), *_each(460, 540, 913, 976, 977, 978)],
}
WORN = _each(  # clothes, headgear, shoes, masks, jewellery and make-up: what a person wears
    *(399, 400, 411, 419, 424, 433, 445, 451, 452, 457, 459, 461, 465, 474, 501, 514, 515, 518, 524, 529, 560),
    *(568, 570, 578, 601, 608, 610, 614, 617, 629, 630, 638, 639, 643, 652, 655, 658, 667, 678, 679, 680, 689),
    *(691, 697, 735, 770, 774, 775, 785, 796, 801, 808, 823, 824, 834, 836, 837, 841, 842, 869, 887),
)
INDOORS = _each(  # furniture, kitchenware, bathrooms and household appliances
    *(431, 435, 453, 493, 495, 499, 503, 516, 520, 521, 526, 532, 534, 544, 548, 553, 556, 559, 564, 567, 598),
    *(618, 619, 624, 648, 651, 659, 700, 721, 750, 753, 760, 762, 765, 766, 789, 794, 799, 804, 811, 813, 827),
    *(828, 831, 846, 859, 861, 882, 894, 896, 897, 905, 909, 910, 999),
)
SPORT = _each(  # balls, weights and other gear, and a baseball player
    *(416, 422, 429, 430, 522, 543, 574, 602, 615, 702, 722, 747, 752, 768, 805, 852, 890, 981),
)
SCREENS = _each(487, 527, 590, 620, 664, 681, 782, 851, 916)
GROUPS: list[Group] = [
    Group("person doing sport", SPORT, moves=True, subgroups=("person with a ball",)),
    Group("person", [*WORN, *SPORT, *_each(903, 906, 982, 983)], moves=True),  # wig, tie, groom, diver
    Group(
        "animal",
        [(0, 397)],
        moves=True,
        subgroups=[name for name, ranges in SUBGROUPS.items() if all(last < 398 for _, last in ranges)],
    ),
    Group(
        "motor vehicle",
        [
            *(span for name in ("car", "truck", "bus") for span in SUBGROUPS[name]),
            *_each(407, 475, 479, 573, 575, 581, 586, 734, 757, 847),
        ],
        moves=True,
        subgroups=("car", "truck", "bus"),
    ),
    Group("motorcycle or scooter", _each(518, 665, 670), moves=True),
    Group("bicycle", [*SUBGROUPS["bicycle"], *_each(870, 880)], moves=True),
    Group("train", _each(466, 547, 705, 820, 829), moves=True),
    Group("boat", BOATS, moves=True),
    Group("aircraft", _each(404, 405, 417, 657, 701, 744, 812, 895, 908), moves=True),
    Group("tractor or other machine", _each(517, 561, 595, 621, 730, 803, 856, 866), moves=True),
    Group("stringed instrument", _each(402, 420, 486, 546, 594, 714, 889), subgroups=("guitar",)),
    Group("drum", _each(541, 542, 822)),
    Group("wind instrument", _each(401, 432, 513, 558, 566, 593, 683, 684, 699, 776, 875)),
    Group("piano", _each(579, 881)),
    Group("screen", SCREENS, subgroups=("web page or program on a screen",)),
    Group("computer or office machine", _each(508, 673, 713, 742, 810, 878)),
    Group("toy", _each(850, 865)),
    Group("bridge", _each(821, 839, 888)),
    Group("mushroom", [(991, 997)]),
    Group("flower", _each(985, 986)),
    Group("plants or flowers", PLANTS),
    Group("pot or pan", PANS),
    Group("drawing or cartoon", _each(917, 921)),
    Group(
        "building",
        _each(
            *(425, 442, 483, 497, 500, 538, 580, 660, 663, 668, 682, 698, 727, 743, 832),
            *(853, 858, 873, 884, 900, 915),
        ),
    ),
    Group("fence or wall", _each(421, 489, 716, 825, 912)),
    Group("tool", _each(477, 491, 587, 596, 677, 726, 740, 783, 784, 792)),
    Group("bottle", _each(440, 711, 720, 737, 898, 899, 901, 907)),
    Group("cup or bowl", _each(441, 504, 505, 550, 572, 809, 849, 925, 966, 967, 968, 969)),
    Group("piece of food", [(924, 924), (926, 957), (959, 965)]),
    Group("under water", [(0, 4), (389, 397), (973, 973), (983, 983)], setting=True),
    Group(
        "by the water",
        [(146, 150), *_each(437, 460, 525, 536, 540, 718, 913, 974, 975, 976, 977, 978), *BOATS],
        setting=True,
        subgroups=("by the sea",),
    ),
    Group("in the mountains", _each(970, 972, 979, 980), setting=True),
    Group("in the snow", _each(270, 279, 296, 450, 537, 795, 796, 802, 803), setting=True),
    Group("in a field", _each(595, 730, 856, 958, 987, 998), setting=True),
    Group("in a room", [*INDOORS, *PANS, (454, 454)], setting=True, subgroups=("in a kitchen", "before bookshelves")),
    Group("in a street", _each(468, 612, 640, 704, 829, 874, 919, 920), setting=True),
    Group("in a shop", _each(415, 424, 454, 467, 509, 582, 788, 790, 791, 860, 865), setting=True),
    Group("on a stage", _each(650, 818, 819, 854), setting=True),
]
SURE = 0.6  # probability from which an animal is named by its class: "tabby" instead of "cat"
LIVELY = 0.75  # factor on `least` for groups that move: films mostly show people, animals and vehicles
ALONE = 3.0  # factor on `least` for a class outside all groups, whose probability nothing else supports
HALF = 0.5  # share of a group's probability that a subgroup needs to be named instead of the group
MOSTLY = 0.7  # share of all listed probability that "animal" needs
ONE_ANIMAL = 0.1  # probability that one class of animals needs: two in five classes are animals, so their probabilities
# add up on any picture, above all on drawn ones
SPORTING = 0.4  # probability from which a person is said to do sport: many pictures show unused gear


class Subject(NamedTuple):
    """A subject or setting of a clip, with its probability, 0 to 1."""

    name: str
    probability: float
    setting: bool
    moves: bool
    group: str  # the name of the group that `name` belongs to, or `name`
    source: str = "tags"  # the filter that measured the probability


def subjects(tags: Sequence[tuple[str, float]], least: float) -> list[Subject]:
    """Return the subjects of `tags`, (ImageNet class, probability) pairs, with at least the probability `least`.

    Likeliest first. Each group occurs once, by the narrowest certain name: a class, a subgroup, or the group.
    """
    total = sum(probability for _, probability in tags)
    result: list[Subject] = []
    for group, members, subgroups in _members():
        inside = [(name, probability) for name, probability in tags if name in members]
        mass = sum(probability for _, probability in inside)
        if mass < least * (LIVELY if group.moves else 1) or (group.name == "person doing sport" and mass < SPORTING):
            continue
        if group.name == "person" and any(s.group == "person doing sport" for s in result):
            continue
        name = group.name
        narrower = [(sum(p for n, p in inside if n in names), subgroup) for subgroup, names in subgroups.items()]
        if narrower and max(narrower)[0] >= HALF * mass:
            name = max(narrower)[1]
        if not group.setting:
            best, probability = max(inside, key=lambda pair: pair[1])
            if probability >= SURE and group.name == "animal":  # other classes often are a person's things
                name = best.split(" (")[0]
            if (group.name == "animal" and probability < ONE_ANIMAL) or (name == "animal" and mass < MOSTLY * total):
                continue
        result.append(Subject(name, min(mass, 1.0), group.setting, group.moves, group.name))
    covered = set().union(*(members for _, members, _ in _members()))
    result += [Subject(name, p, False, False, name) for name, p in tags if p >= ALONE * least and name not in covered]
    return sorted(result, key=lambda subject: -subject.probability)


def sport(tags: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """Return what a person does by the tags of sport, "with a ball" if most of them are balls, else "doing sport", and
    their probability, 0 to 1."""
    members, subgroups = next((m, s) for group, m, s in _members() if group.name == "person doing sport")
    mass = sum(probability for name, probability in tags if name in members)
    balls = sum(probability for name, probability in tags if name in subgroups["person with a ball"])
    return "with a ball" if balls > HALF * mass else "doing sport", min(1.0, mass)


@functools.cache
def _members() -> list[tuple[Group, frozenset[str], dict[str, frozenset[str]]]]:
    """Return each group with the names of its classes and of its subgroups' classes, without names of two classes."""
    names = [name for name, _ in imagenet_classes()]

    def of(ranges: Ranges) -> frozenset[str]:
        return frozenset(n for first, last in ranges for n in names[first : last + 1] if names.count(n) == 1)

    return [
        (group, of(group.ranges), {subgroup: of(SUBGROUPS[subgroup]) for subgroup in group.subgroups})
        for group in GROUPS
    ]
