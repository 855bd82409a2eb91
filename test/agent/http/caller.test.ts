/** Who is at the other end of a loopback connection, by the kernel's word. */
import { createConnection, createServer, type Socket } from 'node:net'
import { platform } from 'node:os'
import { afterEach, describe, expect, it } from 'vitest'
import { callerFault, ownRules } from '../../../agent/http/caller.ts'

const stack: (() => void)[] = []
afterEach(() => {
  for (const end of stack.splice(0)) end()
})

/** The server's side of a connection that this process made. */
async function accepted(host: string): Promise<Socket> {
  const { promise, resolve } = Promise.withResolvers<Socket>()
  const server = createServer(resolve)
  await new Promise<void>((listening) => server.listen(0, host, listening))
  const client = createConnection((server.address() as { port: number }).port, host)
  const socket = await promise
  stack.push(
    () => client.destroy(),
    () => socket.destroy(),
    () => server.close(),
  )
  return socket
}

describe.skipIf(platform() !== 'linux')('a caller', () => {
  it.each(['127.0.0.1', '::1'])('from %s may push as the user that the agent runs as, or as root', async (host) => {
    const socket = await accepted(host)
    expect(await callerFault(socket, ownRules(false))).toBeUndefined()
    const others = await callerFault(socket, { uid: 12_345, gid: undefined })
    if (process.getuid?.() === 0) expect(others).toBeUndefined()
    else expect(others).toContain('it is that of user 12345')
  })

  it('is nobody when the kernel does not know the connection', async () => {
    const { remoteAddress = '', localPort = 0 } = await accepted('127.0.0.1')
    const fault = await callerFault({ remoteAddress, remotePort: 1, localPort }, ownRules(false))
    expect(fault).toContain('does not say which user')
    expect(await callerFault({ remoteAddress: '', remotePort: 0, localPort: 0 }, ownRules(true))).toContain(
      'does not say',
    )
  })
})
