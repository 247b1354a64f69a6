"""What the command line offers: one file a family of commands. Torch is imported inside a command, not before."""

from camkd.commands.common import Command, Group
from camkd.commands.comparing import COMPARE
from camkd.commands.evaluating import EVALUATE
from camkd.commands.exporting import BENCH_DEVICE, EXPORT, WEB
from camkd.commands.knowledge import KNOWLEDGE
from camkd.commands.trained import EXPLAIN, LIST, REPORT
from camkd.commands.training import DISTILL, TEACHER, TRAIN

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
    "knowledge": KNOWLEDGE,
    "list": LIST,
}
