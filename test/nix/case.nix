# Systems with nix/module.nix, one for each definition in the JSON file `cases`; see module.test.ts. With `isTried`, whether each can be had.
{
  lib,
  cases,
  isTried ? false,
}:
let
  pkgs = import ./stub/pkgs.nix "x86_64-linux" (import ./stub/lib.nix);
  evaluate =
    definition:
    let
      evaluated = import ./stub/evaluate.nix {
        inherit lib pkgs;
        modules = [
          ../../nix/module.nix
          definition
        ];
      };
    in
    {
      inherit (evaluated.toplevel) drvPath;
      inherit (evaluated.config)
        environment
        networking
        nix
        systemd
        users
        ;
      options = builtins.mapAttrs (_: option: {
        inherit (option) description;
        type = option.type.description;
      }) (builtins.removeAttrs (evaluated.options.services.undernet.settings.type.getSubOptions [ ]) [ "_module" ]);
    };
in
map (
  definition:
  let
    system = evaluate definition;
  in
  if isTried then (builtins.tryEval system.drvPath).success else system
) (builtins.fromJSON (builtins.readFile cases))
