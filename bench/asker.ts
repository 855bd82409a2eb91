/**
 * An HTTP client of a few lines that asks a binary cache for narinfos: a full one would take longer than the answer.
 */
import { connect, type Socket } from 'node:net'

const ANSWER_MS_MAX = 5_000

/** What each of `connections` waited, in microseconds, for each of its `count` narinfos, named by what `next` gives; `status` is what all are answered. */
export async function askAll(
  url: string,
  { connections, count, next, status }: { connections: number; count: number; next: () => string; status: 200 | 404 },
): Promise<number[][]> {
  const { hostname, port, pathname } = new URL(url)
  const base = pathname === '/' ? '' : pathname
  return await Promise.all(
    Array.from({ length: connections }, async () => {
      using asker = await Asker.connect(hostname, Number(port))
      const waits: number[] = []
      for (let asked = 0; asked < count; asked++) {
        const path = `${base}/${next()}.narinfo`
        const startedMs = performance.now()
        await asker.ask(path, status)
        waits.push((performance.now() - startedMs) * 1_000)
      }
      return waits
    }),
  )
}

class Asker implements Disposable {
  readonly #socket: Socket
  readonly #host: string

  private constructor(socket: Socket, host: string) {
    this.#socket = socket
    this.#host = host
  }

  static async connect(host: string, port: number): Promise<Asker> {
    const socket = connect({ host, port, noDelay: true, timeout: ANSWER_MS_MAX })
    await new Promise<void>((resolve, reject) => socket.once('connect', resolve).once('error', reject))
    return new Asker(socket, `${host}:${port}`)
  }

  /** Resolves when it is answered so. */
  ask(path: string, status: number): Promise<void> {
    return new Promise((resolve, reject) => {
      let text = ''
      const settle = (act: () => void) => {
        for (const event of ['data', 'close', 'timeout']) this.#socket.removeAllListeners(event)
        act()
      }
      this.#socket.on('data', (bytes) => {
        text += bytes.toString('latin1')
        const end = text.indexOf('\r\n\r\n')
        if (end < 0) return
        const bodyBytes = Number(/content-length: (\d+)/i.exec(text)?.[1] ?? 0)
        if (text.length < end + 4 + bodyBytes) return
        settle(text.startsWith(`HTTP/1.1 ${status}`) ? resolve : () => reject(new Error(text.slice(0, 200))))
      })
      const fail = () => settle(() => reject(new Error(`no answer from ${this.#host}`)))
      this.#socket.once('close', fail)
      this.#socket.once('timeout', fail)
      this.#socket.write(`GET ${path} HTTP/1.1\r\nhost: ${this.#host}\r\n\r\n`)
    })
  }

  [Symbol.dispose](): void {
    this.#socket.destroy()
  }
}
