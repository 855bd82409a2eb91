# services.undernet on NixOS: the agent as a systemd service, and what of the machine is to use it.
#
# The options of `settings` are made from options.json, and the unit from unit.json: both are written from the agent's own code
# (`npm run reference`), so a key that the agent does not have, or a value that it would refuse, fails when the system is evaluated.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.undernet;
  keys = builtins.fromJSON (builtins.readFile ./options.json);
  unit = builtins.fromJSON (builtins.readFile ./unit.json);
  inherit (lib) mkIf mkOption types;

  # A path of Nix would be copied to the store, where everybody can read it: secrets are named by text.
  secretPath = types.strMatching "/.*" // {
    description = "absolute path, as a string";
  };
  typeOf =
    form:
    {
      boolean = types.bool;
      integer =
        if form ? off then
          types.either (types.ints.between form.min form.max) (types.enum [ "off" ])
        else
          types.ints.between form.min form.max;
      choice = types.enum form.of;
      path = if form ? off then types.either secretPath (types.enum [ "off" ]) else types.path;
      text =
        let
          text = types.strMatching form.pattern // {
            description = form.what;
          };
        in
        if form ? orNumber then types.either text types.ints.unsigned else text;
      list = types.listOf (typeOf form.of);
    }
    .${form.is};
  optionOf =
    key:
    mkOption {
      type = types.nullOr (typeOf key.type);
      default = null;
      description = "${key.help}. When null, the agent's own default: ${key.defaultText}.";
    };

  settings = lib.filterAttrs (_: value: value != null) cfg.settings;
  # What a key is worth, said or not.
  valueOf = key: if settings ? ${key} then settings.${key} else keys.${key}.default;
  configFile = (pkgs.formats.toml { }).generate "agent.toml" settings;

  # What a running agent cannot take over.
  fixed = lib.filterAttrs (key: _: !keys.${key}.reloads) settings;

  # Ports of multiaddrs: [ { proto = "tcp"; port = 7477; } ... ], without those that are chosen anew at each start.
  ports = lib.filter ({ port, ... }: port != 0) (
    map (
      address:
      let
        found = builtins.match "/[^/]+/[^/]+/(tcp|udp)/([0-9]+).*" address;
      in
      {
        proto = builtins.elemAt found 0;
        port = lib.toInt (builtins.elemAt found 1);
      }
    ) (valueOf "listen")
  );
  portsOf = proto: map ({ port, ... }: port) (lib.filter (one: one.proto == proto) ports);
  lanes = valueOf "lanes";
  # Datagrams of members come to this port and the one below.
  reflect = valueOf "reflect";
  reflectors =
    if reflect == "off" || reflect == 0 then
      [ ]
    else
      [
        reflect
        (reflect - 1)
      ];

  httpAddress = valueOf "http";
  agent = "${cfg.package}/bin/agent";

  # Registries that are mirrored: what their images begin with, as agent/config/values.ts has it.
  prefixOf =
    url:
    let
      said = builtins.match ".*[?&]prefix=([^&]+).*" url;
      host = builtins.match "[^:]+://([^/?:]+)(:[0-9]+)?.*" url;
      port = builtins.elemAt host 1;
    in
    if said != null then
      builtins.head said
    else
      builtins.head host + (if port == null then "" else builtins.replaceStrings [ ":" ] [ "-" ] port);
  mirrorOf = prefix: ''

    [[registry]]
    prefix = "${prefix}"
    location = "${prefix}"

    [[registry.mirror]]
    location = "${httpAddress}/${prefix}"
    insecure = true
  '';
