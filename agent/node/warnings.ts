/**
 * What a person should know or do about this node: the warnings of `agent status`. Each is derived from the state of the parts when it
 * is asked for, except for the faults of peers, which are remembered for a while.
 */
import type { Warning } from '../api/contract.ts'
import type { BootstrapView } from '../mesh/bootstraps.ts'
import { sizeText } from '../state/disk.ts'

/** A fault or a failure older than this no longer tells how the node is. */
const FAULT_MS_MAX = 60 * 60_000
/** Shown; a lying peer may publish any number of paths. */
const FAULTS_MAX = 5
/** Before this, having no peers is no news. */
const ALONE_SECONDS_MIN = 15
/** Leases are 60 s at the least: a clock that is off by more loses them early or keeps them late. */
const CLOCK_MS_MAX = 30_000
/** Named in one warning. */
const PATHS_SHOWN_MAX = 3
/** Below this records of peers cannot be kept any more, and below the other it is a matter of time. */
const DISK_FULL_BYTES = 1024 * 1024
const DISK_LOW_BYTES = 64 * 1024 * 1024

/** A peer's lie, and what it was about. */
export type PeerFault = { peerId: string; about: string; reason: string; next?: string | undefined }

export class PeerFaults {
  readonly #faults = new Map<string, PeerFault & { atMs: number }>()
  readonly #now: () => number

  constructor(now: () => number = Date.now) {
    this.#now = now
  }

  add(fault: PeerFault): void {
    const key = `${fault.peerId} ${fault.about}`
    this.#faults.delete(key)
    this.#faults.set(key, { ...fault, atMs: this.#now() })
    for (const oldest of this.#faults.keys()) {
      if (this.#faults.size <= FAULTS_MAX) break
      this.#faults.delete(oldest)
    }
  }

  warnings(): Warning[] {
    const recent = [...this.#faults.values()].filter(({ atMs }) => this.#now() - atMs < FAULT_MS_MAX)
    return recent.map(({ peerId, about, reason, next }) => ({
      code: 'peer.fault',
      message: `refused from ${peerId}: ${about}: ${reason}`,
      next: next ?? 'Nothing was taken from it, and other peers are asked. If you know whose node it is, tell them.',
    }))
  }
}

/** Store paths that the local Nix wanted and no peer gave, although one had published them: Nix itself only says that there is no such file. */
export class Misses {
  readonly #misses = new Map<string, { reason: string; atMs: number }>()
  readonly #now: () => number

  constructor(now: () => number = Date.now) {
    this.#now = now
  }

  /** What became of a path: without a reason, it was given. */
  note(path: string, reason: string | undefined): void {
    this.#misses.delete(path)
    if (reason === undefined) return
    this.#misses.set(path, { reason, atMs: this.#now() })
    for (const oldest of this.#misses.keys()) {
      if (this.#misses.size <= FAULTS_MAX) break
      this.#misses.delete(oldest)
    }
  }

  warnings(): Warning[] {
    const recent = [...this.#misses].filter(([, { atMs }]) => this.#now() - atMs < FAULT_MS_MAX)
    return recent.map(([path, { reason }]) => ({
      code: 'nix.unfetched',
      message: `Nix asked for ${path}, which could not be had: ${reason}`,
      next: 'Run the Nix command again when another peer has it; `agent peers` shows who is connected.',
    }))
  }
}

export type Condition = {
  uptimeSeconds: number
  peerCount: number
  mdns: boolean
  /** Whether this node takes part in the open network. */
  open: boolean
  bootstraps: readonly BootstrapView[]
  /** Median over peers; undefined until some were asked. */
  clockOffsetMs: number | undefined
  /** Published store paths that Nix deleted. */
  missingPaths: ReadonlySet<string>
  /** Under the state directory; undefined where the file system does not say. */
  disk: { directory: string; freeBytes: number | undefined }
}

export function warningsOf(condition: Condition): Warning[] {
  const all = [peersWarning(condition), clockWarning(condition), pathsWarning(condition), diskWarning(condition)]
  return all.filter((one) => one !== undefined)
}

function peersWarning({ uptimeSeconds, peerCount, mdns, open, bootstraps }: Condition): Warning | undefined {
  const lost = bootstraps.filter(({ state }) => state === 'unreachable' || state === 'wrong-peer')
  if (peerCount === 0 && uptimeSeconds >= ALONE_SECONDS_MIN && lost.length === 0) {
    if (!open) {
      return {
        code: 'peers.none',
        message: 'no peers: no member of the networks that this node is in can be reached',
        next: 'With the open network off only members count. Are others running? Join a network with `agent join`, or let others in with `agent invite`.',
      }
    }
    const ways = mdns ? 'On another network, start' : 'With mDNS off, start'
    return {
      code: 'peers.none',
      message: 'no peers: this node sees nobody',
      next: `Start an agent on another machine of this LAN, and let TCP 7477 through its firewall. ${ways} with --bootstrap and an address that \`agent status\` shows there.`,
    }
  }
  const [first] = lost
  if (first === undefined) return undefined
  return {
    code: 'bootstrap.unreachable',
    message: `${first.address} cannot be reached${first.reason ? `: ${first.reason}` : ''}${lost.length > 1 ? ` (and ${lost.length - 1} more)` : ''}`,
    next: 'Is an agent running there, and its port open? The address must be one that `agent status` shows on that machine. This node keeps trying.',
  }
}

function clockWarning({ clockOffsetMs }: Condition): Warning | undefined {
  if (clockOffsetMs === undefined || Math.abs(clockOffsetMs) < CLOCK_MS_MAX) return undefined
  const seconds = Math.round(Math.abs(clockOffsetMs) / 1_000)
  return {
    code: 'clock.off',
    message: `this clock is ${seconds} s ${clockOffsetMs > 0 ? 'behind' : 'ahead of'} those of the peers`,
    next: 'Set it, best by NTP (`timedatectl set-ntp true`): records have leases, and a wrong clock loses them.',
  }
}

function pathsWarning({ missingPaths }: Condition): Warning | undefined {
  if (missingPaths.size === 0) return undefined
  const shown = [...missingPaths].slice(0, PATHS_SHOWN_MAX).join(', ')
  return {
    code: 'nix.path-gone',
    message: `${missingPaths.size} published store paths are not in the Nix store any more: ${shown}${missingPaths.size > PATHS_SHOWN_MAX ? ', …' : ''}`,
    next: 'Build them again, or unpublish the artifact; a GC root (`nix-store --add-root`) keeps a path.',
  }
}

function diskWarning({ disk: { directory, freeBytes } }: Condition): Warning | undefined {
  if (freeBytes === undefined || freeBytes >= DISK_LOW_BYTES) return undefined
  const isFull = freeBytes < DISK_FULL_BYTES
  return {
    code: isFull ? 'disk.full' : 'disk.low',
    message: isFull
      ? `the disk of ${directory} is full: nothing can be published or fetched, and what peers publish now is not kept`
      : `the disk of ${directory} is almost full: ${sizeText(freeBytes)} free`,
    next: 'Free some space there, or lower `quota` in the configuration. What was missed comes again by itself.',
  }
}
