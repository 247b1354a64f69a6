"""Train a teacher: ``python train_teacher.py --dataset cifar10 --model resnet50``."""

import sys

from camkd.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["teacher", *sys.argv[1:]]))
