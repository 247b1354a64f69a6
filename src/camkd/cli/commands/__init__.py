"""The commands, one module each. Torch is imported when a command runs, not with these modules."""

from camkd.cli.commands.audit import AUDIT
from camkd.cli.commands.bench_device import BENCH_DEVICE
from camkd.cli.commands.cache import CACHE
from camkd.cli.commands.calibrate import CALIBRATE
from camkd.cli.commands.common import Command, Group
from camkd.cli.commands.compare import COMPARE
from camkd.cli.commands.distill import DISTILL
from camkd.cli.commands.evaluate import EVALUATE
from camkd.cli.commands.explain import EXPLAIN
from camkd.cli.commands.export import EXPORT
from camkd.cli.commands.list import LIST
from camkd.cli.commands.push import PUSH
from camkd.cli.commands.report import REPORT
from camkd.cli.commands.teacher import TEACHER
from camkd.cli.commands.train import TRAIN
from camkd.cli.commands.web import WEB

__all__ = ["COMMANDS", "Command", "Group"]

COMMANDS: dict[str, Command | Group] = {
    "audit": AUDIT,
    "train": TRAIN,
    "teacher": TEACHER,
    "distill": DISTILL,
    "compare": COMPARE,
    "evaluate": EVALUATE,
    "calibrate": CALIBRATE,
    "explain": EXPLAIN,
    "report": REPORT,
    "export": EXPORT,
    "push": PUSH,
    "bench-device": BENCH_DEVICE,
    "web": WEB,
    "cache": CACHE,
    "list": LIST,
}
"""Every command by name."""
