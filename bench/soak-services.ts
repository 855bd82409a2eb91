/** The parsers that offers of services and the openings of tunnels reach. */
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../protocols/cbor.ts'
import { instanceCid, makeServiceBody, serviceIn } from '../protocols/service/service.ts'
import {
  decodeTunnelAnswer,
  decodeTunnelRequest,
  encodeTunnelAnswer,
  encodeTunnelRequest,
} from '../protocols/tunnel/tunnel.ts'
import type { Random } from './random.ts'
import type { Parser } from './soak-run.ts'

export function serviceParsers(random: Random): Parser[] {
  const node = new Uint8Array(random.bytes(32))
  const offer = { node, service: 'web', proto: 'http' as const, port: 8_080, weight: 1, labels: {}, since: 1 }
  const labels = { role: 'primary', 'zone.x': 'a' }
  const bodies = [makeServiceBody(offer, 'healthy'), makeServiceBody({ ...offer, weight: 0, labels }, 'draining')]
  const read = (input: Buffer) => {
    const body = serviceIn({ name: 'web', publisher: node, body: decodeCbor(input, z.unknown()) })
    return body && instanceCid(body.offer)
  }
  return [
    { name: 'services', seeds: bodies.map((body) => Buffer.from(encodeCbor(body))), parse: read },
    {
      name: 'tunnels: requests',
      seeds: (['tcp', 'udp'] as const).map((carrier) => Buffer.from(encodeTunnelRequest({ service: 'web', carrier }))),
      parse: (input) => decodeTunnelRequest(input),
    },
    {
      name: 'tunnels: answers',
      seeds: [{}, { error: 'refused' as const, why: 'no grant' }].map((answer) =>
        Buffer.from(encodeTunnelAnswer(answer)),
      ),
      parse: (input) => decodeTunnelAnswer(input),
    },
  ]
}
