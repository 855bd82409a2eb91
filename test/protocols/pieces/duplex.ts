/** Two ends of a stream in memory, as much of one as Frames uses: for many small tests, where sockets would only cost time. */
import type { Stream } from '@libp2p/interface'
import { StreamCloseEvent, StreamMessageEvent, StreamResetEvent } from '@libp2p/interface'

class Duplex extends EventTarget {
  status = 'open'
  readableEnded = false
  maxReadBufferLength = 0
  other: Duplex | undefined
  #paused = false
  #waiting: (() => void)[] = []

  send(bytes: Uint8Array): boolean {
    const copy = bytes.slice()
    this.other?.receive(() => this.other?.dispatchEvent(new StreamMessageEvent(copy)))
    return true
  }

  async close(): Promise<void> {
    const { other } = this
    other?.receive(() => {
      other.readableEnded = true
      other.dispatchEvent(new Event('end'))
    })
  }

  abort(error: Error): void {
    this.status = 'aborted'
    const { other } = this
    if (other?.status !== 'open') return
    other.status = 'reset'
    other.readableEnded = true
    other.dispatchEvent(new StreamResetEvent(error))
    this.dispatchEvent(new StreamCloseEvent(true, error))
  }

  pause(): void {
    this.#paused = true
  }

  resume(): void {
    this.#paused = false
    for (const act of this.#waiting.splice(0)) this.receive(act)
  }

  /** What comes is told in a turn of its own, as from a socket. */
  receive(act: () => void): void {
    if (this.#paused) this.#waiting.push(act)
    else queueMicrotask(() => (this.#paused ? this.#waiting.push(act) : act()))
  }
}

export function duplexPair(): [Stream, Stream] {
  const a = new Duplex()
  const b = new Duplex()
  a.other = b
  b.other = a
  return [a as unknown as Stream, b as unknown as Stream]
}
