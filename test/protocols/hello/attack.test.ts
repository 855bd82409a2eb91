/** The hello against those who sit on the wire: mirrors, relays, replays, and whoever changes, cuts or invents messages. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { encodeCbor } from '../../../protocols/cbor.ts'
import { WireError } from '../../../protocols/error.ts'
import { MESSAGE_BYTES_MAX, OPENING_BYTES_MAX } from '../../../protocols/hello/messages.ts'
import { makeKey, TestNetwork, TestParty } from '../membership/people.ts'
import { converse, type Said, view } from './conversation.ts'

const home = new TestNetwork()
const [alice, bob, carol] = [
  home.member({ name: 'alice' }),
  home.member({ name: 'bob' }),
  home.member({ name: 'carol' }),
]
const mallory = makeKey().publicKey

const told = (said: readonly Said[], by: Said['by']) => said.filter((one) => one.by === by).map(({ bytes }) => bytes)

describe('an attacker', () => {
  it('who sends our own messages back to us gets nothing', async () => {
    const opening: { bytes: Uint8Array } = { bytes: new Uint8Array() }
    const asListener = await converse(alice, new TestParty(), {
      between: ({ by, bytes }) => {
        if (by === 'dialler') opening.bytes = bytes
        return by === 'dialler' ? bytes : undefined
      },
    })
    expect(view(asListener.dialler)).toMatch(/^refused/)
    // While alice dials mallory, mallory dials alice with alice's own opening, and mirrors what else alice says.
    const mirrored = await converse(bob, alice, {
      listenerSees: mallory,
      between: ({ by, bytes }, at) => (at === 0 ? opening.bytes : by === 'dialler' ? bytes : undefined),
    })
    expect(view(mirrored.listener)).toMatch(/^refused: the peer shares no network/)
    const echo = await converse(alice, bob, { between: ({ bytes }, at) => (at === 1 ? opening.bytes : bytes) })
    expect(view(echo.dialler)).toMatch(/^refused: /)
  })

  it('who passes messages on between two members gets nothing from either', async () => {
    for (const sees of [
      { diallerSees: mallory, listenerSees: mallory },
      { diallerSees: mallory },
      { listenerSees: mallory },
    ]) {
      const { dialler, listener, said } = await converse(alice, bob, sees)
      expect(view(listener)).toMatch(/^refused/)
      expect(view(dialler)).toMatch(/^refused/)
      expect(told(said, 'listener')).toEqual([])
    }
  })

  it('who is a member itself cannot pass as another one', async () => {
    const { dialler, listener } = await converse(alice, bob, {
      diallerSees: carol.key.publicKey,
      listenerSees: carol.key.publicKey,
    })
    expect([dialler, listener]).toEqual([expect.any(WireError), expect.any(WireError)])
  })

  it('who recorded a conversation cannot use any of it again, even over a channel that it took over', async () => {
    const { said } = await converse(alice, bob)
    const [opening, proof] = told(said, 'dialler')
    const [reply] = told(said, 'listener')
    const asAlice = await converse(new TestParty(alice.key), bob, {
      between: ({ by, bytes }, at) => (by === 'listener' ? bytes : at === 0 ? opening : proof),
    })
    expect(view(asAlice.listener)).toMatch(/^refused: /)
    const asBob = await converse(alice, new TestParty(bob.key), {
      between: ({ by, bytes }) => (by === 'dialler' ? bytes : reply),
    })
    expect(view(asBob.dialler)).toMatch(/^refused: /)
    const withProof = await converse(alice, bob, { between: ({ bytes }, at) => (at === 2 ? proof : bytes) })
    expect(withProof.listener).toMatchObject({ code: 'bad-signature' })
  })

  it('who changes any bit of any message is noticed by whoever reads it', async () => {
    const run = fc.asyncProperty(fc.nat(2), fc.nat(), async (place, bit) => {
      const { dialler, listener } = await converse(alice, bob, {
        between: ({ bytes }, at) => {
          if (at !== place) return bytes
          const altered = Uint8Array.from(bytes)
          const index = (bit >> 3) % bytes.byteLength
          altered[index] = (altered[index] ?? 0) ^ (1 << (bit & 7))
          return altered
        },
      })
      // Of the opening some bits are noise; but what it is changed to, the two do not agree on.
      expect(place === 2 ? listener : dialler).toBeInstanceOf(WireError)
    })
    await fc.assert(run, { numRuns: 60 })
  })

  it('who cuts the stream after any message leaves nobody waiting', async () => {
    for (const place of [0, 1, 2]) {
      const { dialler, listener } = await converse(alice, bob, {
        between: ({ bytes }, at) => (at < place ? bytes : undefined),
      })
      expect(view(listener)).toMatch(/^refused/)
      if (place < 2) expect(view(dialler)).toMatch(/^refused/)
    }
  })

  it('who says something else at any step is refused with a WireError', async () => {
    const garbage = fc.oneof(
      fc.uint8Array({ maxLength: 200 }),
      fc.object({ withBigInt: false, values: [fc.integer(), fc.string(), fc.uint8Array()] }).map(encodeCbor),
    )
    const run = fc.asyncProperty(fc.nat(2), garbage, async (place, bytes) => {
      const outcome = await converse(alice, bob, { between: (said, at) => (at === place ? bytes : said.bytes) })
      expect(place === 1 ? outcome.dialler : outcome.listener).toBeInstanceOf(WireError)
    })
    await fc.assert(run, { numRuns: 60 })
  })

  it('who says too much is cut off before it is read', async () => {
    const listener = await converse(alice, bob, { between: () => new Uint8Array(OPENING_BYTES_MAX + 1) })
    expect(listener.listener).toMatchObject({ code: 'too-large' })
    const dialler = await converse(alice, bob, {
      between: ({ by, bytes }) => (by === 'dialler' ? bytes : new Uint8Array(MESSAGE_BYTES_MAX + 1)),
    })
    expect(dialler.dialler).toMatchObject({ code: 'too-large' })
  })

  it('who shows certificates of networks that were not spoken of, or twice, is refused', async () => {
    const work = new TestNetwork()
    const chains = [work.certify(bob.key.publicKey), home.certify(bob.key.publicKey)]
    const sloppy = new TestParty(bob.key)
    for (const chain of chains) sloppy.credentials.push({ ...home.credentials(chain), network: home.id })
    for (const network of [home, work]) sloppy.known.set(Buffer.from(network.id).toString('hex'), network.revocations)
    expect((await converse(alice, sloppy)).dialler).toMatchObject({ code: 'malformed' })
  })

  it('who says nothing is waited for no longer than the signal allows', async () => {
    const startMs = performance.now()
    const { dialler } = await converse(alice, bob, {
      msMax: 100,
      between: ({ by, bytes }) => (by === 'dialler' ? new Uint8Array(0) : bytes),
    })
    expect(dialler).toBeInstanceOf(Error)
    expect(performance.now() - startMs).toBeLessThan(2_000)
  })
})
