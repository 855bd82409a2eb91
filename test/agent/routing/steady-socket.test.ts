/** What is read into the same memory again and again arrives as it was sent, however long the tunnel keeps it. */
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { Writable } from 'node:stream'
import { describe, expect, onTestFinished, test } from 'vitest'
import { steadySocket } from '../../../agent/routing/steady-socket.ts'

const KIB = 1024
/** Below, at and above what it reads at a time, small ones among large ones. */
const SIZES = [1, 4 * KIB, 300 * KIB, 100, 2_000 * KIB, 4 * KIB + 1, 3, 1_000 * KIB]

async function serve(handle: (socket: Socket) => void): Promise<{ host: string; port: number }> {
  const server = createServer({ allowHalfOpen: true }, handle)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => void server.close())
  return { host: '127.0.0.1', port: (server.address() as AddressInfo).port }
}

/** Looks at what it is given only when it says that it is done with it. */
function reader(isSlow: (nth: number) => boolean): { tunnel: Writable; digest: () => string } {
  const hash = createHash('sha256')
  let count = 0
  const tunnel = new Writable({
    highWaterMark: 256 * KIB,
    write(chunk: Uint8Array, _encoding, done) {
      const look = () => {
        hash.update(chunk)
        done()
      }
      if (isSlow(count++)) setTimeout(look, 2)
      else look()
    },
  })
  return { tunnel, digest: () => hash.digest('hex') }
}

describe('a steady socket', () => {
  test.each([
    ['at once', () => false],
    ['late', () => true],
    ['now at once, now late', (nth: number) => nth % 3 === 0],
  ])('gives to a tunnel that takes it %s what was sent, and the end', async (_, isSlow) => {
    const hash = createHash('sha256')
    const address = await serve((socket) => {
      const send = async () => {
        for (const size of [...SIZES, ...SIZES]) {
          const bytes = randomBytes(size)
          hash.update(bytes)
          if (!socket.write(bytes)) await once(socket, 'drain')
        }
        socket.end()
      }
      void send()
    })
    const { socket, readInto } = steadySocket(address)
    await once(socket, 'connect')
    const { tunnel, digest } = reader(isSlow)
    readInto(tunnel)
    await once(tunnel, 'finish')
    expect(digest()).toBe(hash.digest('hex'))
    socket.destroy()
  })

  test('keeps what comes before there is a tunnel, and writes while it reads', async () => {
    const address = await serve((socket) => {
      socket.write('first')
      socket.on('data', (bytes) => socket.write(bytes))
      socket.on('end', () => socket.end())
    })
    const { socket, readInto } = steadySocket(address)
    await once(socket, 'connect')
    const { tunnel, digest } = reader(() => false)
    socket.write(' second')
    readInto(tunnel)
    socket.end(' third')
    await once(tunnel, 'finish')
    expect(digest()).toBe(createHash('sha256').update('first second third').digest('hex'))
    socket.destroy()
  })
})
