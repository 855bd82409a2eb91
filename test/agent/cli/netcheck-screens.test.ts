/** What people see of netcheck: with a member and a router, with what is wrong, and with nobody. */
import { describe, expect, it } from 'vitest'
import type { NetcheckResult } from '../../../agent/api/netcheck-contract.ts'
import type { Link } from '../../../agent/mesh/connections.ts'
import { adviceFor, type NetcheckDeps } from '../../../agent/node/api-netcheck.ts'
import { serve } from '../api/fake-agent.ts'
import { fakeNetcheck } from '../api/fake-netcheck.ts'
import { run } from './capture.ts'

async function ask(parts: Partial<NetcheckDeps> = {}, ...flags: string[]): Promise<string> {
  await using agent = await serve({ netcheck: fakeNetcheck(parts) })
  return (await run(['netcheck', ...flags], { socket: agent.socket })).out
}
const json = async (parts: Partial<NetcheckDeps> = {}) => JSON.parse(await ask(parts, '--json')) as NetcheckResult
const router =
  (externalAddress: string): NonNullable<NetcheckDeps['connect']> =>
  async () => ({
    protocol: 'upnp',
    externalAddress: async () => externalAddress,
    map: () => Promise.reject(new Error('nothing is to be mapped')),
    unmap: async () => undefined,
    [Symbol.dispose]: () => undefined,
  })

describe('netcheck', () => {
  it('tells of the router, the relays, the clock and the resolver', async () => {
    const out = await ask()
    expect(out).toMatch(/^NAT +ordinary: .*, seen at 203\.0\.114\.7:41000$/m)
    expect(out).toMatch(/^UDP +works$/m)
    expect(out).toMatch(/^Mapped ports +off \(port_mapping\); the router does not answer by UPnP$/m)
    expect(out).toMatch(/^Clock +as that of the others$/m)
    expect(out).toMatch(/^DNS +192\.168\.1\.1 answers in 3\.2 ms$/m)
    expect(out).toMatch(/^1 relay:\nRELAY +RTT +NETWORK +MAY BE USED +PEER ID\nrelay +- +home +yes +12D3KooWRelay$/m)
    expect(out).toMatch(/Nothing to mend\.\n$/)
    expect(await json()).toMatchObject({
      nat: { reflections: [{ name: 'relay', rttMs: 12.3 }] },
      udp: 'works',
      advice: [],
    })
  })

  it('knows who has come from outside, and who came from next door', async () => {
    const link = { peerId: 'a', direction: 'inbound', path: 'direct', connectedMs: 0, busy: false } as const
    const links = (address: string) => () => [{ ...link, address, rttMs: 1, relay: undefined } satisfies Link]
    expect(await ask({ links: links('/ip4/45.10.0.9/tcp/999') })).toMatch(
      /^Reached from outside +yes, by a \(45\.10\.0\.9\)$/m,
    )
    expect((await json({ links: links('/ip4/127.0.0.1/tcp/999') })).reachable).toEqual({ state: 'unknown', by: [] })
  })

  it('shows a router that would let ports in, one behind another, and what is mapped', async () => {
    const would = await ask({ connect: router('45.10.0.2') })
    expect(would).toMatch(/^Mapped ports +off \(port_mapping\); the router 192\.168\.1\.1 would, by upnp$/m)
    expect(would).toMatch(/! The router would let this node’s ports in: set port_mapping = true/)
    expect(await ask({ connect: router('100.64.0.9') })).toMatch(/! The router has no address on the Internet itself/)
    const ports = [
      { transport: 'tcp', port: 7_477, externalPort: 7_477, isDialled: true },
      { transport: 'udp', port: 7_477, externalPort: 7_480, isDialled: true },
    ] as const
    const mapping = {
      state: 'mapped',
      protocol: 'nat-pmp',
      externalAddress: '45.10.0.2',
      isPublic: true,
      ports,
    } as const
    expect(await ask({ mapping: () => mapping })).toMatch(
      /^Mapped ports +tcp 7477, udp 7480 → 7477 at 45\.10\.0\.2, by nat-pmp$/m,
    )
    expect(await ask({ mapping: () => ({ state: 'refused', ports: [], reason: 'it says no' }) })).toContain(
      'none: it says no',
    )
  })

  it('says what to do with nobody there, and never fails', async () => {
    const out = await ask({
      reflect: () => Promise.reject(new Error('nobody')),
      relays: () => [],
      clockOffsetMs: () => undefined,
      gateway: async () => undefined,
      resolve: async () => ({ state: 'failed', servers: [], ms: null, reason: 'no answer (ECONNREFUSED)' }),
    })
    expect(out).toMatch(/^NAT +unknown: it takes a member outside to tell$/m)
    expect(out).toMatch(/^Relays: none$/m)
    expect(out).toMatch(/! No member of a closed network is connected: .*agent join/)
    expect(out).toMatch(/! No resolver answers/)
    expect(out).toMatch(/^Clock +unknown: nobody to compare with$/m)
  })

  it('has advice for each thing that is wrong', async () => {
    const { advice: _advice, ...good } = await json()
    const given = (wrong: Partial<NetcheckResult>) => adviceFor({ ...good, ...wrong }).join(' ')
    expect(given({ udp: 'blocked' })).toMatch(/UDP does not come through/)
    expect(given({ nat: { ...good.nat, kind: 'symmetric' } })).toMatch(/another port/)
    expect(given({ clockOffsetMs: -40_000 })).toMatch(/Set the clock/)
    expect(given({ relays: good.relays.map((one) => ({ ...one, allowed: false })) })).toMatch(/relay:use/)
    const nothing = { ipv4: { addresses: [], gateway: null }, ipv6: { addresses: [], hasRoute: false } }
    expect(given(nothing)).toMatch(/^This machine has no network/)
  })
})
