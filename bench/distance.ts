/**
 * A way to a port of this machine that takes time, both ways: the same on every machine and for every user, where the kernel's own
 * (netem) needs a module and root. A connection waits for one round trip before anything passes, as if its handshake had taken that.
 */
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'

export class Distance implements Disposable {
  readonly port: number
  readonly #server: Server
  readonly #ends: Set<Socket>

  private constructor(server: Server, ends: Set<Socket>) {
    this.#server = server
    this.#ends = ends
    this.port = (server.address() as AddressInfo).port
  }

  static async to(port: number, rttMs: number): Promise<Distance> {
    const ends = new Set<Socket>()
    const server = createServer({ noDelay: true }, (near) => {
      const far = connect({ port, host: '127.0.0.1', noDelay: true })
      for (const [from, to] of [
        [near, far],
        [far, near],
      ] as const) {
        ends.add(from)
        from.on('error', () => undefined)
        from.on('close', () => {
          ends.delete(from)
          to.destroy()
        })
      }
      setTimeout(() => {
        carry(near, far, rttMs / 2)
        carry(far, near, rttMs / 2)
      }, rttMs)
    })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    return new Distance(server, ends)
  }

  [Symbol.dispose](): void {
    this.#server.close()
    for (const end of this.#ends) end.destroy()
  }
}

/** Timers of one length fire in the order in which they were set, so nothing overtakes. */
function carry(from: Socket, to: Socket, ms: number): void {
  const later = (act: () => void) => void setTimeout(() => void (to.destroyed || act()), ms)
  from.on('data', (bytes) => later(() => to.write(bytes)))
  from.on('end', () => later(() => to.end()))
}
