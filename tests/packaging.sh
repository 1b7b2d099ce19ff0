#!/usr/bin/env bash
# Builds sdist and wheel, checks what an index would show of them, and installs the wheel into an empty environment with each extra alone; what the extra is for
# runs from there, and so does the quickstart. With names, those alone: bash tests/packaging.sh core snntorch quickstart
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch" # nothing below sees the checkout

python3 -m venv builder
builder/bin/pip install --quiet build twine 'readme_renderer[md]'
rm -rf "$root/dist"
builder/bin/python -m build --outdir "$root/dist" "$root" >build.log || { cat build.log; exit 1; } # the wheel from the sdist
wheel=$(echo "$root"/dist/*.whl)
builder/bin/twine check --strict "$root"/dist/*
builder/bin/python - "$wheel" <<'PYTHON'
import re, sys, zipfile
from email import message_from_bytes
from readme_renderer.markdown import render
wheel = zipfile.ZipFile(sys.argv[1])
description = message_from_bytes(wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA")))).get_payload()
links = re.findall(r'(?:href|src)="([^"]*)"', render(description))
assert len(links) > 3, links
assert not [link for link in links if not link.startswith(("https://", "#"))], links
PYTHON
mkdir source && tar -xzf "$root"/dist/*.tar.gz -C source --strip-components 1

# The notebook cells of the Start page, as one script.
sed -n '/^```{code-cell} python$/,/^```$/{/^```/!p}' source/docs/start.md >start.py

check() {
  case $1 in
    core) echo 'import torch
from fptt_plugin import FPTTTrainer
from fptt_plugin.state import AttributeHandler, register_state_handler
class Leaky(torch.nn.Linear):
    mem = None
    def forward(self, x):
        self.mem = super().forward(x) + (0 if self.mem is None else 0.9 * self.mem)
        return self.mem
register_state_handler(Leaky, AttributeHandler(mem=None))
net = torch.nn.Sequential(Leaky(4, 2))
trainer = FPTTTrainer(net, torch.optim.Adam(net.parameters()), torch.nn.CrossEntropyLoss())
assert trainer.train_sequence(torch.rand(5, 3, 4), torch.tensor([0, 1, 1])).updates == 5
try:
    import fptt_plugin.snntorch
except ImportError as error:
    assert "pip install" in str(error)
else:
    raise AssertionError("snnTorch is there, in an empty environment")' ;;
    snntorch | spikingjelly) echo "import torch
from torch import nn
from fptt_plugin import FPTTTrainer
from fptt_plugin.$1 import LTCIntegrator, LTCLeaky
options = {'init_hidden': True} if '$1' == 'snntorch' else {}
net = nn.Sequential(nn.Linear(4, 8), LTCLeaky(**options), nn.Linear(8, 2), LTCIntegrator(**options))
trainer = FPTTTrainer(net, torch.optim.Adam(net.parameters()), nn.CrossEntropyLoss())
assert trainer.train_sequence(torch.rand(5, 3, 4), torch.tensor([0, 1, 1])).updates == 5" ;;
    tonic) echo 'import fptt_plugin, tonic; tonic.transforms.ToFrame((4, 4, 2), n_time_bins=2)' ;;
    plot) echo 'import torch; from fptt_plugin import plot; plot.raster(torch.eye(3)); plot.memory([1, 2], [3, 4])' ;;
    lightning) echo 'import lightning, fptt_plugin' ;;
    examples) echo 'import fptt_plugin, accelerate, lightning_fabric, matplotlib, sklearn, tqdm' ;;
    docs) echo 'import fptt_plugin, furo, jupytext, myst_nb, sphinx' ;;
    test) echo 'import fptt_plugin, hypothesis, pytest' ;;
    quickstart) cat start.py ;;
  esac
}

[ $# -gt 0 ] || set -- core snntorch spikingjelly tonic plot examples lightning docs test quickstart
for extra; do
  case $extra in
    core) spec=$wheel ;;
    quickstart) spec="$wheel[snntorch,spikingjelly,examples]" ;;
    lightning) spec="$wheel[snntorch,lightning]" ;; # without SpikingJelly, whose torchvision must fit torch's build
    *) spec="$wheel[$extra]" ;;
  esac
  python3 -m venv "$extra"
  "$extra/bin/pip" install --quiet -c "$root/constraints.txt" "$spec"
  check "$extra" >"check_$extra.py"
  "$extra/bin/python" "check_$extra.py"
  [ "$extra" != quickstart ] || "$extra/bin/python" source/examples/quickstart.py --smoke --plot smoke.png
  if [ "$extra" = lightning ]; then
    "$extra/bin/pip" install --quiet -c "$root/constraints.txt" pytest
    (cd source && "../$extra/bin/pytest" -q -p no:cacheprovider tests/integration/test_lightning.py)
  fi
  "$extra/bin/python" -c 'import fptt_plugin, sys; assert fptt_plugin.__file__.startswith(sys.prefix), fptt_plugin'
  rm -rf "$extra"
  echo "$extra: installed and run"
done
