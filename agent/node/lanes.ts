/**
 * Bulk lanes of a node: those that it gets from peers, and those that it gives them on the addresses that it listens on anyway.
 */
import { LaneServer, type LaneServerInit } from '../content/lane-server.ts'
import { Lanes, type LanesInit } from '../content/lanes.ts'
import type { Log } from '../log.ts'

export type LaneDeps = {
  /** undefined when off: then there are none in either direction. */
  port: number | undefined
  /** Multiaddrs that libp2p listens on. */
  listen: readonly string[]
  hostOf: LanesInit['hostOf']
}

/** Where fetches get lanes from; undefined when off. */
export function startLanes(
  { port, hostOf }: LaneDeps,
  streams: LanesInit['streams'],
  log: Log,
  stack: AsyncDisposableStack,
): Lanes | undefined {
  return port === undefined ? undefined : stack.use(new Lanes({ streams, hostOf, log }))
}

/** Gives lanes; undefined when off, and for a node that listens nowhere. */
export async function startLaneServer(
  { port, listen }: LaneDeps,
  parts: Pick<LaneServerInit, 'streams' | 'pieces' | 'log'>,
  stack: AsyncDisposableStack,
): Promise<LaneServer | undefined> {
  if (port === undefined) return undefined
  const hosts = [...new Set(listen.flatMap((address) => /^\/ip[46]\/([^/]+)\/tcp\//.exec(address)?.[1] ?? []))]
  const server = await LaneServer.start({ ...parts, hosts, port })
  return server && stack.use(server)
}
