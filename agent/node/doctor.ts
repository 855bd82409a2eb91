/**
 * What `agent doctor` says of a running agent: its warnings, and what only the agent can see. Each finding has an id that stays: that of the
 * warning, or one of those below.
 */
import type { PeerView, Warning } from '../api/contract.ts'
import type { Check } from '../api/upkeep-contract.ts'
import { sizeText } from '../state/disk.ts'

/** Named in one finding. */
const SHOWN_MAX = 3
/** Before that a direct path may still be looked for. */
const SETTLED_SECONDS = 120
/** What keeps a node from what it is for, or loses something. Other warnings are about what may come, or mend themselves. */
const ERRORS = new Set([
  'disk.full',
  'network.failed',
  'network.lost',
  'membership.ended',
  'membership.revoked',
  'membership.fault',
])

export type Examined = {
  warnings: readonly Warning[]
  uptimeSeconds: number
  peers: readonly Pick<PeerView, 'path' | 'direction'>[]
  hasNix: boolean
  version: string
  /** Of other nodes, as they say it themselves. */
  versions: readonly string[]
  content: { bytes: number; quotaBytes: number }
  freeBytes: number | undefined
  /** Artifacts that this node publishes and does not have: after a backup was restored, which has no content. */
  unheld: readonly string[]
}

export function doctorOf(examined: Examined): Check[] {
  const { warnings, hasNix } = examined
  const found = [pathsCheck(examined), ...versionChecks(examined), quotaCheck(examined), unheldCheck(examined)]
  const nix = hasNix
    ? { id: 'nix', message: 'the Nix store can be read' }
    : { id: 'nix.none', message: 'no Nix store on this machine; files and folders work' }
  return [
    peersCheck(examined),
    { name: 'nix', state: 'ok', ...nix },
    ...found.filter((check) => check !== undefined),
    ...warnings.map(({ code, message, next }): Check => {
      const state = ERRORS.has(code) ? 'failed' : 'warning'
      return { id: code, name: code.split('.')[0] ?? code, state, message, next }
    }),
  ]
}

/** That there are none is a warning of its own. */
function peersCheck({ peers }: Examined): Check {
  const inbound = peers.filter(({ direction }) => direction === 'in').length
  const dialled = peers.length === 0 ? '' : `, ${inbound} of them dialled this node`
  return { id: 'peers', name: 'peers', state: 'ok', message: `${peers.length} connected${dialled}` }
}

function pathsCheck({ peers, uptimeSeconds }: Examined): Check | undefined {
  const isRelayed = peers.length > 0 && peers.every(({ path }) => path === 'relay')
  if (!isRelayed || uptimeSeconds < SETTLED_SECONDS) return undefined
  return {
    id: 'nat.relayed',
    name: 'nat',
    state: 'warning',
    message: 'every peer is reached through a third one: no direct connection comes about',
    next: '`agent netcheck` says what is in between. Let TCP and UDP 7477 through to this machine, in its firewall and in its router.',
  }
}

/** Releases of one minor version understand each other in everything; between others, what is new is left out. */
function versionChecks({ version, versions }: Examined): Check[] {
  const own = minorOf(version)
  const others = versions.map(minorOf).filter((other) => other !== undefined)
  if (own === undefined) return []
  const newer = others.filter((other) => other > own).length
  const older = others.filter((other) => other < own).length
  const check = (id: string, message: string, next: string): Check => ({
    id,
    name: 'versions',
    state: 'warning',
    message,
    next,
  })
  return [
    ...(newer === 0
      ? []
      : [
          check(
            'versions.behind',
            `${newer} nodes run a newer agent than this one, ${version}`,
            'Update the agent on this machine.',
          ),
        ]),
    ...(older === 0
      ? []
      : [
          check(
            'versions.others-behind',
            `${older} nodes run an older agent than this one, ${version}: what is new does not work with them`,
            'Update the agent there; `agent doctor` on each says so, too.',
          ),
        ]),
  ]
}

/** Compares as the versions do. */
function minorOf(version: string): number | undefined {
  const [, major, minor] = /^(\d{1,6})\.(\d{1,6})\./.exec(version) ?? []
  return major === undefined ? undefined : Number(major) * 1_000_000 + Number(minor)
}

function quotaCheck({ content: { bytes, quotaBytes }, freeBytes }: Examined): Check | undefined {
  const missing = quotaBytes - bytes - (freeBytes ?? Number.POSITIVE_INFINITY)
  if (missing <= 0) return undefined
  return {
    id: 'disk.quota',
    name: 'disk',
    state: 'warning',
    message: `the quota of ${sizeText(quotaBytes)} does not fit on the disk: ${sizeText(missing)} more than what is free`,
    next: 'Lower `quota` in the configuration, so that content goes before the disk is full.',
  }
}

function unheldCheck({ unheld }: Examined): Check | undefined {
  if (unheld.length === 0) return undefined
  const shown = `${unheld.slice(0, SHOWN_MAX).join(', ')}${unheld.length > SHOWN_MAX ? ', …' : ''}`
  return {
    id: 'content.unheld',
    name: 'content',
    state: 'warning',
    message: `${unheld.length} artifacts that this node publishes are not on it: ${shown}`,
    next: `\`agent get ${unheld[0]} --to DIR\` has them back from a peer who does; else publish them again, or \`agent unpublish ${unheld[0]}\`.`,
  }
}
