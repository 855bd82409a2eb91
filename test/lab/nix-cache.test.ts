/** The real Nix against the binary cache: what it takes, what it refuses, and what it is never made to wait for. */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { contentAddressFits } from '../../agent/nix/content-address.ts'
import { NixStore } from '../../agent/nix/nix-store.ts'
import { CacheKey, isSignedBy, parsePublicKey } from '../../agent/nix/signing.ts'
import { layoutNar } from '../../protocols/nar/write.ts'
import { publisher, Receiver, restate } from '../agent/nix/cache.ts'
import { readAll, sha256 } from '../agent/nix/peers.ts'
import { endedChildrenSeconds, fairClock } from '../agents.ts'
import { dump, hasNix, NixClosure, SecondStore } from '../nix-paths.ts'

describe.skipIf(!hasNix)('with the real Nix', () => {
  const store = NixStore.ofMachine()
  let closure: NixClosure
  beforeAll(async () => {
    closure = await NixClosure.make({ paths: 60, bytesInRoot: 3_000_000 })
  })
  afterAll(async () => closure?.[Symbol.asyncDispose]())

  /** A receiver that knows `closure` from peers, trusting the key that signed it. */
  async function network(names: string[], trusted = true) {
    const here = new Receiver(store)
    const key = CacheKey.ephemeral('builder')
    const publishers = await Promise.all(names.map((name) => publisher(name, store, closure.root, key)))
    if (trusted) here.trust.add(key.publicKey.text)
    const url = await here.listen()
    return { here, publishers, key, take: { substituters: [url], keys: [here.key.publicKey.text] } }
  }

  it('reads its database as its own tools do', async () => {
    const infos = store.closure(closure.root) ?? []
    expect(infos.map(({ path }) => path)).toEqual(closure.paths)
    for (const info of infos.slice(0, 5)) {
      const query = (what: string) =>
        execFileSync('nix-store', ['--query', what, info.path], { encoding: 'utf8' }).trim()
      expect(query('--size')).toBe(`${info.narSize}`)
      expect(query('--references').split('\n').filter(Boolean).sort()).toEqual(info.references)
      expect(sha256(await dump(info.path))).toBe(info.narHash)
      const layout = await layoutNar(info.path)
      expect(sha256(await readAll({ sizeBytes: layout.sizeBytes, read: (...range) => layout.read(...range) }))).toBe(
        info.narHash,
      )
    }
  })

  it('takes a closure of sixty paths from a peer, every byte of it, within two seconds', async () => {
    const { here, publishers, take } = await network(['peer-a'])
    await using _here = here
    for (const each of publishers) here.meet(each)
    await using second = await SecondStore.make()
    const clock = fairClock(endedChildrenSeconds)
    const { ok, stderr } = await second.realise(closure.root, take)
    expect(clock()).toBeLessThan(2_000)
    expect(stderr).not.toContain('error')
    expect(ok).toBe(true)
    for (const path of closure.paths) expect(second.has(path)).toBe(true)
    expect(await second.verify()).not.toMatch(/modified|error/)
    expect(here.substituter.counts.hits).toBeGreaterThanOrEqual(60)
    expect((await dump(second.place(closure.root))).equals(await dump(closure.root))).toBe(true)
  })

  it('takes what this node publishes itself, without a copy of it being kept', async () => {
    const { here, take } = await network([])
    await using _here = here
    await here.publish(closure.root)
    await using second = await SecondStore.make()
    expect(await second.realise(closure.root, take)).toMatchObject({ ok: true })
    expect(here.blobs.blobs.size).toBe(2)
  })

  it('gets nothing that an untrusted key signed, and all of it once the key is trusted', async () => {
    const { here, publishers, key, take } = await network(['peer-a'], false)
    await using _here = here
    for (const each of publishers) here.meet(each)
    await using second = await SecondStore.make()
    expect((await second.realise(closure.root, take)).ok).toBe(false)
    expect(here.faults).toMatchObject([{ peerId: 'peer-a', code: 'untrusted', path: closure.root }])
    expect(closure.paths.some((path) => second.has(path))).toBe(false)
    here.trust.add(key.publicKey.text)
    await second.forgetAnswers()
    expect((await second.realise(closure.root, take)).ok).toBe(true)
  })

  it('gets no forged narinfo, and the honest one from a second publisher', async () => {
    const { here, publishers, take } = await network(['peer-liar', 'peer-honest'])
    await using _here = here
    const [liar, honest] = publishers
    if (!liar || !honest) throw new Error('two publishers')
    await restate(liar, (manifest) => {
      // Another path's contents under this path's name.
      for (const entry of manifest.paths) entry.nar = (manifest.paths[0] ?? entry).nar
      return manifest
    })
    here.meet(liar)
    await using second = await SecondStore.make()
    expect((await second.realise(closure.root, take)).ok).toBe(false)
    expect(here.faults[0]).toMatchObject({ peerId: 'peer-liar', code: 'forged' })
    expect(closure.paths.some((path) => second.has(path))).toBe(false)
    await second.forgetAnswers()
    here.meet(honest)
    expect((await second.realise(closure.root, take)).ok).toBe(true)
    expect(await second.verify()).not.toMatch(/modified|error/)
  })

  it('gets no corrupt NAR, and the right one from a second publisher', async () => {
    const { here, publishers, take } = await network(['peer-liar', 'peer-honest'])
    await using _here = here
    const [liar, honest] = publishers
    if (!liar || !honest) throw new Error('two publishers')
    const nars = new Set(store.closure(closure.root)?.map(({ narHash }) => narHash))
    here.meet(liar, { lies: (digest) => nars.has(digest) })
    await using second = await SecondStore.make()
    expect((await second.realise(closure.root, take)).ok).toBe(false)
    expect(closure.paths.some((path) => second.has(path))).toBe(false)
    expect(
      here.log.events.some(
        ({ event, fields }) => event === 'nix.nar-failed' && String(fields.reason).includes('peer-liar'),
      ),
    ).toBe(true)
    await second.forgetAnswers()
    // The liar is still asked first.
    here.meet(honest)
    expect((await second.realise(closure.root, take)).ok).toBe(true)
    expect(new Set(here.peers.faults.map(({ peerId }) => peerId))).toEqual(new Set(['peer-liar']))
    expect(await second.verify()).not.toMatch(/modified|error/)
  })

  it('is not kept waiting by a peer that hangs, and takes the path from another cache', async () => {
    const { here, publishers, take } = await network(['peer-hung'])
    await using _here = here
    for (const each of publishers) here.meet(each, { hangs: true })
    const healthy = new Receiver(store)
    await using _healthy = healthy
    await healthy.publish(closure.root)
    await using second = await SecondStore.make()
    const both = {
      substituters: [...take.substituters, await healthy.listen()],
      keys: [...take.keys, healthy.key.publicKey.text],
    }
    const { ok, ms } = await second.realise(closure.root, both)
    expect(ok).toBe(true)
    expect(ms).toBeLessThan(5_000)
  })

  it('goes on by range where a connection was cut', async () => {
    const { here, take } = await network([])
    await using _here = here
    await here.publish(closure.root)
    const ranges: string[] = []
    const cutting = await cuttingProxy(take.substituters[0] ?? '', ranges)
    await using second = await SecondStore.make()
    const { ok } = await second.realise(closure.root, { ...take, substituters: [`${cutting.url}/nix`] })
    cutting.server.close()
    expect(ok).toBe(true)
    expect(ranges.length).toBeGreaterThan(0)
    expect(await second.verify()).not.toMatch(/modified|error/)
  })

  it('makes keys and signatures that the agent takes, and takes those of the agent', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'nix-keys-'))
    try {
      const [secret, open] = [join(directory, 'secret'), join(directory, 'public')]
      execFileSync('nix-store', ['--generate-binary-cache-key', 'test-1', secret, open])
      const key = CacheKey.loadOrMake(secret, 'ignored')
      expect(key.publicKey.text).toBe(readFileSync(open, 'utf8').trim())
      const nix = ['--extra-experimental-features', 'nix-command', 'store']
      const target = join(directory, 'binary-cache')
      execFileSync('nix', [...nix.slice(0, 2), 'copy', '--to', `file://${target}?secret-key=${secret}`, closure.root], {
        stdio: 'pipe',
      })
      const info = store.info(closure.root)
      const text = readFileSync(join(target, `${closure.root.slice(11, 43)}.narinfo`), 'utf8')
      const signature = /^Sig: (.*)$/m.exec(text)?.[1] ?? ''
      expect(isSignedBy(parsePublicKey(key.publicKey.text), info as never, signature)).toBe(true)
      expect(key.sign(info as never)).toBe(signature)
      const made = CacheKey.loadOrMake(join(directory, 'made'), 'made').publicKey
      const input = readFileSync(join(directory, 'made'))
      const converted = execFileSync('nix', [...nix.slice(0, 2), 'key', 'convert-secret-to-public'], {
        input,
        encoding: 'utf8',
      })
      expect(converted.trim()).toBe(made.text)
    } finally {
      rmSync(directory, { recursive: true, force: true })
    }
  })

  it('agrees on the names of content-addressed paths, with references and without', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'nix-ca-'))
    try {
      writeFileSync(join(directory, 'file'), `${Math.random()}`)
      const added = execFileSync('nix-store', ['--add', join(directory, 'file')], { encoding: 'utf8' }).trim()
      const flat = execFileSync('nix-store', ['--add-fixed', 'sha1', join(directory, 'file')], {
        encoding: 'utf8',
      }).trim()
      const derivation = store.info(store.info(closure.root)?.deriver ?? '')
      expect(derivation?.references.length).toBeGreaterThan(0)
      for (const info of [store.info(added), store.info(flat), derivation]) {
        expect(info?.ca).toBeDefined()
        expect(info && contentAddressFits(info, info.ca ?? '')).toBe(true)
      }
    } finally {
      rmSync(directory, { recursive: true, force: true })
    }
  })

  it('takes a content-addressed path without any signature', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'nix-ca-'))
    const { here, take } = await network([], false)
    await using _here = here
    writeFileSync(join(directory, 'file'), `${Math.random()}`)
    const path = execFileSync('nix-store', ['--add', join(directory, 'file')], { encoding: 'utf8' }).trim()
    rmSync(directory, { recursive: true })
    here.meet(await publisher('peer-a', store, path))
    await using second = await SecondStore.make()
    expect(await second.realise(path, take)).toMatchObject({ ok: true })
    expect(readFileSync(second.place(path))).toEqual(readFileSync(path))
  })
})

/** Passes requests on, and cuts the first answer to each large NAR in the middle. */
async function cuttingProxy(target: string, ranges: string[]): Promise<{ url: string; server: Server }> {
  const cut = new Set<string>()
  const answer = async (request: IncomingMessage, response: ServerResponse) => {
    const { url = '' } = request
    const range = request.headers.range
    if (range) ranges.push(range)
    const answered = await fetch(new URL(url, target), { headers: range ? { range } : {} })
    const bytes = Buffer.from(await answered.arrayBuffer())
    response.writeHead(answered.status, Object.fromEntries(answered.headers))
    if (bytes.byteLength < 1_000_000 || cut.has(url)) {
      response.end(bytes)
      return
    }
    cut.add(url)
    response.write(bytes.subarray(0, 500_000), () => response.destroy())
  }
  const server = createServer((request, response) => void answer(request, response))
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, server }
}
