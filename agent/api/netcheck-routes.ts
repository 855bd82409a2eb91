/** The endpoint about how this node is reached: the part of the table in routes.ts that NetcheckApi does. */
import { z } from 'zod'
import type { NetcheckResult } from './netcheck-contract.ts'
import { type Route, route } from './route.ts'

const ms = z.number().nonnegative()
const peer = { peerId: z.string(), name: z.string().nullable() }
const address = z.object({ address: z.string(), scope: z.enum(['public', 'private']) })

const netcheckResult: z.ZodType<NetcheckResult> = z.object({
  ipv4: z.object({ addresses: z.array(address), gateway: z.string().nullable() }),
  ipv6: z.object({ addresses: z.array(address), hasRoute: z.boolean() }),
  nat: z.object({
    kind: z.enum(['none', 'endpoint-independent', 'symmetric', 'no-udp', 'unknown']),
    seen: z.string().nullable(),
    reflections: z.array(z.object({ ...peer, seen: z.string(), rttMs: ms })),
  }),
  udp: z.enum(['works', 'blocked', 'unknown']),
  portMapping: z.object({
    state: z.enum(['off', 'asking', 'mapped', 'none', 'refused']),
    gateway: z.string().nullable(),
    protocol: z.enum(['nat-pmp', 'upnp']).nullable(),
    externalAddress: z.string().nullable(),
    isPublic: z.boolean().nullable(),
    ports: z.array(z.object({ transport: z.enum(['tcp', 'udp']), port: z.int(), externalPort: z.int() })),
    reason: z.string().nullable(),
  }),
  reachable: z.object({
    state: z.enum(['yes', 'unknown']),
    by: z.array(z.object({ ...peer, address: z.string() })),
  }),
  relays: z.array(z.object({ ...peer, network: z.string(), rttMs: ms.nullable(), allowed: z.boolean() })),
  clockOffsetMs: z.number().nullable(),
  dns: z.object({
    state: z.enum(['ok', 'failed']),
    servers: z.array(z.string()),
    ms: ms.nullable(),
    reason: z.string().nullable(),
  }),
  advice: z.array(z.string()),
})

export const netcheckRoutes: readonly Route[] = [
  route({
    method: 'GET',
    path: 'netcheck',
    summary: 'How this node is reached and reaches others: NAT, UDP, mapped ports, relays, clock, DNS',
    takes: 'query',
    input: z.object({}),
    answers: 'json',
    reply: netcheckResult,
    handle: ({ netcheck }, { signal }) => netcheck.check(signal),
  }),
]
