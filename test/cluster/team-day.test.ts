/**
 * A day of a team that has no cache server, with the commands that people type and the real Nix: the builder builds and publishes, three
 * colleagues install, the builder goes home, and who comes late has it from the colleagues. And what one of them takes from a cache on the
 * internet (here nginx) the others take from him.
 */
import { rmSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { NixConfView, SearchResult } from '../../agent/api/contract.ts'
import type { ContentList } from '../../agent/api/room-contract.ts'
import { StaticCache } from '../../bench/static-cache.ts'
import { type RealAgent, until } from '../agents.ts'
import { takeFrom } from '../network.ts'
import { hasNix, NixClosure, SecondStore } from '../nix-paths.ts'
import { allSee, invite, joinWith, Lab, SOON_MS_MAX, says } from './members.ts'

const TEAM = ['ann', 'bob', 'cyd']

describe.skipIf(!hasNix)('a day of a team', () => {
  let lab: Lab
  let builder: RealAgent
  let team: RealAgent[]
  let builderKey: string
  /** Gone at the end of the day. */
  const made = new AsyncDisposableStack()
  let cache: StaticCache | undefined
  /** What the builder makes, and what is on the internet. */
  let tools: NixClosure
  let compiler: NixClosure

  beforeAll(async () => {
    lab = await Lab.open()
    made.use(lab)
    tools = made.use(await NixClosure.make({ paths: 8, bytesEach: 40_000, bytesInRoot: 2_000_000, name: 'tools' }))
    compiler = made.use(
      await NixClosure.make({ paths: 6, bytesEach: 40_000, bytesInRoot: 1_000_000, name: 'compiler' }),
    )
    cache = await StaticCache.make(compiler.root)
    if (cache) made.use(cache)
    builder = await lab.start({ name: 'builder', flags: ['--no-open'] })
  })
  afterAll(() => made.disposeAsync())

  /** A colleague's machine: it joins with a token, believes what the builder signs, and asks the cache on the internet last. */
  async function joins(name: string, knows: RealAgent): Promise<RealAgent> {
    const upstream = cache ? ['--upstreams', cache.url, '--trusted-keys', cache.publicKey] : []
    const agent = await lab.start({ name, flags: ['--no-open', ...upstream], bootstrap: [await knows.address()] })
    await joinWith(agent, await invite(knows))
    return agent
  }

  /** `nix-store --realise` on that machine, which has a store of its own; once more when somebody who is asked has just gone. */
  async function installs(agent: RealAgent, { root, paths }: NixClosure): Promise<void> {
    await using store = await SecondStore.make()
    let said = ''
    const isThere = async () => {
      const { ok, stderr } = await store.realise(root, await takeFrom(agent))
      said = stderr
      if (!ok) await store.forgetAnswers()
      return ok
    }
    await until(isThere, {
      what: () => `${agent.name} installs ${root}: ${said}\n${agent.log.slice(-20).join('\n')}`,
      ms: SOON_MS_MAX,
    })
    expect(await store.requisites(root)).toEqual(paths)
    expect(await store.verify()).not.toMatch(/modified|error|disappeared/)
  }

  async function finds(agent: RealAgent, name: string): Promise<void> {
    const found = async () => (await agent.client.get<SearchResult>('search', { q: name })).artifacts.length > 0
    await until(found, { what: `${agent.name} finds ${name}`, ms: SOON_MS_MAX })
  }

  it('in the morning: the builder makes the network, the team joins it with a token each, and Ann may let others in', async () => {
    await says(builder, 'network', 'create', 'team')
    team = await Promise.all(TEAM.map((name) => joins(name, builder)))
    await allSee([builder, ...team], ['builder', ...TEAM])
    await says(builder, 'network', 'delegate', 'team', 'ann')
  })

  it('the builder publishes what it built, and each of the team installs it', async () => {
    await says(builder, 'publish', tools.root, '--name', 'tools', '--network', 'team')
    builderKey = (await builder.client.get<NixConfView>('nix-conf')).publicKey
    for (const colleague of team) {
      await says(colleague, 'trust', 'add', builderKey)
      await finds(colleague, 'tools')
    }
    await Promise.all(team.map((colleague) => installs(colleague, tools)))
  })

  it('one of them needs a compiler from the internet, and the others have it from that one', async () => {
    if (!cache) return console.warn('nginx is not installed: nothing is on the internet')
    const [ann, bob, cyd] = team as [RealAgent, RealAgent, RealAgent]
    await installs(ann, compiler)
    // From now on the cache says what it knows, and gives nothing.
    rmSync(cache.nars, { recursive: true })
    await installs(bob, compiler)
    await installs(cyd, compiler)
  })

  it('in the evening the builder is switched off, and who comes late has all of it from the others', async () => {
    const [ann] = team as [RealAgent]
    await lab.end(builder)
    const dan = await joins('dan', ann)
    await says(dan, 'trust', 'add', builderKey)
    await finds(dan, 'tools')
    await installs(dan, tools)
    if (cache) await installs(dan, compiler)
    const given = await Promise.all(team.map((colleague) => colleague.json<ContentList>('content')))
    const served = given.flatMap(({ items }) => items).filter(({ served: { bytes } }) => bytes > 0)
    expect(served.map(({ what }) => what)).toContain(tools.root)
  })
})
