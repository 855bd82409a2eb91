/**
 * Joins networks by tokens: the one that somebody hands in, and those of a file, for machines without a person at the keyboard.
 *
 * A token of the file is tried until its network is joined: the issuer may start later than this node, or be too busy to answer. One that
 * was refused is shown ever more seldom, since a node that is just stopping looks like one that does not know the token.
 */
import { readFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { publicKeyFromRaw } from '@libp2p/crypto/keys'
import { peerIdFromPublicKey } from '@libp2p/peer-id'
import { WireError } from '../../protocols/error.ts'
import { hexOf } from '../../protocols/membership/statement.ts'
import { decodeToken, type Token } from '../../protocols/membership/token.ts'
import type { Warning } from '../api/contract.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Membership } from '../identity/membership.ts'
import type { Networks } from '../identity/networks.ts'
import type { Log } from '../log.ts'
import type { Gate } from '../mesh/gate.ts'
import type { Guests } from '../mesh/guests.ts'
import type { Host } from '../mesh/host.ts'
import { refusalIn } from '../mesh/refusals.ts'
import { isRelayed } from '../mesh/relay-transport.ts'

/** Dialling, a hello, and the issuer's disk. */
const JOIN_MS_MAX = 20_000
/** Within that: as many hellos as have time to be too late. */
const ATTEMPTS_MAX = 5
/** Between tries of a token of the file. */
const RETRY_FIRST_MS = 1_000
const RETRY_MAX_MS = 60_000
/** After a refusal: few of these are ever taken back. */
const REFUSED_FIRST_MS = 60_000
const REFUSED_MAX_MS = 3_600_000
/** What streams fail with, by name, when their connection goes. */
const LOST = new Set([
  'ConnectionClosedError',
  'ConnectionClosingError',
  'MuxerClosedError',
  'StreamAbortedError',
  'StreamResetError',
])
/** Peers that are shown the new certificate at once; each is a hello of some milliseconds. */
const SHOWN_AT_ONCE = 4
/** A machine is in sixteen networks at most; the rest is a mistake. */
const FILE_BYTES_MAX = 128 * 1024

export type JoiningDeps = {
  gate: Pick<Gate, 'join' | 'refresh'>
  host: Pick<Host, 'peerId' | 'connected'>
  guests: Pick<Guests, 'reach'>
  networks: Pick<Networks, 'get'>
  /** What this node would be called. */
  name: string
  log: Log
  /** Between two tries. */
  rest?: (ms: number, signal: AbortSignal) => Promise<unknown>
}

export class Joining implements AsyncDisposable {
  readonly #deps: JoiningDeps
  readonly #stopping = new AbortController()
  readonly #work = new Set<Promise<void>>()
  /** What keeps the tokens of the file from being used, by their place in it. */
  readonly #troubles = new Map<string, string>()

  constructor(deps: JoiningDeps) {
    this.#deps = deps
  }

  /**
   * Resolves when this node is in the network and that is stored.
   *
   * @throws {AgentError} `usage` for what is no token, `not-allowed` with the issuer's reason, `failed` when it cannot be reached
   */
  async join(text: string, wished: string | undefined, signal: AbortSignal): Promise<Membership> {
    return await this.#join(readToken(text), wished, signal)
  }

  /**
   * Begins to use the tokens of a file, one a line, of networks that this node is not in.
   *
   * @throws {AgentError} `usage` when the file cannot be read, or a line is no token
   */
  useFile(path: string): void {
    for (const { place, text } of linesOf(path)) {
      let token: Token
      try {
        token = readToken(text)
      } catch (cause) {
        throw new AgentError('usage', `${place}: ${reasonOf(cause)}`, { cause })
      }
      this.#begin(this.#joinSomeTime(place, token))
    }
  }

  warnings(): Warning[] {
    return [...this.#troubles].map(([place, reason]) => ({
      code: 'join.failed',
      message: `the token in ${place} has not let this node in: ${reason}`,
      next: 'Is the node that made it running and reachable? It makes another one with `agent invite`.',
    }))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort(new AgentError('cancelled', 'the agent is stopping'))
    await Promise.all(this.#work)
  }

  async #joinSomeTime(place: string, token: Token): Promise<void> {
    const { networks, name, log, rest = restFor } = this.#deps
    const { signal } = this.#stopping
    let [waitMs, refusedMs] = [RETRY_FIRST_MS, REFUSED_FIRST_MS]
    while (!signal.aborted) {
      if (networks.get(hexOf(token.network))?.fault() === undefined && networks.get(hexOf(token.network))) return
      try {
        await this.#join(token, name, signal)
        this.#troubles.delete(place)
        return
      } catch (error) {
        if (signal.aborted) return
        const reason = reasonOf(error)
        this.#troubles.set(place, reason)
        log.warn({ place, reason }, 'join.failed')
        const isRefused = error instanceof AgentError && error.code === 'not-allowed'
        const restMs = (isRefused ? refusedMs : waitMs) * (0.5 + Math.random())
        if (isRefused) refusedMs = Math.min(refusedMs * 2, REFUSED_MAX_MS)
        else waitMs = Math.min(waitMs * 2, RETRY_MAX_MS)
        await rest(restMs, signal).catch(() => undefined)
      }
    }
  }

  async #join(token: Token, wished: string | undefined, signal: AbortSignal): Promise<Membership> {
    const { gate, guests, host, networks } = this.#deps
    const issuer = peerIdFromPublicKey(publicKeyFromRaw(token.issuer)).toString()
    if (issuer === host.peerId)
      throw new AgentError('usage', 'this node made the token itself', { next: 'Use it on the other machine.' })
    const limited = AbortSignal.any([signal, AbortSignal.timeout(JOIN_MS_MAX)])
    const show = async (attempts = 1): Promise<unknown> => {
      try {
        return await gate.join(token, issuer, () => guests.reach(token, issuer, limited), limited, wished)
      } catch (error) {
        if (limited.aborted || attempts === ATTEMPTS_MAX || !isLate(error)) throw error
        return await show(attempts + 1)
      }
    }
    try {
      await show()
    } catch (cause) {
      signal.throwIfAborted()
      const refused = refusalIn(cause)
      if (refused !== undefined && !isLate(cause)) throw reasonIn(refused)
      throw new AgentError('failed', `the node that made the token cannot be reached: ${reasonOf(cause)}`, {
        cause,
        next: whereabouts(token),
      })
    }
    const membership = networks.get(hexOf(token.network))
    if (membership === undefined) throw new AgentError('failed', 'the network was left again meanwhile')
    this.#begin(this.#show(host.connected().filter((peerId) => peerId !== issuer)))
    return membership
  }

  /** Other peers that are connected may be members, too. */
  async #show(peerIds: string[]): Promise<void> {
    const { gate, log } = this.#deps
    const showNext = async () => {
      for (let peerId = peerIds.pop(); peerId !== undefined; peerId = peerIds.pop()) {
        try {
          await gate.refresh(peerId, this.#stopping.signal)
        } catch (error) {
          log.debug({ peerId, reason: reasonOf(error) }, 'membership.unshown')
        }
      }
    }
    await Promise.all(Array.from({ length: SHOWN_AT_ONCE }, showNext))
  }

  /** Work that dispose waits for. It never fails. */
  #begin(work: Promise<void>): void {
    const settled = work.finally(() => this.#work.delete(settled))
    this.#work.add(settled)
  }
}

