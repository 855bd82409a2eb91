/**
 * Peers and programs that send what no agent should have to take: enormous records, endless records, garbage on every port. Each is a
 * bounded refusal: the agent answers its user all the while, its memory stays flat, and honest peers and clients are served.
 */
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { connect, type NetConnectOpts, type Socket } from 'node:net'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Stream } from '@libp2p/interface'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { PublishResult, SearchResult } from '../../agent/api/contract.ts'
import { fileCid, manifestCid } from '../../protocols/artifact/artifact.ts'
import { Frames } from '../../protocols/frame.ts'
import { PIECE_BYTES } from '../../protocols/pieces/tree.ts'
import { offerPages, RECORDS_PROTOCOL, RecordsAsker } from '../../protocols/records/exchange.ts'
import { encodeRecord, OPEN_NETWORK, PUBLISHER_RECORDS_MAX } from '../../protocols/records/record.ts'
import { Bundle, RealAgent, run, until } from '../agents.ts'
import { EvilPeer } from '../evil-peer.ts'

const MIB = 2 ** 20
const GIB = 2 ** 30
/** What an attack may add to the memory of an agent, of which V8 gives little back. */
const GROWTH_BYTES_MAX = 96 * MIB
/** Of one that is work for the agent, such as records to be checked: what V8 and malloc take for it, however long it goes on. */
const BUSY_GROWTH_BYTES_MAX = 256 * MIB
/** How long a user may have to wait for an answer meanwhile, on a machine that also runs the attack. */
const ANSWER_MS_MAX = 3_000
const WATCHER = fileURLToPath(new URL('watch-process.ts', import.meta.url))
const never = new AbortController().signal

let bundle: Bundle
beforeAll(async () => {
  bundle = await Bundle.build()
})
afterAll(() => bundle?.[Symbol.dispose]())

const start = (name: string, bootstrap: string[] = [], flags: string[] = [], mdns = false) =>
  RealAgent.start({ name, bootstrap, flags, mdns, entry: bundle.entry, env: bundle.env })

type Seen = { slowestMs: number; mostBytes: number }

