/**
 * A peer that lies, real agents, and the real Nix: whatever the lie, nothing of it reaches the store, `agent status`, the log and the
 * command say who told it and what it was, and with an honest peer beside the liar the same command succeeds.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { SearchResult } from '../../agent/api/contract.ts'
import type { PieceHolder } from '../../protocols/pieces/exchange.ts'
import { Bundle, type RealAgent, until } from '../agents.ts'
import { altered, EvilPeer, hanging, holderOfBytes } from '../evil-peer.ts'
import { arePublishing, Network, takeFrom, trust } from '../network.ts'
import { hasNix, NixClosure, SecondStore } from '../nix-paths.ts'

/** A narinfo that takes longer makes Nix fail whole commands. */
const NARINFO_MS_MAX = 2_000
/** A root of several pieces among paths of one: lies about either kind show differently. */
const ROOT_BYTES = 1_000_000

type Lie = {
  does: string
  /** What status, log and command say after the peer's id. */
  reason: RegExp
  /** Of `agent get`. */
  code: number
  tell(evil: EvilPeer, root: string): Promise<unknown>
  /** Whether the liar's own key is trusted: otherwise nobody believes him in the first place. */
  isTrusted?: false
  /** Whether the honest artifact is another by its CID, so that its name has to say whose it is. */
  isOtherContent?: true
}

const lies: Lie[] = [
  {
    does: 'sends altered NARs, with honest piece hashes',
    reason: /has another hash than it said/,
    code: 1,
    tell: (evil, root) => publishWith(evil, root, (bytes) => holderOfBytes(altered(bytes), bytes)),
  },
  {
    does: 'sends altered NARs, with piece hashes that fit them',
    reason: /do not make up the blob|has another hash than it said/,
    code: 1,
    tell: (evil, root) => publishWith(evil, root, (bytes) => holderOfBytes(altered(bytes))),
  },
  {
    does: 'sends NARs that are longer than they should be',
    reason: /it has \d+ bytes(, more than the \d+ that are wanted| in place of \d+)/,
    code: 5,
    tell: (evil, root) => publishWith(evil, root, (bytes) => holderOfBytes(Buffer.concat([bytes, Buffer.alloc(8)]))),
  },
  {
    does: 'sends NARs that are cut short',
    reason: /it has \d+ bytes in place of \d+/,
    code: 5,
    tell: (evil, root) => publishWith(evil, root, (bytes) => holderOfBytes(bytes.subarray(0, -8))),
  },
  {
    does: 'forges narinfos: other NARs, under the signatures of the honest ones',
    reason: /its signature by .* is not one over what the peer says/,
    code: 1,
    isOtherContent: true,
    tell: (evil, root) =>
      evil.publish(root, 'app', (manifest) => {
        const [first] = manifest.paths
        for (const entry of manifest.paths) Object.assign(entry, { nar: first?.nar, sizeBytes: first?.sizeBytes })
        return manifest
      }),
  },
  {
    does: 'signs with a key that nobody here trusts',
    reason: /it is signed by .*, which this agent does not trust/,
    code: 4,
    isTrusted: false,
    tell: (evil, root) => evil.publish(root, 'app'),
  },
  {
    does: 'says that it signed with a trusted key',
    reason: /its signature by .* is not one over what the peer says/,
    code: 1,
    tell: (evil, root) =>
      evil.publish(root, 'app', undefined, (all) =>
        all.map((list) => list.map((one) => `${one.split(':')[0]}:${Buffer.alloc(64, 7).toString('base64')}`)),
      ),
  },
]

