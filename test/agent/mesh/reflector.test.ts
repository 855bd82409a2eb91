/** Reflectors between real hosts on loopback: who is told, who gets silence, and which kinds of routers answers tell of. */
import { randomBytes } from 'node:crypto'
import { createSocket, type Socket } from 'node:dgram'
import { once } from 'node:events'
import { setTimeout as delay } from 'node:timers/promises'
import { describe, expect, it, onTestFinished } from 'vitest'
import { judge, type NatKind, openSocket, Reflections } from '../../../agent/mesh/reflections.ts'
import { Reflector } from '../../../agent/mesh/reflector.ts'
import { Frames } from '../../../protocols/frame.ts'
import {
  decodeReflectAnswer,
  encodeQuestion,
  encodeReflectRequest,
  REFLECT_ANSWERS_MAX,
  REFLECT_PROTOCOL,
  type ReflectOffer,
  readReflection,
} from '../../../protocols/reflect/reflect.ts'
import { type MemberHost, makeNetwork, startMember } from './member-hosts.ts'
import { join, quiet, until } from './nodes.ts'

const soon = () => AbortSignal.timeout(10_000)
const HOST = '127.0.0.1'

/** An asker and a reflector that are members, and what the reflector is told of who is one. */
async function pair() {
  const network = makeNetwork()
  const asker = await startMember('asker', [network], false)
  const other = await startMember('other', [network], false)
  const told = { isMember: true, nowMs: Date.now() }
  const reflector = await Reflector.start({ hosts: [HOST], port: 0, log: quiet, now: () => told.nowMs })
  onTestFinished(() => reflector[Symbol.asyncDispose]())
  await reflector.serve(other.streams.of(network.id), () => told.isMember)
  const scope = asker.streams.of(network.id)
  await join(asker.host, other.host)
  await until('the asker sees a member', () => scope.connected().length === 1)
  const reflections = new Reflections({
    scopes: () => [scope],
    hostOf: (id) => asker.host.hostOf(id),
    touchQuic: async () => undefined,
    log: quiet,
  })
  return { asker, other, told, reflector, scope, reflections }
}

async function keyFrom(scope: ReturnType<MemberHost['streams']['of']>, peerId: string): Promise<ReflectOffer> {
  const frames = new Frames(await scope.openStream(peerId, REFLECT_PROTOCOL, soon()))
  await frames.write(encodeReflectRequest('key'), soon())
  const answer = decodeReflectAnswer((await frames.read(soon())) ?? new Uint8Array())
  await frames.close(soon())
  if (typeof answer === 'string') throw new Error(answer)
  return answer
}

/** Sends questions from a socket, and answers with how many answers came. */
async function answersTo(socket: Socket, offer: ReflectOffer, count: number): Promise<number> {
  let answers = 0
  const questions = Array.from({ length: count }, () => encodeQuestion(offer, randomBytes(12)))
  const onMessage = (bytes: Uint8Array) => {
    if (questions.some((one) => readReflection(offer, one, bytes) !== undefined)) answers++
  }
  socket.on('message', onMessage)
  for (const one of questions) await new Promise((sent) => socket.send(one, offer.ports[0] ?? 0, HOST, sent))
  const endMs = performance.now() + 300
  // Silence can only be waited for.
  while (answers < count && performance.now() < endMs) await delay(10)
  socket.off('message', onMessage)
  return answers
}

