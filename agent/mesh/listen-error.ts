/** What libp2p fails with when it cannot listen, for people. */
import { AgentError, reasonOf } from '../error.ts'

/** Says which address could not be listened on, and what to do about it. */
export function listenError(error: unknown): unknown {
  const text = reasonOf(error)
  const taken = /EADDRINUSE[^\n]*?:(\d+)\s*$/m.exec(text)
  if (taken !== null) {
    return new AgentError('taken', `port ${taken[1]} is in use by another process`, {
      cause: error,
      next: 'Stop the other process, or start the agent with another --listen address, such as /ip4/0.0.0.0/tcp/7577.',
    })
  }
  const [, code, where] = /listen (EACCES|EADDRNOTAVAIL)[^\n]*? ([^\s]+)\s*$/m.exec(text) ?? []
  if (code === 'EACCES') {
    return new AgentError('not-allowed', `listening on ${where} needs privileges`, {
      cause: error,
      next: 'Choose a port above 1023 with --listen.',
    })
  }
  if (code === 'EADDRNOTAVAIL') {
    return new AgentError('usage', `${where} is not an address of this machine`, {
      cause: error,
      next: 'Use /ip4/0.0.0.0/tcp/7477 with --listen for all addresses, or one of this machine.',
    })
  }
  return error
}
