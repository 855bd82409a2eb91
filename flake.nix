{
  description = "undernet: find, share and route content-addressed environments, images and services among your machines";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      forAll = make: nixpkgs.lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
    in
    {
      packages = forAll (pkgs: rec {
        undernet = pkgs.callPackage ./nix/package.nix { };
        default = undernet;
      });

      overlays.default = final: _: { undernet = final.callPackage ./nix/package.nix { }; };

      nixosModules.default = {
        imports = [ ./nix/module.nix ];
      };

      devShells = forAll (pkgs: {
        default = pkgs.mkShell {
          # What .ci/run installs elsewhere and Nix has: what is missing, tests say so.
          packages = with pkgs; [
            nodejs_24
            iproute2
            nftables
            curl
            dnsutils
            redis
            skopeo
            buildah
          ];
        };
      });

      checks = forAll (pkgs: {
        package = self.packages.${pkgs.stdenv.hostPlatform.system}.default;
        machines = pkgs.testers.runNixOSTest (import ./nix/vm-test.nix self.nixosModules.default);
      });
    };
}
