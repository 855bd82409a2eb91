/**
 * Notices that this machine is somewhere else, from start() until disposed: its addresses or its default route changed (another Wi-Fi, a VPN, a
 * cable), or it slept. Connections that are dead by that send nothing to say so, and timers of a machine that slept go on as if no time had
 * passed; so whoever holds any of these is told here, within two seconds.
 *
 * By looking, not by netlink: it is twenty lines instead of a native module, and costs 0.2 ms a second.
 */
import { readFileSync } from 'node:fs'
import { networkInterfaces } from 'node:os'
import { setTimeout as delay } from 'node:timers/promises'
import type { Log } from '../log.ts'
import { gatewayIn } from './gateway.ts'

const LOOK_MS = 500
/** So much later than it should be, this process did not run; or the clock was set, which leases mind as well. */
const SLEPT_MS_MIN = 8_000
/** Addresses come and go one by one when a network changes: told once they stay the same for one look, or after so many. */
const UNSETTLED_MAX = 6
/** Default routes of IPv6, whose next hop is a router: the rest comes and goes with addresses. */
const ROUTES_V6 = '/proc/net/ipv6_route'
const ROUTES_V4 = '/proc/net/route'
const ROUTES_CHARS_MAX = 256 * 1024
const ANYWHERE_V6 = /^0{32} 00 \S+ \S+ (?!0{32})(\S{32})/gm

export type Change = 'moved' | 'woke'

export type NetworkChangeOptions = {
  onChange: (change: Change) => void
  log: Log
  /** What is compared from look to look. */
  surroundings?: () => string
  now?: () => number
  monotonic?: () => number
  rest?: (ms: number, signal: AbortSignal) => Promise<unknown>
}

export class NetworkChange implements AsyncDisposable {
  readonly #options: NetworkChangeOptions
  readonly #stopping = new AbortController()
  #work: Promise<void> = Promise.resolve()

  private constructor(options: NetworkChangeOptions) {
    this.#options = options
  }

  static start(options: NetworkChangeOptions): NetworkChange {
    const change = new NetworkChange(options)
    change.#work = change.#run()
    return change
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort()
    await this.#work
  }

  async #run(): Promise<void> {
    const { onChange, log, surroundings = here, rest = restFor } = this.#options
    const { now = Date.now, monotonic = () => performance.now() } = this.#options
    const { signal } = this.#stopping
    let told = surroundings()
    let last = told
    let unsettled = 0
    let [wallMs, lookMs] = [now(), monotonic()]
    while (!signal.aborted) {
      await rest(LOOK_MS, signal).catch(() => undefined)
      if (signal.aborted) return
      const [wall, look] = [now(), monotonic()]
      // A sleep stops the one clock and not the other; a process that was stopped comes late by both.
      const lateMs = Math.max(wall - wallMs, look - lookMs) - LOOK_MS
      ;[wallMs, lookMs] = [wall, look]
      const seen = surroundings()
      const isSettled = seen === last || ++unsettled >= UNSETTLED_MAX
      last = seen
      if (seen !== told && isSettled) {
        log.info({ routes: seen.split('\n').at(-1) }, 'network.changed')
        ;[told, unsettled] = [seen, 0]
        onChange('moved')
      } else if (lateMs >= SLEPT_MS_MIN) {
        log.info({ seconds: Math.round(lateMs / 1_000) }, 'machine.woke')
        onChange('woke')
      }
    }
  }
}

/** All addresses but loopback, and the default routes. */
function here(): string {
  const all = Object.entries(networkInterfaces()).flatMap(([name, addresses]) =>
    (addresses ?? []).filter(({ internal }) => !internal).map(({ address }) => `${name} ${address}`),
  )
  const gateways = [...read(ROUTES_V6).matchAll(ANYWHERE_V6)].map(([, gateway]) => gateway)
  return `${all.toSorted().join('\n')}\n${[gatewayIn(read(ROUTES_V4)), ...gateways.toSorted((a = '', b = '') => a.localeCompare(b))].join(' ')}`
}

/** Whether there is a way to the Internet by IPv6, as the kernel says. */
export function hasDefaultRoute6(): boolean {
  return read(ROUTES_V6).search(ANYWHERE_V6) >= 0
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8').slice(0, ROUTES_CHARS_MAX)
  } catch {
    // No Linux: addresses alone tell.
    return ''
  }
}

function restFor(ms: number, signal: AbortSignal): Promise<unknown> {
  return delay(ms, undefined, { signal, ref: false })
}
