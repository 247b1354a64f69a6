"""What the command line offers: one file a family of commands. Torch is imported inside a command, not before."""

from camkd.cli.commands.cache import CACHE
from camkd.cli.commands.common import Command, Group
from camkd.cli.commands.compare import COMPARE
from camkd.cli.commands.evaluate import EVALUATE
from camkd.cli.commands.explain import EXPLAIN, LIST, REPORT
from camkd.cli.commands.export import BENCH_DEVICE, EXPORT, WEB
from camkd.cli.commands.train import DISTILL, TEACHER, TRAIN

__all__ = ["COMMANDS", "Command", "Group"]

COMMANDS: dict[str, Command | Group] = {
    "train": TRAIN,
    "teacher": TEACHER,
    "distill": DISTILL,
    "compare": COMPARE,
    "evaluate": EVALUATE,
    "explain": EXPLAIN,
    "report": REPORT,
    "export": EXPORT,
    "bench-device": BENCH_DEVICE,
    "web": WEB,
    "cache": CACHE,
    "list": LIST,
}
