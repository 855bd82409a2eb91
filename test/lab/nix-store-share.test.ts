/**
 * A node gives out its whole Nix store in a network, and has published nothing: what others get of it, what they don't, and how soon they
 * know. Real agents, real Nix, one Nix store on the machine that each agent sees as its own.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { NetworkDetail } from '../../agent/api/membership-contract.ts'
import type { ShareView } from '../../agent/api/share-contract.ts'
import { type RealAgent, until } from '../agents.ts'
import { invite, joinWith, Lab, refuses, says } from '../cluster/members.ts'
import { takeFrom, trust } from '../network.ts'
import { hasNix, NixClosure, SecondStore } from '../nix-paths.ts'

const POLICY = `
[[grants]]
from = "*"
to = "*"
allow = ["content:fetch", "content:publish"]

[[grants]]
from = "name:builder"
to = "*"
allow = ["content:sign"]

[[grants]]
from = "name:twin"
to = "*"
allow = ["content:sign"]
`
/** From a build to the answer elsewhere: a look a second, a second until it is said, and the way; and a busy machine. */
const FOUND_MS_MAX = 20_000
const NOBODY_HAS = '0'.repeat(32)

describe.skipIf(!hasNix)('a Nix store that is given out', () => {
  let lab: Lab
  let builder: RealAgent
  let laptop: RealAgent
  let outsider: RealAgent
  let closure: NixClosure
  beforeAll(async () => {
    lab = await Lab.open()
    const flags = ['--no-open']
    builder = await lab.start({ name: 'builder', flags })
    const bootstrap = [await builder.address()]
    laptop = await lab.start({ name: 'laptop', flags, bootstrap })
    outsider = await lab.start({ name: 'outsider', flags, bootstrap })
    await says(builder, 'network', 'create', 'home')
    await says(builder, 'network', 'create', 'work')
    await says(builder, 'policy', 'set', lab.file('policy.toml', POLICY), '--network', 'home')
    await says(builder, 'policy', 'set', lab.file('work.toml', POLICY), '--network', 'work')
    await joinWith(laptop, await invite(builder, '--network', 'home'))
    await joinWith(outsider, await invite(builder, '--network', 'work'))
    closure = await NixClosure.make({ paths: 5, bytesInRoot: 3_000_000 })
  })
  afterAll(async () => {
    await closure?.[Symbol.asyncDispose]()
    await lab?.[Symbol.asyncDispose]()
  })

  /** What an agent answers its Nix for a path. */
  async function narinfo(who: RealAgent, path: string): Promise<{ status: number; text: string }> {
    const [url = ''] = (await takeFrom(who)).substituters
    const hashPart = path.slice(path.lastIndexOf('/') + 1).slice(0, 32)
    const reply = await fetch(`${url}/${hashPart}.narinfo`)
    return { status: reply.status, text: await reply.text() }
  }
  const answers = async (who: RealAgent, path: string, status: number) =>
    await until(async () => (await narinfo(who, path)).status === status, {
      what: () => `${who.name} answers ${status} for ${path}: ${who.log.slice(-5).join('\n')}`,
      ms: FOUND_MS_MAX,
      everyMs: 50,
    })

  it('is not before somebody says so', async () => {
    expect((await narinfo(laptop, closure.root)).status).toBe(404)
    expect(await builder.json<NetworkDetail>('network', 'show', 'home')).toMatchObject({ share: 'published' })
    expect(await refuses(builder, 'network', 'share', 'home', 'everything')).toContain('`store`')
  })

  it('is had by members, whole and signed', async () => {
    const said = await says(builder, 'network', 'share', 'home', 'store')
    expect(said).toContain('Members of home can have the Nix store of this machine')
    await answers(laptop, closure.root, 200)
    const { text } = await narinfo(laptop, closure.root)
    expect(text).toContain(`StorePath: ${closure.root}\n`)
    await using store = await SecondStore.make()
    const { ok, stderr } = await store.realise(closure.root, await takeFrom(laptop))
    expect(ok, stderr).toBe(true)
    expect(await store.requisites(closure.root)).toEqual([...closure.paths])
    expect(await store.verify()).not.toContain('modified')
    const share = await builder.json<ShareView>('network', 'share', 'home')
    expect(share.paths).toBeGreaterThanOrEqual(closure.paths.length)
    expect((await says(builder, 'network', 'show', 'home')).replaceAll(/ +/g, ' ')).toContain('Gives out the Nix store')
    // Nothing was published, and nothing stored twice.
    expect((await builder.status()).artifacts.own).toBe(0)
    expect((await builder.status()).content.bytes).toBe(0)
  })

  it('shows what is built later within seconds, and never what is private, which is as if it were not there', async () => {
    await using secret = await NixClosure.make({ paths: 1, name: 'team-secrets' })
    const startMs = performance.now()
    await using later = await NixClosure.make({ paths: 2 })
    const builtMs = performance.now()
    await answers(laptop, later.root, 200)
    console.log(`built in ${ms(builtMs - startMs)} ms, found elsewhere ${ms(performance.now() - builtMs)} ms later`)
    // Registered before what was found.
    expect(await narinfo(laptop, secret.root)).toEqual(await narinfo(laptop, `/nix/store/${NOBODY_HAS}-x`))
    await using store = await SecondStore.make()
    expect((await store.realise(secret.root, await takeFrom(laptop))).ok).toBe(false)
  })

  it('loses what is deleted at once', async () => {
    const gone = await NixClosure.make({ paths: 1 })
    await answers(laptop, gone.root, 200)
    await gone[Symbol.asyncDispose]()
    await answers(laptop, gone.root, 404)
    await using store = await SecondStore.make()
    expect((await store.realise(gone.root, await takeFrom(laptop))).ok).toBe(false)
  })

  it('is nothing to another network of the same node', async () => {
    expect((await narinfo(outsider, closure.root)).status).toBe(404)
    await using store = await SecondStore.make()
    expect((await store.realise(closure.root, await takeFrom(outsider))).ok).toBe(false)
    expect(await builder.json<NetworkDetail>('network', 'show', 'work')).toMatchObject({ share: 'published' })
  })

  it('comes from others who have the same when one is gone, and from nobody when it is given out no more', async () => {
    const twin = await lab.start({ name: 'twin', flags: ['--no-open'], bootstrap: [await laptop.address()] })
    await joinWith(twin, await invite(builder, '--network', 'home'))
    await says(twin, 'network', 'share', 'home', 'store')
    // Both give it out now.
    await using shared = await NixClosure.make({ paths: 1 })
    await answers(laptop, shared.root, 200)
    await says(builder, 'network', 'share', 'home', 'published')
    await using later = await NixClosure.make({ paths: 2, bytesInRoot: 1_000_000 })
    await answers(laptop, shared.root, 200)
    await answers(laptop, later.root, 200)
    await using store = await SecondStore.make()
    const { ok, stderr } = await store.realise(later.root, await takeFrom(laptop))
    expect(ok, stderr).toBe(true)
    expect((await twin.status()).content.servedBytes).toBeGreaterThan(1_000_000)
    await says(twin, 'network', 'share', 'home', 'published')
    await answers(laptop, closure.root, 404)
    // Who leaves takes it along, and begins anew as everybody does.
    await says(twin, 'network', 'share', 'home', 'store')
    await answers(laptop, closure.root, 200)
    await says(twin, 'network', 'leave', 'home', '--yes')
    await answers(laptop, closure.root, 404)
    await joinWith(twin, await invite(builder, '--network', 'home'))
    expect(await says(twin, 'network', 'share', 'home')).toContain('what this machine published there')
  })

  it('is everybody’s in the open network, when that was said by name', async () => {
    const a = await lab.start({ name: 'a' })
    const b = await lab.start({ name: 'b', bootstrap: [await a.address()] })
    expect(await refuses(a, 'network', 'share', 'open', 'store')).toContain('everybody')
    await says(a, 'network', 'share', 'open', 'store', '--yes')
    expect((await a.status()).warnings.map(({ code }) => code)).toContain('share.open')
    const take = await trust(b, a)
    await answers(b, closure.root, 200)
    await using store = await SecondStore.make()
    const { ok, stderr } = await store.realise(closure.root, take)
    expect(ok, stderr).toBe(true)
    expect((await a.status()).content.servedBytes).toBeGreaterThan(3_000_000)
  })
})

function ms(duration: number): string {
  return duration.toFixed(0)
}
