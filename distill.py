"""Distill a student: ``python distill.py --dataset cifar10 --teacher resnet50 --student cam-net``."""

import sys

from camkd.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["distill", *sys.argv[1:]]))
