"""A tokenizer that never ends, or needs all memory, is refused before the service itself reads it."""

import json
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
from blake3 import blake3

from tests.engine.editing import build, edit_json, parameters, rejection_of, seal_again
from zwatch.engine import chat_template, child, tokenizer_maker, tokenizer_process
from zwatch.engine.configs import MAX_CONFIG
from zwatch.engine.factory import EngineFactory
from zwatch.engine.tokenizer_maker import TokenizerMaker
from zwatch.errors import Rejection, Retry
from zwatch.shadow.device import Device

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
"""Given up for its characters, long before its time."""
NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a %}{% endfor %}{% endfor %}"


@pytest.fixture
def factory():
    return EngineFactory(Device("cpu"))


@pytest.fixture
def tokenizer(models):
    """The tokenizer of v1, to be changed."""
    return models / "v1" / "tokenizer"


@pytest.fixture
def refused(factory, models):
    """Seal v1 again, and return why it is refused."""

    def refuse():
        seal_again(models / "v1")
        code, reason = rejection_of(lambda: build(factory, models, "v1"))
        assert code == "config_invalid"
        return reason

    return refuse


def template_in_the_config(tokenizer, template):
    (tokenizer / "chat_template.jinja").unlink()
    edit_json(tokenizer / "tokenizer_config.json", lambda config: config.update(chat_template=template))


def templates_in_the_config(tokenizer, template):
    template_in_the_config(tokenizer, [{"name": "default", "template": template}])


def template_beside_others(tokenizer, template):
    (tokenizer / "additional_chat_templates").mkdir()
    (tokenizer / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    (tokenizer / "chat_template.jinja").write_text(template)


@pytest.mark.parametrize("place", [template_in_the_config, templates_in_the_config, template_beside_others])
def test_a_template_that_never_ends_is_refused_wherever_it_is(tokenizer, refused, place):
    place(tokenizer, ENDLESS)
    assert "rendering its chat template in" in refused()


def test_a_template_that_never_ends_in_this_century_is_refused(tokenizer, refused):
    (tokenizer / "chat_template.jinja").write_text("{% if strftime_now('%Y')[0] == '2' %}" + ENDLESS + "{% endif %}")
    assert "rendering its chat template in chat_template.jinja was given up" in refused()


def test_a_template_that_never_ends_for_one_prompt_fails_that_prompt_alone(tokenizer, factory, models, monkeypatch):
    monkeypatch.setattr(chat_template, "MOST_STEPS", 20_000)
    template = (tokenizer / "chat_template.jinja").read_text()
    (tokenizer / "chat_template.jinja").write_text(
        "{% if 'dog' in messages[0]['content'] %}" + NESTED + "{% endif %}" + template
    )
    seal_again(models / "v1")
    engine = build(factory, models, "v1")
    with pytest.raises(chat_template.TemplateTooLong, match="20000 steps"):
        engine.generate(parameters("a dog"))
    assert engine.generate(parameters("a cat")).finite


def test_a_template_may_look_at_each_character_of_the_longest_prompt(tokenizer, factory, models):
    template = (tokenizer / "chat_template.jinja").read_text()
    loop = "{% for one in messages[0]['content'] %}{% if one | upper == 'Q' %}{{ one.lower() }}{% endif %}{% endfor %}"
    (tokenizer / "chat_template.jinja").write_text(loop + template)
    seal_again(models / "v1")
    assert build(factory, models, "v1").is_truncated("ab \n" * 2500)


def test_a_post_processor_that_repeats_the_prompt_until_no_memory_is_left_is_refused(tokenizer, refused):
    def repeat(tokens):
        tokens["post_processor"]["single"] = [{"Sequence": {"id": "A", "type_id": 0}}] * 100_000

    edit_json(tokenizer / "tokenizer.json", repeat)
    assert "encoding a prompt with tokenizer.json was given up: it needs more than" in refused()


def test_a_file_of_a_tokenizer_that_takes_long_to_read_is_refused_unread(tokenizer, refused):
    with open(tokenizer / "vocab.json", "ab") as file:
        file.truncate(tokenizer_maker.MAX_FILE + 1)
    assert refused() == (
        f"tokenizer/vocab.json: found {tokenizer_maker.MAX_FILE + 1} bytes, expected at most {tokenizer_maker.MAX_FILE}"
    )


@pytest.mark.parametrize(
    "path", ["vae/config.json", "model_index.json", "tokenizer/tokenizer_config.json", "zwatch.json"]
)
def test_a_config_that_takes_long_to_parse_is_refused_unparsed(models, refused, path):
    file = models / "v1" / path
    config = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(config | {"more": [[]] * (MAX_CONFIG // 4)}))
    reason = refused()
    assert reason.startswith(f"{path}: found ")
    assert reason.endswith(f"expected at most {MAX_CONFIG} for a config")


def proof_that(tmp_path, monkeypatch, script):
    """Let the proof's process be this shell script; return the code and the reason of the rejection."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho 'encoding a prompt with tokenizer.json'\n{script}\n")
    program.chmod(0o700)
    with monkeypatch.context() as patched:
        patched.setattr(child.sys, "executable", str(program))
        return rejection_of(lambda: TokenizerMaker().get({"tokenizer.json": script.encode()}))


def files_of(tokenizer):
    """Return a tokenizer's files as the maker takes them."""
    return {str(path.relative_to(tokenizer)): path.read_bytes() for path in tokenizer.rglob("*") if path.is_file()}


def test_a_proof_that_crashes_says_so(tmp_path, monkeypatch):
    code, reason = proof_that(tmp_path, monkeypatch, "kill -SEGV $$")
    assert code == "config_invalid"
    assert "encoding a prompt with tokenizer.json was given up: it ended the process by signal 11" in reason


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("kill -KILL $$", "out_of_memory", "was ended by SIGKILL"),
        ("echo 'OSError: [Errno 24] Too many open files' >&2; exit 1", "io_error", "failed: OSError: [Errno 24] Too many"),
        ("kill -TERM $$", "io_error", "failed: status -15"),
        ("sleep 60", "stalled", "took more than 0.5 s"),
    ],
)  # fmt: skip
def test_what_the_host_does_to_a_proof_is_tried_again_and_does_not_blame_the_tokenizer(
    tmp_path, monkeypatch, script, code, words
):
    if code == "stalled":
        monkeypatch.setattr(tokenizer_process, "WALL_SECONDS", 0.5)
    found, reason = proof_that(tmp_path, monkeypatch, script.replace("sleep", "exec sleep"))
    assert found == code
    assert Rejection(found, reason).retry is Retry.BACKOFF
    assert words in reason


def test_a_proof_needs_no_path_to_zwatch_as_with_an_editable_install(tokenizer, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not Path(path, "zwatch").is_dir()])
    assert tokenizer_maker.made_by_process(files_of(tokenizer)).has_template


@pytest.fixture
def fresh(monkeypatch):
    """Forget what this process has made, and count what it makes."""
    made = []
    real = tokenizer_maker.made_by_process

    def counted(files, spare):
        made.append(files)
        return real(files, spare)

    monkeypatch.setattr(tokenizer_maker, "_made", OrderedDict())
    monkeypatch.setattr(tokenizer_maker, "made_by_process", counted)
    return made


def ids(maker, files):
    return maker.get(files).encode("a cat").tokens


def test_a_tokenizer_is_made_once_and_read_at_the_next_start(tokenizer, fresh, tmp_path, monkeypatch):
    files = files_of(tokenizer)
    maker = TokenizerMaker(tmp_path / "kept")
    expected = ids(maker, files)
    assert ids(maker, dict(files)) == expected
    monkeypatch.setattr(tokenizer_maker, "_made", OrderedDict())
    assert ids(TokenizerMaker(tmp_path / "kept"), files) == expected
    assert len(fresh) == 1


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:-1], lambda data: b"", lambda data: data[:10] + b"x" + data[11:],
        lambda data: data[:-2] + b"x" + data[-1:], lambda data: b"rubbish" * 100,
        lambda data: blake3(b"[]").hexdigest().encode() + b"[]",
    ],
    ids=["cut off", "empty", "another hash", "another byte", "foreign", "of another shape"],
)  # fmt: skip
def test_a_kept_tokenizer_that_is_not_whole_is_made_anew(tokenizer, fresh, tmp_path, monkeypatch, harm):
    files = files_of(tokenizer)
    folder = tmp_path / "kept"
    expected = ids(TokenizerMaker(folder), files)
    (kept,) = folder.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(harm(whole))
    monkeypatch.setattr(tokenizer_maker, "_made", OrderedDict())
    assert ids(TokenizerMaker(folder), files) == expected
    assert (len(fresh), kept.read_bytes()) == (2, whole)


