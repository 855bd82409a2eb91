/** Who has what, asked of a DHT of a few real nodes. */
import { CID } from 'multiformats/cid'
import * as raw from 'multiformats/codecs/raw'
import { sha256 } from 'multiformats/hashes/sha2'
import { describe, expect, onTestFinished, test } from 'vitest'
import { Providers } from '../../../agent/mesh/providers.ts'
import { Frames } from '../../../protocols/frame.ts'
import { hexOf } from '../../../protocols/membership/statement.ts'
import { type MemberHost, makeNetwork, startMember } from './member-hosts.ts'
import { join, type Node, quiet, startNode, until } from './nodes.ts'

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

/** A message of the DHT and its answer, in hexadecimal; nothing when there is none. */
async function ask(from: MemberHost, to: MemberHost, message: Uint8Array): Promise<string> {
  const signal = AbortSignal.timeout(5_000)
  const frames = new Frames(await from.host.openStream(to.peerId, '/undernet/kad/1', signal))
  await frames.write(message, signal)
  const answer = await frames.read(signal)
  frames.abort(new Error('that is all'))
  return hexOf(answer ?? new Uint8Array())
}

describe('The DHT', () => {
  test('tells nobody of peers that take no part in it, and are here as members of a closed network', async () => {
    const home = makeNetwork()
    const [between, hidden, open, stranger] = await Promise.all([
      startMember('between', [home]),
      startMember('hidden', [home], false),
      startMember('open', []),
      startMember('stranger', []),
    ])
    for (const { host } of [hidden, open, stranger]) await join(host, between.host)
    /** How often the one in between names a key when it is asked who is near it, and what belongs to it. Answers repeat the second question. */
    const namings = async ({ key }: MemberHost) => {
      const id = Buffer.concat([Buffer.from('002408011220', 'hex'), key.publicKey])
      const near = await ask(stranger, between, Buffer.concat([Buffer.of(8, 4, 18, id.length), id]))
      const belongs = await ask(
        stranger,
        between,
        Buffer.concat([Buffer.of(8, 1, 18, id.length + 4), Buffer.from('/pk/'), id]),
      )
      return [near, belongs].map((said) => said.split(hexOf(key.publicKey)).length - 1)
    }
    await until('the DHT knows who takes part', async () => ((await namings(open))[0] ?? 0) > 0)
    expect(await namings(hidden)).toEqual([0, 1])
    expect((await namings(open))[1]).toBeGreaterThan(1)
    expect(between.host.isConnected(hidden.peerId)).toBe(true)
  })
})

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