/** What the issuer said, or what keeps this node from taking it in, without the words about a connection that stand around it. */
function reasonIn(refused: AgentError): AgentError {
  const { cause } = refused
  if (cause instanceof AgentError) return cause
  return cause instanceof WireError ? new AgentError('not-allowed', cause.message, { cause }) : refused
}

function restFor(ms: number, signal: AbortSignal): Promise<unknown> {
  return delay(ms, undefined, { signal, ref: false })
}

/** Where the issuer was looked for. */
function whereabouts({ addresses }: Token): string {
  const own = addresses.filter((one) => !isRelayed(one))
  const asked = `Is it running, and can this machine reach it at ${own.join(' or ') || 'any address'}?`
  return own.length === addresses.length ? asked : `${asked} Nor did a member that the token names carry to it.`
}

/**
 * Nobody refused: the hello has a few seconds, and one of the two was too busy for that; or it was said on one of two connections, of which the other
 * stayed.
 */
function isLate(error: unknown): boolean {
  const cause = refusalIn(error)?.cause
  if ([error, cause].some((one) => one instanceof Error && LOST.has(one.name))) return true
  if (cause instanceof WireError) return cause.code === 'timeout' || cause.code === 'closed'
  return cause instanceof DOMException && cause.name === 'TimeoutError'
}

function readToken(text: string): Token {
  try {
    return decodeToken(text)
  } catch (cause) {
    if (!(cause instanceof WireError)) throw cause
    throw new AgentError('usage', `this is not a token: ${cause.message}`, {
      cause,
      next: 'Copy the whole line that `agent invite` printed.',
    })
  }
}

/** Lines that are neither empty nor comments, each with where it is. */
function linesOf(path: string): { place: string; text: string }[] {
  let content: Buffer
  try {
    content = readFileSync(path)
  } catch (cause) {
    throw new AgentError('usage', `the file of tokens ${path} cannot be read: ${reasonOf(cause)}`, {
      cause,
      next: 'It is named by join_file in the configuration.',
    })
  }
  if (content.byteLength > FILE_BYTES_MAX) throw new AgentError('usage', `${path} is too large for a file of tokens`)
  return content
    .toString('utf8')
    .split('\n')
    .map((text, at) => ({ place: `${path}, line ${at + 1}`, text: text.trim() }))
    .filter(({ text }) => text !== '' && !text.startsWith('#'))
}
