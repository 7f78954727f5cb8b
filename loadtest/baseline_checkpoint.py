"""A checkpoint of the paper's student (DistilBERT, 6 x 768) from its configuration alone, for times where no trained weights are at hand.

    python -m loadtest.baseline_checkpoint DIR --vocabulary models/student

The time of a dense forward pass does not depend on the values of the weights.  What this model answers means nothing, and its tables say so.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
import transformers

VOCABULARY_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
SEED = 0


def main(argv: list[str]) -> int:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--vocabulary", type=Path, required=True, metavar="DIR", help="model folder whose tokenizer it gets")
    given = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(SEED)
    model = transformers.DistilBertForQuestionAnswering(transformers.DistilBertConfig())
    model.save_pretrained(given.out)
    for name in VOCABULARY_FILES:
        if (given.vocabulary / name).is_file():
            shutil.copyfile(given.vocabulary / name, given.out / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
