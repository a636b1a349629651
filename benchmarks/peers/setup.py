"""Gives every peer a virtual environment of its own, so that no peer's pins bend another's.

    python benchmarks/peers/setup.py              # all of them
    python benchmarks/peers/setup.py raw_nats a2a

Running it again changes nothing unless the requirements below have changed. Only the standard
library is used here: it runs before anything is installed.
"""

import argparse
import subprocess
import sys
import venv
from pathlib import Path

VENVS = Path(__file__).parent.parent / ".venvs"

# Peers are pinned to the version that is compared against; uvloop is what each of them gains most
# from, so each of them gets it.
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "raw_nats": ("nats-py==2.16.*", "uvloop>=0.21"),
    "faststream": ("faststream[nats]==0.7.8", "uvloop>=0.21"),
    "synadia": ("synadia-ai-agent-service==0.5.*", "synadia-ai-agents==0.8.*", "uvloop>=0.21"),
    "semantic_router": ("semantic-router==1.1.1",),
    "a2a": ("a2a-sdk[http-server]==1.3.*", "uvicorn[standard]>=0.34"),
}


def python_of(peer: str) -> Path:
    """The interpreter that runs a peer's programs."""
    return VENVS / peer / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def install(peer: str) -> None:
    """Make the peer's environment and fill it; a finished one with these requirements is kept."""
    wanted = "\n".join((*REQUIREMENTS[peer], f"python {sys.version_info[:2]}"))
    # Written last: an installation that was interrupted has none and is begun anew.
    stamp = VENVS / peer / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    venv.create(VENVS / peer, with_pip=True, clear=True)
    pip = [str(python_of(peer)), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", *REQUIREMENTS[peer]], check=True)
    stamp.write_text(wanted)


def versions(peer: str) -> dict[str, str]:
    """What is installed for a peer, by distribution name."""
    pip = [str(python_of(peer)), "-m", "pip", "--disable-pip-version-check", "list"]
    listed = subprocess.run(
        [*pip, "--format=freeze"], check=True, capture_output=True, text=True
    ).stdout
    return dict(line.split("==", 1) for line in listed.splitlines() if "==" in line)


def main() -> None:
    """Install the peers that were named, or all of them, and print what they are made of."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="PEER", help=", ".join(REQUIREMENTS))
    names: list[str] = parser.parse_args().names or list(REQUIREMENTS)
    if unknown := [name for name in names if name not in REQUIREMENTS]:
        parser.error(f"no peer called {', '.join(unknown)}; there are {', '.join(REQUIREMENTS)}")
    for name in names:
        try:
            install(name)
        except subprocess.CalledProcessError as exc:
            sys.exit(f"{name}: pip could not install {REQUIREMENTS[name]} ({exc}); see above")
        shown = versions(name)
        print(f"{name}: " + ", ".join(f"{key} {shown[key]}" for key in sorted(shown)))


if __name__ == "__main__":
    main()
