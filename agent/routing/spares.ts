/**
 * Streams that are opened before anybody needs them, to members whose services are in use, until disposed: to negotiate one costs a round trip and
 * several turns of the event loop, which a new connection of an application then does not wait for.
 *
 * Only whoever was asked for lately has some: each one taken is replaced, and what nobody takes is closed before the other side gives it up.
 */
import type { Stream } from '@libp2p/interface'
import { TunnelStream } from './tunnel-stream.ts'

/** To one member in one network: what a browser opens at once. */
const SPARES_MAX = 4
/** Members in all; of more, those wait that come later. */
const MEMBERS_MAX = 64
/** Less than the other side waits for a request. */
const SPARE_MS_MAX = 20_000
const OPEN_MS_MAX = 5_000
const CHECK_MS = 5_000
/** Replaced a moment later: whoever took one is to have the processor for himself. */
const REFILL_MS = 15

/** Opens a stream on which the request is the next that is said. */
type Opens = (signal: AbortSignal) => Promise<Stream>
type Spare = { stream: TunnelStream; openedMs: number }
type Member = { spares: Spare[]; opening: number; refill: NodeJS.Timeout | undefined }

export class Spares implements Disposable {
  readonly #members = new Map<string, Member>()
  readonly #stopping = new AbortController()
  #timer: NodeJS.Timeout | undefined

  /** One that is open, if there is one. More are opened for whoever asks next. */
  take(key: string, open: Opens): TunnelStream | undefined {
    const member = this.#members.get(key)
    let spare = member?.spares.shift()
    while (spare !== undefined && !isGood(spare)) {
      spare.stream.destroy()
      spare = member?.spares.shift()
    }
    this.#fill(key, open)
    return spare?.stream
  }

  [Symbol.dispose](): void {
    this.#stopping.abort(new Error('the agent is stopping'))
    clearInterval(this.#timer)
    for (const { spares } of this.#members.values()) for (const { stream } of spares) stream.destroy()
    this.#members.clear()
  }

  #fill(key: string, open: Opens): void {
    if (this.#stopping.signal.aborted) return
    if (!this.#members.has(key) && this.#members.size >= MEMBERS_MAX) return
    const member = this.#members.get(key) ?? { spares: [], opening: 0, refill: undefined }
    this.#members.set(key, member)
    this.#timer ??= setInterval(() => this.#sweep(), CHECK_MS).unref()
    member.refill ??= setTimeout(() => {
      member.refill = undefined
      while (!this.#stopping.signal.aborted && member.spares.length + member.opening < SPARES_MAX)
        void this.#open(member, open)
    }, REFILL_MS).unref()
  }

  /** Never rejects: whoever needs one and has none hears why. */
  async #open(member: Member, open: Opens): Promise<void> {
    member.opening++
    try {
      const { signal } = this.#stopping
      const stream = new TunnelStream(await open(AbortSignal.any([signal, AbortSignal.timeout(OPEN_MS_MAX)])))
      if (signal.aborted) stream.destroy()
      else member.spares.push({ stream, openedMs: performance.now() })
    } catch {
      // The next dial finds out.
    } finally {
      member.opening--
    }
  }

  #sweep(): void {
    for (const [key, member] of this.#members) {
      const bad = member.spares.filter((spare) => !isGood(spare))
      for (const { stream } of bad) stream.destroy()
      member.spares = member.spares.filter((spare) => !bad.includes(spare))
      const isUsed = member.spares.length > 0 || member.opening > 0 || member.refill !== undefined
      if (!isUsed) this.#members.delete(key)
    }
    if (this.#members.size > 0) return
    clearInterval(this.#timer)
    this.#timer = undefined
  }
}

function isGood({ stream, openedMs }: Spare): boolean {
  return stream.isOpen && performance.now() - openedMs < SPARE_MS_MAX
}
