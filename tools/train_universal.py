"""Fit the policy `universal` to the frames that `teach.py` has made.

    python tools/train_universal.py RUN FRAMES... --updates 20000 --seed 0
"""
import argparse
import sys
import time
from pathlib import Path

from atomrl_nb.embedded import EmbeddedSettings
from atomrl_nb.fit import FitSettings, fit
from atomrl_nb.frames import read_frames
from atomrl_nb.policies import save_policy

NETWORK = EmbeddedSettings(channels=32, elements=32, width=128, rounds=3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("frames", nargs="+")
    parser.add_argument("--updates", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)

    def watch(row, policy, kept_back):
        print(time.strftime("%H:%M"), *(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
        save_policy(args.run / "policy.safetensors", policy.actor, policy.card)

    settings = FitSettings(updates=args.updates, rate=4e-3, kept_back=0.05, checks=40, seed=args.seed, network=NETWORK)
    fit(read_frames(args.frames).frames, settings, watch=watch)


if __name__ == "__main__": sys.exit(main())