def test_another_file_is_another_tokenizer(tokenizer, fresh, tmp_path):
    maker = TokenizerMaker(tmp_path / "kept")
    maker.get(files_of(tokenizer))
    (tokenizer / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert len(maker.get(files_of(tokenizer)).encode("a cat").tokens) == 512
    assert len(fresh) == 2


def test_tokenizers_that_cannot_be_kept_are_used_all_the_same(tokenizer, fresh, caplog):
    TokenizerMaker(Path("/proc/kept")).get(files_of(tokenizer))
    assert "cannot be kept for the next start" in caplog.text


def test_compiling_a_template_is_not_counted_as_its_steps(tokenizer, factory, models, monkeypatch):
    monkeypatch.setattr(chat_template, "MOST_STEPS", 2000)
    template = (tokenizer / "chat_template.jinja").read_text()
    (tokenizer / "chat_template.jinja").write_text("{% if false %}" + "{{ messages }}" * 500 + "{% endif %}" + template)
    seal_again(models / "v1")
    assert not build(factory, models, "v1").is_truncated("a cat")


def test_a_process_that_was_started_early_makes_the_first_tokenizer(tokenizer, fresh, tmp_path):
    maker = TokenizerMaker(tmp_path / "kept")
    maker.prepare()
    [spare] = maker._spare
    assert ids(maker, files_of(tokenizer))
    assert (maker._spare, spare.is_alive, len(fresh)) == ([], False, 1)
    again = TokenizerMaker(tmp_path / "kept")
    again.prepare()
    assert again._spare == [], "what is kept needs no process"


def test_an_early_process_that_has_ended_is_replaced(tokenizer, fresh):
    maker = TokenizerMaker()
    maker.prepare()
    maker._spare[0].end()
    assert ids(maker, files_of(tokenizer))
