"""Captions for scenes, in many wordings, English and Chinese."""

from __future__ import annotations

import numpy as np

from .palette import COLOURS
from .scene import PLACE_NAMES, PLAIN, SUBJECTS, WORN, Scenes
from .words import (
    ADJECTIVES,
    COLOUR_WORDS,
    COUNT_WORDS,
    OPENERS,
    PLACE_WORDS,
    PLAIN_WORDS,
    POSITION_WORDS,
    SUBJECT_WORDS,
    TAILS,
    WORN_WORDS,
)

CHINESE_SHARE = 0.4


class _Dice:
    """Random choices from `a|b|c`."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def of(self, words: str) -> str:
        options = words.split("|")
        return options[int(self.rng.integers(len(options)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)


def caption(scenes: Scenes, i: int, rng: np.random.Generator) -> str:
    """One random wording for scene i."""
    dice = _Dice(rng)
    return _chinese(scenes, i, dice) if dice.chance(CHINESE_SHARE) else _english(scenes, i, dice)


def _worn(scenes: Scenes, i: int) -> list[str]:
    return [WORN[slot][w] for slot, w in enumerate(scenes.worn[i]) if w >= 0]


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _english(s: Scenes, i: int, dice: _Dice) -> str:
    singular, plural, _, _ = SUBJECT_WORDS[SUBJECTS[s.subject[i]]]
    count = int(s.count[i])
    which = int(dice.rng.integers(len(singular.split("|"))))
    noun = (singular if count == 1 else plural).split("|")[which]
    colour = COLOURS[s.colour[i]] if s.says_colour[i] else ""
    worn = [dice.of(WORN_WORDS[name][0]) for name in _worn(s, i)]
    if len(worn) > 1 and dice.chance(0.5):
        worn.reverse()
    place = _english_place(s, i, dice)
    position = ""
    if s.position[i] or dice.chance(0.04 if count == 1 else 0):
        position = dice.of(POSITION_WORDS[s.position[i]][0])
    if dice.chance(0.08):  # a list of tags
        tags = [COUNT_WORDS[count - 1][0].split("|")[0], f"{colour} {noun}".strip(), *worn, place, position]
        return _finish(", ".join(t for t in tags if t), dice)

    adjective = dice.of(ADJECTIVES[0]) if dice.chance(0.12) else ""
    phrase = " ".join(w for w in (adjective, colour, noun) if w)
    opener = dice.of(OPENERS[0]) if dice.chance(0.2) else ""
    if count > 1:
        phrase = f"{dice.of(COUNT_WORDS[count - 1][0])} {phrase}"
    elif not dice.chance(0.15):
        named = SUBJECTS[s.subject[i]] in ("sun", "moon") and dice.chance(0.5)
        phrase = f"the {phrase}" if named or dice.chance(0.05) else _article(phrase)
    verb = "are" if count > 1 else "is"
    if worn:
        things = " and ".join(worn)
        link = dice.of("wearing|wearing|wearing|wearing|with|with|in") if not opener else dice.of("wearing|with")
        if not opener and dice.chance(0.1):
            link = f"{verb} wearing"
        phrase_worn = f"{link} {things}"
    else:
        phrase_worn = ""
    parts = [p for p in (phrase_worn, place, position) if p]
    if dice.chance(0.3):
        parts = [parts[k] for k in dice.rng.permutation(len(parts))]
    if place and dice.chance(0.12) and "background" not in place:
        parts.remove(place)
        text = f"{place}, {' '.join([phrase, *parts])}"
    else:
        joint = ", " if dice.chance(0.12) else " "
        text = joint.join([phrase, *parts])
    if opener:
        text = f"{opener} {text}"
    if dice.chance(0.08):
        text = f"{text}, {dice.of(TAILS[0])}"
    return _finish(text, dice)


def _english_place(s: Scenes, i: int, dice: _Dice) -> str:
    if not s.says_place[i]:
        return ""
    if s.place[i] < PLAIN:
        return dice.of(PLACE_WORDS[PLACE_NAMES[s.place[i]]][0])
    text = dice.of(PLAIN_WORDS[0]).format(c=COLOURS[s.place[i] - PLAIN])
    return text.replace(" a orange", " an orange")


def _finish(text: str, dice: _Dice) -> str:
    """Capitals and full stops as people type them."""
    kind = dice.rng.random()
    if kind < 0.2:
        text = text[0].upper() + text[1:]
    elif kind < 0.22:
        text = text.upper()
    elif kind < 0.24:
        text = text.title()
    return text + "." if dice.chance(0.15) else text


def _chinese(s: Scenes, i: int, dice: _Dice) -> str:
    _, _, nouns, measures = SUBJECT_WORDS[SUBJECTS[s.subject[i]]]
    noun, measure = dice.of(nouns), dice.of(measures)
    count = dice.of(COUNT_WORDS[s.count[i] - 1][1]) + measure
    if s.count[i] == 1 and dice.chance(0.15):
        count = ""
    colour = ""
    if s.says_colour[i]:
        colour = dice.of(COLOUR_WORDS[COLOURS[s.colour[i]]][1])
        colour += "的" if colour.endswith("色") and dice.chance(0.8) else ""
    worn = [dice.of(WORN_WORDS[name][1]) for name in _worn(s, i)]
    if len(worn) > 1 and dice.chance(0.5):
        worn.reverse()
    things = dice.of("和|、|和").join(worn)
    verb = dice.of("戴|戴|戴着")
    adjective = dice.of(ADJECTIVES[1]) if dice.chance(0.1) else ""
    place = ""
    if s.says_place[i]:
        if s.place[i] < PLAIN:
            place = dice.of("在|在|") + dice.of(PLACE_WORDS[PLACE_NAMES[s.place[i]]][1])
        else:
            name = dice.of(COLOUR_WORDS[COLOURS[s.place[i] - PLAIN]][1])
            place = dice.of(PLAIN_WORDS[1]).format(c=name if name.endswith("色") else name + "色")
    position = dice.of(POSITION_WORDS[s.position[i]][1]) if s.position[i] else ""

    worn_first = f"{verb}{things}的" if worn and dice.chance(0.75) else ""
    order = [worn_first, colour] if dice.chance(0.6) else [colour, worn_first]
    phrase = count + "".join((*order, adjective, noun))
    after = f"，{verb}{things}" if worn and not worn_first else ""
    if place and dice.chance(0.3):
        text = f"{place}{dice.of('，|的|，')}{phrase}{after}"
    elif place:
        text = f"{phrase}{after}{dice.of('，|')}{place}"
    else:
        text = phrase + after
    if position:
        text += dice.of("，|") + position
    if dice.chance(0.18):
        text = dice.of(OPENERS[1]) + text
    if dice.chance(0.06):
        text += "，" + dice.of(TAILS[1])
    return text + "。" if dice.chance(0.15) else text


def captions(scenes: Scenes, seed: int, long_share: float = 0.0) -> list[str]:
    """One caption for each scene; a share of them drawn out with idle words."""
    rng = np.random.default_rng(seed)
    dice = _Dice(rng)
    texts = []
    for i in range(len(scenes)):
        text = caption(scenes, i, rng)
        if dice.chance(long_share):
            tails = TAILS[0 if text.isascii() else 1].split("|")
            idle = [tails[k] for k in rng.permutation(len(tails))[: int(rng.integers(3, 9))]]
            joint = ", " if text.isascii() else "，"
            text = joint.join([text.rstrip(".。"), *idle] if dice.chance(0.7) else [*idle[:4], text])
        texts.append(text)
    return texts


def plain_caption(scenes: Scenes, i: int, chinese: bool = False) -> str:
    """The plainest full wording of scene i (one thing, everything said): for held-out prompts."""
    names = scenes.names(i)
    singular, _, noun, measure = SUBJECT_WORDS[str(names["subject"])]
    place = int(scenes.place[i])
    worn = _worn(scenes, i)
    if chinese:
        colour = COLOUR_WORDS[COLOURS[scenes.colour[i]]][1].split("|")[0] + "的"
        things = "和".join(WORN_WORDS[w][1].split("|")[0] for w in worn)
        wearing = f"戴{things}的" if worn else ""
        if place < PLAIN:
            where = "在" + PLACE_WORDS[PLACE_NAMES[place]][1].split("|")[0]
        else:
            where = "，" + COLOUR_WORDS[COLOURS[place - PLAIN]][1].split("|")[0] + "背景"
        return f"一{measure.split('|')[0]}{wearing}{colour}{noun.split('|')[0]}{where}"
    phrase = _article(f"{COLOURS[scenes.colour[i]]} {singular.split('|')[0]}")
    wearing = " wearing " + " and ".join(WORN_WORDS[w][0].split("|")[0] for w in worn) if worn else ""
    if place < PLAIN:
        where = PLACE_WORDS[PLACE_NAMES[place]][0].split("|")[0]
    else:
        where = f"on {_article(COLOURS[place - PLAIN])} background"
    return f"{phrase}{wearing} {where}"
