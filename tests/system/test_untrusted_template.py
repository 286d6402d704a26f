"""Rendering of untrusted templates in a process with limits."""

import os
import signal
import subprocess
import sys
from threading import Thread

import pytest

from mcpmq.errors import EngineError
from mcpmq.system import untrusted_template
from mcpmq.system.untrusted_template import TemplateFailedError, check_template, render_template


def test_variables_are_json_values() -> None:
    """Text of any script, lists, numbers and null arrive unchanged."""
    assert render_template("{{ a }} {{ b[0].c }} {{ d is none }}", {"a": "图é\n", "b": [{"c": 1}], "d": None}) == (
        "图é\n 1 True"
    )


def test_a_template_is_checked_without_variables() -> None:
    """Syntax errors are found; missing variables are not."""
    check_template("{{ missing.attribute }}")
    with pytest.raises(TemplateFailedError, match="Unexpected end of template"):
        check_template("{% if true %}")


def test_output_is_limited() -> None:
    """The limit is 4 Mi characters."""
    assert len(render_template("{{ 'x' * 1000000 }}" * 4, {})) == 4_000_000
    with pytest.raises(TemplateFailedError, match="its output exceeds 4,194,304 characters"):
        render_template("{{ 'x' * 1000000 }}" * 5, {})


def test_one_process_serves_all_templates_and_is_replaced_if_it_was_killed() -> None:
    """Threads share it as well."""
    render_template("a", {})
    process = untrusted_template._renderers[0].process
    results: list[str] = []
    threads = [Thread(target=lambda: results.append(render_template("{{ x }}", {"x": "b"}))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["b"] * 4
    assert untrusted_template._renderers[0].process is process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert render_template("c", {}) == "c"


def test_the_process_ends_with_the_interpreter() -> None:
    """Nothing is printed at exit, and the process is gone."""
    code = "from mcpmq.system import untrusted_template as t; t.render_template('a', {})\n"
    code += "print(t._renderers[0].process.pid)"
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int(ran.stdout), 0)


def test_a_process_that_does_not_start_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the exit code and a command that shows the cause, and does not blame the template."""
    untrusted_template._close_renderer()
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(EngineError, match=r"ended with code \d+ at its start") as caught:
        render_template("A", {})
    assert "template_process" in caught.value.hint
    monkeypatch.delenv("PYTHONHOME")
    assert render_template("A", {}) == "A"
