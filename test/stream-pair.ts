/**
 * Two ends of a stream in memory, that behave as libp2p's do as far as Frames looks: events, pausing, half-closing, resetting. What
 * one end sends arrives at the other in a later turn, in order, in the same cuts.
 */
import type { Stream } from '@libp2p/interface'

export function streamPair(): [Stream, Stream] {
  const [a, b] = [new End(), new End()]
  a.other = b
  b.other = a
  return [a as unknown as Stream, b as unknown as Stream]
}

class End extends EventTarget {
  other: End | undefined
  status: 'open' | 'closed' | 'aborted' | 'reset' = 'open'
  readableEnded = false
  maxReadBufferLength = 0
  readonly direction = 'outbound'
  readonly readBufferLength = 0
  readonly writeBufferLength = 0
  remoteWriteStatus: 'writable' | 'closed' = 'writable'
  readonly #arrived: (Uint8Array | 'end')[] = []
  #paused = false
  #isRead = false
  #isFlushing = false
  #isWritable = true

  /** What came before anybody listened waits. */
  override addEventListener(...args: Parameters<EventTarget['addEventListener']>): void {
    super.addEventListener(...args)
    if (args[0] !== 'message') return
    this.#isRead = true
    this.#flushSoon()
  }

  get writeStatus(): 'writable' | 'closed' {
    return this.#isWritable && this.status === 'open' ? 'writable' : 'closed'
  }

  send(bytes: Uint8Array): boolean {
    if (!this.#isWritable || this.status !== 'open') throw new Error('cannot write to a closed stream')
    this.other?.take(Uint8Array.from(bytes))
    return true
  }

  async close(): Promise<void> {
    if (!this.#isWritable) return
    this.#isWritable = false
    this.other?.take('end')
    this.#settle()
  }

  abort(error: Error): void {
    if (this.status !== 'open') return
    this.end('aborted', error)
    this.other?.end('reset', new Error('the stream was reset'))
  }

  pause(): void {
    this.#paused = true
  }

  resume(): void {
    this.#paused = false
    this.#flush()
  }

  take(what: Uint8Array | 'end'): void {
    if (this.status !== 'open') return
    if (what === 'end') {
      this.remoteWriteStatus = 'closed'
      this.dispatchEvent(new Event('remoteCloseWrite'))
    }
    this.#arrived.push(what)
    this.#flushSoon()
  }

  #flushSoon(): void {
    if (this.#isFlushing || !this.#isRead) return
    this.#isFlushing = true
    queueMicrotask(() => {
      this.#isFlushing = false
      if (!this.#paused) this.#flush()
    })
  }

  end(status: 'aborted' | 'reset' | 'closed', error?: Error): void {
    if (this.status !== 'open') return
    this.status = status
    this.#arrived.length = 0
    this.readableEnded = true
    this.dispatchEvent(Object.assign(new Event('end')))
    this.dispatchEvent(Object.assign(new Event('close'), { error }))
  }

  #flush(): void {
    let taken = 0
    for (const what of this.#arrived) {
      if (this.#paused) break
      taken++
      if (what === 'end') {
        this.readableEnded = true
        this.dispatchEvent(new Event('end'))
        this.#settle()
      } else this.dispatchEvent(Object.assign(new Event('message'), { data: what }))
    }
    this.#arrived.splice(0, taken)
  }

  /** Both sides have ended. */
  #settle(): void {
    if (this.readableEnded && !this.#isWritable) this.end('closed')
  }
}
