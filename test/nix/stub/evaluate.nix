# A system as far as nix/module.nix has to do with it: the options of NixOS that it sets, of any type, and everything that comes out of it
# forced. `lib` is the stub's, or nixpkgs' own.
{
  lib,
  pkgs,
  modules ? [ ],
}:
let
  anything =
    default:
    lib.mkOption {
      type = lib.types.anything;
      inherit default;
    };
  nixos.options = {
    assertions = anything [ ];
    environment.etc = anything { };
    environment.systemPackages = anything [ ];
    networking.firewall.allowedTCPPorts = anything [ ];
    networking.firewall.allowedUDPPorts = anything [ ];
    nix.extraOptions = anything "";
    services.resolved.enable = anything false;
    systemd.services = anything { };
    users.groups = anything { };
    users.users = anything { };
    virtualisation.writableStore = anything false;
  };
  evaluated = lib.evalModules {
    modules = [ nixos ] ++ modules;
    specialArgs = { inherit pkgs; };
  };
  inherit (evaluated) config;
  failed = builtins.filter (one: !one.assertion) config.assertions;
  everything = builtins.removeAttrs config [ "assertions" ];
in
{
  inherit config;
  inherit (evaluated) options;
  toplevel =
    if failed != [ ] then
      throw "Failed assertions: ${builtins.concatStringsSep " " (map (one: one.message) failed)}"
    else
      derivation {
        name = "toplevel";
        inherit (pkgs) system;
        builder = "/bin/sh";
        everything = builtins.toJSON everything;
      };
}
