# Packages by name only, and the few functions that make some: derivations that can be evaluated, and that of our package built, with what
# this machine has in /usr/bin.
system: lib:
let
  shell = "/bin/sh";
  named =
    name:
    derivation {
      inherit name system;
      builder = shell;
      args = [
        "-c"
        "/bin/mkdir $out"
      ];
    };
  mkDerivation =
    arguments:
    let
      made = derivation (
        removeAttrs arguments [
          "meta"
          "passthru"
        ]
        // {
          name = arguments.name or "${arguments.pname}-${arguments.version}";
          inherit system;
          builder = "/bin/bash";
          args = [ ./builder.sh ];
        }
      );
    in
    made // arguments.passthru or { } // { meta = arguments.meta or { }; };
  # The Node of this machine, where one is named (with --impure) to build with it.
  node = builtins.getEnv "UNDERNET_TEST_NODE";
  nodejs_24 =
    if node == "" then
      named "nodejs"
    else
      derivation {
        name = "nodejs";
        inherit system;
        builder = "/bin/bash";
        args = [
          "-c"
          "/bin/mkdir -p $out/bin; /bin/ln -s ${node} $out/bin/node"
        ];
      };
  pkgs = {
    inherit lib system nodejs_24;
    stdenv = {
      inherit mkDerivation;
      hostPlatform = {
        inherit system;
        isAarch64 = system == "aarch64-linux";
      };
      cc.cc.lib = named "libstdc++";
    };
    stdenvNoCC = { inherit mkDerivation; };
    mkShell = arguments: named "shell" // { inherit arguments; };
    callPackage =
      file: given:
      let
        function = import file;
        wanted = builtins.functionArgs function;
      in
      function (builtins.intersectAttrs wanted pkgs // given);
    formats.toml = _: {
      generate = name: value: builtins.toFile name (builtins.toJSON value);
    };
    testers.runNixOSTest =
      test:
      let
        evaluated = builtins.mapAttrs (
          _: node:
          (import ./evaluate.nix {
            inherit lib pkgs;
            modules = [ node ];
          }).toplevel
        ) test.nodes;
      in
      builtins.seq test.testScript (
        derivation {
          name = "vm-test-${test.name}";
          inherit system;
          builder = shell;
          nodes = builtins.attrValues evaluated;
        }
      );
  }
  // lib.genAttrs [
    "autoPatchelfHook"
    "buildah"
    "cacert"
    "coreutils"
    "curl"
    "diffutils"
    "dnsutils"
    "hello"
    "installShellFiles"
    "iproute2"
    "jq"
    "makeWrapper"
    "nftables"
    "python3"
    "redis"
    "skopeo"
    "xz"
  ] named;
in
pkgs
