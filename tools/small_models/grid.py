"""The 24 held-out prompts of the README's picture."""

from __future__ import annotations

import numpy as np
from drawn_world.palette import COLOURS
from drawn_world.scene import LUCK, NATURAL, PLACE_NAMES, SUBJECTS, WORN, Scenes, held_out

PROMPTS = (  # (prompt, (subject, colour, worn thing, place); None where the prompt leaves it open)
    ("a cat wearing sunglasses", ("cat", None, "sunglasses", None)),
    ("a white dog wearing sunglasses on the beach", ("dog", "white", "sunglasses", "beach")),
    ("a red fox wearing headphones in the snow", ("fox", "red", "headphones", "snow")),
    ("一只戴墨镜的猫", ("cat", None, "sunglasses", None)),
    ("a blue penguin wearing a crown on the beach", ("penguin", "blue", "crown", "beach")),
    ("一只戴耳机的绿色的青蛙在草地上", ("frog", "green", "headphones", "meadow")),
    ("a brown bear wearing a scarf in the desert", ("bear", "brown", "scarf", "desert")),
    ("a pink pig wearing a scarf in the forest", ("pig", "pink", "scarf", "forest")),
    ("a brown lion wearing sunglasses in the forest", ("lion", "brown", "sunglasses", "forest")),
    ("a purple octopus wearing a hat in a meadow", ("octopus", "purple", "hat", "meadow")),
    ("一只戴帽子的白色的兔子在夜空下", ("rabbit", "white", "hat", "night")),
    ("a blue owl wearing a scarf in the mountains", ("owl", "blue", "scarf", "mountains")),
    ("an orange fish wearing a crown in the desert", ("fish", "orange", "crown", "desert")),
    ("a green turtle wearing a crown in a meadow", ("turtle", "green", "crown", "meadow")),
    ("a red bird wearing headphones on the beach", ("bird", "red", "headphones", "beach")),
    ("a yellow elephant wearing a hat in the desert", ("elephant", "yellow", "hat", "desert")),
    ("一只戴领结的橙色的老鼠在水下", ("mouse", "orange", "bow tie", "underwater")),
    ("a red house in the snow", ("house", "red", None, "snow")),
    ("a white car in the city", ("car", "white", None, "city")),
    ("一艘橙色的船在沙滩上", ("boat", "orange", None, "beach")),
    ("a purple star under the night sky", ("star", "purple", None, "night")),
    ("a yellow balloon in the city", ("balloon", "yellow", None, "city")),
    ("a red umbrella under the night sky", ("umbrella", "red", None, "night")),
    ("a white flower on a pink background", ("flower", "white", None, "plain pink")),
)


def scene_of(subject: str, colour: str | None, thing: str | None, place: str | None) -> Scenes:
    """The one scene that a prompt of PROMPTS asks for; what it leaves open is natural."""
    worn = np.full((1, 3), -1)
    for slot, things in enumerate(WORN):
        if thing in things:
            worn[0, slot] = things.index(thing)
    natural_colour, natural_place = NATURAL[subject]
    none = np.zeros(1, int)
    return Scenes(
        np.array([SUBJECTS.index(subject)]),
        none + 1,
        np.array([COLOURS.index(colour or natural_colour)]),
        worn,
        np.array([PLACE_NAMES.index(place or natural_place)]),
        none,
        none,
        none,
        np.zeros((1, LUCK), np.float32),
    )


def check_held_out() -> None:
    """Raises:
    ValueError: a prompt shows something that training may have seen.
    """
    for prompt, wanted in PROMPTS:
        if not held_out(scene_of(*wanted))[0]:
            raise ValueError(f"{prompt!r} is no held-out prompt: {', '.join(map(str, wanted))} may be drawn")
