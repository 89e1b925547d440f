"""`openblip completion`: the script that completes commands and options in a shell."""

from __future__ import annotations

import os

import click
from click.shell_completion import (
    CompletionItem,
    ShellComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from openblip.cli.command import Choice, argument, command

SHELLS = ("bash", "zsh", "fish", "powershell")
VARIABLE = "_OPENBLIP_COMPLETE"


@add_completion_class
class PowerShellComplete(ShellComplete):
    """Completion in PowerShell, which click itself does not support."""

    name = "powershell"
    source_template = """
Register-ArgumentCompleter -Native -CommandName %(prog_name)s -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $Env:%(complete_var)s = "powershell_complete"
    $Env:COMP_WORDS = $commandAst.ToString()
    $Env:COMP_WORD = $wordToComplete
    %(prog_name)s | ForEach-Object {
        $value, $help = $_ -Split "`t", 2
        [System.Management.Automation.CompletionResult]::new($value, $value, "ParameterValue", $help)
    }
    Remove-Item Env:%(complete_var)s, Env:COMP_WORDS, Env:COMP_WORD
}
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the complete words of the command line, and the incomplete one."""
        words = split_arg_string(os.environ["COMP_WORDS"])[1:]
        incomplete = os.environ["COMP_WORD"]
        if incomplete and words and words[-1] == incomplete:
            words.pop()
        return words, incomplete

    def format_completion(self, item: CompletionItem) -> str:
        """Return a line with a value and its help."""
        return f"{item.value}\t{item.help or item.value}"


@command(example="openblip completion bash")
@argument("shell", type=Choice(SHELLS), metavar="SHELL", help="Shell to complete in: bash, zsh, fish or powershell.")
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    Append it to the startup file of your shell, such as ~/.bashrc or ~/.zshrc.
    """
    root = context.find_root()
    shell_complete = get_completion_class(shell)
    assert shell_complete is not None
    click.echo(shell_complete(root.command, {}, "openblip", VARIABLE).source().strip())
