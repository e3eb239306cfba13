"""What is in a picture, as numbers: many scenes at once, each field a numpy array over scenes.

A scene is fixed by what its caption says and by 16 standard normal numbers, `luck`: the first five move
the subject and the background a little. Training puts the same numbers into the noise
(`small_models.flow`), so that prompt and seed together settle the scene.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

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

HELD_OUT_PAIRS = (("lion", "sunglasses"), ("penguin", "crown"), ("frog", "headphones"), ("bear", "scarf"))
"""Never drawn for training in any colour or place."""
HELD_OUT_SHARE = 8
"""One in so many of all (subject, colour, worn things, place) is never drawn for training."""

NATURAL = {  # subject: its colour and its place where the caption leaves them open
    "cat": ("orange", "meadow"),
    "dog": ("brown", "beach"),
    "rabbit": ("white", "meadow"),
    "bear": ("brown", "mountains"),
    "mouse": ("white", "desert"),
    "pig": ("pink", "meadow"),
    "frog": ("green", "beach"),
    "fox": ("red", "snow"),
    "lion": ("yellow", "meadow"),
    "elephant": ("blue", "desert"),
    "penguin": ("black", "snow"),
    "owl": ("brown", "night"),
    "bird": ("red", "meadow"),
    "fish": ("orange", "underwater"),
    "turtle": ("green", "beach"),
    "octopus": ("red", "underwater"),
    "house": ("yellow", "meadow"),
    "tree": ("green", "meadow"),
    "car": ("red", "city"),
    "boat": ("red", "beach"),
    "sun": ("yellow", "beach"),
    "moon": ("yellow", "night"),
    "star": ("yellow", "night"),
    "flower": ("pink", "meadow"),
    "mushroom": ("red", "forest"),
    "balloon": ("red", "meadow"),
    "apple": ("red", "meadow"),
    "rocket": ("red", "night"),
    "umbrella": ("blue", "city"),
    "cup": ("white", "city"),
    "cake": ("pink", "meadow"),
    "train": ("blue", "desert"),
}
_NATURAL_COLOURS = np.array([COLOURS.index(NATURAL[s][0]) for s in SUBJECTS])
_NATURAL_PLACES = np.array([PLACE_NAMES.index(NATURAL[s][1]) for s in SUBJECTS])
_SHARES = np.array([1.7 if s in CREATURES else 1.0 for s in SUBJECTS])
"""How often a subject is drawn: animals more often, since they also wear things."""


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


def settle(scenes: Scenes) -> Scenes:
    """Fill in the colour and place that the caption won't say."""
    scenes.colour = np.where(scenes.says_colour, scenes.colour, _NATURAL_COLOURS[scenes.subject])
    scenes.place = np.where(scenes.says_place, scenes.place, _NATURAL_PLACES[scenes.subject])
    return scenes


def held_out(scenes: Scenes) -> np.ndarray:
    """Which scenes training must not see: bool [n]. Count, position and luck don't matter.

    Beside HELD_OUT_PAIRS and one combination in HELD_OUT_SHARE: a cat with sunglasses in its natural colour
    and place, which is what the bare prompt "a cat wearing sunglasses" asks for.
    """
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
        held |= (scenes.subject == SUBJECTS.index(subject)) & (scenes.worn[:, slot] == WORN[slot].index(thing))
    natural = (scenes.colour == _NATURAL_COLOURS[scenes.subject]) & (scenes.place == _NATURAL_PLACES[scenes.subject])
    held |= natural & (scenes.subject == SUBJECTS.index("cat")) & (scenes.worn[:, 0] >= 0)
    return held


def _draw(n: int, rng: np.random.Generator) -> Scenes:
    """n scenes of any kind, held-out ones among them."""
    subject = rng.choice(len(SUBJECTS), n, p=_SHARES / _SHARES.sum())
    creature = subject < len(CREATURES)
    worn = np.full((n, 3), -1)
    things = rng.choice(3, n, p=(0.2, 0.56, 0.24)) * creature  # how many are worn
    order = rng.permuted(np.tile(np.array([0, 1, 1, 2]), (n, 1)), axis=1)  # the head has three things to wear
    for slot in range(3):
        first = order[:, 0] == slot
        second = order[:, 1] == slot
        wears = (first & (things >= 1)) | (second & (things >= 2))
        worn[:, slot] = np.where(wears, rng.integers(0, len(WORN[slot]), n), -1)
    colour = rng.integers(0, len(COLOURS), n)
    place = np.where(rng.random(n) < 0.72, rng.integers(0, PLAIN, n), PLAIN + rng.integers(0, len(COLOURS), n))
    place = np.where(place == PLAIN + colour, PLAIN + (colour + 3) % len(COLOURS), place)
    count = rng.choice((1, 2, 3), n, p=(0.8, 0.12, 0.08))
    position = np.where(count == 1, rng.choice(3, n, p=(0.76, 0.12, 0.12)), 0)
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
