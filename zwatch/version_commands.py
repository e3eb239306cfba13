"""The commands that read and write version directories; only `compare` and `prune` call a service, and only `check` imports torch.

What takes long to import is imported by the command that needs it.
"""

import json
from pathlib import Path
from typing import Any

import click

from zwatch import config, options, values
from zwatch.errors import UsageError


@click.command("seal")
@click.argument("directory", type=options.named_directory, help="A version's directory.")
@options.option("--version", envvar="ZWATCH_SEAL_VERSION", type=options.version_name, show_default="the directory's", metavar="NAME", help="The version's name.")  # fmt: skip
@options.sign_option
def _seal(directory: Path, version: str | None, key_file: Path | None) -> int:
    """Seal what the pipeline, or the LoRA, needs: stamp the transformer, hash the files, write BLAKE3SUMS."""
    from zwatch.deploy import lora_files, sealing
    from zwatch.deploy.signals import Ending
    from zwatch.progress import Progress
    from zwatch.signing.commands import end_seal, signing_key

    try:
        name = options.version_name(version or directory.name)
    except ValueError as error:
        raise UsageError(f"{error}; give --version NAME") from None
    key = signing_key(key_file)  # first: what is wrong with it must not show after minutes of sealing
    ending = Ending()
    with sealing.naming(directory), sealing.locked(directory):
        plan = sealing.prepare(directory, name)
        with Progress("sealing", plan.size) as progress:
            sealed = sealing.carry_out(plan, ending, progress.advance)
        what, kind = (f"the LoRA {name}", "LoRA") if lora_files.WEIGHTS in sealed.files else (name, "pipeline")
        print(f"{directory}: sealed {what}, {len(sealed.files)} files, digest {sealed.digest}")
        if plan.selection.left_out:
            print(f"left out, because a {kind} does not need it: {plan.selection.summary}")
        for line in end_seal(directory, lora_files.PREFIX + name if kind == "LoRA" else name, sealed, key):
            print(line)
    if name != directory.name:
        print(f"the directory is not named {name}: it is rejected until it is renamed to {directory.with_name(name)}")
    return 0


@click.command("verify")
@click.argument("directory", type=options.named_directory, help="A version's directory.")
@options.option("--signature", "policy", envvar="ZWATCH_VERIFY_SIGNATURE", type=options.path, metavar="POLICY", help="Require a signature that this policy allows, as `zwatch serve --require-signature` does.")  # fmt: skip
@options.json_switch
def _verify(directory: Path, policy: Path | None, *, as_json: bool) -> int:
    """Compare every file with the seal."""
    from zwatch.deploy import verifying
    from zwatch.progress import Progress

    signer, findings = _signer(directory, policy)
    if findings:
        return _report(directory, findings, "", as_json=as_json)
    with Progress("verifying", verifying.sealed_bytes(directory)) as progress:
        findings = verifying.check_directory(directory, directory.name, progress.advance)
    good = "verified" if signer is None else f"verified, signed by {signer}"
    return _report(directory, findings, good, as_json=as_json, signer=signer)


@click.command("check")
@click.argument("directory", type=options.named_directory, help="A version's directory.")
@options.device_option
@options.dtype_option
@options.quantize_option
@options.text_encoder_option
@options.policy_option
@options.json_switch
def _check(
    directory: Path,
    device: str,
    dtype: str,
    quantize: str | None,
    text_encoder: str,
    policy: Path | None,
    *,
    as_json: bool,
) -> int:
    """Verify, load and warm a version without serving it."""
    from zwatch.deploy.lora_files import is_lora_directory

    if is_lora_directory(directory):
        raise UsageError(f"{directory}: this is a LoRA, which nothing loads without a version; `zwatch verify` compares it with its seal")  # fmt: skip
    signer, findings = _signer(directory, policy)
    if findings:
        return _report(directory, findings, "", as_json=as_json)
    from zwatch import logs
    from zwatch.engine.check import check_version
    from zwatch.progress import Progress

    logs.set_up("text")
    with Progress("checking") as progress:
        findings, details = check_version(
            directory, device, progress.update, dtype=dtype, quantize=quantize, text_encoder=text_encoder
        )
    good = f"would serve ({details})" if signer is None else f"would serve, signed by {signer} ({details})"
    return _report(directory, findings, good, as_json=as_json, signer=signer)


