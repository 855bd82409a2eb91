{
  description = "In place of nixpkgs, for tests: its attributes that flake.nix uses";

  outputs = _: rec {
    lib = import ./lib.nix // {
      nixosSystem =
        { system, modules }:
        import ./evaluate.nix {
          inherit lib modules;
          pkgs = legacyPackages.${system};
        };
    };
    legacyPackages = lib.genAttrs [
      "x86_64-linux"
      "aarch64-linux"
    ] (system: import ./pkgs.nix system lib);
  };
}
