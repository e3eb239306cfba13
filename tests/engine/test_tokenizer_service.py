"""A tokenizer in a process of its own encodes as one in this process does, and a process that ends is started again."""

import gc
import os
import resource
import signal
import threading
import time

import pytest

from tests.engine.editing import build, parameters
from tests.engine.test_tokenizer_proof import files_of
from zwatch.engine import tokenizer_maker, tokenizer_service
from zwatch.engine.factory import EngineFactory
from zwatch.engine.tokenizer import MadeTokenizer, Tokenizer
from zwatch.engine.tokenizer_maker import TokenizerMaker
from zwatch.engine.tokenizer_service import TokenizerFailed, TokenizerService
from zwatch.shadow.device import Device

PROMPTS = ["a cat", "", "一只戴墨镜的猫 🐈", "x" * 10_000, 'a "quoted"\nline\\', "<|im_start|>user", "\ud800 alone"]


@pytest.fixture
def packed(models):
    return tokenizer_maker.made_by_process(files_of(models / "v1" / "tokenizer")).packed


@pytest.fixture
def service(packed):
    return TokenizerService(packed, ("last", 1))


def process_of(service):
    return service._held[0]


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_encodes_as_a_tokenizer_in_this_process(packed, service):
    here = Tokenizer(MadeTokenizer.unpacked(packed))
    for prompt in PROMPTS:
        try:
            expected = here.encode(prompt)
        except Exception as error:
            with pytest.raises(TokenizerFailed, match=type(error).__name__):
                service.encode(prompt)
        else:
            assert service.encode(prompt) == expected, prompt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_for_the_service_do_not_end_it(service, number):
    service.encode("a cat")
    process_of(service).send_signal(number)
    process = process_of(service)
    assert service.encode("a cat").tokens
    assert process_of(service) is process


def test_a_process_that_was_killed_is_started_again(service, caplog):
    before = service.encode("a cat")
    process_of(service).kill()
    process_of(service).wait()
    assert service.encode("a cat") == before
    assert "the tokenizer's process has ended (status -9)" in caplog.text


def test_a_process_that_always_ends_is_an_error_that_says_so(caplog):
    broken = TokenizerService(b"{}\nrubbish", ("last", 1))
    with pytest.raises(TokenizerFailed, match="ends whenever it is started"):
        broken.encode("a cat")
    assert "JSONDecodeError" in caplog.text


def test_a_process_that_does_not_answer_is_given_up(service, monkeypatch):
    service.encode("a cat")
    monkeypatch.setattr(tokenizer_service, "WALL_SECONDS", 0.2)
    process_of(service).send_signal(signal.SIGSTOP)
    with pytest.raises(TokenizerFailed, match=r"did not answer within 0\.2 s"):
        service.encode("a cat")
    monkeypatch.undo()
    assert service.encode("a cat").tokens


def test_a_template_that_fails_for_a_prompt_fails_that_prompt_alone(models):
    tokenizer = models / "v1" / "tokenizer"
    text = "{% if 'loop' in messages[0]['content'] %}{% for a in range(9999) %}{% for b in range(999) %}{% endfor %}{% endfor %}{% endif %}"
    (tokenizer / "chat_template.jinja").write_text(text + "{{ messages[0]['content'] }}")
    service = TokenizerService(tokenizer_maker.made_by_process(files_of(tokenizer)).packed, ("last", 1))
    with pytest.raises(TokenizerFailed, match="TemplateTooLong: rendering its chat template was given up"):
        service.encode("loop")
    assert service.encode("a cat").tokens


def test_threads_share_it(service):
    found = {}

    def encode(number):
        found[number] = service.encode(f"{number} cats" * number)

    threads = [threading.Thread(target=encode, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[number] == service.encode(f"{number} cats" * number) for number in range(8))


def test_its_process_ends_with_the_last_reference(packed):
    service = TokenizerService(packed, ("last", 1))
    pid = process_of(service).pid
    del service
    gc.collect()
    end = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_running(pid)


def test_an_engine_with_a_large_tokenizer_makes_the_same_image(models, monkeypatch):
    expected = build(EngineFactory(Device("cpu")), models, "v1").generate(parameters()).images[0]
    monkeypatch.setattr(tokenizer_maker, "LARGE", 0)
    engine = build(EngineFactory(Device("cpu")), models, "v1")
    assert isinstance(engine.pipeline.tokenizer, TokenizerService)
    assert engine.generate(parameters()).images[0].tobytes() == expected.tobytes()
    assert isinstance(TokenizerMaker().get(files_of(models / "v1" / "tokenizer")), TokenizerService)


def test_it_works_with_many_open_files(packed):
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limit[1]), limit[1]))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert TokenizerService(packed, ("last", 1)).encode("a cat").tokens
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
