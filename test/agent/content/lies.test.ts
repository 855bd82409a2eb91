/** False piece lists that were signed: who signed is blamed, also behind whoever repeats it, and what he signed is kept. */
import { expect, onTestFinished, test } from 'vitest'
import { Lies } from '../../../agent/content/lies.ts'
import { OPEN_NETWORK_ID } from '../../../agent/content/publication-key.ts'
import { openDatabase } from '../../../agent/state/database.ts'
import type { PieceHolder } from '../../../protocols/pieces/exchange.ts'
import { readList } from '../../../protocols/pieces/list-statement.ts'
import { PIECE_BYTES } from '../../../protocols/pieces/tree.ts'
import { pattern } from '../../protocols/pieces/pattern.ts'
import { altered, liar, serve } from './hostile.ts'
import { ContentNode, digestOf, never, Peer } from './peers.ts'

const BLOB = pattern(20 * PIECE_BYTES + 5)
const { digest: DIGEST } = digestOf(BLOB)
const LIMITS = { pieceMs: 20_000, hasteMs: 5_000, openMs: 10_000, listMsPerGib: 0, comebackMs: 0 }
const LIE = altered(BLOB, 3)

async function network() {
  const known = new Map()
  const made = { node: await ContentNode.start(known, { limits: LIMITS }), evil: await Peer.start(known) }
  const all: AsyncDisposable[] = Object.values(made)
  onTestFinished(async () => {
    for (const one of all) await one[Symbol.asyncDispose]()
  })
  const add = async <T extends AsyncDisposable>(making: Promise<T>) => {
    const one = await making
    all.push(one)
    return one
  }
  return { ...made, peer: () => add(Peer.start(known)), seed: () => add(ContentNode.start(known)) }
}

/** The holder's answers to `hashes`, with a statement of them. */
function stating(
  holder: PieceHolder,
  signed: (list: { sizeBytes: number; root: Uint8Array }) => Uint8Array,
  more: object = {},
): PieceHolder {
  return {
    ...holder,
    hashes: async (...request) => {
      const answer = await holder.hashes(...request)
      return 'error' in answer ? answer : { ...answer, signed: signed(answer), ...more }
    },
  }
}

const from = (...sources: string[]) => ({ network: OPEN_NETWORK_ID, sources, signal: never })

test('a false list is kept as its signer signed it, and proves what he said', async () => {
  const { node, evil, seed } = await network()
  await serve(
    evil,
    stating(liar(LIE), (list) => evil.sign(DIGEST, OPEN_NETWORK_ID, list)),
  )
  await expect(node.fetcher.fetch(DIGEST, from(evil.peerId))).rejects.toMatchObject({ code: 'corrupt' })
  expect(node.faults).toMatchObject([{ peerId: evil.peerId, reason: expect.stringMatching(/do not make up the blob/) }])
  expect(node.lies).toMatchObject([{ peerId: evil.peerId, digest: DIGEST, network: OPEN_NETWORK_ID }])
  const statement = readList(node.lies[0]?.bytes ?? new Uint8Array())
  expect(Buffer.from(statement.digest).toString('hex')).toBe(DIGEST)
  expect(Buffer.compare(statement.signer, evil.key.publicKey)).toBe(0)

  const honest = await seed()
  await honest.store.publish(BLOB)
  await node.fetcher.fetch(DIGEST, from(evil.peerId, honest.peerId))
  expect(node.store.blobs.has(DIGEST)).toBe(true)
  expect(node.lies.length).toBe(1)
})

test('an honest one beside it is believed, and nothing that is right is asked for twice', async () => {
  const { node, evil, seed } = await network()
  await serve(
    evil,
    stating(liar(LIE), (list) => evil.sign(DIGEST, OPEN_NETWORK_ID, list)),
  )
  const honest = await seed()
  await honest.store.publish(BLOB)
  await node.fetcher.fetch(DIGEST, from(evil.peerId, honest.peerId))
  expect(Buffer.compare((await node.store.contents(DIGEST)) ?? Buffer.of(), BLOB)).toBe(0)
  expect(node.lies.map(({ peerId }) => peerId)).toEqual([evil.peerId])
  expect(node.faults.map(({ peerId }) => peerId)).toEqual([evil.peerId])
  expect(node.fetcher.fetchedBytes).toBeLessThanOrEqual(BLOB.byteLength + PIECE_BYTES)
})

