/**
 * What goes wrong while a large store path is on its way, with agents as they are shipped and the real Nix: sources that are killed, that come
 * back, that spoil pieces, that stall, that sign a false piece list, and the fetching agent itself killed. Nix sees nothing of it but time,
 * nothing that is here is fetched again, and who lied is named. Sources send at a limited rate, so that there is a middle to be killed in. A full disk: content-full-disk.test.ts.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Status } from '../../agent/api/contract.ts'
import { fromHex } from '../../agent/content/piece-lists.ts'
import { OPEN_NETWORK_ID } from '../../agent/content/publication-key.ts'
import type { PieceHolder } from '../../protocols/pieces/exchange.ts'
import { signList } from '../../protocols/pieces/list-statement.ts'
import { PIECE_BYTES } from '../../protocols/pieces/tree.ts'
import { freePort, type RealAgent, until } from '../agents.ts'
import { Lab } from '../cluster/members.ts'
import { altered, EvilPeer, holderOfBytes } from '../evil-peer.ts'
import { arePublishing, takeFrom, trust } from '../network.ts'
import { hasNix, NixClosure, SecondStore } from '../nix-paths.ts'

const MIB = 1024 * 1024
const ROOT_BYTES = 16 * MIB
/** Of each source: a path takes between two and five seconds. */
const RATE = 4 * MIB
/** What was under way when something broke: a window of the slow source, and what the other was asked for meanwhile. */
const AGAIN_BYTES = 4 * MIB
const CASE_MS_MAX = 120_000
const SPOILT_EVERY = 50

