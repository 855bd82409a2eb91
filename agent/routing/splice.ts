/**
 * Joins a connection of an application and a tunnel until both are over: bytes with back-pressure, half-closes, and resets as resets.
 */
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'

/**
 * Resolves when both are closed; never rejects. The tunnel is a socket, too, where the service is on this node. `readInto`: how what is read from the
 * socket gets to the tunnel, where that is not as of any stream.
 */
export function splice(
  socket: Socket,
  tunnel: Duplex,
  readInto: (tunnel: Duplex) => void = (to) => void socket.pipe(to),
): Promise<void> {
  socket.setNoDelay(true)
  const { promise, resolve } = Promise.withResolvers<void>()
  let open = 2
  const closed = () => {
    if (--open === 0) resolve()
  }
  socket.once('error', (error) => tunnel.destroy(error))
  tunnel.once('error', () => reset(socket))
  // Whoever goes without an error and without having ended both ways was destroyed: there is nobody to read or write any more.
  socket.once('close', () => {
    if (!tunnel.destroyed && !(socket.readableEnded && socket.writableFinished)) tunnel.destroy(goneError())
    closed()
  })
  tunnel.once('close', () => {
    if (!socket.destroyed && !(tunnel.readableEnded && tunnel.writableFinished)) reset(socket)
    closed()
  })
  if (socket.destroyed) tunnel.destroy(goneError())
  if (tunnel.destroyed) reset(socket)
  readInto(tunnel)
  tunnel.pipe(socket)
  return promise
}

function reset(end: Socket | Duplex): void {
  if (end.destroyed) return
  if ('resetAndDestroy' in end) end.resetAndDestroy()
  else end.destroy(goneError())
}

function goneError(): Error {
  return Object.assign(new Error('the connection was reset'), { code: 'ECONNRESET' })
}
