/**
 * The root file system of a machine that boots: Debian with systemd, a Nix and a skopeo, made once with debootstrap (three minutes, 350 MB) and
 * kept in /var/cache for all that need it. Nobody writes to it: each machine has an overlay of its own on top.
 *
 * What is in it decides its name, so another list of packages makes another one. Of several processes one makes it, and the others wait.
 */
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'

const CACHE = '/var/cache/undernet-machines'
const SUITE = 'bookworm'
/** What boots, as far as debootstrap can put it together. */
const BASE = 'systemd-sysv,dbus,iproute2,curl,procps'
/** What agents need and are used with; apt finds what these need. The resolver comes with them: with it alone no name is found here. */
const TOOLS = 'libstdc++6 nix-bin skopeo systemd-resolved libnss-resolve'
/** Debian's mirrors are slow now and then, and others wait for us. */
const MAKE_MS_MAX = 15 * 60_000
const OUTPUT_BYTES_MAX = 64 * 1024 * 1024

/**
 * Where packages come from is this machine's own choice. The lock ends with its process, so that an interrupted one stops nobody. dpkg would wait for
 * the disk after each file, and nobody needs these machines after a power failure. What debootstrap mounts ends with it, too (unshare): left behind
 * by one that was killed, it would be this machine's own /proc that the next one deletes.
 */
const MAKE = `
  set -eu
  exec 9>"$root.lock"
  flock 9
  [ ! -d "$root" ] || exit 0
  rm -rf --one-file-system "$root.making"
  mirror=$(apt-get indextargets --format '$(CODENAME) $(ORIGIN) $(REPO_URI)' 'Created-By: Packages' |
    awk -v suite=${SUITE} '$1 == suite && $2 == "Debian" { print $3; exit }')
  debootstrap --variant=minbase --include=${BASE} ${SUITE} "$root.making" "$mirror"
  echo force-unsafe-io >"$root.making/etc/dpkg/dpkg.cfg.d/unsafe-io"
  DEBIAN_FRONTEND=noninteractive chroot "$root.making" apt-get install -y --no-install-recommends ${TOOLS}
  chroot "$root.making" apt-get clean
  chroot "$root.making" systemctl mask systemd-networkd.service systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer
  rm -rf "$root.making"/var/lib/apt/lists/* "$root.making/etc/hostname" "$root.making/etc/machine-id"
  mv "$root.making" "$root"
`

/** Resolves to the directory; `say` hears when it has to be made. */
export async function machineRoot(say: (line: string) => void = () => undefined): Promise<string> {
  mkdirSync(CACHE, { recursive: true })
  const name = createHash('sha256').update(MAKE).update(process.arch).digest('hex').slice(0, 12)
  const root = join(CACHE, name)
  if (existsSync(root)) return root
  say(`making ${root}: some minutes, once`)
  await promisify(execFile)('unshare', ['--mount', 'bash', '-c', MAKE], {
    env: { ...process.env, root },
    timeout: MAKE_MS_MAX,
    maxBuffer: OUTPUT_BYTES_MAX,
  })
  return root
}
