/**
 * What dpkg reads of the package, and runs: the control file, and the scripts around install, upgrade, removal and purge (Debian Policy, chapter 6),
 * the same that debhelper would have made. The service goes on running while its files are replaced, and starts anew after; what an
 * administrator disabled or masked stays so. Removal keeps the state, purge takes it and the user.
 */
import { SERVICE_NAME } from '../../agent/service/unit.ts'

const UNIT = `${SERVICE_NAME}.service`

export type Control = {
  version: string
  architecture: string
  installedKiB: number
  maintainer: string
  libraries: readonly string[]
}

export function controlFile({ version, architecture, installedKiB, maintainer, libraries }: Control): string {
  // The user is made by sysusers, and taken away by passwd; procps has the kill of the unit's ExecReload.
  const depends = [...libraries, 'passwd', 'procps', 'systemd | systemd-standalone-sysusers | systemd-sysusers']
  return `Package: undernet
Version: ${version}
Architecture: ${architecture}
Maintainer: ${maintainer}
Installed-Size: ${installedKiB}
Depends: ${depends.join(', ')}
Suggests: nix-bin, podman, systemd-resolved
Section: net
Priority: optional
Description: peer-to-peer agent that shares Nix paths, images and services
 One agent per machine makes a network of your own machines, with no server
 in the middle: each is a Nix binary cache and an OCI registry on loopback,
 fed by its peers, and reaches the services of the others by their names,
 encrypted from end to end.
 .
 The agent runs as a systemd service, as a user of its own. Members of the
 group ${SERVICE_NAME} may use it.
`
}

/** Two services of one name: the one of `agent install` would stand before the package's, which nobody would notice. */
const PREINST = `#!/bin/sh
set -e

root="\${DPKG_ROOT:-}"
if [ "$1" = install ] && [ -e "$root/etc/systemd/system/${UNIT}" ] && [ -e "$root/var/lib/${SERVICE_NAME}-install/manifest.json" ]; then
  echo "${SERVICE_NAME}: the agent is here already, by 'agent install'. Run 'sudo agent uninstall' first: the node" >&2
  echo "stays what it is, its state is kept and used by this package." >&2
  exit 1
fi
`

/** By name, as in DEBIAN/. */
export const maintainerScripts: Readonly<Record<'preinst' | 'postinst' | 'prerm' | 'postrm', string>> = {
  preinst: PREINST,
  postinst: `#!/bin/sh
set -e

case "$1" in
  configure | abort-upgrade | abort-deconfigure | abort-remove)
    systemd-sysusers \${DPKG_ROOT:+--root="$DPKG_ROOT"} ${SERVICE_NAME}.conf
    # What an administrator disabled stays disabled.
    deb-systemd-helper unmask ${UNIT} >/dev/null || true
    if deb-systemd-helper --quiet was-enabled ${UNIT}; then
      deb-systemd-helper enable ${UNIT} >/dev/null || true
    else
      deb-systemd-helper update-state ${UNIT} >/dev/null || true
    fi
    if [ -z "\${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]; then
      systemctl --system daemon-reload >/dev/null || true
      if [ -n "$2" ]; then action=restart; else action=start; fi
      deb-systemd-invoke "$action" ${UNIT} >/dev/null || true
    fi
    ;;
esac
`,
  prerm: `#!/bin/sh
set -e

if [ "$1" = remove ] && [ -z "\${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]; then
  deb-systemd-invoke stop ${UNIT} >/dev/null || true
fi
`,
  postrm: `#!/bin/sh
set -e

if [ "$1" = remove ] && [ -z "\${DPKG_ROOT:-}" ] && [ -d /run/systemd/system ]; then
  systemctl --system daemon-reload >/dev/null || true
fi

if [ "$1" = purge ]; then
  if command -v deb-systemd-helper >/dev/null; then
    deb-systemd-helper purge ${UNIT} >/dev/null || true
    deb-systemd-helper unmask ${UNIT} >/dev/null || true
  fi
  # The key of this node is there, too: that is what purge means.
  rm -rf "\${DPKG_ROOT:-}/var/lib/${SERVICE_NAME}" "\${DPKG_ROOT:-}/var/cache/${SERVICE_NAME}"
  # Nothing is left that they could own. 6: there is none, as userdel takes the group along.
  for program in userdel groupdel; do
    said=$("$program" \${DPKG_ROOT:+--prefix "$DPKG_ROOT"} ${SERVICE_NAME} 2>&1) || [ $? -eq 6 ] || echo "$said" >&2
  done
fi
`,
}