/** Attacks an agent, and watches what its user sees of it; fails when that is too much. */
async function attack(
  agent: RealAgent,
  what: string,
  work: () => Promise<void>,
  growthBytesMax = GROWTH_BYTES_MAX,
): Promise<void> {
  // What is loaded and compiled on the first use is no growth.
  for (let nth = 0; nth < 20; nth++) await agent.status()
  const before = agent.rssBytes
  const watcher = spawn(process.execPath, [WATCHER, agent.socket, String(agent.pid)], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  const said: Buffer[] = []
  watcher.stdout.on('data', (chunk: Buffer) => said.push(chunk))
  const ended = once(watcher, 'close')
  await until(() => said.length > 0, { what: 'the watcher watches' })
  await work().finally(() => watcher.stdin.end())
  await ended
  const { slowestMs, mostBytes } = JSON.parse(Buffer.concat(said).toString().split('\n')[1] ?? '') as Seen
  console.log(`${what}: memory ${mib(before)} -> ${mib(mostBytes)} MiB, slowest status ${slowestMs.toFixed(0)} ms`)
  expect(mostBytes - before, what).toBeLessThan(growthBytesMax)
  expect(slowestMs, what).toBeLessThan(ANSWER_MS_MAX)
  expect(agent.isGone).toBe(false)
}

/** Honest work still works: a file goes from one agent to the other. */
async function expectServed(from: RealAgent, to: RealAgent): Promise<void> {
  const name = `honest-${randomBytes(4).toString('hex')}`
  const file = join(from.state, name)
  writeFileSync(file, randomBytes(2 * PIECE_BYTES))
  await from.json<PublishResult>('publish', file)
  await until(async () => (await to.json<SearchResult>('search', name)).artifacts.length > 0, {
    what: 'the other knows it',
    ms: 40_000,
  })
  await to.json('get', name, '--to', join(to.state, 'got'))
  expect((await run('cmp', [file, join(to.state, 'got', name)])).code).toBe(0)
}

describe('a record of a gigabyte', () => {
  /** A frame's length, as a varint. */
  const claims: [string, Buffer][] = [
    ['claims 1 GiB', varint(GIB)],
    ['claims the most that fits a length', varint(2 ** 28 - 1)],
    ['claims the most that a frame may have, again and again', varint(MIB)],
  ]

  it('is cut short, whether it is offered or answered', async () => {
    await using b = await start('b')
    await using evil = await EvilPeer.start({ bootstrap: await b.address() })
    const { peerId } = await b.status()
    for (const [what, prefix] of claims) {
      await attack(b, `an offer that ${what}`, async () => {
        const stream = await evil.host.openStream(peerId, RECORDS_PROTOCOL, never)
        const sentBytes = await pour(stream, prefix, GIB)
        expect(sentBytes).toBeLessThan(GROWTH_BYTES_MAX)
      })
    }
    for (const protocol of ['/meshsub/1.2.0', '/undernet/pieces/1', '/ipfs/id/push/1.0.0', '/undernet/kad/1']) {
      await attack(b, `1 GiB to ${protocol}`, async () => {
        const stream = await evil.host.openStream(peerId, protocol, never).catch(() => undefined)
        if (stream) expect(await pour(stream, varint(GIB), GIB)).toBeLessThan(GROWTH_BYTES_MAX)
      })
    }
    // As the answer to a question of the agent's own.
    await using answering = await EvilPeer.start({ bootstrap: await b.address(), name: 'answering' })
    await answering.host.unhandle(RECORDS_PROTOCOL)
    let answered = 0
    const answer = async (stream: Stream) => {
      answered++
      await pour(stream, varint(GIB), GIB)
    }
    await answering.host.handle(RECORDS_PROTOCOL, answer, { maxInboundStreams: 4 })
    const [address = ''] = answering.host.addresses()
    await using c = await start('c', [address, await b.address()])
    await attack(c, '1 GiB in place of an answer', async () => {
      await until(() => answered > 0, { what: 'the agent asks' })
    })
    await expectServed(b, c)
  })

  it('is not gossiped, and neither is one a little too large', async () => {
    await using b = await start('b')
    await using c = await start('c', [await b.address()])
    await using evil = await EvilPeer.start({ bootstrap: await b.address() })
    const topic = `undernet/records/${Buffer.from(OPEN_NETWORK).toString('hex')}`
    await until(() => evil.pubsub.getSubscribers(topic).length > 0, { what: 'they gossip' })
    await attack(b, 'gossip of 1 MiB each', async () => {
      for (let nth = 0; nth < 50; nth++) {
        await evil.pubsub.publish(topic, randomBytes(MIB)).catch(() => undefined)
        await new Promise((resolve) => setImmediate(resolve))
      }
    })
    await expectServed(c, b)
  })

  it('in place of a manifest is not fetched', async () => {
    await using b = await start('b')
    await using evil = await EvilPeer.start({ bootstrap: await b.address() })
    const cid = manifestCid(Buffer.from('no manifest'))
    const digest = Buffer.from(cid.multihash.digest).toString('hex')
    evil.lie(digest, {
      have: async () => ({ sizeBytes: GIB, pieces: 'all' }),
      hashes: async (_digest, _from, count) => ({
        sizeBytes: GIB,
        root: randomBytes(32),
        hashes: randomBytes(32 * Math.min(count, GIB / PIECE_BYTES)),
      }),
      get: async (_digest, _from, count) => ({ lengthBytes: count * PIECE_BYTES, chunks: endless() }),
    })
    evil.announce('huge', { type: 'folder', cid, sizeBytes: 1, description: '' })
    await until(async () => (await b.json<SearchResult>('search', 'huge')).artifacts.length > 0, { what: 'b knows it' })
    await attack(b, 'a manifest of 1 GiB', async () => {
      const { code, stderr } = await b.run('get', 'huge', '--to', b.state)
      expect(code).toBe(5)
      expect(stderr).toMatch(/it has 1073741824 bytes, more than the \d+ that are wanted/)
      expect(stderr).toContain(evil.peerId)
    })
  })
})

describe('10,000 records from one publisher', () => {
  it('are bounded, the newest stay, and everybody agrees on which', async () => {
    await using b = await start('b')
    await using c = await start('c', [await b.address()])
    await using evil = await EvilPeer.start({ bootstrap: await b.address() })
    const now = Date.now()
    const records = Array.from({ length: 10_000 }, (_, nth) => {
      const body = {
        type: 'file',
        cid: fileCid('0'.repeat(64)),
        sizeBytes: nth,
        description: `flood ${nth} ${'x'.repeat(500)}`,
      }
      const fields = {
        network: OPEN_NETWORK,
        kind: 'artifact',
        name: `flood-${nth}`,
        seq: now + nth,
        issued: now,
        expires: now + 3_600_000 * 24,
      }
      return encodeRecord({ ...fields, body }, evil.key).bytes
    })
    const { peerId } = await b.status()
    const offer = async () => {
      const frames = new Frames(await evil.host.openStream(peerId, RECORDS_PROTOCOL, never))
      const asker = new RecordsAsker(frames)
      let accepted = 0
      for (const page of offerPages(records)) accepted += (await asker.offer(page, never)).accepted
      await frames.close()
      return accepted
    }
    const inFull = async () => expect(await offer()).toBeGreaterThanOrEqual(PUBLISHER_RECORDS_MAX)
    await attack(b, '10,000 records offered', inFull, BUSY_GROWTH_BYTES_MAX)
    const again = async () => {
      for (let nth = 0; nth < 3; nth++) await offer()
    }
    await attack(b, '10,000 records offered three times more', again, GROWTH_BYTES_MAX)
    const gossip = async () => {
      const topic = `undernet/records/${Buffer.from(OPEN_NETWORK).toString('hex')}`
      await until(() => evil.pubsub.getSubscribers(topic).length > 0, { what: 'they gossip' })
      for (const [nth, bytes] of records.entries()) {
        await evil.pubsub.publish(topic, bytes).catch(() => undefined)
        if (nth % 50 === 0) await new Promise((resolve) => setImmediate(resolve))
      }
    }
    await attack(b, '10,000 records gossiped', gossip, BUSY_GROWTH_BYTES_MAX)
    // Its presence is a record, too, and newer or older than the flood.
    const known = await until(
      async () => {
        const counts = await Promise.all([b, c].map(async (one) => (await one.status()).artifacts.known))
        return counts.every((count) => count >= PUBLISHER_RECORDS_MAX - 1) && counts
      },
      { what: 'both have what they keep of it', ms: 60_000 },
    )
    for (const count of known) expect(count).toBeLessThanOrEqual(PUBLISHER_RECORDS_MAX)
    for (const one of [b, c]) {
      const { artifacts } = await one.json<SearchResult>('search', 'flood', '-n', '500')
      expect(artifacts.length).toBe(500)
      expect(Math.min(...artifacts.map(({ sizeBytes }) => sizeBytes))).toBeGreaterThanOrEqual(
        10_000 - PUBLISHER_RECORDS_MAX,
      )
    }
    await expectServed(c, b)
  })
})

describe('garbage on a port', () => {
  it('that peers dial is dropped, and honest peers still come in', async () => {
    await using b = await start('b')
    await using c = await start('c', [await b.address()])
    const [, host = '', port = ''] = /\/ip4\/([^/]+)\/tcp\/(\d+)/.exec(await b.address()) ?? []
    await throwGarbage(b, 'the libp2p port', { host, port: Number(port) })
    expect((await c.status()).peers.length).toBe(1)
    await using d = await start('d', [await b.address()])
    await until(async () => (await d.status()).peers.length > 0, { what: 'a new peer comes in', ms: 30_000 })
    await expectServed(b, d)
  })

  it('of the loopback HTTP server is refused, and Nix is still answered', async () => {
    await using b = await start('b')
    const { hostname, port } = new URL((await b.status()).http ?? '')
    await throwGarbage(b, 'the HTTP port', { host: hostname, port: Number(port) })
    const { status } = await fetch(`http://${hostname}:${port}/nix/nix-cache-info`)
    expect(status).toBe(200)
  })

  it('of the local API is refused, and commands are still answered', async () => {
    await using b = await start('b')
    await throwGarbage(b, 'the unix socket', { path: b.socket })
    expect((await b.run('status')).code).toBe(0)
  })

  it('that mDNS listens on is ignored', async () => {
    await using b = await start('b', [], [], true)
    await attack(b, 'garbage to mDNS', async () => {
      const socket = createSocket('udp4')
      const question = Buffer.from(
        '000000000001ffffffffffff095f756e6465726e6574045f756470056c6f63616c00000c0001',
        'hex',
      )
      for (let nth = 0; nth < 2_000; nth++) {
        const packet = nth % 2 === 0 ? randomBytes(nth % 1_400) : Buffer.concat([question, randomBytes(nth % 800)])
        await new Promise((resolve) => socket.send(packet, 5353, '127.0.0.1', resolve))
        await new Promise((resolve) => socket.send(packet, 5353, '224.0.0.251', resolve))
      }
      socket.close()
    })
  })
})

/** Everything that a program can do to a listening socket short of speaking its protocol. */
async function throwGarbage(agent: RealAgent, where: string, place: NetConnectOpts): Promise<void> {
  const open: Socket[] = []
  const dial = async () => {
    const socket = connect(place)
    socket.on('error', () => undefined)
    socket.resume()
    open.push(socket)
    await new Promise((resolve) => socket.once('connect', resolve).once('close', resolve))
    return socket
  }
  try {
    await attack(agent, `random bytes on ${where}`, async () => {
      for (let nth = 0; nth < 100; nth++) {
        const socket = await dial()
        socket.write(randomBytes(64 * 1024))
      }
      await until(() => open.every(({ destroyed }) => destroyed), { what: 'all were dropped', ms: 60_000 })
    })
    await attack(agent, `connections that say nothing on ${where}`, async () => {
      for (let nth = 0; nth < 100; nth++) await dial()
      for (const socket of open.splice(0, 50)) socket.resetAndDestroy()
    })
    await attack(agent, `a request that never ends on ${where}`, async () => {
      const socket = await dial()
      socket.write('GET /v1/status HTTP/1.1\r\nHost: localhost\r\n')
      for (let nth = 0; nth < 4_096 && !socket.destroyed; nth++) {
        if (!socket.write(`x-${nth}: ${'y'.repeat(8_000)}\r\n`))
          await new Promise((resolve) => socket.once('drain', resolve).once('close', resolve))
      }
      await until(() => socket.destroyed, { what: 'it was dropped', ms: 60_000 })
    })
    await attack(agent, `letter by letter on ${where}`, async () => {
      const slow = await Promise.all(Array.from({ length: 20 }, dial))
      const text = `GET /v1/status HTTP/1.1\r\nHost: localhost\r\nx: ${'y'.repeat(10_000)}`
      let at = 0
      await until(
        () => {
          for (const socket of slow) if (!socket.destroyed) socket.write(text[at % text.length] ?? '')
          at++
          return slow.every(({ destroyed }) => destroyed)
        },
        { what: 'the slow ones were dropped', ms: 60_000 },
      )
    })
  } finally {
    for (const socket of open) socket.destroy()
  }
}

/** Writes the claim and then bytes, until all is written or the stream is gone; how many went out. */
async function pour(stream: Stream, prefix: Uint8Array, bytes: number): Promise<number> {
  const chunk = Buffer.alloc(64 * 1024, 1)
  const isOpen = () => stream.status === 'open' && stream.writeStatus === 'writable'
  let sent = 0
  try {
    stream.send(prefix)
    while (sent < bytes && isOpen()) {
      const isTaken = stream.send(chunk)
      sent += chunk.byteLength
      if (isTaken) continue
      const drained = new Promise<void>((resolve) => {
        for (const event of ['drain', 'close', 'remoteCloseRead'] as const)
          stream.addEventListener(event as 'drain', () => resolve(), { once: true })
      })
      const stuck = Promise.withResolvers<void>()
      const timer = setTimeout(stuck.resolve, STUCK_MS)
      await Promise.race([drained, stuck.promise])
      clearTimeout(timer)
      // The other end reads no more: that, too, is an end of it.
      if (isOpen() && stream.writableNeedsDrain) break
    }
  } catch {
    // Reset while we wrote.
  }
  stream.abort(new Error('enough'))
  return sent
}

/** A reader that has not read for so long has stopped reading. */
const STUCK_MS = 5_000

function varint(value: number): Buffer {
  const bytes: number[] = []
  let rest = value
  for (; rest >= 0x80; rest = Math.floor(rest / 0x80)) bytes.push((rest % 0x80) | 0x80)
  return Buffer.from([...bytes, rest])
}

async function* endless(): AsyncGenerator<Uint8Array> {
  for (;;) yield randomBytes(PIECE_BYTES)
}

function mib(bytes: number): string {
  return (bytes / MIB).toFixed(0)
}
