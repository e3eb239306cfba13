"""The drawn world: same seed, same pictures; what is held out stays out; captions say what is drawn."""

import numpy as np
import pytest
import torch
from drawn_world.captions import captions, plain_caption
from drawn_world.creatures import CREATURES
from drawn_world.palette import COLOURS
from drawn_world.render import render
from drawn_world.scene import HELD_OUT_PAIRS, NATURAL, PLACE_NAMES, SUBJECTS, WORN, draw_scenes, held_out
from drawn_world.words import COLOUR_WORDS, PLACE_WORDS, SUBJECT_WORDS, WORN_WORDS
from small_models.grid import PROMPTS, check_held_out


def test_same_seed_gives_the_same_scenes_captions_and_pictures() -> None:
    one, two = draw_scenes(6, 3), draw_scenes(6, 3)
    assert captions(one, 4) == captions(two, 4)
    assert torch.equal(render(one, 32, 48), render(two, 32, 48))


def test_both_styles_are_drawn_and_differ() -> None:
    pictures = render(draw_scenes(4, 5), 48, 48)
    assert pictures.shape == (2, 4, 3, 48, 48)
    assert (pictures[0].float() - pictures[1].float()).abs().mean() > 5


def test_every_subject_colour_and_place_can_be_drawn_and_named() -> None:
    assert set(SUBJECT_WORDS) == set(SUBJECTS)
    assert set(COLOUR_WORDS) == set(COLOURS)
    assert set(PLACE_WORDS) == set(PLACE_NAMES[: len(PLACE_WORDS)])
    assert set(WORN_WORDS) == {thing for things in WORN for thing in things}
    assert len(SUBJECTS) >= 24


def test_training_scenes_and_held_out_scenes_share_no_combination() -> None:
    def combinations(scenes):
        columns = (scenes.subject, scenes.colour, *scenes.worn.T, scenes.place)
        return set(zip(*(c.tolist() for c in columns), strict=True))

    training, held = draw_scenes(20_000, 1), draw_scenes(2_000, 2, held=True)
    assert not held_out(training).any()
    assert held_out(held).all()
    assert not combinations(training) & combinations(held)


@pytest.mark.parametrize(("subject", "thing"), HELD_OUT_PAIRS)
def test_a_held_out_pair_is_never_drawn_for_training(subject: str, thing: str) -> None:
    scenes = draw_scenes(20_000, 7)
    slot = next(k for k, things in enumerate(WORN) if thing in things)
    wearing = scenes.worn[scenes.subject == SUBJECTS.index(subject), slot] == WORN[slot].index(thing)
    assert not wearing.any()


def test_the_scene_of_the_bare_readme_prompt_is_never_drawn_for_training() -> None:
    scenes = draw_scenes(40_000, 11)
    there = scenes[(scenes.subject == SUBJECTS.index("cat")) & (scenes.worn[:, 0] == 0)]
    colour, place = COLOURS.index(NATURAL["cat"][0]), PLACE_NAMES.index(NATURAL["cat"][1])
    assert len(there) > 100
    assert not ((there.colour == colour) & (there.place == place)).any()


def test_attributes_that_a_caption_omits_have_natural_defaults() -> None:
    scenes = draw_scenes(2_000, 12)
    for i in range(len(scenes)):
        names = scenes.names(i)
        colour, place = NATURAL[str(names["subject"])]
        assert scenes.says_colour[i] or names["colour"] == colour
        assert scenes.says_place[i] or names["place"] == place


def test_only_creatures_wear_things() -> None:
    scenes = draw_scenes(5_000, 8)
    assert (scenes.worn[scenes.subject >= len(CREATURES)] == -1).all()


def test_the_prompts_of_the_readme_are_held_out() -> None:
    check_held_out()
    assert len(PROMPTS) == 24


def test_plain_captions_name_everything_in_both_languages() -> None:
    scenes = draw_scenes(50, 9, held=True)
    for i in range(len(scenes)):
        names = scenes.names(i)
        english, chinese = plain_caption(scenes, i), plain_caption(scenes, i, chinese=True)
        assert str(names["colour"]) in english
        assert str(names["subject"]) in english
        assert all(thing in english for thing in names["worn"])
        assert not chinese.isascii()


def test_luck_is_standard_normal() -> None:
    luck = draw_scenes(20_000, 10).luck
    assert np.abs(luck.mean(0)).max() < 0.06
    assert np.abs(luck.std(0) - 1).max() < 0.06
