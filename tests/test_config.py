"""Every option of every command: its flag, its variable, what they accept and what they refuse."""

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import click
import pytest

from zwatch.cli import commands, main
from zwatch.config import Config, state_directory
from zwatch.errors import UsageError
from zwatch.fleet.settings import ALL, Quorum, ReplicaCount

ARGUMENTS = {
    "deploy": ["v2"],
    "seal": ["models"],
    "verify": ["models"],
    "check": ["models"],
    "diff": ["v1", "v2"],
    "import": ["models", "v2"],
    "quantize": ["v1", "v2"],
    "golden": ["v1"],
    "generate": ["a cat"],
    "compare": ["v1", "v2"],
}
"""What a command must be given besides options."""

SWITCH = ([("1", True), ("TRUE", True), ("yes", True), ("on", True), ("0", False), ("false", False), ("No", False), ("off", False)],
          ["ture", "2", "y", "t", " ", "None"])  # fmt: skip
NO_HISTORY = ([(text, not value) for text, value in SWITCH[0]], SWITCH[1])
NAME = ([("canary", "canary"), ("v-1.2_x", "v-1.2_x")], ["../x", "-x", ".x", "a b", "x" * 65, "v2/"])
ALIAS = (NAME[0], [*NAME[1], "current@10", "canary@0", "current@"])
DEVICES = (
    [("all", ("all",)), ("0", ("0",)), ("0,1", ("0", "1")), ("cuda:2, 0", ("2", "0")), ("cpu,cpu", ("cpu", "cpu"))],
    ["gpu", "0,0", "0,cpu", "all,0", "-1", "01", ","],
)
RAY = (
    [("auto", "auto"), ("10.0.0.1:6379", "10.0.0.1:6379"), ("head:6379", "head:6379")],
    ["head", "head:0", "ray://head:10001", ":6379", "head:x"],
)
REPLICAS = (
    [("auto", ReplicaCount(1, 1024, follows_cluster=True)), ("3", ReplicaCount(3, 3)), ("2..8", ReplicaCount(2, 8))],
    ["0", "8..2", "0..2", "2..", "many", "1025", "-1"],
)
QUORUM = (
    [("all", ALL), ("2", Quorum("2", number=2)), ("2/3", Quorum("2/3", share=(2, 3)))], ["0", "3/2", "1/0", "half", "0.5", "/3", "66%"]
)  # fmt: skip
SIZE = (
    [
        ("60G", 60 * 2**30), ("512K", 2**19), ("60g", 60 * 2**30), ("1.5M", 1572864), ("2T", 2**41), ("1000", 1000), ("1e3", 1000),
        ("1KB", 1000), ("2MB", 2 * 10**6), ("60GB", 60 * 10**9), ("1TB", 10**12), ("1KiB", 1024), ("3MiB", 3 * 2**20),
        ("1GiB", 2**30), ("1TiB", 2**40), ("8gib", 2**33), ("1Gi", 2**30), ("5 GB", 5 * 10**9), ("7B", 7),
    ],
    ["much", "60X", "0", "-5", "0.1", "nan", "inf", "5iB", "5i", "G", "1 2", "60 GBs", "1KiKB"],
)  # fmt: skip
COUNT = ([("1", 1), ("64", 64), (" 7 ", 7)], ["0", "-1", "1.5", "many", "1e3", "inf", "1_0", "9" * 5000])
POSITIVE = ([("600", 600.0), ("0.5", 0.5), ("inf", float("inf"))], ["0", "-1", "nan", "soon", "1s"])
SECONDS = ([("60", 60.0), ("0", 0.0), ("0.5", 0.5), ("inf", float("inf"))], ["-1", "nan", "soon", "1s"])
DIRECTORY = ([("models", Path("models")), (".", Path())], ["nowhere", "file", "file/x", "x" * 300])
PATH = ([("some/where", Path("some/where")), ("/x y", Path("/x y"))], [])
TOKEN = (
    [("token", "secret"), ("marked", "ключ")],
    ["nowhere", "empty", "models", "lines", "latin", "nul", "/dev/zero"],
)
HOST = (
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("[::1]", "::1"), ("models.example", "models.example")],
    ["http://x", "x:80", "a b", "x/", "*", "[::1]:80", "[x]", "a..b", ".", "a" * 64],
)
PORT = ([("7860", 7860), ("0", 0), ("65535", 65535)], ["65536", "-1", "many", "80.5", "tcp:", "udp://10.96.0.17:7860"])
DEVICE = ([(name, name) for name in ("auto", "cpu", "cuda", "cuda:0", "cuda:15")], ["gpu", "mps", "cuda:x", "cuda:", "CUDA", "cuda:01", "cpu:0", "cuda:-1"])  # fmt: skip
DTYPE = ([("bf16", "bf16"), ("auto", "auto"), ("fp16", "fp16")], ["BF16", "float32", "half"])
TEXT_ENCODER = ([(name, name) for name in ("auto", "device", "host")], ["cpu", "HOST", "no"])
QUANTIZE = ([("fp8", "fp8"), ("int8", "int8")], ["fp16", "FP8", "none"])
SCALE = ([("0.8", 0.8), ("-1", -1.0), ("100", 100.0)], ["0", "101", "-100.5", "nan", "inf", "much"])
LORA = (
    [("0.8", (0.8,)), ("-1", (-1.0,)), ("file", ((Path("file"), 1.0),)), ("file:0.5", ((Path("file"), 0.5),))],
    [*SCALE[1], "nowhere.safetensors", "file:0"],
)
STEPS = ([("1", 1), ("100", 100), (" 7 ", 7)], ["0", "101", "1.5", "many"])
SEED = ([("0", 0), ("42", 42), ("999999999999999999", 10**18 - 1)], ["-1", "1.5", "9" * 19, "x"])
SIDE = ([("256", 256), ("16", 16), ("2048", 2048)], ["0", "8", "100", "2064", "x", "16.0"])
PICTURE = (
    [("file", Path("file")), ("-", "-"), ("history:x_seed1.png", "history:x_seed1.png")],
    ["nowhere.png", "models", "history:"],
)
LORA_USE = (
    [("ink:0.8", {"name": "ink", "scale": 0.8}), ("ink", {"name": "ink", "scale": 1.0}), ("night:-1", {"name": "night", "scale": -1.0})],
    [":1", "ink:", "ink:much", "ink:nan", "ink:1:2"],
)  # fmt: skip
IMAGE_SIZE = ([("1024", (1024, 1024)), ("64x48", (64, 48)), ("16X2048", (16, 2048))], ["0", "100", "8", "2064", "x", "64x", "64x64x64", "64 x 64", "-16", "٣٢"])  # fmt: skip
PSNR = ([("40", 40.0), ("0", 0.0), ("99.5", 99.5)], ["-1", "101", "nan", "inf", "much"])
SSIM = ([("0.98", 0.98), ("1", 1.0)], ["-0.1", "1.1", "nan", "x"])
LOG = ([("text", "text"), ("json", "json")], ["xml", "JSON", "plain"])
URL = (
    [("http://127.0.0.1:7860", "http://127.0.0.1:7860"), ("https://x.example/zwatch/", "https://x.example/zwatch"), ("http://[::1]", "http://[::1]")],
    ["foo", "localhost:7860", "ftp://x", "http://", "http://x:99999", "http://x:y", "http://[::1", "http://a b", "http://x/?q", "http://u@x", "http://x\n"],
)  # fmt: skip


