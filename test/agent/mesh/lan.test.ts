/** Multicast DNS on this machine, and the parser of what anybody on a LAN may send. */
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { type Answer, decode, encode, type Packet } from 'dns-packet'
import fc from 'fast-check'
import { describe, expect, onTestFinished, test } from 'vitest'
import { ephemeralNodeKey } from '../../../agent/identity/node-key.ts'
import type { Log } from '../../../agent/log.ts'
import { Lan, readAnswer, type Sighting } from '../../../agent/mesh/lan.ts'
import { quiet, until } from './nodes.ts'

const SERVICE = '_undernet._udp.local'
const PEER = ephemeralNodeKey().peerId
const OTHER = ephemeralNodeKey().peerId

function answer(name: string, texts: string[]): Packet {
  const pointer: Answer = { name: SERVICE, type: 'PTR', class: 'IN', ttl: 120, data: name }
  const records = texts.map((data): Answer => ({ name, type: 'TXT', class: 'IN', ttl: 120, data }))
  return { type: 'response', answers: [pointer], additionals: records }
}

/** As it comes from the wire. */
const read = (packet: Packet) => readAnswer(decode(encode(packet)), `own.${SERVICE}`)

async function startLan(peerId: string, addresses: string[]) {
  const heard: Sighting[] = []
  const lan = Lan.start({ peerId, addresses: () => addresses, heard: (sighting) => heard.push(sighting), log: quiet })
  onTestFinished(() => lan[Symbol.asyncDispose]())
  return heard
}

describe('Lan', () => {
  test('two on one machine hear each other at once, and nobody hears himself', async () => {
    const first = await startLan(PEER, [`/ip4/192.0.2.1/tcp/7477/p2p/${PEER}`])
    const second = await startLan(OTHER, [`/ip4/192.0.2.2/tcp/7477/p2p/${OTHER}`])
    const saw = (heard: Sighting[], peerId: string) => heard.some((sighting) => sighting.peerId === peerId)
    await until('both hear', () => saw(first, OTHER) && saw(second, PEER), 3_000)
    expect(saw(first, PEER) || saw(second, OTHER)).toBe(false)
    expect(first.find(({ peerId }) => peerId === OTHER)?.addresses.map(String)).toEqual([
      `/ip4/192.0.2.2/tcp/7477/p2p/${OTHER}`,
    ])
  })

  test('a LAN that cannot be listened on is logged, and no reason to fail', async () => {
    const warnings: string[] = []
    const log = { ...quiet, warn: (_fields: unknown, event: string) => warnings.push(event) } as unknown as Log
    const socket = createSocket({ type: 'udp4', reuseAddr: true })
    socket.bind = () => {
      socket.emit('error', new Error('EADDRINUSE'))
      return socket
    }
    const lan = Lan.start({ peerId: PEER, addresses: () => [], heard: () => undefined, log }, socket)
    lan.ask()
    await new Promise((resolve) => setTimeout(resolve, 50))
    await lan[Symbol.asyncDispose]()
    expect(warnings).toEqual(['lan.failed'])
  })

  test('garbage on the port, and a flood of questions, do no harm: answers are a second apart', async () => {
    await startLan(PEER, [`/ip4/192.0.2.1/tcp/7477/p2p/${PEER}`])
    const asker = createSocket({ type: 'udp4', reuseAddr: true })
    onTestFinished(() => void asker.close())
    let answers = 0
    // Only its answers hold its peer id.
    asker.on('message', (bytes) => {
      if (bytes.includes(PEER)) answers++
    })
    asker.bind(5353)
    await once(asker, 'listening')
    asker.addMembership('224.0.0.251')
    for (let at = 0; at < 200; at++) asker.send(Buffer.alloc(at, at), 5353, '224.0.0.251')
    const question = encode({ type: 'query', questions: [{ name: SERVICE, type: 'PTR' }] })
    for (let at = 0; at < 200; at++) asker.send(question, 5353, '224.0.0.251')
    await until('it answers', () => answers > 0, 3_000)
    await new Promise((resolve) => setTimeout(resolve, 1_500))
    expect(answers).toBeLessThanOrEqual(4)
  })
})

describe('readAnswer', () => {
  test('reads the peer and its addresses', () => {
    const texts = [`dnsaddr=/ip4/192.0.2.1/tcp/7477/p2p/${PEER}`, `dnsaddr=/ip6/2001:db8::1/tcp/7477/p2p/${PEER}`]
    expect(read(answer(`x.${SERVICE}`, texts))).toMatchObject({ peerId: PEER, addresses: { length: 2 } })
  })

  test('takes neither other services, nor our own answer, nor one with no address that has a peer id', () => {
    const text = `dnsaddr=/ip4/192.0.2.1/tcp/7477/p2p/${PEER}`
    expect(read({ ...answer(`x.${SERVICE}`, [text]), answers: [] })).toBeUndefined()
    expect(read(answer(`own.${SERVICE}`, [text]))).toBeUndefined()
    expect(read(answer(`x.${SERVICE}`, []))).toBeUndefined()
    expect(read(answer(`x.${SERVICE}`, ['dnsaddr=/ip4/192.0.2.1/tcp/7477', 'path=/']))).toBeUndefined()
    expect(read(answer(`x.${SERVICE}`, ['dnsaddr=/ip4/192.0.2.1/tcp/7477/p2p/nobody']))).toBeUndefined()
  })

  test('takes the addresses of one peer only, and twenty of them', () => {
    const mine = `dnsaddr=/ip4/192.0.2.1/tcp/7477/p2p/${PEER}`
    expect(read(answer(`x.${SERVICE}`, [mine, `dnsaddr=/ip4/192.0.2.2/tcp/1/p2p/${OTHER}`]))?.addresses).toHaveLength(1)
    const many = Array.from({ length: 40 }, (_, at) => `dnsaddr=/ip4/192.0.2.${at + 1}/tcp/7477/p2p/${PEER}`)
    expect(read(answer(`x.${SERVICE}`, many))?.addresses).toHaveLength(20)
  })

  test('never throws, whatever arrives', () => {
    const texts = fc.array(
      fc.oneof(
        fc.string(),
        fc.string().map((text) => `dnsaddr=${text}`),
      ),
      { maxLength: 5 },
    )
    fc.assert(
      fc.property(texts, fc.string(), (list, name) => {
        const sighting = readAnswer(answer(name, list), `own.${SERVICE}`)
        if (sighting !== undefined) expect(sighting.addresses.length).toBeGreaterThan(0)
      }),
    )
  })
})
