/** Somebody between two peers, and somebody in a peer's place: for the tests of lanes. */
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createServer as createTlsServer } from 'node:tls'

/** Where it listens: another address of loopback, with the port of the one whose place it takes. */
export const ELSEWHERE = '127.0.0.2'

/** Passes connections on to the same port of 127.0.0.1; what comes back from there goes through `change`. */
export class LaneProxy implements AsyncDisposable {
  readonly #server: Server
  readonly #sockets = new Set<Socket>()
  connections = 0

  private constructor(port: number, change: (chunk: Buffer, passedBytes: number) => Buffer | 'cut') {
    this.#server = createServer((near) => {
      this.connections++
      const far = connect(port, '127.0.0.1')
      let passedBytes = 0
      for (const socket of [near, far]) {
        this.#sockets.add(socket)
        socket.on('error', () => undefined)
        socket.on('close', () => {
          near.destroy()
          far.destroy()
        })
      }
      near.pipe(far)
      far.on('data', (chunk: Buffer) => {
        const changed = change(chunk, passedBytes)
        passedBytes += chunk.byteLength
        if (changed === 'cut') near.destroy()
        else if (!near.write(changed)) {
          far.pause()
          near.once('drain', () => far.resume())
        }
      })
    })
  }

  static async start(port: number, change: (chunk: Buffer, passedBytes: number) => Buffer | 'cut'): Promise<LaneProxy> {
    const proxy = new LaneProxy(port, change)
    await once(proxy.#server.listen(port, ELSEWHERE), 'listening')
    return proxy
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy()
    this.#server.close()
  }
}

/** A TLS server that has a certificate and knows no key. Answers with how many handshakes it began. */
export async function certificateServer(port: number): Promise<AsyncDisposable & { handshakes: () => number }> {
  const directory = mkdtempSync(join(tmpdir(), 'undernet-rogue-'))
  const [keyFile, certFile] = [join(directory, 'key.pem'), join(directory, 'certificate.pem')]
  const name = ['-subj', `/CN=${ELSEWHERE}`, '-addext', `subjectAltName=IP:${ELSEWHERE}`]
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2']
  execFileSync('openssl', ['req', '-x509', ...key, ...name, '-keyout', keyFile, '-out', certFile], { stdio: 'ignore' })
  const server = createTlsServer({ key: readFileSync(keyFile), cert: readFileSync(certFile) }, (socket) => {
    socket.on('error', () => undefined)
    socket.resume()
  })
  let handshakes = 0
  server.on('connection', () => handshakes++)
  server.on('tlsClientError', () => undefined)
  await once(server.listen(port, ELSEWHERE), 'listening')
  return {
    handshakes: () => handshakes,
    [Symbol.asyncDispose]: async () => {
      server.close()
      rmSync(directory, { recursive: true, force: true })
    },
  }
}
