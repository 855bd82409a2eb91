/** A NetcheckApi of a node behind an ordinary router, with one relay; its parts say what they are told to. */
import type { NetcheckApi } from '../../../agent/api/netcheck-api.ts'
import { type NetcheckDeps, NodeNetcheck } from '../../../agent/node/api-netcheck.ts'

const RELAY = '12D3KooWRelay'

export function fakeNetcheck(parts: Partial<NetcheckDeps> = {}): NetcheckApi {
  const seen = { address: '203.0.114.7', port: 41_000 }
  const asked = { address: '45.10.0.10', port: 7_475 }
  return new NodeNetcheck({
    links: () => [],
    reflect: async () => ({
      kind: 'endpoint-independent',
      localPort: 41_000,
      seen,
      mappings: [{ reflector: RELAY, asked, seen, rttMs: 12.3 }],
      reflectors: 1,
    }),
    mapping: () => ({ state: 'off', ports: [] }),
    relays: () => [{ peerId: RELAY, network: 'home', allowed: true }],
    nameOf: (peerId) => (peerId === RELAY ? 'relay' : null),
    clockOffsetMs: () => 120,
    gateway: async () => ({ address: '192.168.1.1', localAddress: '192.168.1.2' }),
    connect: () => Promise.reject(new Error('the router does not answer by UPnP')),
    resolve: async () => ({ state: 'ok', servers: ['192.168.1.1'], ms: 3.2, reason: null }),
    ...parts,
  })
}
