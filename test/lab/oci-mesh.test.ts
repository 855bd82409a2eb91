/**
 * Images between nodes with real parts: skopeo pushes to one agent and pulls from another; Debian's docker-registry is the upstream. Three agents
 * in one network do for all of it.
 */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { SearchResult } from '../../agent/api/contract.ts'
import type { ImageDetail, ImageHistory, ImageList } from '../../agent/api/image-contract.ts'
import type { PolicyView } from '../../agent/api/membership-contract.ts'
import { DockerRegistry } from '../../bench/docker-registry.ts'
import { parsePolicy } from '../../protocols/membership/policy-text.ts'
import { type RealAgent, until } from '../agents.ts'
import { invite, joinWith, Lab, says } from '../cluster/members.ts'
import {
  copy,
  imageAt,
  isInstalled,
  type LocalImage,
  MANIFEST_TYPE,
  signer,
  skopeo,
  WayToRegistry,
  writeImage,
} from '../images.ts'
import { pattern } from '../protocols/pieces/pattern.ts'

const MIB = 2 ** 20
const SOON = { ms: 30_000, everyMs: 50 }
/** Long enough that no test asks twice by itself. */
const FRESH = '1h'

describe.skipIf(!isInstalled('skopeo') || !isInstalled('docker-registry'))('images', () => {
  let lab: Lab
  let registry: DockerRegistry
  let way: WayToRegistry
  let closedWay: WayToRegistry
  let a: RealAgent
  let b: RealAgent
  let c: RealAgent
  const ci = signer()
  const urls = new Map<RealAgent, string>()
  const at = (agent: RealAgent, reference: string) => imageAt(urls.get(agent) ?? '', reference)
  const api = (agent: RealAgent, path: string, init?: RequestInit) => fetch(`${urls.get(agent)}/v2/${path}`, init)
  const image = (name: string, seed: number, labels: Record<string, string> = {}): LocalImage =>
    writeImage(lab.path(name), { layers: [pattern(3 * MIB + seed, seed), pattern(1_000, seed + 1)], labels })
  const digestAt = async (agent: RealAgent, name: string, tag: string) =>
    (await api(agent, `${name}/manifests/${tag}`, { method: 'HEAD' })).headers.get('docker-content-digest')
  const means = (agent: RealAgent, name: string, tag: string, digest: string | null) =>
    until(async () => (await digestAt(agent, name, tag)) === digest, {
      ...SOON,
      what: () => `${name}:${tag} is ${digest} on ${agent.name}:\n${agent.log.slice(-20).join('\n')}`,
    })

  beforeAll(async () => {
    lab = await Lab.open()
    const started = await DockerRegistry.start()
    if (started === undefined) throw new Error('no docker-registry')
    registry = started
    way = await WayToRegistry.open(registry.url)
    closedWay = await WayToRegistry.open(registry.url, { login: 'me:secret' })
    const host = closedWay.url.replace('http://', '')
    const auth = lab.file(
      'auth.json',
      JSON.stringify({ auths: { [host]: { auth: Buffer.from('me:secret').toString('base64') } } }),
    )
    const registries = [`${way.url}?prefix=docker.io`, `${closedWay.url}?prefix=closed.example`]
    const key = lab.file('ci.pub', ci.publicPem)
    const common = [
      '--no-open',
      '--image-keys',
      key,
      '--registry-fresh',
      FRESH,
      ...registries.flatMap((url) => ['--registries', url]),
    ]
    a = await lab.start({ name: 'a', flags: [...common, '--registry-auth', auth] })
    await says(a, 'network', 'create', 'home')
    const bootstrap = [await a.address()]
    // Those have no credentials.
    const flags = [...common, '--registry-auth', lab.path('none.json')]
    ;[b, c] = await Promise.all([
      lab.start({ name: 'b', flags, bootstrap }),
      lab.start({ name: 'c', flags, bootstrap }),
    ])
    for (const agent of [b, c]) await joinWith(agent, await invite(a))
    for (const agent of [a, b, c]) {
      await until(async () => (await agent.status()).peers.length === 2, { ...SOON, what: 'all members are connected' })
      urls.set(agent, (await agent.status()).http ?? '')
    }
  })
  afterAll(async () => {
    await way?.[Symbol.asyncDispose]()
    await closedWay?.[Symbol.asyncDispose]()
    await registry?.[Symbol.asyncDispose]()
    await lab?.[Symbol.asyncDispose]()
  })

  const grantsOf = async (agent: RealAgent) =>
    parsePolicy((JSON.parse(await says(agent, 'policy', 'show', '--json')) as PolicyView).text)
  /** Every byte is what it was. */
  async function pulls(agent: RealAgent, reference: string, expected: LocalImage): Promise<void> {
    const directory = lab.path(`pulled-${Math.random().toString(36).slice(2)}`)
    await copy(at(agent, reference), `dir:${directory}`).catch((error: Error) => {
      throw new Error(`${error.message}\n${agent.log.slice(-10).join('\n')}`, { cause: error })
    })
    expect(readFileSync(join(directory, 'manifest.json')).equals(expected.manifest)).toBe(true)
    for (const digest of (JSON.parse(String(expected.manifest)) as { layers: { digest: string }[] }).layers.map(
      (one) => one.digest,
    )) {
      const hex = digest.slice('sha256:'.length)
      expect(
        readFileSync(join(directory, hex)).equals(readFileSync(join(expected.directory, 'blobs', 'sha256', hex))),
      ).toBe(true)
    }
  }

  /** As cosign pushes a signature that belongs to an image. */
  async function sign(agent: RealAgent, name: string, digest: string, by: ReturnType<typeof signer>): Promise<void> {
    const { payload, signature } = by.sign(digest)
    const put = async (bytes: Uint8Array) => {
      const named = `sha256:${createHash('sha256').update(bytes).digest('hex')}`
      const answer = await api(agent, `${name}/blobs/uploads/?digest=${named}`, {
        method: 'POST',
        body: Uint8Array.from(bytes),
      })
      expect(answer.status, await answer.text()).toBe(201)
      return { digest: named, size: bytes.byteLength }
    }
    const annotations = { 'dev.cosignproject.cosign/signature': signature }
    const type = 'application/vnd.dev.cosign.artifact.sig.v1+json'
    const subject = { mediaType: MANIFEST_TYPE, digest, size: 1 }
    const layer = {
      mediaType: 'application/vnd.dev.cosign.simplesigning.v1+json',
      ...(await put(payload)),
      annotations,
    }
    const config = { mediaType: 'application/vnd.oci.empty.v1+json', ...(await put(Buffer.from('{}'))) }
    const manifest = {
      schemaVersion: 2,
      mediaType: MANIFEST_TYPE,
      artifactType: type,
      config,
      layers: [layer],
      subject,
    }
    const bytes = Buffer.from(JSON.stringify(manifest))
    const place = `${name}/manifests/sha256:${createHash('sha256').update(bytes).digest('hex')}`
    const answer = await api(agent, place, { method: 'PUT', headers: { 'content-type': MANIFEST_TYPE }, body: bytes })
    expect(answer.status, await answer.text()).toBe(201)
  }

  it('pushed to one node are pulled from another, by tag and by digest, also when the one that pushed is gone', async () => {
    const app = image('app', 1, { version: '1' })
    await copy(`oci:${app.directory}`, at(a, 'home/team/app:1'))
    await means(b, 'home/team/app', '1', app.digest)
    await pulls(b, 'home/team/app:1', app)
    await means(c, 'home/team/app', '1', app.digest)
    a.signal('SIGSTOP')
    try {
      await pulls(c, `home/team/app@${app.digest}`, app)
    } finally {
      a.signal('SIGCONT')
    }
  })

  it('have tags that move everywhere within seconds, whoever moves them, and are deleted for all', async () => {
    const [one, two] = [image('one', 10), image('two', 20)]
    await copy(`oci:${one.directory}`, at(a, 'home/moving:1'))
    await means(b, 'home/moving', '1', one.digest)
    const startMs = performance.now()
    await copy(`oci:${two.directory}`, at(b, 'home/moving:1'))
    for (const agent of [a, b, c]) await means(agent, 'home/moving', '1', two.digest)
    console.log(`a tag pushed by another node: ${(performance.now() - startMs).toFixed(0)} ms until all three see it`)
    await pulls(a, 'home/moving:1', two)
    // What a digest means does not change.
    await pulls(c, `home/moving@${one.digest}`, one)
    expect((await api(c, 'home/moving/tags/list').then((answer) => answer.json())) as unknown).toEqual({
      name: 'home/moving',
      tags: ['1'],
    })
    expect((await api(c, 'home/moving/manifests/1', { method: 'DELETE' })).status).toBe(202)
    for (const agent of [a, b, c]) await means(agent, 'home/moving', '1', null)
  })

  it('are listed, searched and shown with what they are, who has them and who signed them', async () => {
    const signed = image('signed', 70, { 'org.opencontainers.image.title': 'Zebra crossing' })
    await copy(`oci:${signed.directory}`, at(a, 'home/team/signed:2'))
    await sign(a, 'home/team/signed', signed.digest, ci)
    await sign(a, 'home/team/signed', signed.digest, signer())
    await means(b, 'home/team/signed', '2', signed.digest)
    await pulls(b, 'home/team/signed:2', signed)
    const shown = await until(
      async () => {
        const found = await c.json<ImageDetail>('image', 'show', 'home/team/signed:2')
        return found.signatures.length === 2 && found.holders === 2 ? found : undefined
      },
      { ...SOON, what: 'c knows both signatures, and that two have it' },
    )
    expect(shown).toMatchObject({
      name: 'home/team/signed:2',
      network: 'home',
      digest: signed.digest,
      platforms: ['linux/amd64'],
      labels: { 'org.opencontainers.image.title': 'Zebra crossing' },
      publisher: { name: 'a' },
      own: false,
      here: 'none',
    })
    expect(new Set(shown.signatures.map(({ verified, key }) => `${verified} ${key}`))).toEqual(
      new Set(['false undefined', 'true ci.pub']),
    )
    expect(new Set(shown.heldBy.map(({ name }) => name))).toEqual(new Set(['a', 'b']))
    const found = await c.json<SearchResult>('search', 'zebra', 'arm')
    expect(found.images).toEqual([])
    expect((await c.json<SearchResult>('search', 'zebra', 'amd64')).images).toMatchObject([
      { name: 'home/team/signed:2' },
    ])
    expect(await says(b, 'image', 'ls', 'zebra')).toMatch(/home\/team\/signed:2 .*linux\/amd64.* a .* all .*ci\.pub/)
    const moves = await c.json<ImageHistory>('image', 'history', 'home/moving:1')
    expect(moves.moves.map(({ digest, publisher }) => [digest === null, publisher.name])).toEqual([
      [true, 'c'],
      [false, 'b'],
      [false, 'a'],
    ])
    expect(await says(b, 'image', 'rm', 'home/team/signed:2')).toMatch(/^Deleted home\/team\/signed:2/)
    for (const agent of [a, b, c]) await means(agent, 'home/team/signed', '2', null)
    expect(await says(a, 'oci-conf', 'podman')).toMatch(/location = "127\.0\.0\.1:\d+\/docker\.io"/)
  })

  it('that others may not push to, or pull from, are refused by the policy', async () => {
    const grants = [
      { from: '*', to: '*', allow: ['content:fetch', 'content:publish', 'image:push team/*', 'image:pull team/*'] },
      { from: 'name:a', to: '*', allow: ['image:push *', 'image:pull *'] },
    ]
    const before = await grantsOf(a)
    await says(a, 'policy', 'set', lab.file('policy.json', JSON.stringify({ grants })))
    const secret = image('secret', 30)
    await copy(`oci:${secret.directory}`, at(a, 'home/secret:1'))
    await means(b, 'home/secret', '1', null)
    const pulled = await skopeo('copy', '--src-tls-verify=false', at(b, 'home/secret:1'), `dir:${lab.path('not')}`)
    expect(pulled.code).not.toBe(0)
    const layer = (JSON.parse(String(secret.manifest)) as { layers: { digest: string }[] }).layers[0]?.digest
    expect((await api(b, `home/team/app/blobs/${layer}`)).status).toBe(404)
    expect((await api(b, `home/team/app/manifests/${secret.digest}`)).status).toBe(404)
    const pushed = await skopeo('copy', '--dest-tls-verify=false', `oci:${secret.directory}`, at(b, 'home/other:1'))
    expect(pushed.code).not.toBe(0)
    expect(pushed.stderr).toMatch(/denied|no grant gives image:push other/i)
    await copy(`oci:${secret.directory}`, at(b, 'home/team/other:1'))
    await means(c, 'home/team/other', '1', secret.digest)
    await says(a, 'policy', 'set', lab.file('policy.json', JSON.stringify({ grants: before })))
    await means(b, 'home/secret', '1', secret.digest)
  })

  it('of a registry upstream are fetched once for all, and served when it is gone, marked', async () => {
    const up = image('up', 40)
    await copy(`oci:${up.directory}`, imageAt(registry.url, 'library/up:1'))
    await Promise.all([pulls(b, 'docker.io/library/up:1', up), pulls(c, 'docker.io/library/up:1', up)])
    const sizes = up.layers.reduce((sum, layer) => sum + layer.byteLength, 0)
    console.log(`${(way.sentBytes / sizes).toFixed(2)} copies from upstream for two`)
    expect(way.sentBytes).toBeLessThan(1.2 * sizes)
    // containerd and docker ask so.
    expect((await api(c, 'library/up/manifests/1?ns=docker.io')).headers.get('docker-content-digest')).toBe(up.digest)
    expect((await api(c, 'library/up/manifests/1')).headers.get('docker-content-digest')).toBe(up.digest)
    expect((await api(c, 'library/up/manifests/1?ns=other.example')).status).toBe(404)
    const asked = way.asked.length
    // The answer that others were given is fresh.
    await pulls(a, 'docker.io/up:1', up)
    expect(way.asked.length).toBe(asked)
    // Nothing is kept of what there is no room for.
    const full = await lab.start({
      name: 'full',
      flags: ['--no-open', '--quota', '1MiB', '--registries', `${way.url}?prefix=docker.io`],
    })
    urls.set(full, (await full.status()).http ?? '')
    await pulls(full, 'docker.io/library/up:1', up)
    expect((await full.status()).content.bytes).toBeLessThan(MIB)
    await full.end()
    await way[Symbol.asyncDispose]()
    c = await lab.restart(c, {
      flags: ['--no-open', '--registry-fresh', '0s', '--registries', `${way.url}?prefix=docker.io`],
    })
    urls.set(c, (await c.status()).http ?? '')
    await until(async () => (await c.status()).peers.length === 2, { ...SOON, what: 'c is back' })
    await pulls(c, 'docker.io/library/up:1', up)
    const answer = await api(c, 'docker.io/library/up/manifests/1')
    expect(answer.status).toBe(200)
    expect(answer.headers.get('warning')).toMatch(/docker\.io .*this is what docker\.io said at/)
  })

  it('that were fetched with credentials are given to nobody without a grant', async () => {
    const mine = image('mine', 50)
    await copy(`oci:${mine.directory}`, imageAt(registry.url, 'acme/mine:1'))
    await pulls(a, 'closed.example/acme/mine:1', mine)
    expect((await api(b, 'closed.example/acme/mine/manifests/1')).status).toBeGreaterThanOrEqual(400)
    expect((await api(b, `home/closed.example/acme/mine/manifests/${mine.digest}`)).status).toBe(404)
    const lent = [
      ...(await grantsOf(a)),
      { from: 'name:b', to: 'name:a', allow: ['image:private closed.example/acme/*'] },
    ]
    await says(a, 'policy', 'set', lab.file('lent.json', JSON.stringify({ grants: lent })))
    const other = image('other', 60)
    await copy(`oci:${other.directory}`, imageAt(registry.url, 'acme/other:1'))
    await pulls(a, 'closed.example/acme/other:1', other)
    await until(async () => (await api(b, 'closed.example/acme/other/manifests/1')).ok, {
      ...SOON,
      what: 'b may have it',
    })
    await pulls(b, 'closed.example/acme/other:1', other)
    // Who has no grant has it neither from who fetched it, nor from who was given it.
    await until(async () => (await says(c, 'image', 'ls', 'acme')).includes('acme/other'), {
      ...SOON,
      what: 'c hears of it',
    })
    expect((await api(c, 'home/closed.example/acme/other/manifests/1')).status).toBe(404)
    expect((await api(c, `home/closed.example/acme/other/manifests/${other.digest}`)).status).toBe(404)
    expect(readFileSync(join(a.state, 'state.db')).includes('me:secret')).toBe(false)
  })

  it('in the open network are each publisher’s own, and found by everybody under his key', async () => {
    const one = await lab.start({ name: 'one' })
    const two = await lab.start({ name: 'two', bootstrap: [await one.address()] })
    for (const agent of [one, two]) urls.set(agent, (await agent.status()).http ?? '')
    const [theirs, ours] = [image('theirs', 80), image('ours', 90)]
    await copy(`oci:${theirs.directory}`, at(one, 'open/app:1'))
    await copy(`oci:${ours.directory}`, at(two, 'open/app:1'))
    const found = await until(
      async () => (await two.json<ImageList>('image', 'ls', 'app')).images.find(({ own }) => !own),
      { ...SOON, what: 'two knows the image of one' },
    )
    expect(found.name).toMatch(/^open\/k51[0-9a-z]{59}\/app:1$/)
    await pulls(two, found.name, theirs)
    await pulls(two, 'open/app:1', ours)
    const refused = await skopeo('copy', '--dest-tls-verify=false', `oci:${ours.directory}`, at(two, found.name))
    expect([refused.code === 0, refused.stderr]).toEqual([false, expect.stringContaining('another node')])
  })
})