@click.command("quantize")
@click.argument("version", type=options.base, help="The version's name.")
@click.argument("name", type=options.new_version, help="The new version's name, such as v2-fp8.")
@options.option("--to", "kind", envvar="ZWATCH_QUANTIZE_TO", type=click.Choice(["fp8", "int8"]), default="fp8", help="What the matrices of the blocks of transformer and text encoder are stored in.")  # fmt: skip
@options.option("--models", envvar="ZWATCH_MODELS", type=options.directory, default="models", metavar="DIR", help="The models root.")  # fmt: skip
@options.sign_option
@options.json_switch
def _quantize(version: str, name: str, kind: str, models: Path, key_file: Path | None, *, as_json: bool) -> int:
    """Make a version of half the size: quantized once, loaded as it is."""
    from zwatch.deploy.signals import Ending
    from zwatch.importing.command import quantize_version

    quantize_version(version, name, kind=kind, models=models, key_file=key_file, as_json=as_json, ending=Ending())
    return 0


@click.command("diff")
@click.argument("first", help="A version's name, or a directory.")
@click.argument("second", help="The other one.")
@options.option("--models", envvar="ZWATCH_MODELS", type=options.directory, show_default="models", metavar="DIR", help="The models root.")  # fmt: skip
@options.switch("--all", "is_whole", envvar="ZWATCH_DIFF_ALL", help="Print every tensor and key that differs.")
@options.json_switch
def _diff(first: str, second: str, models: Path | None, *, is_whole: bool, as_json: bool) -> int:
    """Show what differs between two versions."""
    from zwatch.diff import diff

    # Two directories need no models root.
    return diff(first, second, models or Path("models"), is_whole=is_whole, is_json=as_json)


@click.command("golden")
@click.argument("version", type=options.base, help="The version's name.")
@options.option("--prompts", envvar="ZWATCH_GOLDEN_PROMPTS", type=options.path, metavar="FILE", help="The prompts, one a line: as text, or as JSON with seed, width, height, steps, min_psnr and min_ssim.")  # fmt: skip
@options.option("--models", envvar="ZWATCH_MODELS", type=options.directory, default="models", metavar="DIR", help="The models root.")  # fmt: skip
@options.device_option
@options.dtype_option
@options.text_encoder_option
@options.exact_option
@options.option("--min-psnr", envvar="ZWATCH_GOLDEN_MIN_PSNR", type=values.number(0, 100), show_default="measured", metavar="DECIBELS", help="Least PSNR of what is drawn later.")  # fmt: skip
@options.option("--min-ssim", envvar="ZWATCH_GOLDEN_MIN_SSIM", type=values.number(0, 1), show_default="measured", metavar="N", help="Least SSIM of what is drawn later.")  # fmt: skip
@options.option("--steps", envvar="ZWATCH_GOLDEN_STEPS", type=values.whole_number(1, 100), default="8", metavar="N", help="Steps of each image.")  # fmt: skip
@options.option("--size", envvar="ZWATCH_GOLDEN_SIZE", type=values.image_size, show_default="the version's own", metavar="N", help="Pixels of each image: 1024, or 1024x768.")  # fmt: skip
@options.option("--seed", envvar="ZWATCH_GOLDEN_SEED", type=values.whole_number(0, 2**63 - 1), default="42", metavar="N", help="The seed of each image.")  # fmt: skip
@options.switch("--force", "replaces", envvar="ZWATCH_GOLDEN_FORCE", help="Replace the golden images that the version has.")  # fmt: skip
@options.sign_option
@options.json_switch
def _golden(
    version: str, prompts: Path | None, models: Path, device: str, size: tuple[int, int] | None, steps: int, seed: int,
    min_psnr: float | None, min_ssim: float | None, *, replaces: bool, key_file: Path | None, as_json: bool, **engine: Any,
) -> int:  # fmt: skip
    """Draw golden images with a version and seal it with them: later loads must draw the same."""
    from zwatch import golden, logs
    from zwatch.deploy.prompts import read
    from zwatch.deploy.signals import Ending
    from zwatch.signing.commands import signing_key

    if prompts is None:
        raise UsageError("give --prompts FILE: what shall be drawn, a prompt a line")
    asked, key = read(prompts), signing_key(key_file)
    logs.set_up("text")
    wish = golden.Wish(size, steps, seed, min_psnr, min_ssim)
    golden.make(
        models,
        version,
        asked,
        wish,
        replaces=replaces,
        device=device,
        options=engine,
        key=key,
        as_json=as_json,
        ending=Ending(),
    )
    return 0


