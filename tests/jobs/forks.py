"""The command line, each call in a process of its own, forked from one that has imported torch already.

What runs is ``openblip.cli.main`` on real arguments in a real process, which signals and limits hit as any other: only
the seconds that importing torch takes are saved. Started by :class:`tests.jobs.cli.Cli`, one call per line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from typing import Any

import torch

import openblip.blip
import openblip.jobs.sheet
from openblip.cli import main
from openblip.pipelines.base import TaskModel


def run(call: dict[str, Any]) -> None:
    """The child: never returns."""
    code: Any = 70
    try:
        for number, place in ((1, call["stdout"]), (2, call["stderr"])):
            os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if call["limit"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (call["limit"], call["limit"]))
        if call["killed"]:
            _take_time()
        sys.argv = ["openblip", *call["arguments"]]
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _take_time() -> None:
    """Pictures take a moment each, so that whoever watches the work can stop it before its end."""
    open_image = TaskModel.open_image

    def open_slowly(self: TaskModel, image: Any, **options: Any) -> Any:
        time.sleep(0.02)
        return open_image(self, image, **options)

    TaskModel.open_image = open_slowly  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
    openblip.blip.load("pocket", task="caption")  # for what torch imports only when it is used
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run(json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
