# What stdenv does for our package: phases with the tools of this machine. /bin/sh of Nix's derivations is not enough: arrays and braces.
set -euo pipefail
export PATH=/usr/bin:/bin
for input in ${nativeBuildInputs:-}; do PATH=$input/bin:$PATH; done
runHook() { :; }
makeWrapper() {
  printf '#!/bin/sh\nexec %s %s "$@"\n' "$1" "$4" >"$2"
  chmod 755 "$2"
}
installShellCompletion() {
  mkdir -p "$out/share/completions"
  cp agent.bash agent.zsh agent.fish "$out/share/completions/"
}
cp -r --no-preserve=mode "$src" source
cd source
eval "$buildPhase"
if [ -z "${dontInstall:-}" ]; then eval "$installPhase"; fi