describe.skipIf(!hasNix)('while a store path is on its way to Nix', () => {
  let lab: Lab
  let one: RealAgent
  let two: RealAgent
  /** Fetches. */
  let here: RealAgent
  let cases = 0

  beforeAll(async () => {
    lab = await Lab.open()
    const flags = ['--upload-rate', `${RATE}`]
    here = await lab.start({ name: 'here', flags: ['--http', `127.0.0.1:${await freePort()}`] })
    const bootstrap = [await here.address()]
    const start = (name: string) => lab.start({ name, bootstrap, flags })
    ;[one, two] = await Promise.all([start('one'), start('two')])
    await trust(here, one)
    await trust(here, two)
  }, CASE_MS_MAX)
  afterAll(() => lab?.[Symbol.asyncDispose]())

  const content = async (agent: RealAgent): Promise<Status['content']> => (await agent.status()).content

  /** A new closure that these publish, on its way to a store of its own, and already there in part. */
  async function begun(publishers: RealAgent[], prepare?: (closure: NixClosure, name: string) => Promise<unknown>) {
    const name = `app-${cases++}`
    const stack = new AsyncDisposableStack()
    const closure = stack.use(await NixClosure.make({ paths: 2, bytesInRoot: ROOT_BYTES }))
    await prepare?.(closure, name)
    for (const publisher of publishers) await publisher.json('publish', closure.root, '--name', name)
    await arePublishing(here, name, publishers.length + (prepare ? 1 : 0))
    const store = stack.use(await SecondStore.make())
    const before = (await content(here)).fetchedBytes
    const realised = store.realise(closure.root, await takeFrom(here))
    const fetched = async () => (await content(here)).fetchedBytes - before
    const isUnderWay = async (bytes = ROOT_BYTES / 4) => {
      await until(async () => (await fetched()) > bytes, { what: 'a part of it is here', ms: CASE_MS_MAX, everyMs: 10 })
      expect(await fetched()).toBeLessThan(ROOT_BYTES)
    }
    const succeeds = async () => {
      const { ok, stderr } = await realised
      expect(ok, `${stderr}\n${here.log.slice(-30).join('\n')}`).toBe(true)
      // It had to ask again where the agent was away; but it was never given anything wrong.
      expect(stderr).not.toMatch(/hash mismatch|corrupt|^error:/m)
      expect(await store.requisites(closure.root)).toEqual(closure.paths)
      expect(await store.verify()).not.toMatch(/modified|error/)
    }
    return { closure, fetched, isUnderWay, succeeds, [Symbol.asyncDispose]: () => stack.disposeAsync() }
  }

  it('one of two sources may be killed', { timeout: CASE_MS_MAX }, async () => {
    await using nix = await begun([one, two])
    await nix.isUnderWay()
    const gave = (await content(two)).servedBytes
    expect(gave).toBeGreaterThan(0)
    await one.end('SIGKILL')
    await nix.succeeds()
    expect(await nix.fetched()).toBeLessThan(ROOT_BYTES + AGAIN_BYTES)
    one = await lab.restart(one)
  })

  it('the only source may be killed and come back', { timeout: CASE_MS_MAX }, async () => {
    await using nix = await begun([one])
    await nix.isUnderWay()
    await one.end('SIGKILL')
    one = await lab.restart(one)
    await nix.succeeds()
    expect(await nix.fetched()).toBeLessThan(ROOT_BYTES + AGAIN_BYTES)
    expect((await content(one)).servedBytes).toBeLessThan(ROOT_BYTES)
  })

  it('the agent that fetches may be killed and started again', { timeout: CASE_MS_MAX }, async () => {
    await using nix = await begun([one, two])
    await nix.isUnderWay(ROOT_BYTES / 2)
    const before = await nix.fetched()
    await here.end('SIGKILL')
    here = await lab.restart(here)
    await nix.succeeds()
    const { fetchedBytes } = await content(here)
    expect(fetchedBytes).toBeGreaterThan(0)
    expect(before + fetchedBytes).toBeLessThan(ROOT_BYTES + AGAIN_BYTES)
  })

  /** A peer whose word counts as much as that of the others, and who answers so for the closure's large NAR. */
  async function beside(
    closure: NixClosure,
    name: string,
    lie: (bytes: Uint8Array, digest: string, evil: EvilPeer) => PieceHolder,
  ) {
    const evil = await EvilPeer.start({ bootstrap: await here.address() })
    await here.json('trust', 'add', evil.cacheKey.publicKey.text)
    const nar = (await evil.publish(closure.root, name)).get(closure.root)
    if (nar === undefined) throw new Error('the closure has its root')
    evil.lie(nar.digest, lie(nar.bytes, nar.digest, evil))
    return Object.assign(evil, { digest: nar.digest })
  }

  const warned = async (code: string, peerId: string) => {
    const { warnings } = await here.status()
    return warnings.filter((one) => one.code === code && one.message.includes(peerId)).map(({ message }) => message)
  }

  it('a source may spoil one piece in fifty: it is named and not asked again', { timeout: CASE_MS_MAX }, async () => {
    let evil: Awaited<ReturnType<typeof beside>> | undefined
    await using nix = await begun([one], async (closure, name) => {
      evil = await beside(closure, name, spoiling)
    })
    await nix.succeeds()
    if (evil === undefined) throw new Error('it was there')
    await using liar = evil
    expect(await warned('peer.fault', liar.peerId)).toEqual([expect.stringMatching(/piece \d+ has another hash/)])
    expect(await nix.fetched()).toBeLessThan(ROOT_BYTES + AGAIN_BYTES)
    // It gave what was right before, which was kept.
    expect(liar.asked.get(liar.digest)).toBeGreaterThan(1)
    expect((await content(one)).servedBytes).toBeGreaterThan(0)
  })

  it('a source may stop in the middle and say nothing', { timeout: CASE_MS_MAX }, async () => {
    let evil: Awaited<ReturnType<typeof beside>> | undefined
    await using nix = await begun([one], async (closure, name) => {
      evil = await beside(closure, name, (bytes) => stalling(holderOfBytes(bytes), 3))
    })
    await nix.succeeds()
    await using _staller = evil
    expect(await nix.fetched()).toBeLessThan(ROOT_BYTES + AGAIN_BYTES)
  })

  it('a source may sign a false piece list: what it signed is kept', { timeout: CASE_MS_MAX }, async () => {
    let evil: Awaited<ReturnType<typeof beside>> | undefined
    await using nix = await begun([one], async (closure, name) => {
      evil = await beside(closure, name, (bytes, digest, { key }) => {
        const holder = holderOfBytes(altered(bytes))
        const about = { network: fromHex(OPEN_NETWORK_ID), digest: fromHex(digest), issued: Date.now() }
        const hashes: PieceHolder['hashes'] = async (...request) => {
          const answer = await holder.hashes(...request)
          return 'error' in answer ? answer : { ...answer, signed: signList({ ...about, ...answer }, key) }
        }
        return { ...holder, hashes }
      })
    })
    await nix.succeeds()
    if (evil === undefined) throw new Error('it was there')
    await using liar = evil
    const lied = [expect.stringMatching(/signed a false piece list of \/nix\/store\/.*-undernet-test/)]
    expect(await warned('peer.lied', liar.peerId)).toEqual(lied)
    const [entry] = here.logged('blob.lie')
    expect(entry).toMatchObject({ peerId: liar.peerId, digest: liar.digest, signed: expect.any(String) })
    expect(await nix.fetched()).toBeLessThan(ROOT_BYTES + AGAIN_BYTES)
    expect((await here.run('audit')).stdout).toMatch(/peer\.lied .* in open: a false piece list of [0-9a-f]{64}/)
    here = await lab.restart(here)
    expect(await warned('peer.lied', liar.peerId)).toHaveLength(1)
  })
})

/** Spoils one piece in fifty of those that it gives, whichever it is asked for: first the second. */
function spoiling(bytes: Uint8Array): PieceHolder {
  const wrong = Uint8Array.from(bytes)
  for (let at = 0; at < wrong.byteLength; at += PIECE_BYTES) wrong[at] = (wrong[at] ?? 0) ^ 1
  const [honest, spoilt] = [holderOfBytes(bytes), holderOfBytes(wrong, bytes)]
  let given = 0
  return { ...honest, get: (...request) => (given++ % SPOILT_EVERY === 1 ? spoilt : honest).get(...request) }
}

/** Gives a few times, and then takes every question for pieces and answers none. */
function stalling(holder: PieceHolder, gets: number): PieceHolder {
  let given = 0
  return {
    ...holder,
    get: (...request) => (given++ < gets ? holder.get(...request) : new Promise(() => undefined)),
  }
}
