/**
 * Who uses services while bench/recovery.ts breaks something: so many requests a second, each on a connection of its own, and one download after the
 * other, at a steady rate; a process of its own, in the network namespace of the client. It tells how many failed, and for how long nothing went on.
 */
import { once } from 'node:events'
import { connect } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Child, serveParent } from './child.ts'

const ROLE = 'recovery-load'
/** What a user waits for. */
const ANSWER_MS_MAX = 20_000
const DOWNLOAD_BYTES_PER_MS = 8_000
/** After a failure, as a client that does not give up. */
const AGAIN_MS = 20

export type Loss = {
  requests: number
  failed: number
  /** The longest time in which no request was answered, and no byte of a download came. */
  requestGapMs: number
  downloadGapMs: number
  downloads: number
  brokenDownloads: number
  /** When the last one failed, after the break; 0 when none did. */
  lastFailureMs: number
}
type Calls = {
  begin: { ask: { echo: number; bulk: number; perSecond: number }; answer: undefined }
  /** From now on, it is counted. */
  mark: { ask: undefined; answer: undefined }
  end: { ask: undefined; answer: Loss }
}
export type RecoveryLoad = Child<Calls>

export function startLoad(namespace: string): RecoveryLoad {
  return new Child<Calls>(fileURLToPath(import.meta.url), { role: ROLE, namespace })
}

class Load {
  readonly #loss: Loss = nothingLost()
  #isOver = false
  #markedMs = Number.POSITIVE_INFINITY
  #answeredMs = 0
  #arrivedMs = 0
  #work: Promise<unknown>[] = []

  begin(echo: number, bulk: number, perSecond: number): void {
    const timer = setInterval(() => {
      if (this.#isOver) clearInterval(timer)
      else this.#work.push(this.#request(echo))
    }, 1_000 / perSecond)
    this.#work.push(this.#download(bulk))
  }

  mark(): void {
    this.#markedMs = this.#answeredMs = this.#arrivedMs = performance.now()
  }

  async end(): Promise<Loss> {
    this.#isOver = true
    this.#answered()
    this.#arrived()
    const late = delay(ANSWER_MS_MAX)
    await Promise.race([Promise.all(this.#work), late])
    return this.#loss
  }

  async #request(port: number): Promise<void> {
    const socket = connect({ port, host: '127.0.0.1', noDelay: true, timeout: ANSWER_MS_MAX })
    socket.on('error', () => undefined)
    socket.on('timeout', () => socket.destroy())
    socket.write('x')
    const [bytes] = (await Promise.race([once(socket, 'data'), once(socket, 'close')]).catch(() => [undefined])) as [
      unknown,
    ]
    socket.destroy()
    if (performance.now() >= this.#markedMs) this.#loss.requests++
    if (Buffer.isBuffer(bytes)) this.#answered()
    else this.#failed('failed')
  }

  async #download(port: number): Promise<void> {
    while (!this.#isOver) {
      const socket = connect({ port, host: '127.0.0.1' })
      socket.on('error', () => undefined)
      let isWhole = false
      socket.once('end', () => {
        isWhole = true
      })
      const startMs = performance.now()
      let bytes = 0
      socket.on('data', (chunk) => {
        this.#arrived()
        bytes += chunk.byteLength
        const aheadMs = bytes / DOWNLOAD_BYTES_PER_MS - (performance.now() - startMs)
        if (aheadMs > 1) {
          socket.pause()
          setTimeout(() => socket.resume(), aheadMs)
        }
        if (this.#isOver) socket.destroy()
      })
      await new Promise((resolve) => socket.once('close', resolve))
      if (this.#isOver) return
      if (performance.now() >= this.#markedMs) this.#loss.downloads++
      if (!isWhole || bytes === 0) this.#failed('brokenDownloads')
      await delay(AGAIN_MS)
    }
  }

  #answered(): void {
    this.#loss.requestGapMs = Math.max(this.#loss.requestGapMs, this.#since(this.#answeredMs))
    this.#answeredMs = performance.now()
  }

  #arrived(): void {
    this.#loss.downloadGapMs = Math.max(this.#loss.downloadGapMs, this.#since(this.#arrivedMs))
    this.#arrivedMs = performance.now()
  }

  /** 0 before anything is counted. */
  #since(ms: number): number {
    return performance.now() >= this.#markedMs ? performance.now() - ms : 0
  }

  #failed(what: 'failed' | 'brokenDownloads'): void {
    if (this.#isOver || performance.now() < this.#markedMs) return
    this.#loss[what]++
    this.#loss.lastFailureMs = performance.now() - this.#markedMs
  }
}

function nothingLost(): Loss {
  return {
    requests: 0,
    failed: 0,
    requestGapMs: 0,
    downloadGapMs: 0,
    downloads: 0,
    brokenDownloads: 0,
    lastFailureMs: 0,
  }
}

serveParent<Calls>(ROLE, () => {
  let load = new Load()
  return {
    begin: async ({ echo, bulk, perSecond }) => {
      load = new Load()
      load.begin(echo, bulk, perSecond)
      return undefined
    },
    mark: async () => {
      load.mark()
      return undefined
    },
    end: async () => await load.end(),
  }
})