describe.skipIf(!hasNix)('a peer that lies to the real Nix', () => {
  let bundle: Bundle
  let closure: NixClosure
  beforeAll(async () => {
    bundle = await Bundle.build()
    closure = await NixClosure.make({ paths: 5, bytesInRoot: ROOT_BYTES })
  })
  afterAll(async () => {
    await closure?.[Symbol.asyncDispose]()
    bundle?.[Symbol.dispose]()
  })

  /** An honest agent, one that wants something, and the liar. */
  async function network() {
    const stack = new AsyncDisposableStack()
    const { agents } = stack.use(await Network.start(['honest', 'b'], { entry: bundle.entry, env: bundle.env }))
    const [honest, b] = agents as [RealAgent, RealAgent]
    const evil = stack.use(await EvilPeer.start({ bootstrap: await b.address() }))
    const store = stack.use(await SecondStore.make())
    await trust(b, honest)
    const realise = async () => {
      await store.forgetAnswers()
      return await store.realise(closure.root, await takeFrom(b))
    }
    return { honest, b, evil, store, realise, [Symbol.asyncDispose]: () => stack.disposeAsync() }
  }

  it.each(lies)('that $does is refused and named, and an honest one beside it is believed', async (lie) => {
    await using all = await network()
    const { honest, b, evil, store, realise } = all
    if (lie.isTrusted !== false) await b.json('trust', 'add', evil.cacheKey.publicKey.text)
    await lie.tell(evil, closure.root)
    await arePublishing(b, 'app', 1)

    const refused = await realise()
    expect(refused.ok).toBe(false)
    const got = await b.run('get', 'app', '--to', store.directory)
    expect(got.stderr).toMatch(named(evil, lie.reason))
    expect(got.stderr).not.toMatch(/^ {4}at /m)
    expect(got.code).toBe(lie.code)
    const { stdout } = await b.run('status')
    expect(stdout).toMatch(named(evil, lie.reason))
    const logged = b.log.filter((line) => line.includes('"warn"')).join('\n')
    expect(logged).toMatch(new RegExp(`${evil.peerId}.*${lie.reason.source}`))
    for (const path of closure.paths) expect(store.has(path), path).toBe(false)
    await expect(store.requisites(closure.root)).rejects.toThrow(/not valid/)

    await honest.json('publish', closure.root, '--name', 'app')
    await arePublishing(b, 'app', 2)
    const { ok, stderr } = await realise()
    expect(ok, stderr).toBe(true)
    expect(await store.requisites(closure.root)).toEqual(closure.paths)
    expect(await store.verify()).not.toMatch(/modified|error/)
    const ref = lie.isOtherContent ? 'honest/app' : 'app'
    await b.json('get', ref, '--to', store.place('got'))
  })

  it.each([
    ['for NARs', async (evil: EvilPeer) => await publishWith(evil, closure.root, () => hanging)],
    [
      'for anything',
      async (evil: EvilPeer) => {
        evil.lieAboutAll(hanging)
        await evil.publish(closure.root, 'app')
      },
    ],
  ])('that takes the question %s and never answers does not keep the command from its success', async (_what, hang) => {
    await using all = await network()
    const { honest, b, evil, store, realise } = all
    await b.json('trust', 'add', evil.cacheKey.publicKey.text)
    await hang(evil)
    await honest.json('publish', closure.root, '--name', 'app')
    await arePublishing(b, 'app', 2)
    const { ok, stderr, ms } = await realise()
    expect(ok, stderr).toBe(true)
    expect(await store.verify()).not.toMatch(/modified|error/)
    console.log(`${closure.paths.length} paths beside a peer that hangs: ${ms.toFixed(0)} ms`)
  })

  it('that does not even give the manifest is a 404 in time, and no hindrance beside an honest one', async () => {
    await using all = await network()
    const { honest, b, evil, realise } = all
    await b.json('trust', 'add', evil.cacheKey.publicKey.text)
    evil.lieAboutAll(hanging)
    await evil.publish(closure.root, 'app')
    await arePublishing(b, 'app', 1)
    const [url = ''] = (await takeFrom(b)).substituters
    const startMs = performance.now()
    const { status } = await fetch(`${url}/${closure.root.slice('/nix/store/'.length).slice(0, 32)}.narinfo`)
    const tookMs = performance.now() - startMs
    console.log(`narinfo of a peer that hangs: 404 after ${tookMs.toFixed(0)} ms`)
    expect(status).toBe(404)
    expect(tookMs).toBeLessThan(NARINFO_MS_MAX)
    await honest.json('publish', closure.root, '--name', 'app')
    await until(async () => (await b.json<SearchResult>('search', 'app')).artifacts[0]?.publisher.name === 'honest', {
      what: 'b knows of the honest one',
    })
    const { ok, stderr } = await realise()
    expect(ok, stderr).toBe(true)
  })

  it('and hangs is named by the command that waited for it', async () => {
    await using all = await network()
    const { b, evil, store } = all
    await b.json('trust', 'add', evil.cacheKey.publicKey.text)
    const nars = await evil.publish(closure.root, 'app')
    for (const { digest } of nars.values()) evil.lie(digest, hanging)
    await arePublishing(b, 'app', 1)
    const got = await b.run('get', 'app', '--to', store.directory)
    expect(got.code).toBe(5)
    expect(got.stderr).toMatch(named(evil, /nothing came for \d+ s/))
  })
})

async function publishWith(evil: EvilPeer, root: string, holder: (bytes: Uint8Array) => PieceHolder): Promise<void> {
  for (const { digest, bytes } of (await evil.publish(root, 'app')).values()) evil.lie(digest, holder(bytes))
}

/** On one line or two: people's terminals are narrow, and the message is not. */
function named({ peerId }: EvilPeer, reason: RegExp): RegExp {
  return new RegExp(`${peerId}[^]*${reason.source}`)
}
