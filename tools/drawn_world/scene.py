"""What is in a picture, as numbers: many scenes at once, each field a numpy array over scenes.

A scene is fixed by what its caption says and by 16 standard normal numbers, `luck`: they place the
subject, and choose colour and background where the caption leaves them out. Training puts the same
numbers into the noise (`small_models.flow`), so that prompt and seed together settle the scene.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch

from .backgrounds import PLACES
from .creatures import CREATURES
from .palette import COLOURS
from .things import THINGS

SUBJECTS = (*CREATURES, *THINGS)
WORN = (("sunglasses",), ("hat", "crown", "headphones"), ("scarf", "bow tie"))
"""What can be worn at the eyes, on the head, at the neck."""
PLACE_NAMES = (*PLACES, *(f"plain {colour}" for colour in COLOURS))
PLAIN = len(PLACES)
"""Places from here on are plain backgrounds, in the order of COLOURS."""
LUCK = 16

HELD_OUT_PAIRS = (("cat", "sunglasses"), ("penguin", "crown"), ("frog", "headphones"), ("bear", "scarf"))
"""Never drawn for training in any colour or place."""
HELD_OUT_SHARE = 8
"""One in so many of all (subject, colour, worn things, place) is never drawn for training."""

_NATURAL_COLOURS = {
    "cat": "orange black white",
    "dog": "brown white yellow",
    "rabbit": "white brown pink",
    "bear": "brown black white",
    "mouse": "white brown pink",
    "pig": "pink",
    "frog": "green",
    "fox": "orange red",
    "lion": "yellow orange",
    "elephant": "blue purple",
    "penguin": "black blue",
    "owl": "brown purple",
    "bird": "blue red yellow",
    "fish": "orange blue red",
    "turtle": "green brown",
    "octopus": "purple pink red",
    "house": "white yellow blue",
    "tree": "green",
    "car": "red blue yellow",
    "boat": "red blue brown",
    "sun": "yellow orange",
    "moon": "yellow white",
    "star": "yellow",
    "flower": "red pink purple",
    "mushroom": "red brown",
    "balloon": "red blue pink",
    "apple": "red green",
    "rocket": "red blue",
    "umbrella": "blue red purple",
    "cup": "white blue red",
    "cake": "pink white brown",
    "train": "blue green red",
}
_NATURAL_PLACES = {
    "fish": "underwater",
    "octopus": "underwater",
    "turtle": "underwater beach",
    "boat": "beach",
    "penguin": "snow",
    "moon": "night",
    "star": "night",
    "rocket": "night",
    "car": "city",
    "train": "mountains desert",
    "umbrella": "city beach",
    "cup": "city",
    "cake": "meadow",
    "fox": "forest",
    "owl": "night forest",
    "bear": "forest snow",
    "mushroom": "forest",
    "sun": "meadow beach",
    "lion": "desert meadow",
    "elephant": "desert meadow",
    "balloon": "meadow city",
    "tree": "meadow mountains",
}
_PLAIN_CHOICES = ("yellow", "pink", "blue", "green", "white")


@dataclass
class Scenes:
    """n scenes. Integer fields index SUBJECTS, COLOURS, WORN[slot] (-1: nothing) and PLACE_NAMES."""

    subject: np.ndarray
    count: np.ndarray  # 1..3
    colour: np.ndarray
    worn: np.ndarray  # [n, 3], slots eyes, head, neck
    place: np.ndarray
    position: np.ndarray  # 0 in the middle, 1 left, 2 right
    says_colour: np.ndarray
    says_place: np.ndarray
    luck: np.ndarray  # float32 [n, 16], standard normal

    def __len__(self) -> int:
        return len(self.subject)

    def __getitem__(self, index: np.ndarray | slice) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @staticmethod
    def join(parts: list[Scenes]) -> Scenes:
        return Scenes(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Scenes)})

    def names(self, i: int) -> dict[str, object]:
        """Scene i in words."""
        worn = [WORN[slot][w] for slot, w in enumerate(self.worn[i]) if w >= 0]
        return {
            "subject": SUBJECTS[self.subject[i]],
            "count": int(self.count[i]),
            "colour": COLOURS[self.colour[i]],
            "worn": worn,
            "place": PLACE_NAMES[self.place[i]],
            "position": int(self.position[i]),
        }


def uniform(luck: np.ndarray) -> np.ndarray:
    """Standard normal numbers as uniform ones in 0..1 (their distribution function)."""
    values: np.ndarray = torch.special.ndtr(torch.from_numpy(luck)).numpy()
    return values


def _choices(table: dict[str, str], names: tuple[str, ...], default: str) -> list[np.ndarray]:
    return [np.array([names.index(w) for w in table.get(s, default).split()]) for s in SUBJECTS]


def settle(scenes: Scenes) -> Scenes:
    """Fill in, from luck, the colour and place that the caption won't say."""
    u = uniform(scenes.luck)
    colours = _choices(_NATURAL_COLOURS, COLOURS, "red")
    places = _choices(_NATURAL_PLACES, PLACE_NAMES, "meadow beach forest")
    plains = np.array([COLOURS.index(c) for c in _PLAIN_CHOICES])
    for i in range(len(scenes)):
        s = scenes.subject[i]
        if not scenes.says_colour[i]:
            scenes.colour[i] = colours[s][int(u[i, 7] * len(colours[s]) * 0.9999)]
        if not scenes.says_place[i]:
            if u[i, 8] < 0.5:
                scenes.place[i] = places[s][int(u[i, 8] * 2 * len(places[s]) * 0.9999)]
            else:
                colour = plains[int(u[i, 9] * len(plains) * 0.9999)]
                scenes.place[i] = PLAIN + (colour if colour != scenes.colour[i] else plains[-1])
                if scenes.place[i] - PLAIN == scenes.colour[i]:
                    scenes.place[i] = PLAIN + plains[0]
    return scenes