@click.command("prune")
@options.option("--keep", envvar="ZWATCH_PRUNE_KEEP", type=values.whole_number(1), metavar="N", help="How many of the newest versions are kept in any case, by the time of their seals.")  # fmt: skip
@options.option("--models", envvar="ZWATCH_MODELS", type=options.directory, default="models", metavar="DIR", help="The models root.")  # fmt: skip
@options.switch("--dry-run", envvar="ZWATCH_PRUNE_DRY_RUN", help="Only list what would be deleted.")
@options.switch("--yes", "is_agreed", envvar="ZWATCH_PRUNE_YES", help="Delete without a question.")
@options.option("--url", envvar="ZWATCH_URL", type=options.service_url, default=config.DEFAULT_URL, metavar="URL", help="The service that uses the models root.")  # fmt: skip
@options.option("--also", envvar="ZWATCH_PRUNE_ALSO", type=options.ListOf(options.service_url), multiple=True, metavar="URL", help="Another service that uses it. May be repeated.")  # fmt: skip
@options.option("--token-file", "token", envvar="ZWATCH_TOKEN_FILE", type=options.path, callback=options.read_token, metavar="FILE", help="File with the token, else ZWATCH_TOKEN.")  # fmt: skip
@options.switch("--no-service", envvar="ZWATCH_PRUNE_NO_SERVICE", help="No service runs: go by the links and the state directory.")  # fmt: skip
@options.option("--state-dir", envvar="ZWATCH_STATE_DIR", type=options.path, default=config.state_directory, show_default="systemd's STATE_DIRECTORY, else ~/.local/state/zwatch", metavar="DIR", help="Where that service remembers last-known-good.")  # fmt: skip
@options.json_switch
def _prune(
    keep: int | None,
    models: Path,
    url: str,
    also: tuple[str, ...],
    token: str | None,
    *,
    no_service: bool,
    state_dir: Path,
    **how: bool,
) -> int:
    """Delete old versions that nothing needs."""
    from zwatch import prune
    from zwatch.client import Service

    if keep is None:
        raise UsageError("give --keep N: how many of the newest versions are kept in any case")
    if no_service:
        ask_needs = prune.by_state(state_dir)
    else:
        ask_needs = prune.by_services([(one, Service(one, token)) for one in dict.fromkeys([url, *also])])
    return prune.prune(models, keep, ask_needs, **how)


@click.command("compare")
@click.argument("first", type=options.version_argument, help="A version that is loaded, an alias or a share.")
@click.argument("second", type=options.version_argument, help="The other one.")
@options.option("--prompts", envvar="ZWATCH_COMPARE_PROMPTS", type=options.path, metavar="FILE", help="The prompts, one a line: as text, or as JSON with seed, width, height and steps.")  # fmt: skip
@options.option("-o", "--output", envvar="ZWATCH_COMPARE_OUTPUT", type=options.path, default="sheet.png", metavar="FILE", help="The sheet: a .png, or a .html with the pictures inside.")  # fmt: skip
@options.option("--seed", envvar="ZWATCH_COMPARE_SEED", type=values.whole_number(0, 2**63 - 1), default="42", metavar="N", help="The seed of every picture.")  # fmt: skip
@options.option("--size", envvar="ZWATCH_COMPARE_SIZE", type=values.image_size, show_default="the version's own", metavar="N", help="Their pixels: 1024, or 1024x768.")  # fmt: skip
@options.option("--steps", envvar="ZWATCH_COMPARE_STEPS", type=values.whole_number(1, 100), show_default="8", metavar="N", help="Their denoising steps.")  # fmt: skip
@options.option("--url", envvar="ZWATCH_URL", type=options.service_url, default=config.DEFAULT_URL, metavar="URL", help="Where the service is.")  # fmt: skip
@options.option("--token-file", "token", envvar="ZWATCH_TOKEN_FILE", type=options.path, callback=options.read_token, metavar="FILE", help="File with the token, else ZWATCH_TOKEN.")  # fmt: skip
@options.json_switch
def _compare(
    first: str,
    second: str,
    prompts: Path | None,
    output: Path,
    seed: int,
    size: tuple[int, int] | None,
    steps: int | None,
    url: str,
    token: str | None,
    *,
    as_json: bool,
) -> int:
    """Draw prompts by two versions and write a sheet of the pairs and their differences."""
    if prompts is None:
        raise UsageError("give --prompts FILE: what shall be drawn, a prompt a line")
    if first == second:
        raise UsageError(f"both are {first!r}; name two different versions")
    from zwatch import comparing
    from zwatch.client import Service

    width, height = size or (None, None)
    asked = comparing.Asked((first, second), seed, width, height, steps)
    return comparing.compare(asked, prompts, output, Service(url, token), as_json=as_json)


def _signer(directory: Path, policy: Path | None) -> tuple[str | None, list[str]]:
    if policy is None:
        return None, []
    from zwatch.signing.commands import signer_of

    return signer_of(directory, policy)


def _report(directory: Path, findings: list[str], good: str, *, as_json: bool, signer: str | None = None) -> int:
    if as_json:
        found = {"version": directory.name, "ok": not findings, "findings": findings, "signer": signer}
        print(json.dumps(found, ensure_ascii=False))
    else:
        print("\n".join(findings or [f"{directory}: {good}"]))
    return 1 if findings else 0


COMMANDS = (_seal, _verify, _check, _quantize, _golden, _diff, _compare, _prune)
"""In the order in which `--help` shows them."""