in
{
  options.services.undernet = {
    enable = lib.mkEnableOption "the agent of undernet";

    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = lib.literalExpression "the agent of this flake";
      description = "The agent.";
    };

    settings = mkOption {
      type = types.submodule { options = lib.mapAttrs (_: optionOf) keys; };
      default = { };
      example = {
        open = false;
        quota = "100GiB";
        services = [ "web=127.0.0.1:8080?check=http:/health" ];
      };
      description = "The agent's configuration, /etc/undernet/agent.toml. Null leaves a key to the agent's default.";
    };

    users = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "alice" ];
      description = "Users that may use the agent without being root: they become members of the group undernet.";
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Whether to let peers in: the ports of `listen`, `lanes` and `reflect`, and mDNS.";
    };

    joinFile = mkOption {
      type = types.nullOr secretPath;
      default = null;
      example = "/run/secrets/undernet-token";
      description = "File with tokens of networks to join, handed over as a credential: only root has to be able to read it.";
    };

    registryAuthFile = mkOption {
      type = types.nullOr secretPath;
      default = null;
      example = "/run/secrets/auth.json";
      description = "auth.json for registries that are mirrored, handed over as a credential.";
    };

    nix.substituter = mkOption {
      type = types.bool;
      default = false;
      description = "Whether Nix on this machine asks the agent first, and believes what the agent has checked.";
    };

    containers.enable = mkOption {
      type = types.bool;
      default = false;
      description = "Whether podman, skopeo and buildah pull through the agent, and find what `settings.registries` mirrors there.";
    };

    dns = {
      enable = mkOption {
        type = types.bool;
        default = false;
        description = "Whether systemd-resolved asks the agent for names of services.";
      };
      domains = mkOption {
        type = types.listOf types.str;
        default = [ "internal" ];
        example = [ "home.internal" ];
        description = "Names below these are the agent's.";
      };
    };
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        assertion = !cfg.dns.enable || (config.services.resolved.enable && valueOf "dns" != "off");
        message = "services.undernet.dns.enable needs services.resolved.enable, and settings.dns not off.";
      }
      {
        assertion = !(cfg.nix.substituter || cfg.containers.enable) || httpAddress != "off";
        message = "services.undernet.nix.substituter and containers.enable need settings.http not off.";
      }
      {
        assertion = cfg.joinFile == null || !(settings ? join_file);
        message = "services.undernet.joinFile and settings.join_file are the same: say one.";
      }
      {
        assertion = cfg.registryAuthFile == null || !(settings ? registry_auth);
        message = "services.undernet.registryAuthFile and settings.registry_auth are the same: say one.";
      }
    ];

    users.users = {
      undernet = {
        isSystemUser = true;
        group = "undernet";
        home = "/var/lib/undernet";
        description = "undernet agent";
      };
    }
    // lib.genAttrs cfg.users (_: {
      extraGroups = [ "undernet" ];
    });
    users.groups.undernet = { };

    environment.systemPackages = [ cfg.package ];
    environment.etc = {
      "undernet/agent.toml".source = configFile;
    }
    // lib.optionalAttrs cfg.containers.enable {
      "containers/registries.conf.d/undernet.conf".text = ''
        [[registry]]
        location = "${httpAddress}"
        insecure = true
      ''
      + lib.concatMapStrings (url: mirrorOf (prefixOf url)) (valueOf "registries");
    }
    // lib.optionalAttrs cfg.dns.enable {
      # The root says, signed, that there is no `internal`.
      "systemd/resolved.conf.d/undernet.conf".text = ''
        [Resolve]
        DNS=${valueOf "dns"}
        Domains=${lib.concatMapStringsSep " " (domain: "~${domain}") cfg.dns.domains}
        DNSSEC=no
      '';
    };

    systemd.services.undernet = {
      description = unit.Unit.Description;
      after = lib.splitString " " unit.Unit.After;
      wantedBy = [ unit.Install.WantedBy ];
      unitConfig = removeAttrs unit.Unit [
        "Description"
        "After"
      ];
      serviceConfig = unit.Service // {
        ExecStart = builtins.replaceStrings [ "@agent@" ] [ agent ] unit.Service.ExecStart;
        ExecReload = builtins.replaceStrings [ "@kill@" ] [ "${pkgs.coreutils}/bin/kill" ] unit.Service.ExecReload;
        LoadCredential = map (
          name:
          if name == "undernet.join" && cfg.joinFile != null then
            "${name}:${cfg.joinFile}"
          else if name == "undernet.registry-auth" && cfg.registryAuthFile != null then
            "${name}:${cfg.registryAuthFile}"
          else
            name
        ) unit.Service.LoadCredential;
      };
      # For caches upstream that compress so.
      path = [ pkgs.xz ];
      restartTriggers = [ (builtins.toJSON fixed) ];
      reloadTriggers = [ configFile ];
    };

    # The agent makes its key when it first runs. What Nix believes is not left to what the agent prints: of that only a key is taken.
    systemd.services.undernet-nix-conf = mkIf cfg.nix.substituter {
      description = "Nix uses the undernet agent of this machine";
      after = [ "undernet.service" ];
      requires = [ "undernet.service" ];
      wantedBy = [ "multi-user.target" ];
      path = [
        pkgs.diffutils
        pkgs.jq
      ];
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
      };
      script = ''
        key=$(${agent} nix-conf --json | jq -r .publicKey)
        if ! grep -Eqx '[^[:space:]:]+:[0-9A-Za-z+/]{43}=' <<< "$key"; then
          echo "this is no key of Nix: $key" >&2
          exit 1
        fi
        umask 022
        printf '%s\n' \
          "extra-substituters = http://${httpAddress}/nix" \
          "extra-trusted-public-keys = $key" \
          "narinfo-cache-negative-ttl = 0" > /run/undernet-nix.conf.new
        if ! cmp -s /run/undernet-nix.conf.new /run/undernet-nix.conf; then
          mv /run/undernet-nix.conf.new /run/undernet-nix.conf
          systemctl try-restart nix-daemon.service
        fi
      '';
    };
    nix.extraOptions = mkIf cfg.nix.substituter "!include /run/undernet-nix.conf";

    networking.firewall = mkIf cfg.openFirewall {
      allowedTCPPorts = lib.unique (portsOf "tcp" ++ lib.optional (lanes != "off" && lanes != 0) lanes);
      allowedUDPPorts = lib.unique (portsOf "udp" ++ reflectors ++ lib.optional (valueOf "mdns") 5353);
    };
  };
}