describe('a reflector', () => {
  it('tells a member where its datagrams come from, at two ports', async () => {
    const { reflections, reflector, other } = await pair()
    const socket = await openSocket()
    onTestFinished(() => void socket.close())
    const { kind, mappings, seen, localPort, reflectors } = await reflections.askFrom(socket, soon())
    expect({ kind, seen, reflectors }).toEqual({
      kind: 'none',
      seen: { address: HOST, port: localPort },
      reflectors: 1,
    })
    expect(new Set(mappings.map(({ asked }) => asked.port))).toEqual(new Set(reflector.ports))
    expect(new Set(mappings.map((one) => one.reflector))).toEqual(new Set([other.peerId]))
    expect(await reflections.ask(soon())).toMatchObject({ kind: 'none' })
  })

  it('is silent to who is no member any more, to old and used keys, and to everything else', async () => {
    const { scope, other, told } = await pair()
    const socket = createSocket('udp4').bind(0, HOST)
    await once(socket, 'listening')
    onTestFinished(() => void socket.close())
    const first = await keyFrom(scope, other.peerId)
    expect(await answersTo(socket, first, 2)).toBe(2)
    expect(await answersTo(socket, { ...first, key: randomBytes(32) }, 3)).toBe(0)
    expect(await answersTo(socket, { ...first, id: randomBytes(8) }, 3)).toBe(0)
    told.isMember = false
    expect(await answersTo(socket, first, 3)).toBe(0)
    told.isMember = true
    expect(await answersTo(socket, first, REFLECT_ANSWERS_MAX)).toBe(REFLECT_ANSWERS_MAX - 2)
    const second = await keyFrom(scope, other.peerId)
    expect(await answersTo(socket, second, 1)).toBe(1)
    const third = await keyFrom(scope, other.peerId)
    expect(await answersTo(socket, second, 1)).toBe(0)
    told.nowMs += 61_000
    expect(await answersTo(socket, third, 1)).toBe(0)
  })

  it('answers one address so often a second, and no more', async () => {
    const { scope, other, told } = await pair()
    const socket = createSocket('udp4').bind(0, HOST)
    await once(socket, 'listening')
    onTestFinished(() => void socket.close())
    const keys = []
    for (let nth = 0; nth < 3; nth++) {
      const key = await keyFrom(scope, other.peerId)
      keys.push(await answersTo(socket, key, REFLECT_ANSWERS_MAX))
    }
    expect(keys).toEqual([REFLECT_ANSWERS_MAX, REFLECT_ANSWERS_MAX, 0])
    told.nowMs += 1_000
    expect(await answersTo(socket, await keyFrom(scope, other.peerId), 3)).toBe(3)
  })

  it('that is off refuses, and nobody to ask is unknown', async () => {
    const { scope, reflections, reflector } = await pair()
    await reflector[Symbol.asyncDispose]()
    expect(await reflections.ask(soon())).toMatchObject({ kind: 'unknown', reflectors: 0, mappings: [] })
    expect(scope.connected()).toHaveLength(1)
  })
})

describe('the kind of router', () => {
  const from = (address: string, port: number) => ({
    seen: { address, port },
    asked: { address: '45.10.0.9', port: 1 },
  })
  const own = new Set(['192.168.1.11', '127.0.0.1'])

  it.each<[string, ReturnType<typeof from>[], NatKind]>([
    ['one place is endpoint-independent', [from('45.10.0.1', 7), from('45.10.0.1', 7)], 'endpoint-independent'],
    ['a port for each is symmetric', [from('45.10.0.1', 7), from('45.10.0.1', 8)], 'symmetric'],
    ['an address for each is symmetric', [from('45.10.0.1', 7), from('45.10.0.2', 7)], 'symmetric'],
    ['the machine itself is none', [from('192.168.1.11', 4_000), from('192.168.1.11', 4_000)], 'none'],
    [
      'what neighbours see does not count',
      [from('192.168.1.11', 4_000), from('45.10.0.1', 7), from('45.10.0.1', 7)],
      'endpoint-independent',
    ],
    [
      'what is seen within an outer LAN does not count',
      [from('10.0.0.7', 9), from('45.10.0.1', 7), from('45.10.0.1', 7)],
      'endpoint-independent',
    ],
    ['a single answer tells no kinds apart', [from('45.10.0.1', 7)], 'unknown'],
    ['silence is no UDP', [], 'no-udp'],
  ])('%s', (_, mappings, kind) => {
    expect(judge({ mappings, localPort: 4_000, own, reflectors: 1 }).kind).toBe(kind)
  })
})
