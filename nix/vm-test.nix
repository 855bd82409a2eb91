# Two NixOS machines: one makes a network and lets the other in, which then installs with Nix what the first has built and uses a service
# of it by name. `nix build .#checks.x86_64-linux.machines`, where there is KVM.
module: {
  name = "undernet";

  nodes =
    let
      common = {
        imports = [ module ];
        virtualisation.writableStore = true;
        services.resolved.enable = true;
        services.undernet = {
          enable = true;
          openFirewall = true;
          nix.substituter = true;
          dns.enable = true;
          users = [ "alice" ];
          settings = {
            open = false;
            trusted_keys = [ ];
          };
        };
        users.users.alice.isNormalUser = true;
      };
    in
    {
      builder =
        { pkgs, ... }:
        {
          imports = [ common ];
          services.undernet.settings.services = [ "web=127.0.0.1:8080?check=http:/" ];
          systemd.services.web = {
            wantedBy = [ "multi-user.target" ];
            script = "${pkgs.python3}/bin/python3 -m http.server 8080 --bind 127.0.0.1 --directory ${pkgs.hello}/bin";
          };
        };
      laptop = common;
    };

  testScript = ''
    start_all()
    for machine in (builder, laptop):
        machine.wait_for_unit("undernet.service")
        machine.wait_for_unit("undernet-nix-conf.service")

    with subtest("two commands: a network, and a machine in it"):
        builder.succeed("su alice -c 'agent network create home'")
        token = builder.succeed("su alice -c 'agent invite'").strip()
        laptop.succeed(f"echo {token} | su alice -c 'agent join'")
        laptop.wait_until_succeeds("agent member list | grep builder")

    with subtest("what one has built, the other installs with Nix"):
        builder.succeed("echo built here > /root/note")
        path = builder.succeed("nix-store --add /root/note").strip()
        key = builder.succeed("agent nix-conf --json | grep -o '\"publicKey\": *\"[^\"]*' | cut -d'\"' -f4").strip()
        builder.succeed(f"agent publish {path} --network home")
        laptop.succeed(f"agent trust add {key}")
        laptop.wait_until_succeeds(f"agent search note | grep note")
        laptop.succeed(f"nix-store --realise {path} && grep 'built here' {path}")

    with subtest("a service by its name"):
        laptop.wait_until_succeeds("curl -sf http://web.home.internal:8080/ | grep hello")

    with subtest("it comes back by itself"):
        laptop.succeed("systemctl kill --signal=KILL undernet")
        laptop.wait_until_succeeds("agent member list | grep builder")
  '';
}
