/**
 * What opens tunnels to services, for those who bring clients: forwards, the proxy, names. Implemented by service-dialer.ts.
 */
import type { Duplex } from 'node:stream'
import type { Instance } from './services.ts'

export type Target = {
  readonly network: string
  readonly service: string
  /** Only this member's instance. */
  readonly node?: string
  /** Streams with the same text go to the same instance, while it is there. */
  readonly sticky?: string
}

/**
 * Bytes to the service and back. `end()` half-closes; `destroy(error)` resets the application's connection; a reset at the far side is an error
 * with the code ECONNRESET here.
 */
export type Tunnel = Duplex & { readonly instance: Instance; readonly path: string }

export type DatagramTunnel = {
  readonly instance: Instance
  readonly path: string
  /** Dropped when too many wait, as a network does. */
  send(bytes: Uint8Array): void
  onDatagram(listener: (bytes: Uint8Array) => void): void
  /** Called once when it is over, by whichever side. */
  onClose(listener: () => void): void
  close(): void
}

export interface TunnelDialer {
  /** @throws {AgentError} `not-found` for no instance, `not-allowed` with the verb that is missing, `failed` when none answers. */
  open(target: Target, signal: AbortSignal): Promise<Tunnel>
  openDatagrams(target: Target, signal: AbortSignal): Promise<DatagramTunnel>
}
