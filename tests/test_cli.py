"""The command line: light to start, complete in its help, and errors that are messages."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner, Result

from t2i_align import __version__, cli
from t2i_align.commands.common import Stopped, named_models, named_values, negative_models
from t2i_align.errors import UserError
from tests.config.conftest import VALID
from tests.training.runs import write_pairs

HEAVY = ("torch", "diffusers", "transformers", "datasets", "matplotlib", "scipy", "numpy", "pydantic", "omegaconf")
COMMANDS = [
    "train",
    "generate",
    "evaluate",
    "export",
    "demo",
    "data check",
    "data cache",
    "data convert",
    "config check",
    "config show",
    "config schema",
    "objectives list",
    "objectives show",
    "shapes pretrain",
    "shapes pairs",
    "shapes user-pairs",
    "shapes taste-study",
    "shapes reward-pairs",
    "shapes soup-study",
    "shapes render",
    "personal fit",
    "personal interpolate",
    "personal soup",
    "score",
    "compare",
    "study",
    "rewards pretrain",
    "rewards train",
    "rewards label",
    "rewards filter",
    "rewards agree",
    "rewards render",
    "rewards convert-mps",
]


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.app, list(words))


@pytest.fixture
def valid(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(VALID, encoding="utf-8")
    return path


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch):
    """raising(error): `t2i-align objectives list` fails with it."""

    def _raising(error: BaseException) -> None:
        def list_presets() -> None:
            raise error

        module = ModuleType("t2i_align.objectives.listing")
        module.list_presets = list_presets  # type: ignore[attr-defined]
        module.render_list = str  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return _raising


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    code = (
        "import sys\nfrom t2i_align.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        f"heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Processor time, since other work on the machine does not count against it.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_importing_the_packages_is_light() -> None:
    code = f"import sys, t2i_align, reward_models.files\nassert not [n for n in {HEAVY} if n in sys.modules]"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0 and "Usage:" in result.output


def test_version() -> None:
    assert run("--version").output == f"t2i_align {__version__}\n"


def test_python_m_runs_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "t2i_align", "--version"], capture_output=True, text=True)
    assert done.stdout == f"t2i_align {__version__}\n"


@pytest.mark.parametrize("words", [(), ("data",), ("config",)])
def test_no_command_shows_help(words: tuple[str, ...]) -> None:
    result = run(*words)
    assert result.exit_code == 2 and "Commands:" in result.output


def test_unknown_command_is_a_usage_error() -> None:
    result = run("trian")
    assert result.exit_code == 2 and "trian" in result.stderr


def test_user_error_is_one_message_without_traceback(raising) -> None:
    raising(UserError("the rule", "the value", "the remedy"))
    result = run("objectives", "list")
    assert result.exit_code == 2
    assert result.stderr == "error: the rule\n  found: the value\n  fix:   the remedy\n"


def test_reward_model_error_is_a_message_too(raising) -> None:
    from reward_models.errors import RewardModelError

    raising(RewardModelError("unknown scorer"))
    result = run("objectives", "list")
    assert result.exit_code == 2 and result.stderr == "error: unknown scorer\n"


def test_debug_shows_the_traceback(raising) -> None:
    raising(UserError("the rule"))
    assert isinstance(run("--debug", "objectives", "list").exception, UserError)


def test_bugs_keep_their_traceback(raising) -> None:
    raising(ZeroDivisionError("a bug"))
    result = run("objectives", "list")
    assert isinstance(result.exception, ZeroDivisionError) and result.exit_code == 1


@pytest.mark.parametrize(
    ("error", "message"), [(KeyboardInterrupt(), "Interrupted.\n"), (Stopped("Resume with: x"), "Resume with: x\n")]
)
def test_interruption_exits_with_130(raising, error: BaseException, message: str) -> None:
    raising(error)
    result = run("objectives", "list")
    assert (result.exit_code, result.stderr) == (130, message)


def test_user_error_in_a_process_of_its_own() -> None:
    words = [sys.executable, "-m", "t2i_align", "train", "no/such/file.yaml"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: configuration file no/such/file.yaml does not exist")
    assert "Traceback" not in done.stderr


def test_train_passes_overrides_and_says_how_to_resume(valid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from t2i_align.training import loop
    from t2i_align.training import run as training

    def stop(config) -> None:
        assert config.training.max_train_steps == 7
        raise loop.Interrupted("runs/x/checkpoint-3")

    monkeypatch.setattr(training, "train", stop)
    result = run("train", str(valid), "training.max_train_steps=7", "validation.validation_prompts=[a red circle]")
    assert result.exit_code == 130
    assert "runs/x/checkpoint-3 is written" in result.stderr
    assert (
        f"t2i-align train {valid} training.max_train_steps=7 'validation.validation_prompts=[a red circle]' "
        "training.resume_from_checkpoint=latest" in result.stderr
    )


def test_config_check_reports_all_files_together(valid: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(VALID.replace("resolution", "resolutoin"), encoding="utf-8")
    worse = tmp_path / "missing.yaml"
    result = run("config", "check", str(bad), str(valid), str(worse))
    assert result.exit_code == 2
    assert result.stdout == f"{valid}: ok\n"
    assert "did you mean data.resolution?" in result.stderr and "missing.yaml does not exist" in result.stderr


def test_config_check_takes_overrides_and_every_kind_of_file(valid: Path) -> None:
    result = run("config", "check", str(valid), "training.max_train_stepz=3")
    assert result.exit_code == 2 and "did you mean training.max_train_steps?" in result.stderr
    configs = Path(__file__).parents[1] / "configs"
    names = ("dpo", "study", "compare", "pretrain", "lrm", "personal_head", "rewards/pickscore")
    files = [str(configs / "shapes" / f"{name}.yaml") for name in names]
    result = run("config", "check", *files)
    assert (result.exit_code, result.stdout) == (0, "".join(f"{file}: ok\n" for file in files)), result.stderr


def test_config_show_is_a_loadable_file(valid: Path, tmp_path: Path) -> None:
    shown = tmp_path / "shown.yaml"
    shown.write_text(run("config", "show", str(valid), "seed=9").stdout, encoding="utf-8")
    again = run("config", "show", str(shown))
    assert "seed: 9" in again.stdout and again.stdout == shown.read_text(encoding="utf-8")


def test_config_schema() -> None:
    assert "model.lora.rank = 16" in run("config", "schema", "model.lora").stdout
    assert '"RunConfig"' in run("config", "schema", "--json").stdout
    assert run("config", "schema", "--json", "model").exit_code == 2


def test_objectives_are_listed_and_shown() -> None:
    listed = run("objectives", "list").stdout
    assert listed.splitlines()[1].split() == ["dpo", "reference", "Diffusion-DPO,", "arXiv", "2311.12908", "sp(-z)"]
    assert "beta: 5000" in run("objectives", "show", "dpo").stdout
    assert "did you mean 'dpo'?" in run("objectives", "show", "dppo").stderr


def test_data_check_of_a_bare_source_names_misspelt_overrides(tmp_path: Path) -> None:
    result = run("data", "check", str(tmp_path), "data.resolutoin=64")
    assert result.exit_code == 2 and "did you mean data.resolution?" in result.stderr


def test_data_convert_refuses_an_unknown_format(tmp_path: Path) -> None:
    result = run("data", "convert", "pairs.jsonl", str(tmp_path / "out.parquet"), "--format", "csv")
    assert result.exit_code == 2 and "use one of: auto, pickapic, jsonl, ranked" in result.stderr


def test_models_are_named() -> None:
    words = ["shapes:base", "tuned=runs/dpo", "runs/my run", "sdxl=owner/model"]
    assert named_models(words) == {
        "base": "shapes:base",
        "tuned": "runs/dpo",
        "my-run": "runs/my run",
        "sdxl": "owner/model",
    }


@pytest.mark.parametrize("words", [["=x"], ["a="], ["a=x", "a=y"], ["runs/a/export", "runs/b/export"]])
def test_bad_model_names_are_refused(words: list[str]) -> None:
    with pytest.raises(UserError):
        named_models(words)


def test_a_path_may_hold_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1e-4").mkdir()
    words = ["runs/lr=1e-4/export", "lr=1e-4", "tuned=runs/lr=1e-5/export", "20240501", "null", "[set] one", "pairs #1"]
    assert named_models(words) == {
        "export": "runs/lr=1e-4/export",
        "lr-1e-4": "lr=1e-4",
        "tuned": "runs/lr=1e-5/export",
        "20240501": "20240501",
        "null": "null",
        "set-one": "[set] one",
        "pairs-1": "pairs #1",
    }
    assert negative_models(["runs/lr=1/export"], ["a", "b"]) == dict.fromkeys("ab", "runs/lr=1/export")
    assert negative_models(["a=runs/lr=1/export"], ["a", "b"]) == {"a": "runs/lr=1/export"}
    assert named_values(["tuned=runs/lr=1"], "--run") == {"tuned": "runs/lr=1"}
    with pytest.raises(UserError, match="--run must be written NAME=VALUE"):
        named_values(["runs/lr=1"], "--run")


@pytest.mark.parametrize("name", ["20240501", "null", "[set] one", "pairs #1", "lr=1e-4"])
def test_data_check_takes_a_folder_of_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / name / "pairs.parquet", 4)
    result = run("data", "check", name)
    assert result.exit_code == 0 and f"4 in {name} (train)" in result.output, result.output


def test_named_values() -> None:
    assert named_values(None, "--run") == {}
    assert named_values(["tuned=runs/dpo"], "--run") == {"tuned": "runs/dpo"}
    with pytest.raises(UserError, match="--run must be written NAME=VALUE"):
        named_values(["runs/dpo"], "--run")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_short_help_and_quiet(command: str) -> None:
    result = run(*command.split(), "-h")
    assert result.exit_code == 0 and "-q, --quiet" in result.output or "--quiet, -q" in result.output


@pytest.mark.parametrize("words", [("-q", "objectives", "list"), ("objectives", "list", "--quiet")])
def test_quiet_before_and_after_the_command(words: tuple[str, ...]) -> None:
    from t2i_align import progress

    assert run(*words).exit_code == 0 and progress.is_quiet()
    assert run("objectives", "list").exit_code == 0 and not progress.is_quiet()
