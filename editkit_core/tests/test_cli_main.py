"""The command line as a whole: help, exit codes, errors as JSON, broken plugins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from fake_distributions import FakeSite, method_source

from editkit_core import __version__, cli
from editkit_core.errors import BaseMismatchError, BrokenPluginError, SubjectNotInPromptError

HEAVY = ("torch", "transformers", "numpy", "matplotlib", "huggingface_hub", "safetensors")
RAISES = """
    import click
    from editkit_core import hookimpl

    @click.command()
    def command():
        {body}

    @hookimpl
    def editkit_register_commands(register):
        register("try-it", lambda: command)
"""


def plugin_command(site: FakeSite, body: str) -> None:
    """Install a plugin whose command ``try-it`` does what ``body`` says."""
    site.install("ek-try", plugins={"try": "ek_try"}, modules={"ek_try": RAISES.format(body=body)})


def exit_code(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    return caught.value.code


# -- help --


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    out = capsys.readouterr().out
    for name, line in cli.COMMANDS.items():
        assert name in out
        assert line in out


def test_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_has_help_that_begins_like_its_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(name, "--help") == 0
    assert f"editkit {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["methods"], ["methods", "--json"], ["edit", "--help"], ["patch", "--help"]],
)
def test_looking_around_imports_nothing_heavy(site: FakeSite, arguments: list[str]) -> None:
    code = (
        "import sys\nfrom editkit_core.cli import main\ntry:\n    main()\nfinally:\n"
        f"    print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    done = site.python("-c", code, *arguments)
    assert done.returncode == 0
    assert done.stderr == "[]\n"


def test_help_and_json_need_no_rich(site: FakeSite) -> None:
    for arguments in (["--help"], ["methods", "--json"]):
        code = "import sys\nfrom editkit_core.cli import main\ntry:\n    main()\nfinally:\n"
        done = site.python("-c", code + "    print('rich' in sys.modules)", *arguments)
        assert done.stdout.endswith("False\n"), done.stderr


# -- usage --


def test_an_unknown_command_is_a_usage_error_with_a_suggestion(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code("methdos") == 2
    captured = capsys.readouterr()
    assert "No such command 'methdos'" in captured.err
    assert captured.err.count("Did you mean") == 1
    assert "methods" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["edit"],
        ["edit", "--model", "x"],
        ["edit", "--model", "x", "--locate", "guess"],
        ["edit", "--model", "x", "--seed", "-1"],
        ["edit", "-m", "x", "--requests", "r.jsonl", "--prompt", "p"],
        ["edit", "-m", "x", "--heatmap", "h.png", "--prompt", "p", "--subject", "p"],
        ["methods", "--nonsense"],
        ["generate", "-m", "x", "-p", "p", "--top-p", "2"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*arguments) == 2
    assert "Error: " in capsys.readouterr().err


def test_wrong_usage_is_json_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("edit", "--json") == 2
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert error["code"] == "usage"
    assert "--model" in error["message"]
    assert captured.err == ""


# -- errors --


EDIT = ("edit", "--model", "nowhere", "--target", "Oslo", "--subject", "Japan", "--prompt")


def test_an_error_is_one_line_with_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*EDIT, "The capital of Peru is") == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("Error: [EK-R01] The subject 'Japan' does not occur")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_an_error_is_json_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*EDIT, "The capital of Peru is", "--json") == 1
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert error["code"] == SubjectNotInPromptError.code
    assert "Japan" in error["message"]
    assert captured.err == ""


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--debug", *EDIT, "The capital of Peru is") == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "Error: [EK-R01]" in err


def test_an_unknown_method_is_told_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "p.editkit.safetensors")
    code = exit_code(*EDIT, "{} has", "--method", "no-such-method", "-o", out)
    assert code == 1
    assert "[EK-G01]" in capsys.readouterr().err


def test_an_existing_output_is_told_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.editkit.safetensors"
    out.write_bytes(b"mine")
    assert exit_code(*EDIT, "{} has", "-o", str(out)) == 1
    assert "[EK-F01]" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"


def test_a_missing_output_folder_is_told_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*EDIT, "{} has", "-o", str(tmp_path / "none" / "p.safetensors")) == 1
    assert "[EK-F02] There is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("from editkit_core.errors import ApplyError; raise ApplyError('no')", 4, "[EK-P07] no"),
        ("from editkit_core.errors import EditError; raise EditError('no')", 1, "[EK-E00] no"),
        ("from editkit_core.errors import PluginError; raise PluginError('no')", 3, "[EK-G00] no"),
        ("raise ValueError('oh')", 1, "Unexpected ValueError: oh. This is a defect"),
        ("click.get_current_context().exit(4)", 4, ""),
        ("raise SystemExit(5)", 5, ""),
        ("raise KeyboardInterrupt", 130, "Stopped"),
        ("raise click.Abort", 130, "Stopped"),
        ("raise click.ClickException('no')", 1, "Error: no"),
        ("click.echo('fine')", 0, ""),
    ],
)
def test_the_exit_code_says_what_happened(
    site: FakeSite, body: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin_command(site, body)
    assert exit_code("try-it") == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_exit_codes_follow_the_tree() -> None:
    assert (SubjectNotInPromptError.exit_code, BrokenPluginError.exit_code) == (1, 3)
    assert BaseMismatchError.exit_code == 6


@pytest.mark.skipif(sys.platform == "win32", reason="signals of a terminal")
def test_ctrl_c_ends_the_process_with_130(site: FakeSite) -> None:
    plugin_command(site, "import time; click.echo('on'); time.sleep(60)")
    env = dict(os.environ, PYTHONPATH=str(site.folder), PYTHONUNBUFFERED="1")
    command = [sys.executable, "-c", "from editkit_core.cli import main; main()", "try-it"]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Stopped. Nothing was half-written." in err
    assert "Traceback" not in err


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_leaves_causes_no_complaint(site: FakeSite, lines: int) -> None:
    plugin_command(site, f"import time; time.sleep(0.3); click.echo('x\\n' * {lines})")
    env = dict(os.environ, PYTHONPATH=str(site.folder))
    command = [sys.executable, "-c", "from editkit_core.cli import main; main()", "try-it"]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 1
    assert err == b""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_can_be_printed_in_any_encoding(site: FakeSite, encoding: str) -> None:
    code = "from editkit_core.cli.output import print_json; print_json({'text': 'Łódź 🙂 é'})"
    env = dict(os.environ, PYTHONIOENCODING=encoding)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert json.loads(done.stdout.decode(encoding)) == {"text": "Łódź 🙂 é"}


# -- broken plugins --

BROKEN = {
    "import": "1 / 0",
    "exit": "import sys\nsys.exit(9)",
    "register": """
        from editkit_core import hookimpl
        @hookimpl
        def editkit_register_commands(register):
            raise RuntimeError("cannot register")
    """,
    "factory": """
        from editkit_core import hookimpl
        @hookimpl
        def editkit_register_commands(register):
            register("broken-command", lambda: 1 / 0)
    """,
    "type": """
        from editkit_core import hookimpl
        @hookimpl
        def editkit_register_commands(register):
            register("broken-command", lambda: "no command")
    """,
    "hook": """
        from editkit_core import hookimpl
        @hookimpl
        def editkit_register_commands(register, extra):
            pass
    """,
    "answer": """
        from editkit_core import hookimpl
        @hookimpl
        def editkit_locate(model):
            return ()
    """,
}


@pytest.mark.parametrize("how", sorted(BROKEN))
def test_a_broken_plugin_never_breaks_help(
    site: FakeSite, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    site.install("ek-bad", plugins={"bad": "ek_bad"}, modules={"ek_bad": BROKEN[how]})
    plugin_command(site, "pass")
    assert exit_code("--help") == 0
    out = capsys.readouterr().out
    assert "try-it" in out
    assert "ek-bad" in out
    assert exit_code("try-it") == 0
    assert exit_code("methods") == 0


@pytest.mark.parametrize("how", ["factory", "type"])
def test_a_broken_command_is_named_with_its_distribution(
    site: FakeSite, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    site.install("ek-bad", plugins={"bad": "ek_bad"}, modules={"ek_bad": BROKEN[how]})
    assert exit_code("broken-command") == 3
    assert "[EK-G02] ek-bad 1.2" in capsys.readouterr().err


def test_an_unknown_command_names_the_plugins_that_are_broken(
    site: FakeSite, capsys: pytest.CaptureFixture[str]
) -> None:
    site.install("ek-bad", plugins={"bad": "ek_bad"}, modules={"ek_bad": "1 / 0"})
    assert exit_code("try-it") == 2
    assert "broken add no commands: ek-bad" in capsys.readouterr().err


def test_two_plugins_with_one_command_leave_the_first_and_name_the_second(
    site: FakeSite, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin_command(site, "click.echo('of the first')")
    source = RAISES.format(body="click.echo('of the second')")
    site.install("ek-zzz", plugins={"zzz": "ek_zzz"}, modules={"ek_zzz": source})
    assert exit_code("try-it") == 0
    assert capsys.readouterr().out == "of the first\n"
    assert exit_code("--help") == 0
    assert "ek-zzz registers 'try-it'" in " ".join(capsys.readouterr().out.split())


def test_a_plugin_cannot_take_the_name_of_a_core_command(
    site: FakeSite, capsys: pytest.CaptureFixture[str]
) -> None:
    source = RAISES.format(body="1 / 0").replace("try-it", "methods")
    site.install("ek-bad", plugins={"bad": "ek_bad"}, modules={"ek_bad": source})
    assert exit_code("methods", "--json") == 0
    assert json.loads(capsys.readouterr().out)["methods"] is not None


def test_a_broken_method_is_refused_with_3(
    site: FakeSite, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    site.install("ek-bad", methods={"bad": "ek_bad"}, modules={"ek_bad": "1 / 0"})
    out = str(tmp_path / "o.editkit.safetensors")
    assert exit_code(*EDIT, "{} has", "--method", "bad", "-o", out) == 3
    assert "[EK-G02] ek-bad 1.2 cannot be imported: ZeroDivisionError" in capsys.readouterr().err


def test_a_method_is_not_imported_by_help(site: FakeSite) -> None:
    site.install(
        "ek-alpha", methods={"alpha": "ek_alpha"}, modules={"ek_alpha": method_source("alpha")}
    )
    code = "import sys\nfrom editkit_core.cli import main\ntry:\n    main()\nfinally:\n"
    done = site.python("-c", code + "    print('ek_alpha' in sys.modules)", "--help")
    assert done.stdout.endswith("False\n"), done.stderr


def test_commands_are_click_commands() -> None:
    ctx = click.Context(cli.editkit)
    for name in cli.COMMANDS:
        command = cli.editkit.get_command(ctx, name)
        assert isinstance(command, click.Command)
        assert command.name == name