def held_out(scenes: Scenes) -> np.ndarray:
    """Which scenes training must not see: bool [n]. Count, position and luck don't matter."""
    eyes, head, neck = ((scenes.worn[:, slot] + 1).astype(np.uint64) for slot in range(3))
    key = scenes.subject.astype(np.uint64)
    for value, size in (
        (scenes.colour, 10),
        (eyes, 2),
        (head, 4),
        (neck, 3),
        (scenes.place, len(PLACE_NAMES)),
    ):
        key = key * np.uint64(size) + value.astype(np.uint64)
    mixed = (key + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing, Knuth vol. 3, 6.4
    mixed ^= mixed >> np.uint64(31)
    out = (mixed * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(33)
    held: np.ndarray = out % np.uint64(HELD_OUT_SHARE) == 0
    for subject, thing in HELD_OUT_PAIRS:
        slot = next(k for k, things in enumerate(WORN) if thing in things)
        pair = (scenes.subject == SUBJECTS.index(subject)) & (scenes.worn[:, slot] == WORN[slot].index(thing))
        held |= pair
    return held


def _draw(n: int, rng: np.random.Generator) -> Scenes:
    """n scenes of any kind, held-out ones among them."""
    subject = rng.integers(0, len(SUBJECTS), n)
    creature = subject < len(CREATURES)
    worn = np.full((n, 3), -1)
    things = rng.choice(3, n, p=(0.3, 0.48, 0.22)) * creature  # how many are worn
    order = rng.permuted(np.tile(np.array([0, 1, 1, 2]), (n, 1)), axis=1)  # the head has three things to wear
    for slot in range(3):
        first = order[:, 0] == slot
        second = order[:, 1] == slot
        wears = (first & (things >= 1)) | (second & (things >= 2))
        worn[:, slot] = np.where(wears, rng.integers(0, len(WORN[slot]), n), -1)
    colour = rng.integers(0, len(COLOURS), n)
    place = np.where(rng.random(n) < 0.72, rng.integers(0, PLAIN, n), PLAIN + rng.integers(0, len(COLOURS), n))
    place = np.where(place == PLAIN + colour, PLAIN + (colour + 3) % len(COLOURS), place)
    count = rng.choice((1, 2, 3), n, p=(0.76, 0.14, 0.10))
    position = np.where(count == 1, rng.choice(3, n, p=(0.74, 0.13, 0.13)), 0)
    luck = rng.standard_normal((n, LUCK)).astype(np.float32)
    says_colour, says_place = rng.random(n) < 0.72, rng.random(n) < 0.72
    return settle(Scenes(subject, count, colour, worn, place, position, says_colour, says_place, luck))


def draw_all_scenes(n: int, seed: int) -> Scenes:
    """n random scenes, held out or not."""
    return _draw(n, np.random.default_rng(seed))


def draw_scenes(n: int, seed: int, held: bool = False) -> Scenes:
    """n random scenes, none held out; or (held=True) only such: one thing each, everything said."""
    rng = np.random.default_rng(seed)
    parts: list[Scenes] = []
    have = 0
    while have < n:
        scenes = _draw(2 * n + 64, rng)
        if held:
            scenes.count[:], scenes.position[:] = 1, 0
            keep = held_out(scenes) & scenes.says_colour & scenes.says_place
        else:
            keep = ~held_out(scenes)
        parts.append(scenes[keep])
        have += int(keep.sum())
    return Scenes.join(parts)[slice(0, n)]
