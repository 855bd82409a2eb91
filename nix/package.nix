# The agent, bundled, on nixpkgs' Node: bin/agent and completions. What comes from npm is fetched by node-modules.ts, with the hashes of
# node-modules.json, which `npm run node-modules` writes and a test holds against package-lock.json.
{
  lib,
  stdenv,
  stdenvNoCC,
  nodejs_24,
  cacert,
  makeWrapper,
  installShellFiles,
  autoPatchelfHook,
}:
let
  manifest = builtins.fromJSON (builtins.readFile ../package.json);
  hashes = builtins.fromJSON (builtins.readFile ./node-modules.json);
  inherit (stdenv.hostPlatform) system;
  # As npm calls it.
  cpu = if stdenv.hostPlatform.isAarch64 then "arm64" else "x64";

  # What the bundle is made of, so that a change of a test or of this file builds nothing anew.
  wanted = [
    "agent"
    "protocols"
    "nix"
    "package.json"
    "package-lock.json"
    "LICENSE"
  ];
  source = builtins.path {
    name = "undernet-source";
    path = ../.;
    filter =
      path: _:
      let
        below = lib.splitString "/" (lib.removePrefix "${toString ../.}/" (toString path));
      in
      builtins.elem (builtins.head below) wanted && !(lib.hasSuffix ".nix" path) && !(lib.hasSuffix ".md" path);
  };

  modules = stdenvNoCC.mkDerivation {
    name = "undernet-node-modules";
    src = source;
    nativeBuildInputs = [
      nodejs_24
      cacert
    ];
    buildPhase = ''
      runHook preBuild
      HOME=$TMPDIR node nix/node-modules.ts $out ${system}
      runHook postBuild
    '';
    dontInstall = true;
    dontFixup = true;
    # Where there is a registry, or an authority, of one's own.
    impureEnvVars = lib.fetchers.proxyImpureEnvVars ++ [
      "NODE_EXTRA_CA_CERTS"
      "npm_config_registry"
    ];
    outputHashMode = "recursive";
    outputHash = hashes.${system} or (throw "undernet is not built for ${system}");
  };
in
stdenv.mkDerivation {
  pname = "undernet";
  inherit (manifest) version;
  src = source;

  nativeBuildInputs = [
    nodejs_24
    makeWrapper
    installShellFiles
    autoPatchelfHook
  ];
  # Native code among the packages is made for any Linux, and finds these two on NixOS with the hook's help.
  buildInputs = [ stdenv.cc.cc.lib ];

  buildPhase = ''
    runHook preBuild
    ln -s ${modules}/node_modules node_modules
    node nix/build.ts dist
    runHook postBuild
  '';

  installPhase = ''
    runHook preInstall
    mkdir -p $out/lib/undernet $out/bin
    cp -r dist LICENSE $out/lib/undernet/
    # Native code cannot be bundled: it lies beside the bundle, without what is for other machines or for building it.
    for package in koffi @koromix/koffi-linux-${cpu}; do
      mkdir -p $out/lib/undernet/node_modules/$package
      cp -r --no-preserve=mode node_modules/$package/. $out/lib/undernet/node_modules/$package
    done
    rm -rf $out/lib/undernet/node_modules/*/{doc,vendor} $out/lib/undernet/node_modules/@*/*/musl_*
    makeWrapper ${nodejs_24}/bin/node $out/bin/agent --add-flags $out/lib/undernet/dist/main.js
    for shell in bash zsh fish; do
      HOME=$TMPDIR $out/bin/agent completion $shell > agent.$shell
    done
    installShellCompletion --cmd agent --bash agent.bash --zsh agent.zsh --fish agent.fish
    runHook postInstall
  '';

  passthru = { inherit modules; };

  meta = {
    inherit (manifest) description;
    license = lib.licenses.asl20;
    mainProgram = "agent";
    platforms = builtins.filter (one: one != "lock") (builtins.attrNames hashes);
  };
}
