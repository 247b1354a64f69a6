"""Train a teacher, a control and a distilled CAM-Net, and compare them. The default dataset is CIFAR-10."""

import sys

from camkd.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "--data", "cifar10", *sys.argv[1:]]))
