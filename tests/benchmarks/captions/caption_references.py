"""Captions in people's words, with the measurements that clips like these would have, for caption_audit.py: what moves
which way from when to when, what the camera does, and the mean luma."""

STATIC = [("static", 0.0, 6.0)]
REFERENCE: list[tuple[str, list[tuple[str, float, float]], list[tuple[str, float, float]], float]] = [
    (
        "A cyclist rides from left to right past a brick wall. Then a white van follows him. The camera stays still.",
        [("right", 0, 5)],
        STATIC,
        0.5,
    ),
    (
        "A red car drives from right to left along a wet street, then stops at a crossing. The shot is static.",
        [("left", 0, 3.4)],
        STATIC,
        0.4,
    ),
    (
        "Waves roll over dark rocks. The camera pans slowly to the left and shows a lighthouse.",
        [("stay", 0, 6)],
        [("pan_left", 0, 6)],
        0.5,
    ),
    (
        "A woman walks towards the right with a dog on a lead. Then both walk back from right to left.",
        [("right", 0, 2.6), ("left", 3.4, 6)],
        STATIC,
        0.5,
    ),
    ("A hot-air balloon rises over a field at dawn. Two people watch it from a fence.", [("up", 0, 6)], STATIC, 0.45),
    ("The camera zooms in on a stone statue in a square. Nothing moves around it.", [], [("zoom_in", 0, 6)], 0.5),
    (
        "An empty kitchen with a wooden table and two chairs. The camera pans right, then stops at a window.",
        [],
        [("pan_right", 0, 4), ("static", 4, 6)],
        0.5,
    ),
    (
        "A boy kicks a ball from the left side of the yard to the right. A second boy runs after it.",
        [("right", 0.4, 4)],
        STATIC,
        0.6,
    ),
    (
        "A crane lowers a steel beam between two towers. Workers below guide it with ropes.",
        [("down", 0, 6)],
        STATIC,
        0.6,
    ),
    (
        "A tram passes from left to right in front of a church. Then the street is empty.",
        [("right", 0, 4)],
        STATIC,
        0.5,
    ),
    (
        "Handheld footage of a market: a man lifts a crate of oranges and carries it to a stall.",
        [("stay", 0, 6)],
        [("handheld", 0, 6)],
        0.5,
    ),
    ("The camera tilts up along a tower of glass. Clouds drift behind it.", [("stay", 0, 6)], [("tilt_up", 0, 6)], 0.6),
    (
        "A street lamp lights a narrow street at night. A cat crosses from right to left.",
        [("left", 1, 4)],
        STATIC,
        0.09,
    ),
    ("A skier glides down a white slope and turns at a gate. Snow sprays behind him.", [("down", 0, 6)], STATIC, 0.7),
    ("A chef chops an onion on a board, then pushes the pieces into a pan.", [("stay", 0, 6)], STATIC, 0.5),
    (
        "The camera pulls back from a fountain in a park. Children run around it.",
        [("stay", 0, 6)],
        [("zoom_out", 0, 6)],
        0.5,
    ),
    (
        "A train enters from the right and moves to the left until it stops at the platform.",
        [("left", 0, 5)],
        STATIC,
        0.5,
    ),
    ("A dancer in a green dress spins on a stage. Behind her a curtain falls.", [("stay", 0, 6)], STATIC, 0.3),
    ("A snail sits motionless on a wet leaf. The picture is sharp and close.", [], STATIC, 0.4),
    (
        "Two men carry a ladder across a yard, from left to right. One of them looks into the camera.",
        [("right", 0, 5)],
        STATIC,
        0.5,
    ),
]