def listed(cases):
    """Return the cases of an option that may be repeated, from those of one item."""
    return [(text, (value,)) for text, value in cases[0]], cases[1]


ALIASES = (
    [(text, ("current", value)) for text, value in [*NAME[0], *((one, one) for one in ("c*", "?", "[ab]-*", "[!v]*"))]],
    [*NAME[1], "*/x", "[", "c*d]", "@*", "c*@10"],
)
CASES = {
    "ZWATCH_MODELS": DIRECTORY, "ZWATCH_ALIAS": ALIASES, "ZWATCH_ALL_ALIASES": SWITCH, "ZWATCH_STRICT_LINKS": SWITCH, "ZWATCH_HOST": HOST, "ZWATCH_PORT": PORT,
    "ZWATCH_LORAS": PATH, "ZWATCH_DEVICE": DEVICE, "ZWATCH_MEMORY_BUDGET": SIZE, "ZWATCH_STATE_DIR": PATH, "ZWATCH_TOKEN_FILE": TOKEN,
    "ZWATCH_DEVICES": DEVICES, "ZWATCH_RAY": RAY, "ZWATCH_REPLICAS": REPLICAS, "ZWATCH_QUORUM": QUORUM,
    "ZWATCH_INSECURE_NO_TOKEN": SWITCH, "ZWATCH_ALLOWED_HOST": listed(HOST), "ZWATCH_QUEUE": COUNT, "ZWATCH_TIMEOUT": POSITIVE,
    "ZWATCH_STALL_TIMEOUT": POSITIVE, "ZWATCH_PROBATION": SECONDS, "ZWATCH_MAX_WORK": POSITIVE, "ZWATCH_OUTPUT_DIR": PATH, "ZWATCH_NO_HISTORY": NO_HISTORY, "ZWATCH_HISTORY_MAX_IMAGES": COUNT,
    "ZWATCH_HISTORY_MAX_BYTES": SIZE, "ZWATCH_LOG": LOG, "ZWATCH_DTYPE": DTYPE, "ZWATCH_QUANTIZE": QUANTIZE, "ZWATCH_TEXT_ENCODER": TEXT_ENCODER, "ZWATCH_TAKEOVER": SWITCH, "ZWATCH_EXACT": SWITCH, "ZWATCH_URL": URL, "ZWATCH_JSON": SWITCH, "ZWATCH_DEPLOY_ALIAS": ALIAS,
    "ZWATCH_DEPLOY_NO_WAIT": SWITCH, "ZWATCH_ROLLBACK_ALIAS": ALIAS, "ZWATCH_SHARE_ALIAS": ALIAS, "ZWATCH_SHARE_NO_WAIT": SWITCH, "ZWATCH_SEAL_VERSION": NAME,
    "ZWATCH_LIST_MODELS": DIRECTORY, "ZWATCH_LIST_LORA": SWITCH, "ZWATCH_DIFF_ALL": SWITCH, "ZWATCH_PRUNE_KEEP": COUNT, "ZWATCH_PRUNE_DRY_RUN": SWITCH,
    "ZWATCH_PRUNE_YES": SWITCH, "ZWATCH_PRUNE_ALSO": listed((URL[0], URL[1][:-1])), "ZWATCH_PRUNE_NO_SERVICE": SWITCH,
    "ZWATCH_IMPORT_BASE": ([("v1", "v1"), ("./v1/", "v1")], []), "ZWATCH_IMPORT_DTYPE": ([("fp16", "fp16"), ("bf16", "bf16")], ["fp32", "F16"]),
    "ZWATCH_IMPORT_KEEP_DTYPE": SWITCH, "ZWATCH_IMPORT_LORA": LORA, "ZWATCH_IMPORT_DEPLOY": SWITCH,
    "ZWATCH_REQUIRE_SIGNATURE": PATH, "ZWATCH_SIGN": PATH, "ZWATCH_QUANTIZE_TO": QUANTIZE, "ZWATCH_VERIFY_SIGNATURE": PATH,
    "ZWATCH_GOLDEN_PROMPTS": PATH, "ZWATCH_GOLDEN_MIN_PSNR": PSNR, "ZWATCH_GOLDEN_MIN_SSIM": SSIM, "ZWATCH_GOLDEN_STEPS": STEPS,
    "ZWATCH_GOLDEN_SIZE": IMAGE_SIZE, "ZWATCH_GOLDEN_SEED": SEED, "ZWATCH_GOLDEN_FORCE": SWITCH,
    "ZWATCH_COMPARE_PROMPTS": PATH, "ZWATCH_COMPARE_OUTPUT": PATH,
    "ZWATCH_COMPARE_SEED": ([("0", 0), (str(2**63 - 1), 2**63 - 1)], ["-1", "1.5", "random", str(2**63)]),
    "ZWATCH_COMPARE_SIZE": ([("512", (512, 512)), ("768x512", (768, 512)), ("64X64", (64, 64))], ["0", "8", "4096", "x", "64x", "x64", "a", "64x64x64"]),
    "ZWATCH_COMPARE_STEPS": ([("1", 1), ("100", 100)], ["0", "101", "-1", "many"]),
    "ZWATCH_GENERATE_OUTPUT": ([("cat.png", "cat.png"), ("-", "-"), ("models/", "models/")], []), "ZWATCH_GENERATE_FORCE": SWITCH, "ZWATCH_GENERATE_IMAGE": PICTURE,
    "ZWATCH_GENERATE_MASK": PICTURE, "ZWATCH_GENERATE_STRENGTH": ([("0.6", 0.6), ("0", 0.0), ("1", 1.0)], ["-0.1", "1.1", "nan", "much"]),
    "ZWATCH_GENERATE_MASK_BLUR": ([("8", 8), ("0", 0), ("64", 64)], ["-1", "65", "1.5", "x"]), "ZWATCH_GENERATE_LORA": listed(LORA_USE),
    "ZWATCH_GENERATE_CONTROL": PICTURE, "ZWATCH_GENERATE_CONTROL_SCALE": ([("0.75", 0.75), ("0", 0.0), ("2", 2.0)], ["-0.1", "2.1", "nan", "much"]),
    "ZWATCH_GENERATE_MODEL": listed(([("v1", "v1"), ("./v1/", "v1"), ("current@10", "current@10")], [])),
    "ZWATCH_GENERATE_SEED": ([("0", 0), (str(2**63 - 1), 2**63 - 1)], ["-1", "1.5", "random", str(2**63)]),
    "ZWATCH_GENERATE_N": ([("1", 1), ("16", 16)], ["0", "17", "x"]), "ZWATCH_GENERATE_STEPS": STEPS, "ZWATCH_GENERATE_WIDTH": SIDE, "ZWATCH_GENERATE_HEIGHT": SIDE,
    "ZWATCH_GENERATE_NEGATIVE_PROMPT": ([("snow", "snow"), ("雪", "雪")], [" "]), "ZWATCH_GENERATE_GUIDANCE_SCALE": ([("3.5", 3.5), ("0", 0.0)], ["-1", "20.5", "nan", "x"]),
    "ZWATCH_GENERATE_FORMAT": ([("png", "png"), ("jpeg", "jpeg"), ("webp", "webp")], ["gif", "JPEG", "jpg"]), "ZWATCH_GENERATE_SHOW": SWITCH,
    "ZWATCH_MCP_ALLOW_DEPLOY": SWITCH, "ZWATCH_MCP_FILES": DIRECTORY, "ZWATCH_SYSTEMD_UNIT_SOCKET": SWITCH, "ZWATCH_SYSTEMD_UNIT_TAKEOVER": SWITCH,
    "ZWATCH_SYSTEMD_UNIT_NODE": SWITCH,
}  # fmt: skip
"""Of each variable: (text, value) that are good, and texts that are bad. Of those with spaces, lists take the parts."""

