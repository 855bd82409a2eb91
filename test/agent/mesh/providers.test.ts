/** Who has what, asked of a DHT of a few real nodes. */
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { sha256 } from 'multiformats/hashes/sha2'
import { describe, expect, onTestFinished, test } from 'vitest'
import { Providers } from '../../../agent/mesh/providers.ts'
import { type Node, quiet, startNode, until } from './nodes.ts'

async function cidOf(text: string): Promise<string> {
  return CID.createV1(raw.code, await sha256.digest(new TextEncoder().encode(text))).toString()
}

function providersOf({ host }: Node): Providers {
  const providers = Providers.start({ dht: host.dht, host, log: quiet })
  onTestFinished(() => providers[Symbol.asyncDispose]())
  return providers
}

async function found(providers: Providers, cid: string): Promise<string[]> {
  const peers: string[] = []
  for await (const peer of providers.find(cid, AbortSignal.timeout(5_000))) peers.push(peer)
  return peers
}

describe('Providers', () => {
  test('what one node announces others find, also when it was announced before any peer was there', async () => {
    const a = await startNode()
    const pa = providersOf(a)
    const cid = await cidOf('early')
    pa.provide(cid)
    expect(await found(pa, cid)).toEqual([])
    const [b, c] = await Promise.all([
      startNode({ bootstrap: a.host.addresses() }),
      startNode({ bootstrap: a.host.addresses() }),
    ])
    const [pb, pc] = [providersOf(b), providersOf(c)]
    await until(
      'b and c find it',
      async () => (await found(pb, cid))[0] === a.host.peerId && (await found(pc, cid))[0] === a.host.peerId,
    )
    const late = await cidOf('late')
    pb.provide(late)
    await until('a finds the late one', async () => (await found(pa, late)).includes(b.host.peerId))
    expect(await found(pb, late)).toEqual([])
  })

  test('nobody has what nobody announced; a withdrawn one is not announced by this node any more', async () => {
    const a = await startNode()
    const b = await startNode({ bootstrap: a.host.addresses() })
    const [pa, pb] = [providersOf(a), providersOf(b)]
    await until('connected', () => a.host.connected().length === 1)
    const cid = await cidOf('never')
    expect(await found(pb, cid)).toEqual([])
    pa.withdraw(cid)
    pa.provide(cid)
    pa.withdraw(cid)
    expect(() => pa.provide('nonsense')).toThrow(expect.objectContaining({ code: 'usage' }))
  })
})
