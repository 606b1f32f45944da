"""Stand-ins for the programs that up.sh and down.sh call, which write down what they were asked."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kubernetes.manifests import ROOT

KIND = ROOT / "benchmarks/kind"

# One program under several names. State is a directory: `cluster` is there while a cluster is; a file `fail-PATTERN`
# makes calls that contain PATTERN fail.
STAND_IN = """#!/bin/sh
call="$(basename "$0") $*"
line=$(printf %s "$call" | tr '\\n' ' ')
echo "$line" >> "$STATE/calls"
for file in "$STATE"/fail-*; do
  case "$call" in *"${file#"$STATE"/fail-}"*) exit 1 ;; esac
done
case "$call" in
  "kind get clusters") if [ -f "$STATE/cluster" ]; then cat "$STATE/cluster"; fi ;;
  "kind create cluster"*) echo "$4" > "$STATE/cluster" ;;
  "kind delete cluster"*) rm "$STATE/cluster" ;;
  "docker image inspect"*) echo sha256:0123456789abcdef0123456789abcdef ;;
  *"create configmap"*) cat > "$STATE/bootstrap.yaml"; echo "rendered" ;;
  *"apply -f -"*) cat > /dev/null ;;
esac
"""


@dataclass
class Scripts:
    """Runs the scripts with stand-ins for docker, kind, kubectl and helm."""

    state: Path

    def run(self, script: str, *args: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.state / "bin"), "STATE": str(self.state)}
        return subprocess.run(
            [str(KIND / script), *args], env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def calls(self) -> list[str]:
        """What was called since the last time somebody asked."""
        file = self.state / "calls"
        lines = [line.strip() for line in file.read_text().splitlines()] if file.exists() else []
        file.unlink(missing_ok=True)
        return lines

    def fails(self, pattern: str) -> None:
        """Calls that contain the pattern fail from now on."""
        (self.state / f"fail-{pattern}").touch()


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    (tmp_path / "bin").mkdir()
    for name in ("docker", "kind", "kubectl", "helm"):
        program = tmp_path / "bin" / name
        program.write_text(STAND_IN)
        program.chmod(0o755)
    for name in ("bash", "sh", "basename", "cat", "dirname", "env", "grep", "rm", "sed", "tr"):
        program = shutil.which(name)
        assert program
        (tmp_path / "bin" / name).symlink_to(program)
    (tmp_path / "bin" / "sleep").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "sleep").chmod(0o755)
    return Scripts(tmp_path)