OPTIONS = [
    pytest.param(command, option, id=f"{command}{option.opts[0]}")
    for command, declared in commands.commands.items()
    for option in declared.params
    if isinstance(option, click.Option)
]
LISTS = ("ZWATCH_ALIAS", "ZWATCH_ALLOWED_HOST", "ZWATCH_PRUNE_ALSO", "ZWATCH_GENERATE_LORA", "ZWATCH_GENERATE_MODEL")


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    """A working directory with a models root and token files, and no settings in the environment."""
    for name in [*os.environ]:
        if name.startswith("ZWATCH_") or name in ("STATE_DIRECTORY", "CREDENTIALS_DIRECTORY"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbf" + "ключ\r\n".encode())
    (tmp_path / "lines").write_text("one\ntwo\n")
    (tmp_path / "latin").write_bytes(b"\xe9\n")
    (tmp_path / "nul").write_bytes(b"a\0b")


def parsed(command, *arguments):
    """Return the checked values of a command's options and arguments, by name."""
    with commands.commands[command].make_context(command, [*ARGUMENTS.get(command, []), *arguments]) as context:
        return context.params


def flag(option, text):
    """Return what gives an option a value; `--lora` may stand without one, so that its value must be joined to it."""
    return [f"{option.opts[0]}={text}"] if option.opts[0] == "--lora" else [option.opts[0], text]


def refused(capsys, *arguments):
    """Run a command that is wrongly called; return the sentence on standard error."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert err.startswith("zwatch: ")
    return err.removeprefix("zwatch: ").strip()


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_every_option_has_a_variable_a_help_text_and_cases(command, option):
    assert option.envvar in CASES
    assert option.help


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_a_good_value_is_taken_from_the_flag_and_from_the_variable(monkeypatch, command, option):
    for text, value in CASES[option.envvar][0]:
        if not option.is_flag:
            assert parsed(command, *flag(option, text))[option.name] == value, text
        monkeypatch.setenv(option.envvar, text)
        assert parsed(command)[option.name] == value, text


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_a_bad_value_is_refused_with_the_name_of_the_flag_or_the_variable(monkeypatch, capsys, command, option):
    given = [command, *ARGUMENTS.get(command, [])]
    hint = f"(see zwatch {command} --help)"
    for text in CASES[option.envvar][1]:
        if not option.is_flag:
            said = refused(capsys, *given, *flag(option, text))
            assert said.startswith(f"{option.opts[0]}: "), said
            assert said.endswith(hint)
            assert repr(text) in said or option.name == "token"
        if option.envvar in LISTS and " " in text:
            continue
        monkeypatch.setenv(option.envvar, text)
        said = refused(capsys, *given)
        assert said.startswith(f"{option.envvar}: "), said
        assert said.endswith(hint)
        assert repr(text) in said or option.name == "token"


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_an_empty_variable_is_an_unset_one_and_an_empty_flag_an_error(monkeypatch, capsys, command, option):
    unset = parsed(command)
    monkeypatch.setenv(option.envvar, "")
    assert parsed(command) == unset
    if not option.is_flag:
        assert refused(capsys, command, *ARGUMENTS.get(command, []), *flag(option, "")).startswith(option.opts[0])


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_a_flag_wins_over_its_variable(monkeypatch, command, option):
    good = CASES[option.envvar][0]
    if option.is_flag:
        monkeypatch.setenv(option.envvar, "0")
        assert parsed(command, option.opts[0])[option.name] == good[0][1]
    else:
        monkeypatch.setenv(option.envvar, (CASES[option.envvar][1] or good[1])[0])
        assert parsed(command, *flag(option, good[0][0]))[option.name] == good[0][1]


def test_the_options_of_serve_are_the_settings_with_their_defaults(monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    settings = parsed("serve")
    given_otherwise = {"passed_hosts", "token_file", "places", "fleet_limits"}  # by systemd, with the token, by tests
    assert set(settings) == {field.name for field in fields(Config)} - given_otherwise
    assert Config(**settings) == Config(
        models=Path("models"), aliases=("current",), strict_links=False, device="auto", memory_budget=None,
        state_dir=Path("/home/x/.local/state/zwatch"), host="127.0.0.1", port=7860, token=None, insecure_no_token=False,
        allowed_hosts=(), queue=64, timeout=600.0, stall_timeout=None, max_work=600.0, history=True, output_dir=Path("output_image"),
        history_max_images=None, history_max_bytes=None, log="json", takeover=False,
    )  # fmt: skip


@pytest.mark.parametrize("text", ["a,b", "a b", " a, b ", "a,,b,", "a\tb", "a b a"])
def test_a_list_in_a_variable_is_split_at_commas_and_spaces(monkeypatch, text):
    monkeypatch.setenv("ZWATCH_ALIAS", text)
    assert parsed("serve")["aliases"] == ("current", "a", "b")
    monkeypatch.setenv("ZWATCH_ALLOWED_HOST", text.removesuffix(" a"))
    assert parsed("serve")["allowed_hosts"] == ("a", "b")


def test_a_repeated_flag_is_a_list_and_its_items_are_not_split(capsys):
    assert parsed("serve", "--alias", "a", "--alias", "current", "--alias", "b")["aliases"] == ("current", "a", "b")
    assert "'a,b'" in refused(capsys, "serve", "--alias", "a,b")


@pytest.mark.parametrize(
    ("given", "version"),
    [
        ("v3", "v3"),
        ("v3/", "v3"),
        ("v3//", "v3"),
        ("./v3", "v3"),
        (".//v3/", "v3"),
        ("v3/.", "v3"),
        ("../v3", "../v3"),
        ("models/v3", "models/v3"),
        ("/", "/"),
        ("./", "."),
        ("", ""),
    ],
)
def test_a_slash_after_a_version_is_dropped_and_the_rest_is_left_to_the_service(given, version):
    with commands.commands["deploy"].make_context("deploy", [given]) as context:
        assert context.params["version"] == version


@pytest.mark.parametrize("command", ["deploy", "rollback"])
def test_the_variable_that_serve_follows_does_not_move_a_deploy(monkeypatch, command):
    monkeypatch.setenv("ZWATCH_ALIAS", "canary")
    assert parsed(command)["alias"] == "current"


def failed_start(directory, **variables):
    """Run `zwatch serve`, which cannot work with these variables; return the lines on standard error."""
    environment = {**os.environ, **variables, "ZWATCH_LOG": "text", "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "zwatch", "serve", "--state-dir", "state"]
    found = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True, timeout=120)
    assert found.returncode == 2
    return found.stderr.splitlines()


def test_a_port_that_kubernetes_set_is_ignored_with_a_warning(tmp_path):
    port = {"ZWATCH_PORT": "tcp://10.96.0.17:7860"}
    # An address for documentation: no machine has it, so the start ends there.
    warning, error = failed_start(tmp_path, ZWATCH_HOST="203.0.113.1", ZWATCH_INSECURE_NO_TOKEN="on", **port)
    assert "warning: ZWATCH_PORT=tcp://10.96.0.17:7860 is ignored" in warning
    assert "203.0.113.1:7860 cannot be bound" in error, "the default port is used"


def test_a_port_like_that_of_kubernetes_in_the_flag_is_an_error(capsys):
    said = refused(capsys, "serve", "--port", "tcp://10.96.0.17:7860")
    assert said.startswith("--port: expected a whole number from 0 to 65535, got 'tcp://10.96.0.17:7860'")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "missing command (see zwatch --help)"),
        (["srve"], "no such command 'srve'"),
        (["serve", "--prot", "80"], "no such option '--prot'"),
        (["serve", "--strict-links=yes"], "'--strict-links' does not take a value"),
        (["serve", "--port"], "'--port' requires an argument"),
        (["deploy"], "missing argument 'VERSION'"),
        (["status", "v2"], "unexpected extra argument"),
        (["verify", "/"], "DIRECTORY: expected a version's directory, got '/'"),
        (["check", "nowhere"], "DIRECTORY: there is no such directory: 'nowhere' (see zwatch check --help)"),
    ],
)
def test_a_wrong_call_is_one_line_with_a_hint(capsys, arguments, words):
    said = refused(capsys, *arguments)
    assert words in said
    assert said.endswith("--help)")


def test_settings_that_only_together_are_wrong_name_what_to_change(tmp_path):
    [said] = failed_start(tmp_path, ZWATCH_HOST="0.0.0.0")
    assert said.startswith("zwatch: ")
    assert all(words in said for words in ("0.0.0.0", "ZWATCH_HOST", "--token-file", "--insecure-no-token"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--devices", "cpu,cpu", "--ray", "auto"], ["--devices", "--ray"]),
        (["--replicas", "2..4"], ["--replicas MIN..MAX", "--ray ADDRESS"]),
        (["--replicas", "2", "--device", "cuda:1"], ["--device cuda:1", "--replicas"]),
        (["--devices", "cpu,cpu", "--replicas", "2"], ["--devices", "--replicas"]),
        (["--quorum", "2/3"], ["--quorum 2/3", "--devices"]),
        (["--devices", "0,1", "--device", "cuda:0"], ["--device cuda:0", "--devices"]),
        (["--ray", "auto", "--device", "cuda:1"], ["--device cuda:1", "--device cuda,"]),
        (["--devices", "cpu,cpu", "--takeover"], ["--takeover", "start it again"]),
        (["--devices", "cpu,cpu", "--quorum", "3"], ["--quorum 3", "only 2 replicas"]),
        (["--ray", "auto", "--replicas", "2..4", "--quorum", "5"], ["--quorum 5", "only 4 replicas"]),
    ],
)
def test_options_of_a_fleet_that_do_not_go_together_name_what_to_change(options, words):
    with pytest.raises(UsageError) as refused:
        Config(**parsed("serve", *options)).with_local_replicas().check()
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize("replicas", ["auto", "1..4"])
def test_a_quorum_may_be_as_many_replicas_as_there_can_be(replicas):
    Config(**parsed("serve", "--ray", "auto", "--replicas", replicas, "--quorum", "4")).check()


@pytest.mark.parametrize("command", ["serve", "status"])
def test_a_credential_that_is_empty_is_an_error(monkeypatch, capsys, tmp_path, command):
    (tmp_path / "zwatch-token").touch()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert refused(capsys, command).endswith("zwatch-token is empty")


@pytest.mark.parametrize("command", ["serve", "status"])
@pytest.mark.parametrize("token", ["a\nb", "a\tb", "\udcff"])  # the last is a byte that is not UTF-8
def test_a_token_that_no_header_can_have_is_an_error_that_names_its_variable(monkeypatch, capsys, command, token):
    monkeypatch.setenv("ZWATCH_TOKEN", token)
    assert refused(capsys, command) == "ZWATCH_TOKEN: the token must be one line of printable characters, in UTF-8"


def test_a_host_that_cannot_be_resolved_is_one_line_with_the_resolvers_reason(tmp_path):
    [said] = failed_start(tmp_path, ZWATCH_HOST="nowhere.invalid", ZWATCH_INSECURE_NO_TOKEN="on")
    assert said.startswith("zwatch: nowhere.invalid:7860 cannot be bound: ")
    assert "Unknown error" not in said


def test_the_state_directory_is_systemds_if_none_is_given(monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/zwatch:/var/lib/other")
    assert parsed("serve")["state_dir"] == Path("/var/lib/zwatch")
    assert parsed("serve", "--state-dir", "x")["state_dir"] == Path("x")


def test_without_a_home_directory_the_error_asks_for_a_state_directory(monkeypatch, capsys):
    def unknown(user):
        raise KeyError(user)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(UsageError, match="--state-dir"):
        state_directory()
    assert "ZWATCH_STATE_DIR" in refused(capsys, "serve")
    assert parsed("serve", "--state-dir", "x")["state_dir"] == Path("x")
    assert parsed("status"), "no other command needs it"


@pytest.mark.parametrize("command", [[], *([name] for name in commands.commands)])
def test_help_is_shown_whatever_the_variables_hold(monkeypatch, capsys, command):
    for variable in CASES:
        monkeypatch.setenv(variable, "?")
    assert main([*command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for parameter in commands.commands[command[0]].params if command else ():
        named = parameter.opts[0] if isinstance(parameter, click.Option) else parameter.human_readable_name
        assert named in out
        assert (parameter.envvar or "") in out


@pytest.mark.parametrize("argument", [argument for one in commands.commands.values() for argument in one.params if isinstance(argument, click.Argument)])  # fmt: skip
def test_every_argument_has_a_help_text(argument):
    assert argument.help


@pytest.mark.parametrize("flag", ["--version", "-h", "--help"])
def test_version_and_help_are_status_0(capsys, flag):
    assert main([flag]) == 0
    assert "zwatch" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["zwatch.cli", "zwatch.config", "zwatch.options"])
def test_start_up_imports_nothing_slow(module):
    slow = [
        "asyncio",
        "pydantic",
        "blake3",
        "urllib.request",
        "tqdm",
        "watchdog",
        "importlib.metadata",
        "rich",
        "typer",
    ]
    # What the interpreter itself has imported (an editable installation does) is not ours.
    check = f"import sys; before = set(sys.modules); import {module}; print(set({slow}) & (set(sys.modules) - before))"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)  # fmt: skip
    assert found.stdout.strip() == "set()"
