#!/usr/bin/env bash
# Installs the peers, makes the checkpoints and measures: all parts, or those that are named.
#
#   bash benches/peers/run.sh [--only PART[,PART]] [flags of all parts: --peers, --data, --out, --threads, --pairs, ...]
#
# Parts: prefill, training, six_tasks, multiple_choice, generation, growth. `python3 benches/peers/PART.py --help` has the
# flags of one.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"

parts="prefill,training,six_tasks,multiple_choice,generation,growth"
case "${1:-}" in
  -h | --help)
    sed -n '2,7p' "$0" | sed 's/^# \{0,1\}//'
    exit 0
    ;;
  --only)
    parts="$2"
    shift 2
    ;;
esac

(cd "$here/../.." && cargo build --release --locked)
python3 "$here/install.py" "$@"
python3 "$here/checkpoints.py" "$@"
for part in ${parts//,/ }; do
  python3 "$here/$part.py" "$@"
done