test('who repeats it is not blamed, and its signer is', async () => {
  const { node, evil, peer } = await network()
  const fellow = await peer()
  const part = new Uint8Array(3).fill(0xff)
  part[2] = 0xf8
  await serve(
    fellow,
    stating(liar(LIE), (list) => evil.sign(DIGEST, OPEN_NETWORK_ID, list), { pieces: part }),
  )
  await expect(node.fetcher.fetch(DIGEST, from(fellow.peerId))).rejects.toMatchObject({ code: 'corrupt' })
  expect(node.lies.map(({ peerId }) => peerId)).toEqual([evil.peerId])
  expect(node.faults.map(({ peerId }) => peerId)).toEqual([evil.peerId])
})

test('what is passed on is the statement that came with the list', async () => {
  const { node, seed } = await network()
  const honest = await seed()
  await honest.store.publish(BLOB)
  const source = await node.fetcher.open(DIGEST, from(honest.peerId))
  const { signed } = node.fetcher.arriving(DIGEST, OPEN_NETWORK_ID) ?? {}
  expect(signed && Buffer.compare(readList(signed).signer, honest.peer.key.publicKey)).toBe(0)
  await source.close?.()
})

type List = { sizeBytes: number; root: Uint8Array }
const wrong: [string, (evil: Peer, other: Peer, list: List) => Uint8Array][] = [
  ['of another peer', (_evil, other, list) => other.sign(DIGEST, OPEN_NETWORK_ID, list)],
  ['of another blob', (evil, _other, list) => evil.sign('0'.repeat(64), OPEN_NETWORK_ID, list)],
  ['of another network', (evil, _other, list) => evil.sign(DIGEST, '1'.repeat(64), list)],
  [
    'of another list',
    (evil, _other, list) => evil.sign(DIGEST, OPEN_NETWORK_ID, { ...list, root: new Uint8Array(32) }),
  ],
  ['that is none', () => new Uint8Array(300)],
]

test.each(wrong)('a statement %s is a lie of whoever sends it', async (_what, signed) => {
  const { node, evil, peer } = await network()
  const other = await peer()
  await serve(
    evil,
    stating(liar(BLOB), (list) => signed(evil, other, list)),
  )
  await expect(node.fetcher.fetch(DIGEST, from(evil.peerId))).rejects.toMatchObject({ code: 'corrupt' })
  expect(node.faults).toMatchObject([
    { peerId: evil.peerId, reason: expect.stringMatching(/statement of its piece list/) },
  ])
  expect(node.lies).toEqual([])
})

test('what is kept survives, is bounded, for each peer and in all, and goes with its network', () => {
  const db = openDatabase(':memory:')
  let now = 0
  const lies = new Lies(db, () => now++)
  const lie = (peerId: string, number: number, network = OPEN_NETWORK_ID) => ({
    peerId,
    network,
    digest: DIGEST,
    bytes: Buffer.from(`${peerId} ${number}`),
  })
  expect(lies.keep(lie('one', 0))).toBe(true)
  expect(lies.keep(lie('one', 0))).toBe(false)
  for (let number = 1; number < 10; number++) lies.keep(lie('one', number))
  expect(lies.liars(10)).toMatchObject([{ peerId: 'one', lies: 4, digest: DIGEST }])
  for (let number = 0; number < 300; number++) lies.keep(lie(`many-${number}`, 0, '1'.repeat(64)))
  expect(new Lies(db).all().length).toBe(256)
  expect(lies.liars(2).map(({ peerId }) => peerId)).toEqual(['many-299', 'many-298'])
  lies.forgetNetwork('1'.repeat(64))
  expect(lies.all()).toEqual([])
  db.close()
})
