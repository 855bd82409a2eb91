/**
 * Applications that offer something on loopback, for tests of services, and programs that use them: until disposed.
 */
import { createHash, randomBytes } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { createServer as createHttpServer, get } from 'node:http'
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { expect } from 'vitest'

/** Many are small, some need several windows of a stream. */
const SIZES = [0, 1, 100, 4_096, 65_507, 65_536, 70_000, 300_000]
/** Every so many, one that no buffer on the way holds, and that is read late: so its end is said long before it is read. */
const LARGE_EVERY = 100
const LARGE_BYTES = 12 * 1024 * 1024
const READ_LATE_MS = 300
const LOAD_AT_ONCE = 8

export class Applications implements Disposable {
  /** Connections of the digester that said `wait`. */
  readonly waiting = new Set<Socket>()
  /** How such ended. */
  readonly failures: string[] = []
  readonly #servers = new Map<number, { server: Server; sockets: Set<Socket> }>()
  readonly #others: { close(): unknown }[] = []

  /** Answers everything with a text, on a connection for each. */
  async http(text: string): Promise<number> {
    const server = createHttpServer((_request, response) => response.setHeader('connection', 'close').end(text))
    return await this.#listen(server)
  }

  /** Takes bytes until they end, then answers with their digest and the bytes; but `reset` and `wait` do what they say. */
  async digester(): Promise<number> {
    return await this.#listen(createServer({ allowHalfOpen: true }, (socket) => void this.#digest(socket)))
  }

  /** Sends back the first bytes that come: the header that tells who calls. */
  async callers(): Promise<number> {
    return await this.#listen(createServer((socket) => socket.once('data', (bytes) => socket.end(bytes))))
  }

  /** Sends back what comes. */
  async datagrams(): Promise<number> {
    const socket = createSocket('udp4')
    socket.on('message', (bytes, { address, port }) => socket.send(bytes, port, address))
    this.#others.push(socket)
    socket.bind(0, '127.0.0.1')
    await once(socket, 'listening')
    return socket.address().port
  }

  /** Ends an application as a crash does. */
  kill(port: number): void {
    const { server, sockets } = this.#servers.get(port) ?? {}
    server?.close()
    for (const socket of sockets ?? []) socket.resetAndDestroy()
  }

  /** Asks for one page after the other, a few at once, until stopped. */
  load(port: number) {
    const answers: string[] = []
    const failures: string[] = []
    let isOver = false
    let lastMs = performance.now()
    let longestGapMs = 0
    const ask = async () => {
      while (!isOver) {
        const answer = await page(port)
        if ('text' in answer) {
          answers.push(answer.text)
          longestGapMs = Math.max(longestGapMs, performance.now() - lastMs)
          lastMs = performance.now()
        } else failures.push(answer.reason)
      }
    }
    const asking = Promise.all(Array.from({ length: LOAD_AT_ONCE }, ask))
    const stop = async () => {
      isOver = true
      await asking
    }
    this.#others.push({ close: () => void stop() })
    return {
      answers,
      failures,
      stop,
      /** Without any answer. */
      get longestGapMs() {
        return longestGapMs
      },
    }
  }

  [Symbol.dispose](): void {
    for (const port of this.#servers.keys()) this.kill(port)
    for (const other of this.#others) other.close()
  }

  async #listen(server: Server): Promise<number> {
    const sockets = new Set<Socket>()
    server.on('connection', (socket) => {
      sockets.add(socket)
      socket.on('error', () => undefined)
      socket.once('close', () => sockets.delete(socket))
    })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    this.#servers.set(port, { server, sockets })
    return port
  }

  async #digest(socket: Socket): Promise<void> {
    const chunks: Buffer[] = []
    socket.on('data', (chunk: Buffer) => {
      chunks.push(chunk)
      if (chunk.toString('latin1') === 'reset') socket.resetAndDestroy()
      if (chunk.toString('latin1') !== 'wait') return
      this.waiting.add(socket)
      socket.once('error', (error: NodeJS.ErrnoException) => this.failures.push(error.code ?? ''))
      socket.once('close', () => this.waiting.delete(socket))
    })
    socket.once('end', () => {
      const bytes = Buffer.concat(chunks)
      socket.write(createHash('sha256').update(bytes).digest())
      socket.end(bytes)
    })
  }
}

/** One transfer there and back, whose size and pace depend on its number. */
export async function exchange(port: number, nth: number): Promise<void> {
  const isLarge = nth % LARGE_EVERY === LARGE_EVERY >> 1
  const bytes = randomBytes(isLarge ? LARGE_BYTES : (SIZES[nth % SIZES.length] ?? 0) + (nth % 7))
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  // Some say everything before they are connected, and some end later than they wrote.
  socket.write(bytes.subarray(0, bytes.byteLength >> 1))
  if (nth % 3 === 0) await once(socket, 'connect')
  socket.end(bytes.subarray(bytes.byteLength >> 1))
  // Some read late, so that what comes has to wait on its way.
  if (nth % 5 === 0) await once(socket, 'readable')
  if (isLarge) await delay(READ_LATE_MS)
  const answer = Buffer.concat((await socket.toArray()) as Buffer[])
  const digest = createHash('sha256').update(bytes).digest()
  expect([nth, answer.byteLength]).toEqual([nth, bytes.byteLength + digest.byteLength])
  expect(Buffer.compare(answer.subarray(0, digest.byteLength), digest), `digest of transfer ${nth}`).toBe(0)
  expect(Buffer.compare(answer.subarray(digest.byteLength), bytes), `bytes of transfer ${nth}`).toBe(0)
}

function page(port: number): Promise<{ text: string } | { reason: string }> {
  return new Promise((resolve) => {
    const fail = (error: Error) => resolve({ reason: error.message })
    const asked = get({ port, host: '127.0.0.1', agent: false, timeout: 20_000 }, (response) => {
      let text = ''
      response.setEncoding('utf8')
      response.on('data', (part: string) => {
        text += part
      })
      response.once('error', fail)
      response.once('end', () => resolve({ text }))
    })
    asked.once('error', fail)
    asked.once('timeout', () => asked.destroy(new Error('no answer')))
  })
}
